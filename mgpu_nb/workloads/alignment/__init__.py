"""alignment: post-training of language models by rounds that generate data, train and evaluate.

Jobs are algorithms x model pairs x data sets x rounds. A round waits for its own chain's earlier round alone, a failed
job cancels what depends on it, and a run that was interrupted goes on where it was. ::

    from mgpu_nb.workloads import alignment

    run = alignment.start(alignment.Config(("experiment.name=first", "rounds_of_training=2")))
    report = alignment.collect(run.wait())
    report.save()

The same from a shell is ``mgpu-nb alignment experiment.name=first rounds_of_training=2``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import Config
from .job import EMBEDDED, Example, Job, Pair, Sample

if TYPE_CHECKING:
    from .check import CheckConfig
    from .completions import enumerate_policy
    from .device_manager import device_memory, largest_batches, memory_lines
    from .exact import sums_frontier
    from .files import read_rows
    from .fit_reference import FitConfig
    from .inputs import check_inputs
    from .plan import tasks
    from .report import Report, collect
    from .settings import Settings, load_settings
    from .states import read_states
    from .workload import WORKLOAD, start

# Loaded on first use: the options alone need neither torch nor pandas.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "check": ["CheckConfig"],
        "device_manager": ["device_memory", "largest_batches", "memory_lines"],
        "exact": ["sums_frontier"],
        "files": ["read_rows"],
        "fit_reference": ["FitConfig"],
        "inputs": ["check_inputs"],
        "plan": ["tasks"],
        "report": ["Report", "collect"],
        "settings": ["Settings", "load_settings"],
        "states": ["read_states"],
        "completions": ["enumerate_policy"],
        "workload": ["WORKLOAD", "start"],
    },
)
__all__ = [
    "EMBEDDED",
    "WORKLOAD",
    "CheckConfig",
    "Config",
    "Example",
    "FitConfig",
    "Job",
    "Pair",
    "Report",
    "Sample",
    "Settings",
    "check_inputs",
    "collect",
    "device_memory",
    "enumerate_policy",
    "largest_batches",
    "load_settings",
    "memory_lines",
    "read_rows",
    "read_states",
    "start",
    "sums_frontier",
    "tasks",
]


def __dir__() -> list[str]:
    return sorted(__all__)
