"""Exclusive use of a run folder: by flock, or by a lock file on file systems that have no flock."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["FolderLock", "is_held"]

# Lustre mounted with noflock, NFS without its lock daemon, many FUSE file systems.
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


TRIES = 5  # to take a lock: who asks whether a folder is held has it for a moment


class FolderLock:
    """Lock of a folder, held by one writer at a time, whatever its process or host.

    The operating system drops an flock when its process ends. A lock file names its process instead, and is taken over
    once that process no longer runs on this host; a lock file of another host is never taken over.

    Parameters
    ----------
    folder
        The folder.
    descriptor
        Open file in the folder, on which flock is tried first.

    Raises
    ------
    BlockingIOError
        If another writer holds the lock.
    OSError
        If the file system fails otherwise.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self._file: Path | None = None
        try:
            for left in reversed(range(TRIES)):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not left:
                        raise self._held("another run", "wait for it, or choose another folder") from None
                    time.sleep(0.01)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            self._file = self._create_file(folder / "journal.lock")

    def release(self) -> None:
        """Release the folder. The descriptor stays open."""
        if self._file is None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # or a fork of this process would still hold it
        else:
            self._file.unlink(missing_ok=True)
            self._file = None

    def _create_file(self, file: Path) -> Path:
        while True:
            try:
                with file.open("x") as new:
                    json.dump(
                        {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}, new
                    )
                return file
            except FileExistsError:
                self._remove_stale(file)

    def _remove_stale(self, file: Path) -> None:
        """Remove the lock file of a process that has ended; raise if it may still run."""
        try:
            text = file.read_text()
        except FileNotFoundError:  # released in the meantime
            return
        holder: dict[str, Any] = {}
        with suppress(ValueError):  # half written: its process has just made it, or was killed at that moment
            holder = json.loads(text)
        if holder.get("host") != socket.gethostname() or _runs(holder["pid"], holder["began"]):
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another run"
            raise self._held(who, f"wait for it, or delete {file} if it has ended")
        # Moved first, which only one of two processes can do: it must not be a new lock that the other has just made.
        moved = file.with_name(f".{file.name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            file.rename(moved)
            if moved.read_text() != text:
                moved.rename(file)
                raise self._held("another run", "wait for it, or choose another folder")
            moved.unlink()

    def _held(self, who: str, what_to_do: str) -> BlockingIOError:
        return BlockingIOError(f"{self._folder} is being written by {who}: {what_to_do}")


def is_held(folder: Path) -> bool:
    """Whether a writer has a run's folder now. The lock is not taken from it; a reader's lock is had for a moment."""
    file = folder / "journal.lock"
    with suppress(OSError, ValueError, KeyError):
        holder = json.loads(file.read_text())
        return bool(holder["host"] != socket.gethostname() or _runs(holder["pid"], holder["began"]))
    try:
        descriptor = os.open(folder / "journal.jsonl", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
    finally:
        os.close(descriptor)
    return False


def _began(pid: int) -> float:
    """Unix time at which a process began, seconds; -inf if there is no such process."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return -math.inf


def _runs(pid: int, began: float) -> bool:
    """Whether a process still runs, and is not a later one of the same number; clocks may be adjusted by seconds."""
    return abs(_began(pid) - began) < 5
