"""`GPUPool`: an executor whose workers are pinned to devices, heal, and leave a record of everything."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import os
import threading
import time
import warnings
import weakref
from _thread import start_new_thread
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar, cast

from .engines import payload
from .engines.base import Cluster, Engine, NodeState, OnNodes, PicksDevices, make_engine
from .engines.environment import capture_environment
from .engines.interpreter import Interpreter, find_interpreter, this_interpreter
from .engines.servers import runtime
from .hardware.freest import better_choice
from .hardware.slots import GpuIds, Slot
from .interrupts import uninterrupted
from .notebook import cell
from .options import PositiveInt, Seconds, check_arguments
from .places import elsewhere
from .runs.calls import in_order, number_of_items
from .runs.grid import sweep_tasks
from .runs.listing import Listing, runs_of
from .runs.plan import Plan, plan, run_folder
from .runs.rerun import Rerun, end_earlier, tell_of_earlier
from .runs.retry import Origin
from .runs.run import Run
from .runs.start import start
from .runs.stream import SlotStream
from .scheduler.dispatcher import Dispatcher
from .scheduler.job import FutureJob
from .scheduler.opened import OpenPool, opened
from .scheduler.workers import PoolOptions
from .signature import left_out
from .tables import Table
from .tasks import Record, Task, apply_each, check_name
from .views.lists import nodes_table, pool_html, pools_table

__all__ = ["GPUPool", "interpreter_of_workers", "pools"]

P = ParamSpec("P")
T = TypeVar("T")

_batches = itertools.count(1)

MOST_LABELS = 32  # slots that a pool names when it is shown


class GPUPool(Executor):
    """A pool of worker processes, one per slot, each pinned to its device.

    Parameters
    ----------
    gpu_ids
        GPUs as this process numbers them, or their UUIDs; an id twice is two workers on that GPU. All
        by default. ``"cpu"`` asks for virtual CPU devices on a machine with GPUs.
    slots
        Number of workers where no ids are given: spread over the GPUs, or, where there are none,
        that many virtual devices that share the cores.
    pick
        Which GPUs where no ids are given: ``"first"`` by number, or ``"free"``, those with the most free memory (then
        the least utilisation, then the fewest processes of others; see `hardware.freest.freest_gpus`). With
        ``"first"`` a warning names who holds them if freer ones are left.
    isolation
        ``"worker"``: workers stay, `setup` runs once in each. ``"task"``: every task has a fresh process,
        and its memory goes with it.
    setup
        Called without arguments in each worker before its first task; its value is `Worker.state`. It may ask
        `worker()` for the device to load a model on.
    env
        Environment variables for the workers, over those of this process.
    preload
        Modules to import once for all workers, beside torch. They must not touch CUDA when imported.
    threads
        CPU threads per worker; by default the cores are divided among the slots.
    max_tasks
        Tasks after which a worker is replaced.
    memory_growth
        Bytes a worker may keep after a task (on a GPU as torch allocated them); one that keeps more is
        replaced, and the record says so. None to let it. What `setup` loads, `context.cached` keeps or a ``lru_cache``
        of the task's module has just taken does not count; nor does what a function keeps again in the new worker, as
        often as one was replaced for it: a model in a global variable is loaded twice, a leak stays bounded.
    start_timeout
        Seconds until a worker must be ready, `setup` included.
    memory_timeout
        Seconds a task waits for device memory that only other programs could free.
    grace
        Seconds between asking a process to end and killing it.
    start_method
        ``"fork"`` (of a server that has imported torch and never CUDA; 13 ms a worker) or ``"spawn"`` (a new
        interpreter, seconds); by default what is safe on this system.
    engine
        Where the processes come from: ``"local"``, the name of an engine that an installed package adds (entry points
        of the group ``mgpu_nb.engines``), or an engine.
    cluster
        Other machines where the workers are: ``Slurm(nodes=2)``, ``Ray(address=...)``, ``Agents()`` or ``Allocation()``
        of `mgpu_nb.cluster`. Then `gpu_ids`, `slots` and `threads` are meant on each node. Tasks start on the first
        node that is there (`wait_for_slots` waits for all); nodes may come late, leave, and come back. The tasks of a
        node that is lost are tried elsewhere, whatever their ``retries``, three times at the most; notes of their
        records say so. With ``Slurm(detach=True)`` each run is a batch job that outlives this process; see there.
    rerun
        What becomes of a pool that an earlier execution of this notebook cell left open: ``"cancel"`` shuts it down and
        cancels its tasks, ``"keep"`` leaves it, ``"ask"`` leaves it and names it by a warning.
    share
        Whether other pools of this process may have the same devices; otherwise a warning names them.
    forward_logs
        Whether what tasks and `setup` log by `logging` also reaches this process's handlers, by the loggers of the same
        names: with the task's name before the message, and ``task``, ``run``, ``slot``, ``device``, ``uuid`` and
        ``host`` as attributes of the record. At most 1,000 records a second from each worker; how many were left out
        is said. ``logging.basicConfig`` does nothing in tasks then. In any case they log at the levels that loggers
        have here.

    python
        Interpreter of the workers where it is not this process's own: the path of the python of another environment,
        which has its own torch, or none, and may be another Python, 3.10 or later. It needs cloudpickle and
        lazy-loader; this package need not be installed there. Workers are spawned unless `start_method` says otherwise.
        They find the packages of their own environment, then the user's own folders of ``sys.path`` here.
        A function that is importable by name must be so there; one of a notebook cell goes as bytecode, for which both
        must be of one minor version of Python. What comes back must unpickle here: plain data, arrays and tensors do.
        The interpreter is asked what it is when the pool is made.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, before any process starts; of unknown ids the message names those that exist. Also if
        two of `engine`, `cluster`, `python` and ``pick="free"`` are given that do not go together, and if
        `python` is no interpreter that can have workers; the message says why, and what to do.

    Examples
    --------
    >>> with GPUPool(slots=2) as pool:
    ...     list(pool.map(pow, [1, 2, 3], [2, 2, 2]))
    [1, 4, 9]
    """

    _detached = False  # whether runs are in jobs of their own, and outlive this process

    def __new__(cls, *_: Any, cluster: Any = None, **__: Any) -> GPUPool:
        """A pool, or that of a cluster whose pools are in jobs of their own."""
        own: type[GPUPool] = getattr(cluster, "pool_class", None) or cls
        if not issubclass(own, cls):
            raise TypeError(
                f"{cls.__qualname__} runs in this process: take GPUPool, or leave detach=True out"
            )
        return super().__new__(own)

    def __init__(
        self,
        gpu_ids: GpuIds | Literal["cpu"] | None = None,
        slots: PositiveInt | None = None,
        isolation: Literal["worker", "task"] = "worker",
        setup: Callable[[], Any] | None = None,
        env: Mapping[str, str] | None = None,
        *,
        pick: Literal["first", "free"] = "first",
        preload: Sequence[str] = (),
        threads: PositiveInt | None = None,
        max_tasks: PositiveInt | None = None,
        memory_growth: PositiveInt | None = 512 * 2**20,
        start_timeout: Seconds = 600.0,
        memory_timeout: Seconds = 600.0,
        grace: Seconds = 5.0,
        start_method: Literal["fork", "spawn"] | None = None,
        engine: str | Engine = "local",
        cluster: Cluster | None = None,
        rerun: Rerun = "ask",
        share: bool = False,
        forward_logs: bool = False,
        python: str | os.PathLike[str] | None = None,
    ) -> None:
        if not hasattr(os, "fork"):
            raise OSError("GPUPool needs Linux or macOS; on Windows, use WSL 2")
        max_tasks, memory_growth, start_timeout, memory_timeout, grace, preload, *_ = check_arguments(
            GPUPool.__init__,
            max_tasks=max_tasks,
            memory_growth=memory_growth,
            start_timeout=start_timeout,
            memory_timeout=memory_timeout,
            grace=grace,
            preload=preload,
            isolation=isolation,
            start_method=start_method,
            pick=pick,
            rerun=rerun,
            share=share,
            forward_logs=forward_logs,
        )
        _check(setup, env, () if python is not None else preload)
        if cluster is not None:
            _check_cluster(cluster, engine, pick, python)
        other = _interpreter(python, engine, preload, start_method, env)
        earlier = [] if rerun == "keep" else opened.left_behind(*cell())
        if rerun == "cancel":
            opened.end(earlier)
        if cluster is not None:
            engine = cluster.engine(
                preload=preload, start_method=start_method, env=env, start_timeout=start_timeout
            )
        elif isinstance(engine, str):
            engine = make_engine(engine, preload=preload, start_method=start_method, env=env, python=other)
        taken = _take_slots(engine, gpu_ids, slots, threads, pick)
        self.isolation: str = isolation
        self._pid = os.getpid()
        self._python = other
        with self._sending():
            packed_setup = payload.dumps(setup)
        options = PoolOptions(
            setup=packed_setup,
            environment=capture_environment(),
            pins=dict(env or {}),
            isolated=isolation == "task",
            max_tasks=max_tasks,
            memory_growth=memory_growth,
            start_timeout=start_timeout,
            grace=grace,
            forward_logs=forward_logs,
        )
        self._engine = engine
        if not share:
            opened.warn_of_taken(taken, earlier)
        try:
            uninterrupted(lambda: self._open(taken, options, memory_timeout))
            if rerun == "ask":
                opened.tell_of_earlier(earlier)
        except BaseException:  # also of a warning that is an error: the traceback would keep it open
            self._close_unused()
            raise

    def _open(self, slots: tuple[Slot, ...], options: PoolOptions, memory_timeout: float) -> None:
        """Make the dispatcher and start it."""
        dispatcher = Dispatcher(slots, self._engine, options, memory_timeout)
        runtime.pools.add(dispatcher)
        # Dropped: it ends when its tasks have. By a thread, for an interrupt of the main one would be lost in here.
        self._finalizer = weakref.finalize(self, partial(start_new_thread, dispatcher.close, ()))
        self._finalizer.atexit = False
        opened.add(self, dispatcher, self._engine, self.isolation)
        dispatcher.start()
        self._dispatcher = dispatcher

    def _close_unused(self) -> None:
        if (dispatcher := vars(self).get("_dispatcher")) is not None:
            dispatcher.close(cancel_running=True)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Slots that are there now; on a `cluster` they come and go."""
        return tuple(state.slot for state in self._dispatcher.slots)

    @property
    def nodes(self) -> Listing[NodeState]:
        """Nodes of a `cluster` that are there now, displayed as a table; none of a pool on this machine.

        Each has a ``name``, that of its slots and records, the host name of its ``machine``, the ``pid`` of the agent
        there, its ``slots`` and a ``state``: ``starting``, ``ready``, or ``ending`` with the reason in ``why``.
        """
        engine, waits, given_back = self._engine, self._dispatcher.waits_for, self._dispatcher.given_back
        there = engine.node_states() if isinstance(engine, OnNodes) and not self._dispatcher.ended else ()
        return Listing(there, lambda: nodes_table(there, waits, given_back))

    @property
    def expected_slots(self) -> int | None:
        """Number of slots when all are there; None if that is not known, as of agents that a person starts."""
        return self._dispatcher.expected_slots

    def wait_for_slots(
        self, count: PositiveInt | None = None, timeout: Seconds | None = None
    ) -> tuple[Slot, ...]:
        """Wait until slots are there; return those. Without a `cluster` they are there at once.

        Parameters
        ----------
        count
            How many; by default all that are expected, or one if that is not known.
        timeout
            Seconds that it may take; by default as long as the cluster takes, see `start_timeout`.

        Raises
        ------
        TimeoutError
            If they are not there in time; the message says what is waited for.
        NoSlots
            If no more will come; the message says why.
        ValueError
            If there will never be as many.
        RuntimeError
            After `shutdown`, or in a fork of the process that made the pool.
        """
        count, timeout = check_arguments(GPUPool.wait_for_slots, count=count, timeout=timeout)
        self._check_owner()
        expected = self.expected_slots
        if count is not None and expected is not None and count > max(expected, len(self.slots)):
            raise ValueError(f"count={count}: the pool has {expected} slots when all are there")
        self._dispatcher.wait_for_slots(count, timeout)
        return self.slots

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` in a worker; return its future.

        On a `cluster` it may run more than once: the call of a node that is lost is made again on another, and whether
        the first had an effect is not known. Three times at the most; then its error is `WorkerDied`.

        Raises
        ------
        RuntimeError
            After `shutdown`, or in a fork of the process that made the pool.
        Exception
            What pickling the call raised, with a note that names the part of it that does not pickle.
        """
        self._check_owner()
        return self._call(fn, args, kwargs, getattr(fn, "__qualname__", type(fn).__qualname__))

    @property
    def python(self) -> str | None:
        """Path of the workers' interpreter; None where it is that of this process."""
        return None if self._python is None else self._python.path

    def _sending(self) -> AbstractContextManager[None]:
        """What goes to workers is pickled within this: they may be of another interpreter."""
        return nullcontext() if self._python is None else self._python.sending()

    def _call(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], name: str
    ) -> Future[T]:
        """Submit a call; `name` is what slots are said to be busy with."""
        with self._sending():
            body = payload.dumps_call(fn, args, kwargs)
        call = FutureJob(body, capture_environment(), next(_batches), name)
        self._dispatcher.submit(call)
        return call.future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: PositiveInt = 1,
        buffersize: PositiveInt | None = None,
        progress: bool | None = None,
        stream: bool = False,
    ) -> Iterator[T]:
        """Apply `fn` to the items, in their order.

        Parameters
        ----------
        fn, *iterables
            As the builtin `map` takes them.
        timeout
            Seconds from this call until each value must be there.
        chunksize
            Number of items that travel together.
        buffersize
            Number of items that are taken ahead of what was consumed; all by default.
        progress
            Whether to show a bar while its values are waited for. By default in the main thread, once that has taken a
            second, in a notebook with a page or if stderr is a terminal.
        stream
            Whether to print meanwhile what the calls print, each line after the number of the slot. `logs` has the
            last of it in any case.

        Raises
        ------
        TimeoutError
            From the iterator, where a value is not there `timeout` seconds after this call.
        """
        chunksize, buffersize = check_arguments(GPUPool.map, chunksize=chunksize, buffersize=buffersize)
        chunks = _chunked(zip(*iterables, strict=False), chunksize)
        end = None if timeout is None else time.monotonic() + timeout
        ahead = None if buffersize is None else -(-buffersize // chunksize)
        self._check_owner()
        call, name = partial(apply_each, fn), getattr(fn, "__qualname__", type(fn).__qualname__)
        futures = (self._call(call, (chunk,), {}, name) for chunk in chunks)
        said = SlotStream(self._dispatcher) if stream else None
        first: deque[Future[list[T]]] = deque()
        try:
            first.extend(itertools.islice(futures, ahead))
        except BaseException:
            for future in first:
                future.cancel()
            raise
        total = number_of_items(iterables)
        return in_order(
            first,
            futures,
            end,
            name=getattr(fn, "__name__", type(fn).__name__),
            total=total if total is not None or ahead is not None else chunksize * len(first),
            size=chunksize,
            progress=progress,
            stream=said,
        )

    def logs(self) -> dict[int, str]:
        """Output of plain calls (`submit`, `map`) and of `setup` by slot, the last 64 KiB of each.

        What the tasks of a run print is in `Run.logs`.
        """
        self._dispatcher.read_output()
        found = {}
        for slot in self._dispatcher.slots:
            written, last = slot.output
            if written > len(last):
                last = last.partition(b"\n")[2] or last  # the first line is a part of one
            found[slot.slot.index] = last.decode(errors="backslashreplace")
        return found

    def run(
        self,
        tasks: Iterable[Task],
        *,
        name: str = "run",
        folder: str | os.PathLike[str] | None = None,
        seed: int = 0,
        retry_alone: bool = False,
        gang: bool | Literal["devices"] = False,
        by_round: bool | Mapping[str, int] = False,
        whole: bool = False,
        rerun: Rerun = "ask",
    ) -> Run:
        """Start a batch of tasks; return at once the handle on it.

        Parameters
        ----------
        tasks
            What to run. Names must be unique; ``after`` must name tasks of the batch.
        name
            Name of the run.
        folder
            Where its journal, tables, logs and values go; by default ``runs/<name>-<date>-<time>``. The folder of
            an earlier run of this name resumes it: tasks with a good record are not run again, unless the body of
            their function, their arguments or their seed have changed, as the new record's notes say then.
            Changes elsewhere are not seen (what the function calls, globals, files it reads): give a new folder
            after those. Tasks that the folder has and this call does not stay in its tables and in `Run.open`.
        seed
            Task `i` gets the seed `derive_seed(seed, i)` unless it has one: by its place in the list.
        retry_alone
            Whether a task that ran out of memory gets another attempt alone on its device.
        gang
            Whether the tasks start at once, each in a process of its own that sees the GPUs of all, and end together
            when one fails. `launch` makes a process group of them. ``"devices"`` has each wait for a device of its own,
            where the pool has several slots on one.
        by_round
            Whether tasks run in rounds, each of which begins when all of the one before has ended: the number of the
            round by task, or True for the length of the longest chain of tasks that it waits for. Without it a task
            begins as soon as what it waits for itself is done; `Run.idle` says what the barrier costs.
        whole
            Whether these are all tasks of the run: the folder shows no others any more. Of a gang they always are.
        rerun
            What becomes of a run that an earlier execution of this notebook cell left under way, on whatever pool:
            ``"cancel"`` cancels it and waits for its end, ``"keep"`` leaves it, ``"ask"`` leaves it and names it, with
            a button in the panel of the new run, or by a warning.

        Raises
        ------
        ValueError, TypeError
            If an argument or a task is invalid, before any task starts; the message names it.
        OSError
            If the folder cannot be written, or another run writes it (BlockingIOError).
        TimeoutError
            If a run that ``rerun="cancel"`` cancels does not end within a minute.
        RuntimeError
            After `shutdown`, or in a fork of the process that made the pool.
        """
        __tracebackhide__ = True
        check_name(name)
        (rerun,) = check_arguments(GPUPool.run, rerun=rerun)
        origin = Origin(
            list(tasks), seed, retry_alone, gang, whole or bool(gang), weakref.ref(self), by_round
        )
        self._check_owner()
        earlier = end_earlier(rerun)
        started: list[Run] = []
        try:
            started.append(self._run(origin, name, folder))
            tell_of_earlier(started[0]._ledger, earlier)
            return started[0]
        except KeyboardInterrupt:
            for run in started:
                run._abandon()
            raise

    def _run(
        self,
        origin: Origin,
        name: str,
        folder: str | os.PathLike[str] | None,
        kept: Mapping[str, Record] | None = None,
        after: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Run:
        """Start the tasks of a run, but those whose records are kept."""
        __tracebackhide__ = True
        self._check_owner()
        with self._sending():
            made = plan(
                origin,
                self.slots,
                capture_environment(),
                self._engine.memory,
                batch=next(_batches),
                expected=self.expected_slots,
                kept=kept,
                after=after,
                abroad=self._python is not None,
            )
        return uninterrupted(lambda: self._begin(made, origin, name, folder, kept), Run._abandon)

    def _begin(
        self,
        plan: Plan,
        origin: Origin,
        name: str,
        folder: str | os.PathLike[str] | None,
        kept: Mapping[str, Record] | None,
    ) -> Run:
        """Start a run that was checked."""
        python = None if self._python is None else self._python.described()
        place = run_folder(folder, name)  # a new one is made only now: what the plan refuses leaves none
        ledger = start(self._dispatcher, plan, origin, name=name, folder=place, kept=kept, python=python)
        return Run(ledger)

    def sweep(
        self,
        fn: Callable[..., Any] | str,
        values: Mapping[str, Any] | None = None,
        /,
        *,
        name: str | list[Any] = left_out("sweep"),
        folder: str | os.PathLike[str] | list[Any] | None = left_out(None),
        seed: int | list[Any] = left_out(0),
        timeout: float | list[Any] | None = left_out(None),
        retries: int | list[Any] = left_out(0),
        memory: int | list[Any] | None = left_out(None),
        devices: int | list[Any] = left_out(1),
        **more: Any,
    ) -> Run:
        """Run a function with every combination of values; return at once the handle on the run.

        Parameters
        ----------
        fn, values, **more
            The function, and the values of its parameters as `grid` takes them: ``pool.sweep(fit, lr=[0.1, 0.01])`` or
            ``pool.sweep(fit, {"lr": [0.1, 0.01]})``. With a mapping every keyword below is the sweep's. Without, one
            that is a list is the function's, and one that is not is an error if the function could want it, too.
        name, folder, seed
            Of the run, as `run` takes them.
        timeout, retries, memory, devices
            Of each task, as `Task` takes them.

        Raises
        ------
        ValueError, TypeError, OSError
            As `grid` and `run`.

        Examples
        --------
        >>> with GPUPool(slots=2) as pool:
        ...     pool.sweep(pow, base=[2, 3], exp=[1, 2]).results()
        [2, 4, 3, 9]
        """
        defaults = GPUPool.sweep.__kwdefaults__ or {}
        given = {
            "name": name, "folder": folder, "seed": seed, "timeout": timeout, "retries": retries, "memory": memory,
            "devices": devices,
        }  # fmt: skip
        tasks, of_run = sweep_tasks(fn, values, more, given, defaults)
        return self.run(tasks, **of_run)

    @property
    def runs(self) -> Listing[Run]:
        """Runs of this pool, displayed as a table.

        Those under way come first, in the order in which they began, also those whose handles are lost; then ended ones
        of which a handle or panel is left, the last first: values are not kept for this list.
        """
        return runs_of(self._dispatcher.number)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the workers when those there are have ended.

        The runs that are waited for are shown meanwhile, as `Run.wait` shows them. An interrupt while waiting ends the
        tasks that run.
        """
        try:
            self._dispatcher.close(cancel_queued=cancel_futures)
            thread = self._dispatcher.thread
            if wait and self._pid == os.getpid() and thread is not threading.current_thread():
                for run in self.runs:
                    run._show_until_done(thread.is_alive)
                thread.join()
        except KeyboardInterrupt:
            self._dispatcher.close(cancel_running=wait)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Shut down and wait. An interrupt of the block leaves its queued tasks cancelled."""
        try:
            self.shutdown(wait=True, cancel_futures=kind is KeyboardInterrupt)
        except KeyboardInterrupt:
            self._dispatcher.close(cancel_running=True)
            raise
        return None

    def __repr__(self) -> str:
        slots, waits, gave_up = self.slots, self._dispatcher.waits_for, self._dispatcher.gave_up
        labels = ", ".join(slot.place for slot in slots[:MOST_LABELS])
        labels += f" and {len(slots) - MOST_LABELS} more" if len(slots) > MOST_LABELS else ""
        there = f"{len(slots)} slots: {labels}" if slots else "no slots"
        more = f"; waits for {waits}" if waits else f"; no more will come: {gave_up}" if gave_up else ""
        more += f"; {given_back}" if (given_back := self._dispatcher.given_back) else ""
        state = "" if self._dispatcher.thread.is_alive() else ", closed"
        return f"GPUPool({there}{more}; isolation={self.isolation!r}{state})"

    def _repr_html_(self) -> str:
        ledgers = [run._ledger for run in self.runs]
        return pool_html(f"pool {self._dispatcher.number}: {self!r}", self._dispatcher.activity(), ledgers)

    @classmethod
    def _of(cls, pool: OpenPool) -> GPUPool:
        """The handle that a user has of a pool; another if that is lost: it takes no more tasks and ends with those."""
        if (handle := pool.handle()) is not None:
            return cast(GPUPool, handle)
        other = cls.__new__(cls)
        other.isolation, other._pid = pool.isolation, os.getpid()
        other._dispatcher, other._engine = pool.dispatcher, pool.engine
        other._python = getattr(pool.engine, "python", None)
        return other

    def _check_owner(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("this pool belongs to the process that made it; make a new one after a fork")


# What is shown of the class; `__new__` takes the same.
GPUPool.__new__.__signature__ = inspect.signature(GPUPool.__init__)  # type: ignore[attr-defined]


def pools() -> Listing[GPUPool]:
    """Pools of this process, in the order in which they were made, displayed as a table.

    Those whose handles are lost are among them for as long as they have tasks.

    Examples
    --------
    >>> with GPUPool(slots=2) as pool:
    ...     pools()[-1] is pool
    True
    """
    found = opened.pools
    handles = [GPUPool._of(pool) for pool in found]

    def table() -> Table:
        return pools_table(
            [
                (
                    pool.dispatcher.activity(),
                    "" if pool.cell_number is None else f"[{pool.cell_number}]",
                    [run._ledger for run in handle.runs],
                )
                for pool, handle in zip(found, handles, strict=True)
            ]
        )

    return Listing(handles, table)


def _chunked(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _take_slots(
    engine: Engine,
    gpu_ids: GpuIds | Literal["cpu"] | None,
    slots: int | None,
    threads: int | None,
    pick: Literal["first", "free"],
) -> tuple[Slot, ...]:
    """Slots of a pool; with a warning if others hold its GPUs while freer ones are left."""
    here = [s.slot for pool in opened.pools for s in pool.dispatcher.slots if not elsewhere(s.slot.host)]
    taken = Counter(slot.uuid for slot in here)
    if pick == "free":
        if gpu_ids is not None:
            raise ValueError(f"gpu_ids={gpu_ids!r} and pick='free' both choose devices: give one of the two")
        if not isinstance(engine, PicksDevices):
            raise ValueError(
                f"pick='free': {type(engine).__qualname__} cannot choose devices; leave pick out"
            )
        ids = engine.freest(slots, taken)
        return engine.slots(ids or None, None if ids else slots, threads)
    found = engine.slots(gpu_ids, slots, threads)
    local = isinstance(engine, PicksDevices) and gpu_ids is None and slots is not None
    if local and found[0].kind == "cuda" and (better := better_choice({slot.uuid for slot in found}, taken)):
        warnings.warn(better, stacklevel=3)
    return found


def _check_cluster(
    cluster: Cluster, engine: str | Engine, pick: str, python: str | os.PathLike[str] | None
) -> None:
    if not callable(getattr(cluster, "engine", None)):
        raise TypeError(
            f"cluster must be Slurm(...), Ray(...) or Agents() of mgpu_nb.cluster, got {cluster!r}"
        )
    name = type(cluster).__qualname__
    if engine != "local":
        raise ValueError(
            f"engine={engine!r} and cluster={name}() both say where workers are: give one of the two"
        )
    if pick == "free":
        raise ValueError(
            f"pick='free' chooses GPUs of this machine, cluster={name}() is others: leave pick out"
        )
    if python is not None:
        raise ValueError(
            f"python={os.fspath(python)!r} is an interpreter of this machine; the workers of cluster={name}() have "
            "that of their agents: start those with it"
        )


def interpreter_of_workers(python: str | os.PathLike[str] | None, imports: Sequence[str] = ()) -> Interpreter:
    """What the interpreter of a pool with this option is, and which modules do not import in its workers.

    Raises
    ------
    ValueError
        If it cannot have workers, see `GPUPool`.
    """
    return this_interpreter(imports) if python is None else find_interpreter(python, imports)


def _interpreter(
    python: str | os.PathLike[str] | None,
    engine: str | Engine,
    preload: Sequence[str],
    start_method: str | None,
    env: Mapping[str, str] | None,
) -> Interpreter | None:
    """The other interpreter of the workers, asked what it is; None for that of this process."""
    if python is None:
        return None
    if not isinstance(engine, str):
        given = f"python={os.fspath(python)!r} is for an engine that the pool makes"
        raise ValueError(f"{given}; give it to {type(engine).__qualname__}, or leave engine out")  # noqa: TRY004
    found = find_interpreter(python, preload if start_method == "fork" else (), env=env)
    for module, reason in found.errors.items():
        raise ValueError(f"preload: {module!r} does not import in {found.path}: {reason}")
    return found


def _check(setup: Callable[[], Any] | None, env: Mapping[str, str] | None, preload: Sequence[str]) -> None:
    if setup is not None and not callable(setup):
        raise TypeError(f"setup must be a function without arguments, got {setup!r}")
    for key, value in (env or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"env must map strings to strings, got {key!r}: {value!r}")
    for module in preload:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise ValueError(f"preload: no module named {module!r} on sys.path of this process")
