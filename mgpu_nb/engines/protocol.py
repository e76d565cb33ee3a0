"""Messages between parent process, server and workers; each is a `channel.Frame`.

What a worker sends is plain data in a pickle that may name no class, and is checked when it is read: a task can write
anything to any descriptor, and none of it may do harm in the parent process.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, NamedTuple, get_args, get_type_hints

from ..context import Members
from .environment import Environment

__all__ = [
    "PROTOCOL",
    "Begin",
    "Failure",
    "Logged",
    "Measured",
    "Message",
    "Preloaded",
    "ProtocolError",
    "Reported",
    "TaskMeta",
    "pack",
    "pack_preloaded",
    "unpack",
    "unpack_failure",
    "unpack_logged",
    "unpack_measured",
    "unpack_memory",
    "unpack_preloaded",
    "unpack_reported",
]

PROTOCOL = 3
"""Version of all that follows and of `channel`: another number for a change by which one side misreads the other.

Workers may be of another installation of this package, see `interpreter`.
"""


class Message(IntEnum):
    """Kinds of frames; `ident` is the worker's number towards the server, the job's towards a worker."""

    # parent process to server
    START = (
        1  # fds: the worker's end of its channel, the writing end of its log, the reading end of its tokens
    )
    SIGNAL = 2  # meta: signal number in decimal
    # server to parent process
    PRELOADED = 10  # body: PROTOCOL and Preloaded; the first message of a session
    STARTED = 11  # meta: pid in decimal
    EXITED = 12  # meta: wait status in decimal
    NOT_STARTED = 14  # meta: why; there is no process
    STALE = 13  # a module was edited after the server imported it: the worker was not started
    # parent process to worker
    BEGIN = 20  # meta: Begin; body and fds: the call of setup
    TASK = 21  # meta: TaskMeta or nothing; body and fds: the call
    PREFETCH = 22  # the same, to be run after the present one if its token is still there
    ATTACHMENT = 23  # body: something for later calls, see attachments.take
    ANSWER = 24  # body and fds: the value that a task asked for, or the error that there is in place of it
    # worker to parent process
    READY = 30  # set up; ident: pid
    SETUP_FAILED = 31  # meta: Failure, packed as those below
    VALUE = 32  # meta: Measured or nothing; body and fds: the value
    ERROR = 33  # meta: Failure
    REPORT = 34  # meta: values and last points of Reported; body: its lines
    OUTDATED = 35  # a module that this worker imported was edited: the task was not begun
    BAD_FORK = 36  # CUDA was initialised in the server: the task was not begun
    SKIPPED = 37  # a prefetched task whose token was taken back
    MEMORY = 38  # meta: (bytes allocated, bytes reserved) by torch on this worker's GPUs, while a task runs
    LOG = 39  # meta: Logged
    ASK = 40  # a task needs the value of another; meta: its name. The next frame is an ANSWER


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
    replaced: Mapping[str, int] = field(default_factory=dict)  # times for what each function had kept
    forward_logs: bool = False
    python: str = ""  # version of the parent process's Python, where the worker is of another interpreter
    node: str = ""  # name of the worker's machine, where that is another than the parent process's
    parent: str = ""  # then the name of that
    members: Members | None = None  # of the gang that its task belongs to


class TaskMeta(NamedTuple):
    """What is sent with a call: of a plain `submit` only a changed environment, of a task of a run all of it."""

    environment: Environment | None = None
    name: str = ""
    place: int | None = None  # among the tasks of its run
    seed: int | None = None
    attempt: int = 1
    folder: str | None = None
    store_as: str = ""
    # Name and stored JSON text of those that its arguments ask for; an empty one is not known yet.
    values: tuple[tuple[str, str], ...] = ()
    # A file by which the folder is known, empty where it surely is the same; None where it is known not to be there.
    token: str | None = ""

    def packed(self) -> bytes:
        """All of it as bytes; a plain tuple is pickled and read in a fourth of the time."""
        return pickle.dumps(tuple(self))

    @classmethod
    def unpacked(cls, packed: bytes) -> TaskMeta:
        """From bytes of the parent process."""
        return cls(*pickle.loads(packed))


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


class Logged(NamedTuple):
    """A log record of a worker; `left_out` is the number of those before it that were not sent."""

    name: str
    level: int
    message: str
    created: float
    path: str
    line: int
    function: str
    thread: str
    traceback: str
    left_out: int


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
    keeper: str = ""  # the function that kept too much
    without_folder: bool = False  # the run's folder is not on the worker's machine


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


class ProtocolError(Exception):
    """A message is none that its sender may send."""


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of numbers, texts, bytes and what is built of them; runs nobody's code."""

    def find_class(self, module: str, name: str) -> Any:
        raise ProtocolError(f"a message names {module}.{name}")


def pack(message: Any) -> bytes:
    """Message of a worker as bytes: plain data, or one of the classes above."""
    if isinstance(message, Failure):
        message = tuple(getattr(message, part.name) for part in fields(message))
    if isinstance(message, tuple):
        message = tuple(tuple(part) if isinstance(part, tuple) else part for part in message)
    return pickle.dumps(message, 5)


def unpack(packed: bytes) -> Any:
    """Plain data from bytes.

    Raises
    ------
    Exception
        If the bytes are anything else.
    """
    return _PlainUnpickler(io.BytesIO(packed)).load()


def _kinds(message: type) -> tuple[frozenset[type], ...]:
    """Types that each part of a message may have."""
    kinds = [frozenset(get_args(hint) or (hint,)) for hint in get_type_hints(message).values()]
    return tuple(kind | {int} if float in kind else kind for kind in kinds)


def _parts(packed: bytes, kinds: tuple[frozenset[type], ...]) -> tuple[Any, ...]:
    parts = unpack(packed)
    if type(parts) is not tuple:
        raise ProtocolError(f"a message is a {type(parts).__name__}")
    _check(parts, kinds)
    return parts


def _check(parts: tuple[Any, ...], kinds: tuple[frozenset[type], ...]) -> None:
    if len(parts) != len(kinds):
        raise ProtocolError(f"a message has {len(parts)} parts, not {len(kinds)}")
    for part, kind in zip(parts, kinds, strict=True):
        if type(part) not in kind:
            raise ProtocolError(f"a message has a {type(part).__name__} where another type is due")


_MEASURED = _kinds(Measured)
_FAILURE = tuple(frozenset({tuple}) if Measured in kind else kind for kind in _kinds(Failure))
_LOGGED = _kinds(Logged)
_REPORTED = (frozenset({dict}), frozenset({bytes}))
_MEMORY = (frozenset({int}), frozenset({int}))
_REPORTABLE = frozenset({str, int, float, bool, type(None)})


def pack_preloaded(preloaded: Preloaded) -> bytes:
    """Result of the server's preloads as bytes."""
    return pickle.dumps((PROTOCOL, preloaded.errors, preloaded.cuda_module), 5)


def unpack_preloaded(packed: bytes) -> Preloaded:
    """Result of the server's preloads, of a server that speaks this protocol."""
    try:
        protocol, errors, cuda_module = _parts(
            packed, (frozenset({int}), frozenset({dict}), frozenset({str}))
        )
    except ProtocolError:
        protocol, errors, cuda_module = 0, {}, ""
    if protocol != PROTOCOL:
        raise ProtocolError(f"workers speak protocol {protocol or 'unknown'}, this process {PROTOCOL}")
    return Preloaded(errors, cuda_module)


def unpack_measured(packed: bytes) -> Measured | None:
    """What was measured of a task, if anything was sent. Raises for anything else, as those below."""
    return Measured(*_parts(packed, _MEASURED)) if packed else None


def unpack_failure(packed: bytes) -> Failure:
    """An exception of a worker."""
    parts = _parts(packed, _FAILURE)
    found: dict[str, Any] = {part.name: value for part, value in zip(fields(Failure), parts, strict=True)}
    _check(found["measured"], _MEASURED)
    return Failure(**{**found, "measured": Measured(*found["measured"])})


def unpack_logged(packed: bytes) -> Logged:
    """A log record of a worker."""
    return Logged(*_parts(packed, _LOGGED))


def unpack_reported(packed: bytes, lines: bytes) -> Reported:
    """What a task reported."""
    values, last = _parts(packed, _REPORTED)
    if not all(type(name) is str and type(value) in _REPORTABLE for name, value in values.items()):
        raise ProtocolError("a task reports numbers, texts, bools and None by name")
    return Reported(values, lines, last)


def unpack_memory(packed: bytes) -> tuple[int, int]:
    """Bytes that torch has allocated and reserved."""
    allocated, reserved = _parts(packed, _MEMORY)
    return allocated, reserved
