"""The folder of a run as a worker has it: that of the parent process, or none where it is on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..store.token import has_token
from .protocol import Begin, TaskMeta

__all__ = ["RunFolder", "RunFolders"]

MOST = 64  # runs that are remembered


class RunFolder(NamedTuple):
    """The folder of a task's run; None outside a run, and where it is not here: then `note` says why."""

    path: Path | None
    note: str = ""


class RunFolders:
    """Finds out, once for each run, whether its folder is here."""

    def __init__(self, begin: Begin) -> None:
        self._node, self._parent = begin.node, begin.parent
        self._known: dict[tuple[str | None, str | None], RunFolder] = {}

    def of(self, meta: TaskMeta) -> RunFolder:
        """Folder of a task's run. Takes some seconds the first time that it is not here."""
        key = meta.folder, meta.token
        if (known := self._known.get(key)) is None:
            if len(self._known) >= MOST:
                self._known.clear()
            known = self._known[key] = self._find(meta)
        return known

    def _find(self, meta: TaskMeta) -> RunFolder:
        if meta.folder is None:
            return RunFolder(None)
        path = Path(meta.folder)
        reason = "is not"
        if meta.token is not None:
            try:
                if not meta.token or has_token(path, meta.token):
                    return RunFolder(path)
            except TimeoutError as error:
                reason = f"cannot be looked at ({error})"
        return RunFolder(
            None,
            f"the run's folder {path} of host {self._parent} {reason} on node {self._node}: return what must be kept, "
            "or give the run a folder that both machines have",
        )
