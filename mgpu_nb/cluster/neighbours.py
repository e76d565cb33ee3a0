"""Processes of one machine and one user: each opens the memory files of the other, and large values are not copied.

Linux shows the descriptors of a process in ``/proc/<pid>/fd`` to processes of the same user. Host names and numbers of
processes may be the same elsewhere, and in a container a number is another process's: whether it works is tried, with
a file whose content nobody else knows.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any

__all__ = ["Witness", "neighbour", "open_file"]

_LENGTH = 32  # bytes


class Witness:
    """A memory file of this process by which another one finds out whether it is a neighbour.

    Attributes
    ----------
    told
        What the other process is told, for JSON: the number of this one, of the descriptor, and the content. None
        where there is no such file.
    """

    def __init__(self) -> None:
        self._fd = -1
        self.told: list[Any] | None = None
        content = secrets.token_bytes(_LENGTH)
        with contextlib.suppress(OSError, AttributeError):  # no descriptor is left; not Linux
            self._fd = os.memfd_create("mgpu_nb", os.MFD_CLOEXEC)
            os.write(self._fd, content)
            self.told = [os.getpid(), self._fd, content.hex()]

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def neighbour(told: Any) -> int | None:
    """Number of the process that told `Witness.told`, if this one can open its memory files."""
    try:
        pid, number, content = told
        fd = open_file(pid, number)
    except (OSError, TypeError, ValueError):
        return None
    try:
        return pid if os.pread(fd, _LENGTH, 0).hex() == content else None
    finally:
        os.close(fd)


def open_file(pid: int, number: int) -> int:
    """Descriptor of a memory file that a neighbour has open, to be read.

    Raises
    ------
    OSError
        If there is none, or it is another kind of file.
    """
    path = Path(f"/proc/{pid:d}/fd/{number:d}")
    if not str(path.readlink()).startswith("/memfd:"):
        raise OSError(f"{path} is no memory file")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{path} is no memory file")
    return fd
