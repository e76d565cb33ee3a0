"""Exclusive use of a run folder: by flock, or by a lock file on file systems that have no flock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .lines import LineReader

__all__ = ["FolderLock", "is_held"]

# Lustre mounted with noflock, NFS without its lock daemon, many FUSE file systems.
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


# Seconds between tries to take a lock: who asks whether a folder is held has it for a moment.
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


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
        self._file = self._take(descriptor)

    def _take(self, descriptor: int) -> Path | None:
        """Take the lock; the lock file, if there is no flock."""
        try:
            for pause in (*PAUSES, None):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if pause is None:
                        raise self._held(
                            _writer(self._folder), "wait for it, or choose another folder"
                        ) from None
                    time.sleep(pause)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            return self._create_file(self._folder / "journal.lock")
        return None

    def move(self, descriptor: int) -> None:
        """Hold the same folder, whose files were replaced, by another descriptor."""
        if self._file is None or not self._file.exists():
            self._file = self._take(descriptor)
        self._descriptor = descriptor

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
        with suppress(
            ValueError, KeyError
        ):  # half written: its process has just made it, or was killed at that moment
            holder = _checked(json.loads(text))
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


def _checked(holder: Any) -> dict[str, Any]:
    """Content of a lock file; empty if it is not one of ours."""
    if isinstance(holder, dict) and type(holder["pid"]) is int and {"host", "began"} <= holder.keys():
        return holder
    return {}


def is_held(folder: Path) -> bool:
    """Whether a writer has a run's folder now. The lock is not taken from it; a reader's lock is had for a moment."""
    file = folder / "journal.lock"
    with suppress(OSError, ValueError, KeyError):
        holder = _checked(json.loads(file.read_text()))
        return bool(holder["host"] != socket.gethostname() or _runs(holder["pid"], holder["began"]))
    try:
        descriptor = os.open(folder / "journal.jsonl", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
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


def _writer(folder: Path) -> str:
    """Who writes a folder, as the last header of its journal names it."""
    found: dict[str, Any] = {}
    with suppress(OSError), (folder / "journal.jsonl").open("rb") as file:
        reader = LineReader()
        for line in file:
            if b'"event": "run"' in line[:64]:
                found = reader.entry(line) or found
    if not {"pid", "host"} <= found.keys():
        return "another run"
    here = (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())
    return "another run of this process" if here else f"process {found['pid']} on {found['host']}"


def _began(pid: int) -> str | None:
    """When a process began, whatever the clock says now; empty if it has ended, None if that cannot be seen."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    else:
        return "" if state in "ZX" else f"{boot}:{numbers[18]}"
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:
        return None


def _runs(pid: int, began: object) -> bool:
    """Whether a process still runs, and is not a later one of the same number."""
    now = _began(pid)
    if now and isinstance(
        began, float
    ):  # an older version wrote the time by a clock, which may have been set since
        import psutil

        with suppress(psutil.Error):
            return abs(psutil.Process(pid).create_time() - began) < 5
    return now is None or (now != "" and now == began)
