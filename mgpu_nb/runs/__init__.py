"""A batch of tasks: planned, recorded, resumed, shown.

The package is a function as well: ``mgpu_nb.runs(folder)`` is `mgpu_nb.runs.past.find_runs`, a table of the runs in a
folder. The name is taken by the package itself, and users look for it there.
"""

from __future__ import annotations

import os
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .past import PastRuns


class _Runs(types.ModuleType):
    def __call__(self, folder: str | os.PathLike[str] = "runs") -> PastRuns:
        """Runs in a folder; see `mgpu_nb.runs.past.find_runs`."""
        from .past import find_runs

        return find_runs(folder)


sys.modules[__name__].__class__ = _Runs
