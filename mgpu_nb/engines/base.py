"""The seam between the scheduler and the outside: engines, their workers, and the clock.

The scheduler decides which job runs where and when. An engine knows slots and their memory, starts worker processes
and carries the messages to and from them. `engines.local` is the engine of this machine; others are found by name in
`ENGINES` or among the entry points of the group ``mgpu_nb.engines``.
"""

from __future__ import annotations

import importlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, Unpack, runtime_checkable

from ..hardware.slots import Memory, Slot
from ..options import check_choice
from .awake import awake
from .environment import Environment
from .interpreter import Interpreter
from .payload import NotPlain, Payload, Received
from .protocol import Begin, Failure, Logged, Measured, Reported, TaskMeta

__all__ = [
    "ENGINES",
    "AssignsFromAnyThread",
    "Begin",
    "Clock",
    "Cluster",
    "DescribesNodes",
    "Elastic",
    "Engine",
    "EngineOptions",
    "Environment",
    "Failure",
    "GivesBack",
    "Logged",
    "Measured",
    "MeetingPoints",
    "Memory",
    "NodeState",
    "NotPlain",
    "OnNodes",
    "Payload",
    "PicksDevices",
    "ProcessEvents",
    "Received",
    "Reported",
    "SystemClock",
    "TaskMeta",
    "Watcher",
    "WorkerEvents",
    "WorkerHandle",
    "make_engine",
]

AWAKE = 0.0005  # seconds that a clock waits awake for what may follow what has just come

ENGINES = {"local": "mgpu_nb.engines.local:LocalEngine"}
"""Import paths of the engines of this package, by name."""
GROUP = "mgpu_nb.engines"


class Clock(Protocol):
    """Time as the scheduler sees it."""

    def time(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def select(self, selector: Any, timeout: float | None) -> list[tuple[Any, int]]:
        """Events of a selector; waits for one, at most `timeout` seconds."""


class SystemClock:
    """The clock of this machine."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def __init__(self) -> None:
        self._eventful = False  # whether there were events the last time

    def select(self, selector: Any, timeout: float | None) -> list[tuple[Any, int]]:
        """Events of a selector; waits for one, at most `timeout` seconds. Where one came, the next may come at once."""
        events: list[tuple[Any, int]] = []
        if self._eventful and (timeout is None or timeout > AWAKE):
            events = awake(partial(selector.select, 0), AWAKE)
        events = events or selector.select(timeout)
        self._eventful = bool(events)
        return events


class Watcher(Protocol):
    """What an engine asks of the scheduler's loop.

    All but `call_soon_threadsafe` and `call_before_sleep` in the loop's thread only.
    """

    def watch(self, source: Any, action: Callable[[], None], *, writable: bool = False) -> None:
        """Call `action` when a descriptor is readable, or also when it is writable."""

    def unwatch(self, source: Any) -> None:
        """Stop watching a descriptor."""

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop's thread."""

    def call_before_sleep(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop's thread, once all that is to be done now was done."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
        """Call `callback` once after `seconds`."""


class WorkerHandle(Protocol):
    """A worker process as the scheduler sees it. No call waits for the process.

    Attributes
    ----------
    number
        Unique in this process.
    pid
        Process id on its host; None before it is known.
    reported
        Bytes that torch has allocated and reserved on the worker's GPUs; None if not reported.
    """

    number: int
    pid: int | None
    reported: tuple[int, int] | None

    @property
    def prefetches(self) -> bool:
        """Whether it takes the next jobs before the present one has ended."""

    def assign(self, job: int, meta: TaskMeta | None, payload: Payload) -> None:
        """Send a job to be run now; the worker has none."""

    def prefetch(self, jobs: Sequence[tuple[int, Payload]]) -> None:
        """Send jobs (number, call) to be run after the present one."""

    def answer(self, job: int, payload: Payload) -> None:
        """Send a job what it asked for, see `WorkerEvents.asks`: whether there is a value, and that or an error."""

    def unprefetch(self) -> bool:
        """Take the last prefetched job back; False if the worker has begun it, or may have.

        Where the worker is on another machine it is only asked for: False, and `WorkerEvents.taken_back` may follow.
        """

    def stop(self) -> None:
        """Have the process end once it has no job."""

    def close(self) -> None:
        """Release what this process holds of it; it has ended or is given up."""


class ProcessEvents(Protocol):
    """Callbacks of an engine about worker processes, in the loop's thread."""

    def ready(self, worker: WorkerHandle) -> None:
        """The process is set up."""

    def setup_failed(self, worker: WorkerHandle, failure: Failure) -> None:
        """The pool's setup raised; the process is ending."""

    def unfit(self, worker: WorkerHandle) -> None:
        """The process is ending and has not begun the job that it was sent (a module was edited, say)."""

    def output(self, worker: WorkerHandle, data: bytes) -> None:
        """The process wrote to its stdout or stderr."""

    def broken(self, worker: WorkerHandle, reason: str) -> None:
        """What the process sends cannot be read; it must be killed."""

    def not_started(self, worker: WorkerHandle, reason: str, *, fault: bool) -> None:
        """There is no process, or it was lost before it was ready: the last event of a worker, in place of `exited`.

        `fault` says that the next one will not start either; else it was a shortage, or an accident.
        """

    def exited(self, worker: WorkerHandle, status: int | None, out_of_memory: bool | str = False) -> None:
        """The process ended, the last event of a worker.

        `status` is that of ``waitpid``, None if unknown; `out_of_memory` says that the operating system killed it for
        want of memory, or which memory there was.
        """


class WorkerEvents(ProcessEvents, Protocol):
    """Callbacks of an engine to the scheduler, in the loop's thread."""

    def value(self, worker: WorkerHandle, job: int, value: Received, measured: Measured | None) -> None:
        """A job returned."""

    def error(self, worker: WorkerHandle, job: int, failure: Failure, lacking: str = "") -> None:
        """A job raised; for want of what `lacking` names, if that is something which another machine may have."""

    def report(self, worker: WorkerHandle, job: int, report: Reported) -> None:
        """A job reported metrics."""

    def asks(self, worker: WorkerHandle, job: int, task: str) -> None:
        """A job needs the value of a task of its run, and cannot read it; it waits for `WorkerHandle.answer`."""

    def logged(self, worker: WorkerHandle, job: int, record: Logged) -> None:
        """A job, or `setup` (0), logged something; only if `Begin.forward_logs` asks for it."""

    # Of engines whose slots come and go, see `Elastic`.

    def joined(self, slots: Sequence[Slot]) -> None:
        """There are more slots. Their indexes are those of no other slot of the pool that is still there."""

    def draining(self, slots: Sequence[Slot], reason: str) -> None:
        """Slots will be gone soon: no job begins there any more, those that run go on."""

    def left(self, slots: Sequence[Slot], reason: str) -> None:
        """Slots are gone. The last event of each worker on them, `lost`, has come before or comes in this turn."""

    def lost(self, worker: WorkerHandle, reason: str) -> None:
        """The machine of a worker is gone, or out of reach: the last event of a worker, in place of `exited`.

        Its job is tried elsewhere, which does not count as an attempt of its own.
        """

    def taken_back(self, worker: WorkerHandle, job: int) -> None:
        """The last prefetched job of a worker was taken back, as `unprefetch` had asked for without an answer."""

    def gave_up(self, reason: str) -> None:
        """No slot will come any more. Jobs that wait are refused for this reason once no slot is left."""


class Engine(Protocol):
    """Where worker processes come from. A pool has one engine for itself."""

    @property
    def clock(self) -> Clock:
        """Time as this engine measures it."""

    def slots(
        self, gpu_ids: Sequence[int | str] | Literal["cpu"] | None, slots: int | None, threads: int | None
    ) -> tuple[Slot, ...]:
        """Slots of a pool, as `GPUPool` takes these options; raises for what is impossible."""

    def connect(self, loop: Watcher, events: WorkerEvents) -> None:
        """Use this loop, and report to `events`. Called once, before all that follows."""

    def warm_up(self) -> None:
        """Prepare to start workers quickly."""

    def start(self, begin: Begin, setup: Payload) -> WorkerHandle:
        """Start a worker; returns at once, what becomes of it comes as events.

        Raises
        ------
        OSError
            If that is impossible now.
        """

    def signal(self, worker: WorkerHandle, signum: signal.Signals) -> None:
        """Send a signal to the process, if it still exists."""

    def abandon(self, worker: WorkerHandle) -> None:
        """Report nothing more about a worker that cannot be killed."""

    def drain(self) -> None:
        """No worker will be started any more: that the rest end is no fault."""

    def memory(self, slot: Slot, enough: int | None = None) -> Memory:
        """Memory of a slot's device now; a lower bound of `free` will do if it is at least `enough` bytes."""

    def held(self, worker: WorkerHandle, slot: Slot) -> int | None:
        """Bytes that a worker holds on a slot's device (of RAM on virtual devices); None if unknown."""

    def close(self) -> None:
        """Release everything; workers that still run are killed."""


@runtime_checkable
class PicksDevices(Protocol):
    """What an engine has beside `Engine` if it can choose the devices of a pool: for ``GPUPool(pick="free")``."""

    def freest(self, slots: int | None, taken: Mapping[str, int]) -> Sequence[int | str]:
        """Ids of the freest GPUs as `slots` takes them, one for each slot, the freest first; empty if there are none.

        `taken` is the number of slots that pools of this process have on a GPU, by UUID.
        """


@runtime_checkable
class Elastic(Protocol):
    """What an engine has beside `Engine` if its slots come and go: `Engine.slots` returns none, events tell of them.

    Any thread may ask. Events are told from the loop, never from within a call of the scheduler's.
    """

    @property
    def expected(self) -> int | None:
        """Number of slots that there will be when all are there; None if that is not known."""

    def waits_for(self) -> str:
        """What it waits for, as a clause: ``2 of 4 nodes (SLURM job 17: PENDING, Resources)``; empty for nothing."""


@runtime_checkable
class GivesBack(Protocol):
    """What an engine has beside `Elastic` if it gives idle machines back, and asks for them again."""

    @property
    def idle(self) -> float | None:
        """Seconds without a job after which a machine is given back; None for never."""

    @property
    def given_back(self) -> str:
        """What was given back and not asked for since, as a sentence: ``1 of 2 nodes was given back ...``; or empty.

        Any thread may ask.
        """

    def give_back(self, host: str, reason: str) -> None:
        """Give a machine back: no job is there, nor will one begin there. `WorkerEvents.left` follows."""

    def ask_again(self, slots: int) -> None:
        """Ask for machines that were given back, as far as jobs that wait for so many slots need them.

        The scheduler repeats it in every turn in which jobs wait: what was asked for and has not come counts.
        """


@runtime_checkable
class MeetingPoints(Protocol):
    """What an engine has beside `Engine` if its slots are on other machines, where the workers of a gang must meet."""

    def meeting_point(self, slot: Slot) -> tuple[str, int]:
        """Address and port of a slot's machine that are kept for the worker of this slot; answers at once.

        The worker binds them with ``SO_REUSEPORT``; the workers of all other slots reach them.

        Raises
        ------
        OSError
            If that machine has none.
        """


@runtime_checkable
class DescribesNodes(Protocol):
    """What an engine has beside `Engine` if its slots are on other machines: what a run there was made with."""

    def described(self, host: str) -> Mapping[str, Any]:
        """Python, packages and path of a host's interpreter, as JSON; empty if unknown. Waits for nothing."""


class NodeState(NamedTuple):
    """A node on which workers of a pool are, or will be.

    Attributes
    ----------
    name
        Name of the node: the `Slot.host` of its slots, and the ``host`` of records.
    machine
        Host name of the machine, as it calls itself.
    pid
        Process id of the agent there.
    slots
        Slots on it.
    state
        ``starting`` until it has told its slots, ``ready``, or ``ending``: no task begins there, it will be gone soon.
    why
        Reason for its end; empty unless it is ending.
    """

    name: str
    machine: str
    pid: int
    slots: tuple[Slot, ...]
    state: Literal["starting", "ready", "ending"]
    why: str = ""


@runtime_checkable
class OnNodes(Protocol):
    """What an engine has beside `Engine` if agents on other machines start its workers."""

    def node_states(self) -> tuple[NodeState, ...]:
        """Nodes whose agents are there now, by name; any thread may ask."""


class EngineOptions(TypedDict):
    """Options of `GPUPool` for the workers of a cluster, as the pool takes them."""

    preload: Sequence[str]
    start_method: str | None
    env: Mapping[str, str] | None
    start_timeout: float


class Cluster(Protocol):
    """Other machines, as `GPUPool` takes them: ``GPUPool(cluster=Slurm(nodes=2))``."""

    def engine(self, **options: Unpack[EngineOptions]) -> Engine:
        """Engine of a pool whose workers are there; nothing is started before `Engine.connect`.

        Raises
        ------
        ValueError, OSError
            If that is impossible; the message says what to do.
        """


@runtime_checkable
class AssignsFromAnyThread(Protocol):
    """What an engine has beside `Engine` if any thread may call `WorkerHandle.assign` while the loop sleeps."""

    assigns_from_any_thread: Literal[True]


def make_engine(
    name: str,
    *,
    preload: Sequence[str] = (),
    start_method: str | None = None,
    env: Mapping[str, str] | None = None,
    python: Interpreter | None = None,
) -> Engine:
    """Engine of a name: one of `ENGINES`, or of an installed package's entry points.

    Raises
    ------
    ValueError
        If there is none of this name, or its package does not import; the message names those that exist.
    """
    options: dict[str, Any] = {"preload": tuple(preload), "start_method": start_method, "env": env}
    if python is not None:  # engines of other packages may know nothing of it
        options["python"] = python
    if name in ENGINES:  # without a look at what is installed, which takes longer than to start a worker
        module, _, attribute = ENGINES[name].partition(":")
        own: Engine = getattr(importlib.import_module(module), attribute)(**options)
        return own
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group=GROUP)}
    check_choice(name, dict.fromkeys([*ENGINES, *found]), "engine")
    try:
        engine: Engine = found[name].load()(**options)
    except (ValueError, OSError):  # for what is impossible with these options, as an engine of ours
        raise
    except Exception as error:
        source = getattr(found[name].dist, "name", "an installed package")
        raise ValueError(
            f"engine {name!r} of {source} cannot be made: {type(error).__name__}: {error}"
        ) from error
    return engine
