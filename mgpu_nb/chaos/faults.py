"""Functions that tasks of a storm run: some give a value, others do what ends, stops or confuses a worker."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..context import worker
from ..tasks import Status
from .traces import descriptor_folder

__all__ = ["FAULTS", "SOUND", "Kind", "chain", "double", "fill", "rank"]

LARGE = 400_000  # numbers, 3.2 MB: sent through shared memory
FOREVER = 1e6  # seconds
FLOOD = 2**20  # bytes


def begun(starts: str) -> None:
    """Write down that a task has begun: a whole line, by whichever process."""
    here = worker()
    line = f"{here.task} {here.attempt} {os.getpid()}\n".encode()
    file = os.open(starts, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def double(number: int) -> int:
    """Twice a number."""
    return 2 * number


def count(starts: str, number: int) -> int:
    """A small value."""
    begun(starts)
    return double(number)


def fill(starts: str, number: int) -> Any:
    """A value that travels through shared memory, float64 [LARGE]."""
    import numpy as np

    begun(starts)
    return np.full(LARGE, number, dtype=np.float64)


def tell(starts: str, number: int) -> int:
    """A value, after a hundred lines and twenty reports."""
    begun(starts)
    for step in range(20):
        worker().report(step=step, loss=1.0 / (step + 1))
        for line in range(5):
            print(f"task {number}, step {step}, line {line}")
    return double(number)


def rest(starts: str, number: int) -> int:
    """A value, after some milliseconds."""
    begun(starts)
    time.sleep(0.001 * (number % 20))
    return double(number)


def chain(starts: str, number: int, before: int) -> int:
    """The value of another task, and a number."""
    begun(starts)
    return before + number


def rank(number: int) -> int:
    """A value of a gang's task, which the others of the gang wait for."""
    time.sleep(0.02)
    return double(number)


def leave_program(starts: str, number: int) -> int:
    """A value, and a program that goes on."""
    begun(starts)
    program = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    with Path(starts).with_name("programs").open("a") as file:
        file.write(f"{program.pid}\n")
    program.returncode = 0  # nobody waits for it
    return double(number)


def flood_stderr(starts: str, number: int) -> int:
    """A value, after a mebibyte on stderr that has no end of a line."""
    begun(starts)
    sys.stderr.write("x" * FLOOD)
    return double(number)


def return_in_fork(starts: str, number: int) -> int:
    """A value, which the child of a fork returns as well."""
    begun(starts)
    if child := os.fork():
        os.waitpid(child, 0)
    return double(number)


def raise_in_fork(starts: str, number: int) -> int:
    """A value, while the child of a fork raises an exception."""
    begun(starts)
    if child := os.fork():
        os.waitpid(child, 0)
        return double(number)
    raise RuntimeError("in the child of a fork")


def fail_once(starts: str, number: int) -> int:
    """A value at the second attempt, an exception at the first."""
    begun(starts)
    if worker().attempt == 1:
        raise RuntimeError("the first attempt fails")
    return double(number)


def die_once(starts: str, number: int) -> int:
    """A value at the second attempt; the first ends its process."""
    begun(starts)
    if worker().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return double(number)


def fail(starts: str, number: int) -> NoReturn:
    """An exception."""
    begun(starts)
    raise ValueError(f"task {number} fails")


def exit_by_exception(starts: str, number: int) -> NoReturn:
    """``sys.exit``."""
    begun(starts)
    sys.exit(number % 2)


def not_pickled(starts: str, number: int) -> Any:
    """A value that cannot be sent."""
    begun(starts)
    return (number for _ in range(3))


def leave(starts: str, number: int) -> NoReturn:
    """``os._exit``."""
    begun(starts)
    os._exit(number % 3)


def kill_itself(starts: str, _: int) -> None:
    """SIGKILL, as the system sends it when memory runs out."""
    begun(starts)
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(starts: str, _: int) -> None:
    """A read of address 0."""
    begun(starts)
    ctypes.string_at(0)


def abort(starts: str, _: int) -> None:
    """What a failed assertion of a C library does."""
    begun(starts)
    os.abort()


class DiesInPickle:
    """What ends the process while the value is handed over."""

    def __reduce__(self) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError  # not reached


def die_while_sent(starts: str, _: int) -> DiesInPickle:
    """A value whose pickling ends the process."""
    begun(starts)
    return DiesInPickle()


def hang(starts: str, _: int) -> None:
    """Nothing until the timeout."""
    begun(starts)
    time.sleep(FOREVER)


def hang_deaf(starts: str, _: int) -> None:
    """Nothing until the timeout, deaf to SIGTERM."""
    begun(starts)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(FOREVER)


def stop_itself(starts: str, _: int) -> None:
    """SIGSTOP: neither alive nor dead until the timeout."""
    begun(starts)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(FOREVER)


def close_descriptors(starts: str, number: int) -> int:
    """A value that nothing is left to be sent on."""
    begun(starts)
    os.closerange(3, 1024)
    return double(number)


def _sockets() -> list[int]:
    """Sockets of this process."""
    found = []
    for path in descriptor_folder().iterdir():
        try:
            with socket.socket(fileno=os.dup(int(path.name))):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def write_garbage(starts: str, number: int) -> int:
    """A value, after bytes on every socket of the worker that say nothing."""
    begun(starts)
    garbage = bytes((number * 31 + 7 * k) % 256 for k in range(4096))
    for descriptor in _sockets():
        os.write(descriptor, garbage)
    return double(number)


@dataclass(frozen=True)
class Kind:
    """A kind of task, and what it must come to.

    Attributes
    ----------
    fn
        Its function, of the file of starts and a number.
    statuses
        Statuses that its record may have while nothing else strikes its worker.
    weight
        How often it is drawn.
    timeout, retries, devices
        Options of its task.
    """

    fn: Callable[[str, int], Any]
    statuses: tuple[Status, ...] = ("ok",)
    weight: float = 1.0
    timeout: float | None = None
    retries: int = 0
    devices: int = 1

    @property
    def name(self) -> str:
        """Name of its function, and what it takes."""
        return self.fn.__name__ + (f"_on_{self.devices}" if self.devices > 1 else "")


TIMEOUT = 0.5
PATIENCE = 30.0  # seconds for the child of a fork to end, on a busy machine
SOUND = (
    Kind(count, weight=6),
    Kind(fill, weight=2),
    Kind(tell, weight=2),
    Kind(rest, weight=4),
    Kind(rest, devices=2),
)
FAULTS = (
    Kind(leave_program),
    Kind(flood_stderr),
    Kind(return_in_fork, timeout=PATIENCE),
    Kind(raise_in_fork, timeout=PATIENCE),
    Kind(fail_once, retries=1),
    Kind(die_once, retries=1),
    Kind(fail, ("error",)),
    Kind(exit_by_exception, ("error",)),
    Kind(not_pickled, ("error",)),
    Kind(leave, ("killed",)),
    Kind(kill_itself, ("killed",)),
    Kind(segfault, ("killed",)),
    Kind(abort, ("killed",)),
    Kind(die_while_sent, ("killed",)),
    Kind(close_descriptors, ("killed",)),
    Kind(write_garbage, ("killed",)),
    Kind(hang, ("timeout",), timeout=TIMEOUT),
    Kind(hang_deaf, ("timeout",), weight=0.5, timeout=TIMEOUT),
    Kind(stop_itself, ("timeout",), weight=0.5, timeout=TIMEOUT),
)
