"""Batch sizes found in earlier sessions, in a file of the user's cache folder. They are where to begin, not answers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from ..hardware.slots import Slot, total_memory
from ..runs.fingerprint import fingerprint
from ..store.files import atomic_write
from ..tasks import Task

__all__ = ["Bracket", "Remembered", "cache_folder"]

FORMAT = 1
MOST = 500  # sizes that are kept, the last found
log = logging.getLogger("mgpu_nb")
_lock = threading.Lock()


class Bracket(NamedTuple):
    """Largest size known to fit, and the smallest known not to; None if none was met."""

    fits: int
    too_large: int | None


def cache_folder() -> Path:
    """Folder for what is kept between sessions: ``$MGPU_NB_CACHE``, else ``mgpu_nb`` of the user's cache folder."""
    if own := os.environ.get("MGPU_NB_CACHE"):
        return Path(own).expanduser()
    users = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(users) if Path(users).is_absolute() else Path("~/.cache").expanduser()) / "mgpu_nb"


class Remembered:
    """The batch size of a function on devices of a kind.

    It is another one if the function's code, defaults or closure have changed, if torch is of another version, or if
    the devices are of another model or size.

    Parameters
    ----------
    fn
        The function; one whose identity cannot be told is not remembered.
    slots
        Slots of the pool.
    """

    def __init__(self, fn: Callable[[int], Any], slots: Sequence[Slot]) -> None:
        self.key = ""
        self._about: dict[str, str] = {}
        try:
            code, torch = fingerprint(Task(fn), 0), version("torch")
        except PackageNotFoundError:
            return
        except Exception as error:  # whatever pickling raises
            log.debug("largest_batch: not remembered, as %r has no identity: %s", fn, error)
            return
        kinds = sorted({f"{slot.name}, {(total_memory(slot) or 0) >> 20} MiB" for slot in slots})
        self._about = {"function": Task(fn).kind, "devices": "; ".join(kinds), "torch": torch}
        text = json.dumps([code, self._about], sort_keys=True)
        self.key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def _path(self) -> Path:
        return cache_folder() / "largest_batch.json"

    def recall(self) -> Bracket | None:
        """What was found earlier; None if nothing was, or it cannot be read."""
        found = _entries(self._path).get(self.key) if self.key else None
        if not isinstance(found, dict):
            return None
        fits, too_large = _size(found.get("fits")), _size(found.get("too_large"))
        if fits is None or (too_large is None and found.get("too_large") is not None):
            return None
        return None if too_large is not None and too_large <= fits else Bracket(fits, too_large)

    def remember(self, found: Bracket) -> None:
        """Keep what was found, if the folder can be written."""
        if not self.key or found.fits < 1:
            return
        with _lock, contextlib.suppress(OSError):
            entries = _entries(self._path)
            entries.pop(self.key, None)
            entries[self.key] = {**found._asdict(), **self._about, "at": round(time.time())}
            kept = dict(list(entries.items())[-MOST:])
            with atomic_write(self._path) as part:
                part.write_text(json.dumps({"format": FORMAT, "sizes": kept}, indent=1), encoding="utf-8")


def _size(value: object) -> int | None:
    """A size, if it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _entries(path: Path) -> dict[str, Any]:
    """Sizes by key; none of a file that is of another format, broken or not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    sizes = content.get("sizes")
    return sizes if isinstance(sizes, dict) else {}
