"""Plain data: what is to be done (`Task`) and what became of it (`Record`)."""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from .errors import message_of
from .installation import is_installed
from .options import (
    FileName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Seconds,
    Seed,
    check_value,
    checks_of,
)
from .places import device_name
from .signature import join, left_out, name_of, named_arguments, refuse_shared, value_of
from .summary import columns, short

__all__ = [
    "STATUSES",
    "Progress",
    "Record",
    "Status",
    "Task",
    "apply_each",
    "check_name",
    "count_failed",
    "derive_seed",
    "import_path",
    "path_of",
]

Status = Literal["ok", "error", "killed", "timeout", "cancelled", "out-of-memory", "skipped"]
STATUSES: tuple[Status, ...] = ("ok", "error", "killed", "timeout", "cancelled", "out-of-memory", "skipped")
T = TypeVar("T")
_NOT_FAILED = ("ok", "cancelled", "skipped")


@dataclass(frozen=True, init=False, slots=True, repr=False)
class Task:
    """A call of a function, and what it needs.

    Parameters
    ----------
    fn
        The function, or its import path ``"package.module:function"``. A function from a notebook
        cell, a closure, a lambda, a partial or a bound method travels by value.
    *arguments, **keywords
        Its arguments. A keyword that has one of the names below belongs to the task; if the function has a parameter
        of that name, or takes any keyword by ``**kwargs`` (`name` excepted), this is an error that says what to write.
    args, kwargs
        Its arguments as a tuple and a mapping, which is never ambiguous: ``Task(fit, args=(x,), kwargs={"seed": 3})``
        passes a seed to `fit`, and every option beside them is the task's. They may stand beside `keywords`.
    name
        Unique within a run; by default the function's name and the task's place in the run.
        Used in records, logs and ``after``.
    cost
        Expected duration in any unit. Within a run the costliest tasks start first. Where no task of
        the run states one, the seconds measured in earlier runs of this process stand in.
    memory
        Bytes of device memory (of RAM on virtual CPU devices) that must be free before it starts.
    devices
        Number of slots the task takes, all at once.
    timeout
        Seconds it may run, not counting the time it waits; then its worker is ended.
    retries
        How many more attempts it gets after a failure. A task that ends its worker three times
        is not tried again, whatever this says. What is lost with its node counts for neither: that is tried elsewhere,
        three times at the most.
    seed
        Seed of the task's random numbers; by default made of the run's seed and the task's place.
    after
        Name or names of the tasks that must end ``ok`` before this one starts. To be given the value of one, take
        `ValueOf` as an argument, which waits for it by itself.

    Raises
    ------
    TypeError, ValueError
        If a parameter is invalid; the message names it and the accepted values.
    """

    fn: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: FileName | None
    cost: NonNegativeFloat | None
    memory: PositiveInt | None
    devices: PositiveInt
    timeout: Seconds | None
    retries: NonNegativeInt
    seed: Seed | None
    after: tuple[FileName, ...]

    def __init__(
        self,
        fn: Callable[..., Any] | str,
        /,
        *arguments: Any,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = left_out(None),
        cost: float | None = left_out(None),
        memory: int | None = left_out(None),
        devices: int = left_out(1),
        timeout: float | None = left_out(None),
        retries: int = left_out(0),
        seed: int | None = left_out(None),
        after: str | Sequence[str] = left_out(()),
        **keywords: Any,
    ) -> None:
        __tracebackhide__ = True
        if isinstance(fn, str):
            module, _, qualname = fn.partition(":")
            if not module or not qualname:
                raise ValueError(f"fn={fn!r}: an import path reads 'package.module:function'")
        elif not callable(fn):
            raise TypeError(f"fn must be a function or an import path, not {type(fn).__name__}")
        set_fn, set_args, set_kwargs = _SETTERS
        set_fn(self, fn)
        values = (name, cost, memory, devices, timeout, retries, seed, after)
        stated = None
        for (option, default, plain, check, set_option), value in zip(_OPTIONS, values, strict=True):
            if value is default:
                set_option(self, plain)
            else:
                set_option(self, check(option, value))
                stated = stated or {}
                stated[option] = value
        if args is not None or kwargs is not None:
            if args is None or kwargs is None:  # a function may have one parameter of such a name
                _refuse_shared(fn, {"args": args} if kwargs is None else {"kwargs": kwargs})
            arguments, keywords = join(arguments, keywords, args, kwargs)
        elif stated is not None:
            _refuse_shared(fn, stated, len(arguments))
        set_args(self, arguments)
        set_kwargs(self, keywords)

    def __repr__(self) -> str:
        parts = [self.fn if isinstance(self.fn, str) else name_of(self.fn)]
        parts += [f"args={short(self.args)}"] * bool(self.args)
        parts += [f"kwargs={short(self.kwargs)}"] * bool(self.kwargs)
        parts += [
            f"{option}={value!r}"
            for option, _, plain, *_ in _OPTIONS
            if (value := getattr(self, option)) != plain
        ]
        return f"Task({', '.join(parts)})"

    @property
    def kind(self) -> str:
        """Import path of the function: tasks of one kind are the same work on other arguments."""
        return path_of(self.fn)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments by the names of the function's parameters; those of ``*args`` are ``args[0]`` and so on.

        So are all of a function that only workers of another interpreter can import.
        """
        try:
            fn = import_path(self.fn) if isinstance(self.fn, str) else self.fn
        except Exception:
            fn = _unknown
        return named_arguments(fn, self.args, self.kwargs)


def _unknown(*args: Any, **kwargs: Any) -> None:
    """Stands for a function whose parameters are not known."""


def _refuse_shared(fn: Callable[..., Any] | str, given: dict[str, Any], filled: int = 0) -> None:
    """Refuse options that are parameters of the function, too; what does not import is left to `GPUPool.run`."""
    __tracebackhide__ = True
    try:
        function = import_path(fn) if isinstance(fn, str) else fn
    except Exception:
        return
    refuse_shared("Task", function, given, exempt=("name", "args", "kwargs"), filled=filled)


# A task is made often: the slots' own setters are faster than object.__setattr__, and defaults need no check.
_SETTERS = tuple(Task.__dict__[slot].__set__ for slot in ("fn", "args", "kwargs"))
_OPTIONS = tuple(
    (option, default, value_of(default), checks_of(Task)[option].apply, Task.__dict__[option].__set__)
    for option, default in (Task.__init__.__kwdefaults__ or {}).items()
    if option not in ("args", "kwargs")
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Record:
    """What became of a task. Every task ends in exactly one.

    Attributes
    ----------
    name, index, kind
        The task: its name, its place in the run, the import path of its function.
    arguments
        Its arguments by the names of the function's parameters: numbers and short texts as they are, a short text for
        anything else.
    status
        ``ok`` | ``error`` (it raised) | ``killed`` (its process ended) | ``timeout`` | ``cancelled`` |
        ``out-of-memory`` | ``skipped`` (a task it waits for was not ok).
    value
        What it returned; None unless ok.
    error
        One line: the kind of failure and its message; empty where ok.
    traceback
        The traceback in the worker, or what is known of a process that ended; empty where ok.
    exception
        The exception that `Run.results` raises; None where ok or read back from a folder.
    slot, device, gpu_id, uuid
        Where it ran: number of the slot, device as the parent process names it (``cuda:1``, ``cpu:0``), id of the
        GPU (None on CPU), UUID of the device. Of a task with several devices, the first.
    pid, host
        The process and machine of the last attempt.
    attempt
        Number of the last attempt, from 1; 0 where it never started.
    queued, started, finished
        Times, in seconds since the epoch; started and finished are None where it never started.
    seconds
        Duration of the last attempt, by the worker's clock where the worker lived to tell it.
    peak_memory
        Bytes: on a GPU the larger of what NVML and torch's allocator saw, on a CPU the peak
        resident size of the worker. None where it could not be measured.
    peak_allocated, peak_reserved
        Bytes, by torch's allocator on GPUs; None on CPU.
    metrics
        Last value of everything the task reported (see `Worker.report`).
    notes
        What else happened: earlier attempts that failed, a worker that was replaced.
    log
        File with the output of the task's process, relative to the run's folder; empty where there is none.
    fingerprint
        Identity of the task for resume: hash of function, arguments and seed.
    """

    name: str
    index: int
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    status: Status
    value: Any = None
    error: str = ""
    traceback: str = ""
    exception: BaseException | None = None
    slot: int | None = None
    device: str = ""
    gpu_id: int | None = None
    uuid: str = ""
    pid: int | None = None
    host: str = ""
    attempt: int = 0
    queued: float | None = None
    started: float | None = None
    finished: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    peak_allocated: int | None = None
    peak_reserved: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    log: str = ""
    fingerprint: str = ""

    @property
    def ok(self) -> bool:
        """Whether the task gave a value."""
        return self.status == "ok"

    @property
    def failed(self) -> bool:
        """Whether it failed: what was cancelled, or skipped because another task failed, has not."""
        return self.status not in _NOT_FAILED

    def __repr__(self) -> str:
        parts = [str(self.status)]
        if self.ok:
            text = short(self.value)
            parts += [f"value={text!r}" if isinstance(self.value, str) else f"value={text}"] * (
                self.value is not None
            )
        elif self.error:
            parts.append(repr(short(self.error.partition("\n")[0])))
        if self.seconds is not None:
            parts.append(f"{self.seconds:.2f} s")
        if self.device:
            parts.append(f"on {device_name(self.device, self.host)}")
        return f"Record({self.name!r}: {', '.join(parts)})"

    def _repr_html_(self) -> str:
        from .tables import Html, Table, escape, gib

        times = "" if self.seconds is None else f"{self.seconds:.2f} s"
        status: object = self.status
        if self.failed:
            status = Html(f'<span class="e">✗ {escape(self.status)}</span>')
        rows: list[tuple[str, object]] = [("status", status), ("error", self.error)]
        rows += [(name, short(value)) for name, value in self.arguments.items()]
        values = columns(self.value)
        rows += [
            (f"value: {name}" if name != "value" else name, short(value)) for name, value in values.items()
        ]
        rows += [(f"reported: {name}", short(value)) for name, value in self.metrics.items()]
        rows += [
            ("device", device_name(self.device, self.host)),
            ("time", times),
            ("attempts", self.attempt if self.attempt > 1 else ""),
        ]
        rows += [("peak memory", f"{gib(self.peak_memory, 2)} GiB" if self.peak_memory else "")]
        rows += [("notes", "; ".join(self.notes)), ("log", self.log)]
        shown = [row for row in rows if row[1] != ""]
        return Table([("task", ""), (self.name, "")], shown, f"record of task {self.name}").to_html()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: tasks in all, ended, running, and ended by status."""

    total: int
    done: int
    running: int
    counts: dict[str, int]

    def __str__(self) -> str:
        parts = [f"{count} {status}" for status, count in self.counts.items() if count and status != "ok"]
        if parts and self.done == self.total:  # what was cancelled is not done
            return ", ".join([f"{self.counts.get('ok', 0)} ok", *parts])
        parts.insert(0, f"{self.done} of {self.total} done")
        return ", ".join([*parts, f"{self.running} running"] if self.running else parts)


def count_failed(counts: Mapping[str, int]) -> int:
    """Number of tasks that failed, from the numbers by status: what was cancelled or skipped has not."""
    return sum(count for status, count in counts.items() if status not in _NOT_FAILED)


def check_name(name: object, what: str = "name") -> str:
    """The name, if it can name a task, a run or a file."""
    return str(check_value(what, name, FileName))


def busy_time(records: Iterable[Record]) -> float:
    """Seconds in which at least one of these ran: a pause before a run was resumed does not count."""
    return time_covered((r.started, r.finished) for r in records)


def time_covered(spans: Iterable[tuple[float | None, float | None]]) -> float:
    """Seconds that at least one of these spans (begin, end) covers; one without both ends covers none."""
    total, until = 0.0, -math.inf
    for begin, end in sorted((begin, end) for begin, end in spans if begin and end):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def import_path(path: str) -> Any:
    """The object that ``"package.module:name"`` names.

    Raises
    ------
    ValueError
        If it cannot be imported: the message says why and, where a module raised, in which line.
    """
    module, _, qualname = path.partition(":")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a module does while it is imported
        reason, place = f"{type(error).__name__}: {message_of(error)}", _raised_at(error)
        if isinstance(error, (ModuleNotFoundError, TypeError, ValueError)) and not place:
            reason, remedy = message_of(error), _SPELLING  # the last two: no name, a relative one
        else:
            remedy = "mend the module, or install what it needs"
        raise ValueError(f"{path!r} does not import ({reason}{place}): {remedy}") from error
    try:
        return functools.reduce(getattr, qualname.split("."), found)
    except AttributeError as error:
        raise ValueError(f"{path!r} does not import ({message_of(error)}): {_SPELLING}") from error


_SPELLING = "check the spelling, and that its folder is on sys.path or its package installed"


def _raised_at(error: BaseException) -> str:
    """File and line in which a module raised while it was imported, in words; nothing where none did."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen ")
    ]
    own = [frame for frame in frames if not is_installed(frame.filename)] or frames
    return f", in {own[-1].filename}, line {own[-1].lineno}" if own else ""


def path_of(fn: Callable[..., Any] | str) -> str:
    """Import path of a function, whether or not it can be imported; of a partial that of what it calls."""
    if isinstance(fn, str):
        return fn
    while isinstance(fn, functools.partial):
        fn = fn.func
    module = getattr(fn, "__module__", None) or type(fn).__module__
    return f"{module}:{getattr(fn, '__qualname__', type(fn).__qualname__)}"


def apply_each(fn: Callable[..., T], chunk: Sequence[tuple[Any, ...]]) -> list[T]:
    """Values of a function for each of some arguments: the call that a worker is sent for items that travel together.

    Here, where it can be imported without all that a pool imports.
    """
    return [fn(*arguments) for arguments in chunk]


def derive_seed(run_seed: int, index: int) -> int:
    """Seed of item `index` of a run: the same on any worker and for any number of workers.

    The first 63 bits of BLAKE2b of ``"run_seed:index"``, so that neighbouring items and neighbouring
    runs share nothing.
    """
    digest = _of_run(run_seed).copy()
    digest.update(f"{index}".encode())
    return int.from_bytes(digest.digest(), "big") >> 1


@functools.lru_cache(64, typed=True)
def _of_run(run_seed: int) -> Any:
    """Digest of what the seeds of a run begin with."""
    return hashlib.blake2b(f"{run_seed}:".encode(), digest_size=8)
