"""Messages between parent process, server and workers; each is a `channel.Frame`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from .environment import Environment

__all__ = ["Begin", "Failure", "Measured", "Message", "Preloaded", "Reported", "TaskMeta"]


class Message(IntEnum):
    """Kinds of frames; `ident` is the worker's number towards the server, the job's towards a worker."""

    # parent process to server
    START = (
        1  # fds: the worker's end of its channel, the writing end of its log, the reading end of its tokens
    )
    SIGNAL = 2  # meta: signal number in decimal
    # server to parent process
    PRELOADED = 10  # body: Preloaded
    STARTED = 11  # meta: pid in decimal
    EXITED = 12  # meta: wait status in decimal
    STALE = 13  # a module was edited after the server imported it: the worker was not started
    # parent process to worker
    BEGIN = 20  # meta: Begin; body and fds: the call of setup
    TASK = 21  # meta: TaskMeta or nothing; body and fds: the call
    PREFETCH = 22  # the same, to be run after the present one if its token is still there
    ATTACHMENT = 23  # body: something for later calls, see attachments.take
    # worker to parent process
    READY = 30  # set up; ident: pid
    SETUP_FAILED = 31  # meta: Failure
    VALUE = 32  # meta: Measured or nothing; body and fds: the value
    ERROR = 33  # meta: Failure
    REPORT = 34  # meta: values and last points of Reported; body: its lines
    OUTDATED = 35  # a module that this worker imported was edited: the task was not begun
    BAD_FORK = 36  # CUDA was initialised in the server: the task was not begun
    SKIPPED = 37  # a prefetched task whose token was taken back
    MEMORY = 38  # meta: (bytes allocated, bytes reserved) by torch on this worker's GPUs, while a task runs


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message to a worker: its slot, devices, pinned variables and environment."""

    slot: int
    threads: int
    gpu_id: int | None
    uuid: str
    devices: tuple[str, ...]
    pins: dict[str, str]
    environment: Environment
    memory_growth: int | None
    shared: bool  # whether other workers of the pool use the same device


class TaskMeta(NamedTuple):  # a named tuple is pickled in a fifth of a dataclass's time
    """What is sent with a call: of a plain `submit` only a changed environment, of a task of a run all of it."""

    environment: Environment | None = None
    name: str = ""
    place: int | None = None  # among the tasks of its run
    seed: int | None = None
    attempt: int = 1
    folder: str | None = None
    store_as: str = ""
    values: tuple[tuple[str, str], ...] = ()  # name and stored JSON text of those that its arguments ask for


class Reported(NamedTuple):
    """What a task reported since the last time.

    Attributes
    ----------
    values
        Last value of each name.
    lines
        Lines for the file of metrics, see `store.metrics`.
    last
        Lines for the last points, where they are not among those that are kept; they replace those of before.
    """

    values: dict[str, Any]
    lines: bytes = b""
    last: bytes = b""


class Measured(NamedTuple):
    """What a worker measured of a task. Times in seconds, memory in bytes; `held` is not 0 if it kept too much."""

    started: float = 0.0
    seconds: float = 0.0
    peak_rss: int | None = None
    peak_allocated: int | None = None
    peak_reserved: int | None = None
    held: int = 0
    cuda_broken: bool = False  # no further task can use CUDA in that process
    stored: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception of a worker, readable also where its class is not importable."""

    kind: str
    message: str
    traceback: str
    out_of_memory: bool
    exception: bytes = b""  # pickled, where it survives the round trip
    measured: Measured = field(default_factory=Measured)


@dataclass(frozen=True, slots=True)
class Preloaded:
    """Result of the server's preloads: tracebacks by module, and the module that initialised CUDA, if one did."""

    errors: dict[str, str]
    cuda_module: str = ""
