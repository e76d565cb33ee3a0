"""Clusters of a command line: ``--cluster slurm --nodes 2``."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ..engines.base import Cluster
from ..options import PositiveInt, check_options
from ..tasks import import_path

__all__ = ["ClusterName", "cluster_of", "cluster_options"]

ClusterName = Literal["slurm", "ray", "agents", "allocation", "here"]

_KINDS = {
    "slurm": "mgpu_nb.cluster.slurm:Slurm",
    "ray": "mgpu_nb.cluster.ray:Ray",
    "agents": "mgpu_nb.cluster.agents:Agents",
    "allocation": "mgpu_nb.cluster.allocation:Allocation",
    "here": "mgpu_nb.workloads.clusters:Here",
}


@dataclass(frozen=True)
class Here:
    """Agents on this machine, to try out what a cluster does."""

    nodes: PositiveInt = 2
    """Number of agents on this machine."""

    def __post_init__(self) -> None:
        """Check the options."""
        check_options(self)


def cluster_options(name: str, taken: Collection[str]) -> type[Any]:
    """Dataclass of the options of a kind of cluster.

    Parameters
    ----------
    name
        One of `ClusterName`.
    taken
        Options of the workload: one of the same name is called ``cluster_<name>`` here.
    """
    import tyro

    kind: Any = import_path(_KINDS[name])
    hints = typing.get_type_hints(kind, include_extras=True)
    both = [field.name for field in dataclasses.fields(kind) if field.name in taken]
    annotated: Any = Annotated
    content = {
        "__annotations__": {
            name: annotated[hints[name], tyro.conf.arg(name=f"cluster_{name}")] for name in both
        },
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
        **{name: getattr(kind, name) for name in both},  # the defaults
    }
    return dataclass(frozen=True)(type(kind.__name__, (kind,), content)) if both else kind


def cluster_of(name: str, options: Any) -> Cluster:
    """Cluster of a kind, and of options that were read as those of `cluster_options`."""
    if name == "here":
        from ..cluster.agents import Agents

        return Agents(here=options.nodes)
    kind: Any = import_path(_KINDS[name])
    cluster: Cluster = kind(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)}
    )
    return cluster
