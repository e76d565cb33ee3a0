"""An engine without processes, in virtual time: what the scheduler does is exact, whatever the machine does meanwhile.

Tasks run in the scheduler's thread when their time has come. A task that returns a `Behaviour` acts it out: it takes
seconds of virtual time, reports, writes, fails, ends its process, takes memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from mgpu_nb.engines import payload
from mgpu_nb.engines.base import (
    Begin,
    Environment,
    Failure,
    Measured,
    Memory,
    Payload,
    Received,
    Reported,
    TaskMeta,
    Watcher,
    WorkerEvents,
    WorkerHandle,
)  # fmt: skip
from mgpu_nb.hardware.slots import Slot
from mgpu_nb.scheduler.dispatcher import Dispatcher
from mgpu_nb.scheduler.job import FutureJob, Job
from mgpu_nb.scheduler.outcome import Location, Outcome
from mgpu_nb.scheduler.workers import PoolOptions

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """What a task does: for `seconds`, then it returns `value`, raises `error` or ends its process with `status`."""

    seconds: float = 0.0
    value: Any = None
    error: BaseException | None = None
    out_of_memory: bool = False
    status: int | None = None
    memory: int = 0
    held: int = 0
    cuda_broken: bool = False
    reports: tuple[tuple[float, dict[str, Any]], ...] = ()
    output: bytes = b""
    ignores_sigterm: bool = False


class VirtualClock:
    """A clock that stands still while anything happens, and goes on to the next timer when nothing does."""

    def __init__(self, blocks: bool = False) -> None:
        self.now = 0.0
        self.runs = (
            True  # else it stands still whatever happens, so that tasks go on for as long as a test wants
        )
        self._blocks = blocks

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def select(self, selector: Any, timeout: float | None) -> list[tuple[Any, int]]:
        if timeout is None and not self._blocks:
            raise AssertionError("nothing can happen any more, and jobs are left")
        if timeout and not self.runs:
            return selector.select(0.01)  # type: ignore[no-any-return]
        events: list[tuple[Any, int]] = selector.select(None if timeout is None else 0)
        if not events and timeout:
            self.now += timeout
        return events


class VirtualWorker:
    """A worker that is not there."""

    numbers = itertools.count(1)

    def __init__(self, engine: VirtualEngine, begin: Begin, slot: Slot) -> None:
        self.number = next(self.numbers)
        self.pid: int | None = None
        self.reported: tuple[int, int] | None = None
        self.begin = begin
        self.slot = slot
        self.alive = True
        self.ready = False
        self.stopping = False
        self.behaviour: Behaviour | None = None
        self._engine = engine
        self._job: int | None = None
        self._recorded = False
        self._ahead: deque[tuple[int, Payload]] = deque()
        self._waits: tuple[int, TaskMeta | None, Payload] | None = None

    @property
    def prefetches(self) -> bool:
        return True

    def come_up(self) -> None:
        if not self.alive:
            return
        self.ready, self.pid = True, 10_000 + self.number
        self._engine.events.ready(self)
        if self._waits is not None:
            self.assign(*self._waits)

    def assign(self, job: int, meta: TaskMeta | None, payload: Payload) -> None:
        if not self.ready:
            self._waits = (job, meta, payload)
            return
        self._waits, self._job, self._recorded = None, job, meta is not None and bool(meta.name)
        self._act(payload.body, meta)

    def _act(self, body: bytes, meta: TaskMeta | None) -> None:
        engine, job = self._engine, self._job
        assert job is not None
        if engine.keeps:
            engine.log.append((engine.clock.now, self.slot.index, job, meta.name if meta is not None else ""))
        self.behaviour = behaviour = engine.behave(body)
        for at, metrics in behaviour.reports:
            engine.loop.call_later(at, partial(engine.events.report, self, job, Reported(metrics)))
        engine.loop.call_later(behaviour.seconds, lambda: self._finish(job, behaviour))

    def _finish(self, job: int | None, behaviour: Behaviour) -> None:
        if not self.alive or job != self._job:
            return
        engine = self._engine
        if behaviour.output:
            engine.events.output(self, behaviour.output)
        if behaviour.status is not None:
            self.exit(behaviour.status, behaviour.out_of_memory)
            return
        self._job = self.behaviour = None
        measured = None
        if self._recorded or behaviour.held or behaviour.cuda_broken:
            began = engine.clock.now - behaviour.seconds
            measured = Measured(
                began, behaviour.seconds, behaviour.memory, behaviour.memory, behaviour.memory,
                behaviour.held, behaviour.cuda_broken,
            )  # fmt: skip
        if behaviour.error is not None:
            failure = Failure(
                type(behaviour.error).__qualname__,
                str(behaviour.error),
                "".join(traceback.format_exception(behaviour.error)),
                behaviour.out_of_memory,
                payload.dumps_in_band(behaviour.error).body,
                measured or Measured(),
            )
            lacks = isinstance(behaviour.error, ModuleNotFoundError) and self.slot.host
            engine.events.error(self, job or 0, failure, str(behaviour.error) if lacks else "")
        else:
            packed = _NONE if behaviour.value is None else payload.dumps(behaviour.value)
            engine.events.value(self, job or 0, Received(packed.body, packed.fds), measured)
        if self._job is None and self._ahead:
            self._job, ahead = self._ahead.popleft()
            self._act(ahead.body, None)
        elif self.stopping and self._job is None:
            engine.loop.call_later(0.0, lambda: self.exit(0))

    def prefetch(self, jobs: Sequence[tuple[int, Payload]]) -> None:
        self._ahead.extend(jobs)
        self._engine.most_ahead = max(self._engine.most_ahead, len(self._ahead))

    def answer(self, job: int, payload: Payload) -> None:
        raise AssertionError("nobody asks")

    def unprefetch(self) -> bool:
        if not self._ahead:
            return False
        engine = self._engine
        if engine.answers_after is None:
            self._ahead.pop()
            return True
        engine.asked_back += 1
        last = self._ahead[-1]
        if engine.takes_at_once:
            self._ahead.pop()
            engine.loop.call_later(engine.answers_after, lambda: engine.events.taken_back(self, last[0]))
        else:
            engine.loop.call_later(engine.answers_after, lambda: self._take_back(last))
        return False

    def _take_back(self, last: tuple[int, Payload]) -> None:
        if self.alive and self._ahead and self._ahead[-1] is last:
            self._ahead.pop()
            self._engine.events.taken_back(self, last[0])

    def stop(self) -> None:
        self.stopping = True
        if self._job is None:
            self._engine.loop.call_later(0.0, lambda: self.exit(0))

    def exit(self, status: int | str | None, out_of_memory: bool = False) -> None:
        if self.alive:
            self.alive, self.behaviour = False, None
            self._engine.workers.discard(self)
            if isinstance(status, str):
                self._engine.events.not_started(self, status, fault=False)
            else:
                self._engine.events.exited(self, status, out_of_memory)

    def close(self) -> None:
        pass


class VirtualEngine:
    """Slots on virtual GPUs of virtual hosts.

    Parameters
    ----------
    gpus
        Number of GPUs with a slot each, or for each slot the number of its GPU.
    start_seconds
        Virtual seconds until a worker is ready.
    starts
        Called with the number of a start, from 0; a wait status ends that worker before it is ready, a text says why
        it is lost, an error is raised.
    total
        Bytes of a GPU.
    """

    keeps = True  # what was started: workers, jobs
    answers_after: float | None = None  # seconds until what is asked back comes; None for at once
    takes_at_once = False  # whether what is asked back is taken at once, and only the answer comes later
    asked_back = 0

    def __init__(
        self,
        gpus: Sequence[int] | int = 1,
        *,
        start_seconds: float = 0.0,
        starts: Callable[[int], int | str | OSError | None] = lambda number: None,
        total: int = 80 * GIB,
        hosts: int = 1,
        blocks: bool = False,
        **options: Any,
    ) -> None:
        self.clock = VirtualClock(blocks)
        self.options = options
        self.workers: set[VirtualWorker] = set()
        self.started: list[VirtualWorker] = []
        self.start_times: list[float] = []
        self.memory_readings = 0
        self.most_ahead = 0  # jobs that a worker was given ahead at the most
        self.log: list[
            tuple[float, int, int | None, str]
        ] = []  # time, slot, job, name of every start of a job
        self.others: dict[str, int] = {}  # bytes that other programs hold, by UUID
        self.signals: list[tuple[float, int, signal.Signals]] = []
        self.abandoned: list[int] = []
        self._slots = tuple(
            Slot(
                index=n, kind="cuda", gpu_id=gpu, uuid=f"GPU-{gpu}", name="virtual", threads=1,
                host=f"host-{gpu % hosts}",
            )
            for n, gpu in enumerate(range(gpus) if isinstance(gpus, int) else gpus)
        )  # fmt: skip
        self._start_seconds = start_seconds
        self._starts = starts
        self._started = itertools.count()
        self._total = total
        self.loop: Watcher
        self.events: WorkerEvents

    def slots(
        self,
        gpu_ids: Sequence[int | str] | Literal["cpu"] | None = None,
        slots: int | None = None,
        threads: int | None = None,
    ) -> tuple[Slot, ...]:
        return self._slots

    def connect(self, loop: Watcher, events: WorkerEvents) -> None:
        self.loop, self.events = loop, events

    def warm_up(self) -> None:
        pass

    def start(self, begin: Begin, setup: Payload) -> VirtualWorker:
        slot = self._slots[begin.slot]
        end = self._starts(next(self._started))
        self.start_times.append(self.clock.now)
        if isinstance(end, OSError):
            raise end
        worker = VirtualWorker(self, begin, slot)
        self.workers.add(worker)
        if self.keeps:
            self.started.append(worker)
        ready = worker.come_up if end is None else partial(worker.exit, end)
        self.loop.call_later(self._start_seconds, ready)
        return worker

    def behave(self, body: bytes) -> Behaviour:
        fn, args, kwargs = payload.loads(body)
        try:
            value = fn(*args, **kwargs)
        except Exception as error:
            return Behaviour(error=error)
        return value if isinstance(value, Behaviour) else Behaviour(value=value)

    def signal(self, worker: WorkerHandle, signum: signal.Signals) -> None:
        assert isinstance(worker, VirtualWorker)
        self.signals.append((self.clock.now, worker.slot.index, signum))
        stubborn = worker.behaviour is not None and worker.behaviour.ignores_sigterm
        if signum == signal.SIGKILL or not stubborn:
            self.loop.call_later(0.0, lambda: worker.exit(int(signum)))

    def abandon(self, worker: WorkerHandle) -> None:
        self.abandoned.append(worker.number)

    def drain(self) -> None:
        pass

    def memory(self, slot: Slot, enough: int | None = None) -> Memory:
        self.memory_readings += 1
        used = sum(self.held(worker, slot) or 0 for worker in self.workers)
        return Memory(self._total, self._total - used - self.others.get(slot.uuid, 0))

    def held(self, worker: WorkerHandle, slot: Slot) -> int | None:
        assert isinstance(worker, VirtualWorker)
        if worker.slot.device != slot.device or worker.behaviour is None:
            return 0
        return worker.behaviour.memory

    def close(self) -> None:
        self.workers.clear()


class ElasticEngine(VirtualEngine):
    """An engine whose nodes come and go at times that a test sets before the pool starts.

    Parameters
    ----------
    expected
        Slots when all nodes are there.
    """

    def __init__(self, expected: int | None = None, **options: Any) -> None:
        super().__init__(0, **options)
        self.expected = expected
        self.said = "a node"
        self.wanted: tuple[Any, ...] = ()  # as a pool asked for slots
        self.totals: dict[str, int | None] = {}  # bytes of each GPU, by host; None while they are not known
        self._there: dict[int, Slot] = {}
        self._slots = self._there  # type: ignore[assignment]  # by number as well
        self._planned: list[tuple[float, Callable[[], None]]] = []

    def slots(self, *options: Any) -> tuple[Slot, ...]:
        self.wanted = options
        return ()

    def waits_for(self) -> str:
        return self.said

    def connect(self, loop: Watcher, events: WorkerEvents) -> None:
        super().connect(loop, events)
        for at, action in self._planned:
            loop.call_later(at, action)

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something done at a time; also while the pool runs."""
        self._planned.append((seconds, action))
        if hasattr(self, "loop"):
            self.loop.call_soon_threadsafe(lambda: self.loop.call_later(seconds, action) and None)

    def come(
        self,
        at: float,
        host: str,
        slots: int = 1,
        first: int | None = None,
        gpus: Sequence[int] | None = None,
    ) -> None:
        """A node comes, with the lowest numbers that are free or from one on; all nodes number their GPUs from 0."""

        def action() -> None:
            start = first if first is not None else len(self._there)
            found = [
                Slot(
                    index=start + n, kind="cuda", gpu_id=gpu, uuid=f"GPU-{gpu}", name="virtual", threads=1, host=host
                )
                for n, gpu in enumerate(range(slots) if gpus is None else gpus)
            ]  # fmt: skip
            self._there.update({slot.index: slot for slot in found})
            self.events.joined(found)

        self.at(at, action)

    def of(self, host: str) -> list[Slot]:
        return [slot for slot in self._there.values() if slot.host == host]

    def drain_node(self, at: float, host: str, reason: str = "its time is over") -> None:
        self.at(at, lambda: self.events.draining(self.of(host), reason))

    def leave(self, at: float, host: str, reason: str = "it was given back") -> None:
        self.at(at, lambda: self._gone(host, reason, workers_first=True))

    def lose(self, at: float, host: str, reason: str = "its link closed", workers_first: bool = True) -> None:
        """A node is lost: its workers, then its slots, or the other way round."""
        self.at(at, lambda: self._gone(host, reason, workers_first))

    def _gone(self, host: str, reason: str, workers_first: bool) -> None:
        slots = self.of(host)
        for slot in slots:
            del self._there[slot.index]
        lost = sorted((w for w in self.workers if w.slot.host == host), key=lambda worker: worker.number)
        for worker in lost:
            worker.alive = False
            self.workers.discard(worker)
        if not workers_first:
            self.events.left(slots, reason)
        for worker in lost:
            self.events.lost(worker, reason)
        if workers_first:
            self.events.left(slots, reason)

    def give_up(self, at: float, reason: str = "SLURM job 17 ended: TIMEOUT") -> None:
        self.at(at, lambda: self.events.gave_up(reason))

    def memory(self, slot: Slot, enough: int | None = None) -> Memory:
        _, free = super().memory(slot)
        total = self.totals.get(slot.host, self._total)
        if total is None:
            return Memory(None, None)
        return Memory(total, total - self._total + (free or 0))


class IdleEngine(ElasticEngine):
    """An engine that gives back nodes after `idle` seconds; each is gone a second later, and comes when asked for."""

    def __init__(self, expected: int, idle: float | None = 300.0, takes: float = 20.0) -> None:
        super().__init__(expected)
        self.idle = idle
        self.takes = takes  # seconds until a node that was asked for is there
        self.history: list[tuple[float, str]] = []  # what was given back, and asked for
        self._returned: dict[
            str, tuple[int, int]
        ] = {}  # first number of the slots of a node, and how many there are
        self._on_the_way = 0  # slots

    @property
    def given_back(self) -> str:
        return ", ".join(self._returned)

    def give_back(self, host: str, reason: str) -> None:
        assert not any(w._job or w._waits for w in self.workers if w.slot.host == host)
        self.history.append((self.clock.now, f"{host}: {reason}"))

        def gone() -> None:
            indexes = [slot.index for slot in self.of(host)]
            self._returned[host] = min(indexes), len(indexes)
            self._gone(host, "it was given back", workers_first=True)

        self.loop.call_later(1.0, gone)

    def ask_again(self, slots: int) -> None:
        for host in list(self._returned):
            if self._on_the_way >= slots:
                return
            first, count = self._returned.pop(host)
            self._on_the_way += count
            self.history.append((self.clock.now, f"{host} again"))
            self.come(self.takes, host, count, first)
            self.at(self.takes, partial(self._came, count))

    def _came(self, count: int) -> None:
        self._on_the_way -= count


class LoadEngine(VirtualEngine):
    """An engine for many tasks: each takes 1 to 3 virtual seconds, nothing is unpickled, nothing is logged."""

    keeps = False

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self._behaviours = [Behaviour(seconds=random.Random(n).uniform(1.0, 3.0)) for n in range(1009)]
        self._next = 0

    def behave(self, body: bytes) -> Behaviour:
        self._next = (self._next + 1) % len(self._behaviours)
        return self._behaviours[self._next]


_NONE = payload.dumps(None)


def run(engine: VirtualEngine, *jobs: Job, **options: Any) -> Dispatcher:
    """Run jobs to their end in this thread."""
    dispatcher = make_dispatcher(engine, **options)
    dispatcher.submit(*jobs)
    dispatcher.close()
    dispatcher.run()
    return dispatcher


def make_dispatcher(
    engine: VirtualEngine, *, isolated: bool = False, memory_timeout: float = 600.0, **options: Any
) -> Dispatcher:
    """A dispatcher that is not started: call `run`."""
    defaults = {"max_tasks": None, "memory_growth": None, "start_timeout": 600.0, "grace": 5.0}
    pool_options = PoolOptions(
        setup=payload.dumps(None),
        environment=ENVIRONMENT,
        pins={},
        isolated=isolated,
        **{**defaults, **options},
    )
    dispatcher = Dispatcher(engine.slots(), engine, pool_options, memory_timeout)
    dispatcher.loop.call_soon_threadsafe(dispatcher.workers.warm_up)
    return dispatcher


ENVIRONMENT = Environment({}, "", ())


class Recorded(Job):
    """A job that keeps its outcome."""

    recorded = True

    def __init__(self, name: str, *behaviours: Behaviour, batch: int = 1, **needs: Any) -> None:
        super().__init__(payload.Payload(b""), ENVIRONMENT, batch)
        self.name, self.kind = name, "kind"
        self.behaviours = list(behaviours)
        self.outcome: Outcome | None = None
        self.metrics: dict[str, Any] = {}
        self.written = b""
        for key, value in needs.items():
            setattr(self, key, value)

    def begin(self) -> bool:
        self.payload = payload.dumps_call(
            _next, (self.behaviours[min(self.attempt, len(self.behaviours) - 1)],), {}
        )
        return True

    def meta(self, host: str) -> TaskMeta:
        return TaskMeta(None, self.name)

    def report(self, report: Reported) -> None:
        self.metrics |= report.values

    def write(self, data: bytes) -> None:
        self.written += data

    def finish(self, outcome: Outcome) -> None:
        assert self.outcome is None, "a job ends once"
        self.outcome = outcome

    @property
    def end(self) -> Outcome:
        assert self.outcome is not None
        return self.outcome

    @property
    def status(self) -> str:
        return self.end.status

    @property
    def location(self) -> Location:
        assert self.end.location is not None
        return self.end.location


def _next(behaviour: Behaviour) -> Behaviour:
    return behaviour


def call(behaviour: Behaviour, batch: int = 1) -> FutureJob:
    return FutureJob(payload.dumps_call(_next, (behaviour,), {}), ENVIRONMENT, batch)
