"""What is said between kernel, server and workers; every message is a `channel.Frame`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

__all__ = ["Begin", "Environment", "Message", "TaskMeta"]


class Message(IntEnum):
    """Kinds of frames; `ident` is the worker's number towards the server, the job's towards a worker."""

    # kernel to server
    START = 1  # fds: the worker's end of its channel, the writing end of its log, where claims are taken
    SIGNAL = 2  # meta: signal number in decimal
    # server to kernel
    PRELOADED = 10  # body: Preloaded
    STARTED = 11  # meta: pid in decimal
    EXITED = 12  # meta: wait status in decimal
    STALE = 13  # an edit overtook the server: this worker was not started
    # kernel to worker
    BEGIN = 20  # meta: Begin; body and fds: the call of setup
    TASK = 21  # meta: TaskMeta or nothing; body and fds: the call
    TASK_AHEAD = 22  # the same, to be begun after the present one by whoever takes its claim first
    # worker to kernel
    READY = 30  # set up; ident: pid
    SETUP_FAILED = 31  # meta: Failure
    VALUE = 32  # meta: Measured or nothing; body and fds: the value
    ERROR = 33  # meta: Failure
    REPORT = 34  # meta: what the task reported
    OUTDATED = 35  # a module this worker imported was edited: the task was not begun
    PASSED = 37  # a task ahead was taken back before this worker came to it
    BAD_FORK = 36  # CUDA was awake in the server; meta: what is known of it
    MEMORY = 38  # meta: (bytes allocated, bytes reserved) by torch on this worker's GPUs, while a task runs


@dataclass(frozen=True, slots=True)
class Environment:
    """What a task finds around it: the kernel's environment, folder and import path at its submission."""

    variables: dict[str, str]
    folder: str
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """A worker's first message: where it is and what surrounds it."""

    slot: int
    threads: int
    gpu_id: int | None
    uuid: str
    devices: tuple[str, ...]
    pins: dict[str, str]
    environment: Environment
    memory_growth: int | None


class TaskMeta(NamedTuple):  # a named tuple is pickled in a fifth of a dataclass's time
    """What comes with a task beside its call. Of a plain `submit` only a changed context."""

    environment: Environment | None = None
    name: str = ""
    place: int | None = None  # among the tasks of its run
    seed: int | None = None
    attempt: int = 1
    folder: str | None = None
    store_as: str = ""


class Measured(NamedTuple):
    """What a worker knows of a task that it ran. Times in seconds, memory in bytes."""

    started: float = 0.0
    seconds: float = 0.0
    peak_rss: int | None = None
    peak_allocated: int | None = None
    peak_reserved: int | None = None
    held: int = 0
    stored: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception of the worker, told so that any kernel can read it."""

    kind: str
    message: str
    traceback: str
    out_of_memory: bool
    exception: bytes = b""  # pickled, where it survives the round trip
    measured: Measured = field(default_factory=Measured)


@dataclass(frozen=True, slots=True)
class Preloaded:
    """What the server says when it has imported what it was told to."""

    errors: dict[str, str]
    woke_cuda: str = ""
