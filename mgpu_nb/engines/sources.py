"""Which of the user's own modules were edited since they were imported."""

from __future__ import annotations

import os
import sys
import time

from ..installation import is_installed

__all__ = ["Sources"]


class Sources:
    """Stamps (modification time, size) of the modules imported from outside the Python installation.

    An installed package does not change while work goes on, a module beside the notebook does.
    """

    def __init__(self) -> None:
        # The runtime of this package stays as it was started; its workloads may be edited.
        here = os.path.dirname(os.path.dirname(__file__))
        self._own = (os.path.join(here, ""), os.path.join(here, "workloads", ""))
        self._seen: set[str] = set()
        self._stamps: dict[str, tuple[int, int] | None] = {}
        self._scanned = 0
        self._since = time.time_ns()

    def scan(self) -> None:
        """Stamp what was imported since the last scan.

        A file that was written since then may have been edited after its import: it counts as edited.
        """
        if len(sys.modules) == self._scanned:
            return
        modules = list(sys.modules.items())
        self._scanned = len(modules)
        since, self._since = self._since, time.time_ns()
        for name, module in modules:
            if name in self._seen:
                continue
            self._seen.add(name)
            file = getattr(module, "__file__", None)
            if not isinstance(file, str) or not file.endswith(".py") or not self._watched(file):
                continue
            if (stamp := _stamp(file)) is not None:  # some modules name files that never were
                self._stamps[file] = None if since < stamp[0] <= self._since else stamp

    def _watched(self, file: str) -> bool:
        if file.startswith(self._own[0]):
            return file.startswith(self._own[1])
        return not is_installed(file)

    def edited(self) -> str:
        """First file that was edited since its import; empty if there is none."""
        for file, stamp in self._stamps.items():
            if stamp is None or _stamp(file) != stamp:
                return file
        return ""


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
