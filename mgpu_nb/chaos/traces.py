"""What a process has and leaves: descriptors, threads, shared memory, temporary files, processes."""

from __future__ import annotations

import gc
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Traces", "alive", "descriptor_folder", "private_temporary_folder"]

PATIENCE = 10.0  # seconds for threads and processes to end
SHARED = Path("/dev/shm")  # noqa: S108 - it is listed, not written


def descriptor_folder() -> Path:
    """Folder with an entry for each descriptor of this process."""
    folder = Path("/proc/self/fd")
    return folder if folder.is_dir() else Path("/dev/fd")


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Traces:
    """What there is at a moment.

    Attributes
    ----------
    descriptors
        What the descriptors of this process are open on, without numbers, by how many are.
    threads
        Names of its threads, by how many bear it.
    files
        Files in shared memory and in the folder for temporary files.
    """

    descriptors: Counter[str]
    threads: Counter[str]
    files: frozenset[str]

    @classmethod
    def now(cls) -> Traces:
        """What there is now."""
        gc.collect()
        folders = [folder for folder in (SHARED, Path(tempfile.gettempdir())) if folder.is_dir()]
        files = frozenset(str(path) for folder in folders for path in folder.iterdir())
        return cls(_descriptors(), Counter(thread.name for thread in threading.enumerate()), files)

    def left(self, pids: Collection[int] = ()) -> list[str]:
        """What there is now and was not then, once what ends has had the time to end, in words.

        Other programs use shared memory as well: files there count if their names have the number of one of `pids`.
        """
        end = time.monotonic() + PATIENCE
        while (more := self._more(pids)) and time.monotonic() < end:
            time.sleep(0.05)
        return more

    def _more(self, pids: Collection[int]) -> list[str]:
        now = Traces.now()
        found = [f"thread {name} lives" for name in (now.threads - self.threads)]
        more = now.descriptors - self.descriptors
        if now.descriptors.total() > self.descriptors.total():
            found += [f"{n} descriptors are open on {what}" for what, n in sorted(more.items())]
        files = [name for name in sorted(now.files - self.files) if _of(name, pids)]
        return found + [f"file {name} is left" for name in files]


def _of(name: str, pids: Collection[int]) -> bool:
    """Whether a file is one of these processes, or of this one."""
    if Path(name).parent != SHARED:
        return True
    return not {os.getpid(), *pids}.isdisjoint(map(int, re.findall(r"\d+", Path(name).name)))


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for path in descriptor_folder().iterdir():
        try:
            target = str(path.readlink())
        except OSError:  # that of the listing
            continue
        found[target.partition(":[")[0]] += 1
    return found


@contextmanager
def private_temporary_folder(folder: Path) -> Iterator[None]:
    """Within the block this process and its workers make temporary files in a folder of their own."""
    folder.mkdir(exist_ok=True)
    variable, made = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = made
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable
