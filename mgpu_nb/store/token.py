"""A token in the folder of a run: by it a process of another machine knows whether it has the same folder."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from pathlib import Path

__all__ = ["PREFIX", "has_token", "remove_tokens", "write_token"]

PREFIX = ".shared-"
# Seconds before each look: a network file system may not have heard of a new file.
PAUSES: tuple[float, ...] = (0.0, 0.1, 0.3, 0.6, 1.0)
MOUNTS = "/proc/self/mountinfo"
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"})
"""File systems of one machine; of others, and those unknown, a look may be out of date."""
PATIENCE = 5.0  # seconds that a file system has to answer

_TEXT = (
    "A worker on another machine that finds this file has the folder of the run. It goes when the run ends.\n"
)


def write_token(folder: Path) -> str:
    """Put a token into a folder; its name, which is in no other.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    name = f"{PREFIX}{secrets.token_hex(8)}"
    (folder / name).write_text(_TEXT, encoding="utf-8")
    return name


def remove_tokens(folder: Path) -> None:
    """Remove the tokens of a folder, also those of processes that were killed."""
    with contextlib.suppress(OSError):
        for token in folder.glob(f"{PREFIX}*"):
            token.unlink(missing_ok=True)


def has_token(folder: Path, token: str) -> bool:
    """Whether a folder of this name is here and has a token.

    To know that it has not takes two seconds on a network file system, and no time on another.

    Raises
    ------
    TimeoutError
        If the file system does not answer within five seconds.
    """
    found: list[bool] = []
    look = threading.Thread(
        target=lambda: found.append(_look(folder, token)), name="mgpu_nb-token", daemon=True
    )
    try:
        look.start()  # it may hang for as long as the file system does
    except RuntimeError:  # no more threads are allowed here
        return _look(folder, token)
    look.join(PATIENCE)
    if not found:
        raise TimeoutError(f"the file system of {folder} does not answer within {PATIENCE:g} s")
    return found[0]


def _look(folder: Path, token: str) -> bool:
    for pause in PAUSES:
        time.sleep(pause)
        if os.path.exists(folder / token):  # noqa: PTH110 - whatever the error, it is not here
            return True
        if _is_local(folder):
            return False
        # NFS remembers for many seconds that a name is not there. To open the folder has it ask the server again.
        for each in (*reversed(folder.parents), folder):
            try:
                os.close(os.open(each, os.O_RDONLY | os.O_DIRECTORY))
            except FileNotFoundError:
                break
            except OSError:  # who may not list a folder may have what is below it
                continue
    return False


def _is_local(folder: Path) -> bool:
    """Whether what there is of a path is on a file system of this machine, which never answers out of date."""
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists()).resolve()
        lines = Path(MOUNTS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not on Linux, or it may not be looked at
        return False
    kinds: dict[Path, str] = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), before.split()[4])
        kinds[Path(place)] = after.split()[0]  # of several at one place the last is seen
    mount = next((place for place in (there, *there.parents) if place in kinds), None)
    return mount is not None and kinds[mount] in LOCAL
