"""Who holds the memory of a GPU: user and command of a process, told in few words and without its secrets."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from ..tables import gib

if TYPE_CHECKING:
    import psutil

__all__ = ["Holder", "current_user", "held_by", "holders", "short_command"]

LONGEST = 40  # characters of a command
REMEMBERED = 60.0  # seconds; to look at a process takes 0.8 ms, and devices are looked at twice a second
_WORKER = "mgpu_nb.engines"  # in the command line of every worker of this package
_PYTHON = re.compile(r"(?:i?python|pypy)[\d.]*t?")
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # options of Python whose value is the next argument


class Holder(NamedTuple):
    """A process that holds memory of a GPU.

    Attributes
    ----------
    pid
        Process id.
    size
        Bytes that it holds; None if unknown.
    user
        Name of its user; empty if it cannot be read, as that of a process in another container.
    command
        Program and first argument, ``python train.py``; for a worker of this package that of its parent
        process, ``worker of ipykernel 4321``. Empty if it cannot be read.
    ours
        Whether it is this process or was started by it.
    """

    pid: int
    size: int | None = None
    user: str = ""
    command: str = ""
    ours: bool = False

    def __str__(self) -> str:
        who = f"{self.user}: {self.command}".strip(": ")
        return f"{who} (pid {self.pid})" if who else f"pid {self.pid}"


def holders(held: Mapping[int, int | None]) -> tuple[Holder, ...]:
    """Holders of a GPU, the largest first, from the bytes that each process holds by its pid."""
    ordered = sorted(held.items(), key=lambda item: (-(item[1] or 0), item[0]))
    return tuple(_known(pid)._replace(size=size) for pid, size in ordered)


def current_user() -> str:
    """Name of the user of this process, as `Holder.user` has it."""
    import psutil

    return _user(psutil.Process())


def held_by(holders: Sequence[Holder], most: int = 3) -> str:
    """Text that names holders with what they hold, in GiB; those after the first `most` are counted."""
    named = [f"{holder} {gib(holder.size)} GiB" if holder.size else str(holder) for holder in holders[:most]]
    more = len(holders) - most
    return "; ".join(named) + (f"; and {more} more" if more > 0 else "")


def short_command(arguments: Sequence[str]) -> str:
    """Program and first argument of a command line, without folders, at most 40 characters.

    Nothing that may be secret is shown: no option, no value of one, no assignment, no address, no code. The first
    argument counts only where it follows the program (of Python: the script or the module).
    """
    words = list(arguments)
    if len(words) == 1:  # a title that the process gave itself
        words = words[0].split()
    if not words:
        return ""
    program, rest = _name(words[0].lstrip("-")), words[1:]
    module = ""
    if _PYTHON.fullmatch(program):
        while rest and rest[0].startswith("-") and rest[0] not in ("-c", "-m", "-"):
            del rest[: 2 if rest[0] in _WITH_VALUE else 1]
        if rest[:1] == ["-m"]:
            module, rest = "-m ", rest[1:]
    if module and rest and rest[0].startswith("ipykernel"):
        return "ipykernel"
    first = rest[0] if rest else ""
    shown = (
        program if not first or re.search(r"^-|[\s=@]|://", first) else f"{program} {module}{_name(first)}"
    )
    shown = _printable(shown)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def _name(path: str) -> str:
    """Last part of a path."""
    return PurePath(path).name


_remembered: dict[int, tuple[float, Holder]] = {}


def _known(pid: int) -> Holder:
    """A holder as it was described not long ago, or is now."""
    now = time.monotonic()
    at, holder = _remembered.get(pid, (now - REMEMBERED, Holder(pid)))
    if now - at < REMEMBERED:
        return holder
    for old, (seen, _) in list(_remembered.items()):
        if now - seen >= REMEMBERED:
            _remembered.pop(old, None)
    holder = _describe(pid)
    _remembered[pid] = now, holder
    return holder


def _describe(pid: int) -> Holder:
    import psutil

    try:
        process = psutil.Process(pid)
        user, arguments = _user(process), _arguments(process)
        command = short_command(arguments) or _printable(process.name())[:LONGEST]
        parents = _parents(process)
    except psutil.Error:  # it has ended, or is hidden from this user
        return Holder(pid, ours=pid == os.getpid())
    ours = pid == os.getpid() or any(parent.pid == os.getpid() for parent in parents)
    if pid == os.getpid():
        command = "this process"
    elif _is_worker(arguments):
        command = "worker of this process" if ours else _worker_of(parents) or command
    return Holder(pid, None, user, command, ours)


def _worker_of(parents: Sequence[psutil.Process]) -> str:
    """Name of a worker of another process: by its first parent that is no process of this package."""
    for parent in parents:
        arguments = _arguments(parent)
        if not _is_worker(arguments):
            command = short_command(arguments)
            return f"worker of {command} {parent.pid}" if command and parent.pid > 1 else ""
    return ""


def _is_worker(arguments: Sequence[str]) -> bool:
    return any(_WORKER in argument for argument in arguments[:3])


def _arguments(process: psutil.Process) -> list[str]:
    """Command line of a process; empty if this user may not read it."""
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _parents(process: psutil.Process) -> list[psutil.Process]:
    """Parents of a process, the nearest first; none if this user may not know them."""
    import psutil

    try:
        return process.parents()
    except psutil.Error:
        return []


def _user(process: psutil.Process) -> str:
    if not hasattr(process, "uids"):  # on Windows
        return process.username()
    return _name_of(process.uids().real)


@functools.cache
def _name_of(uid: int) -> str:
    """Name of a user; the number of one that this machine, or this container, does not know."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
