"""The process that runs tasks: one at a time, as they arrive on its channel, until the channel ends."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import pickle
import random
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import context
from ..context import Worker
from ..errors import add_note, message_of, out_of_memory
from ..store.values import NotStored, has_files, load_value, store_value
from ..tasks import import_path
from ..value_of import read_values_with
from . import guest, main_module, payload
from .attachments import take
from .channel import Channel, Frame
from .ground import Ground, Stream, dump_on_sigterm, ignore_sigint
from .growth import Growth
from .log_records import LogSender
from .memory import Memory, MemoryReports, be_killed_first, keep_freed
from .pickler import ValuePickler
from .process import MARK, become_subreaper
from .protocol import Begin, Failure, Measured, Message, ProtocolError, TaskMeta, pack
from .reports import Reports
from .run_folder import RunFolder, RunFolders
from .sources import Sources
from .spawned import hand_down

__all__ = ["blas", "main"]

QUICK = 0.005  # seconds: after a task that took no longer, the next may come at once
AWAKE = 0.0005  # seconds that it is waited for awake: where cores sleep in between, it comes after 0.3 ms

_NO_META = TaskMeta()
_NO_FOLDER = RunFolder(None)


def main(channel: int, log: int, tokens: int, sources: Sources) -> int:
    """Run tasks until the parent process closes the channel; the exit code."""
    _adopt(log)
    main_module.adopt()
    hand_down()
    keep_freed()
    be_killed_first()
    link = Channel(socket.socket(fileno=channel), blocking=True)
    runner = Runner(link, tokens, sources, log)
    while not link.closed:
        if runner.seconds < QUICK:
            link.linger(AWAKE)
        first = True
        for frame in list(link.receive()):
            if frame.kind == Message.ATTACHMENT:
                take(frame.body)
            elif frame.kind == Message.PREFETCH and not runner.take_token():
                link.send(Message.SKIPPED)
            elif frame.kind == Message.BEGIN:
                if not runner.begin(frame):
                    return 0
            elif not runner.run(frame, first):
                return 0
            else:
                first = False
    return 0


def _adopt(log: int) -> None:
    """Make this process a worker: its output goes to the log."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = Stream(1), Stream(2)  # those of the server were made for a file
    ignore_sigint()
    dump_on_sigterm()
    become_subreaper()


class Runner:
    """Sets the worker up, runs its tasks, measures them."""

    def __init__(self, channel: Channel, tokens: int, sources: Sources, log: int) -> None:
        self.channel = channel
        self.pid = os.getpid()
        self.tokens = tokens
        self.sources = sources
        self.log = log
        self.ground: Ground
        self.log_sender: LogSender | None = None
        self.job = 0  # number of the one that runs, or ran last
        self.seconds = math.inf  # that the last one took
        self.slot: Begin
        self.folders: RunFolders
        self.plain: Worker  # as calls without metadata see it
        self.no_values = functools.partial(self._value_of, _NO_META, None)  # as these have of other tasks
        self.state: Any = None
        self.memory = Memory()
        self.peak_is_new = False
        self.retained: payload.Payload | None = None
        self.memory_reports = MemoryReports(self.memory, lambda meta: channel.send(Message.MEMORY, meta=meta))
        self.reports = Reports(lambda job, meta, body: channel.send(Message.REPORT, job, meta, body))
        os.register_at_fork(after_in_child=self.after_fork_in_child)

    def after_fork_in_child(self) -> None:
        """Take from a fork what only the worker may use: its answers would be taken for those of the task."""
        self.channel.close()
        # Once: in a fork of the fork the number may be another file's.
        tokens, self.tokens = self.tokens, -1
        if tokens >= 0:
            with contextlib.suppress(OSError):
                os.close(tokens)

    def end_fork(self, code: int) -> None:
        """End a fork that a task has made and not ended; it returns in the worker alone."""
        if os.getpid() != self.pid:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def retain(self, result: payload.Payload) -> None:
        """Keep the shared memory of a small result to use it again; close any other's."""
        if result.small and self.retained is None:
            self.retained = result
        else:
            result.close()

    def take_token(self) -> bool:
        """Take the right to run a prefetched task; False if the parent process took it back."""
        try:
            return bool(os.read(self.tokens, 1))
        except BlockingIOError:
            return False

    def begin(self, frame: Frame) -> bool:
        """Take the slot that the parent process assigns and call the pool's setup; whether that worked."""
        self.slot = begin = pickle.loads(frame.meta)
        self.folders = RunFolders(begin)
        if begin.python:
            guest.enter(begin.python)
        mark = {MARK: os.environ[MARK]} if MARK in os.environ else {}  # before it is replaced by the parent's
        self.ground = Ground({**begin.pins, **mark}, self.log)
        self.ground.adopt(begin.environment)
        torch = guest.torch()  # here, for what it reads from the environment is in place only now
        if torch is not None and torch.cuda._is_in_bad_fork():
            self.channel.send(Message.BAD_FORK)
            return False
        _set_threads(begin.threads)
        _seed(_random_seed())  # forks share the state of their parent's generators
        context.set_worker(self._worker(_NO_META, 0, _NO_FOLDER))
        if begin.forward_logs:
            send = self.channel.send
            self.log_sender = LogSender(lambda meta: send(Message.LOG, self.job, meta))
            logging.root.addHandler(self.log_sender)
        try:
            setup = payload.loads(frame.body, frame.fds)
            self.state = None if setup is None else setup()
            self.end_fork(0)
            main_module.keep()
        except BaseException as error:
            if os.getpid() != self.pid:
                raise
            self.channel.send(Message.SETUP_FAILED, meta=pack(_failure(error)))
            return False
        self.memory.mark()
        self.growth = Growth(self.memory, begin.memory_growth, begin.replaced)
        context.measure_with(self.memory.now)
        self.channel.send(Message.READY, os.getpid())
        self.own_seed = _torch_seed()  # setup may have chosen it
        self.plain = self._worker(_NO_META, 0, _NO_FOLDER)
        self.ground.mark()
        return True

    def run(self, frame: Frame, first: bool = True) -> bool:
        """Run one task and send its value or error; whether this worker may run another.

        Of tasks that came together the `first` alone is preceded by a look at the files of its modules.
        """
        if self.ground.unfit or (first and self.sources.edited()):
            self.channel.send(Message.OUTDATED, frame.ident)
            return False
        if frame.kind == Message.TASK and self.retained is not None:
            # Not with a prefetched task: the parent sends this one when it has received the last result.
            self.retained.release()
            self.retained = None
        meta = TaskMeta.unpacked(frame.meta) if frame.meta else _NO_META
        recorded = bool(meta.name)
        folder = self.folders.of(meta) if recorded else _NO_FOLDER
        self.job = frame.ident
        started, clock = time.time(), time.perf_counter()
        stored, fn = "", None
        try:
            if meta.environment is not None:
                self.ground.adopt(meta.environment)
            if recorded:
                self.ground.take_log()
            if recorded and not self.peak_is_new:
                self.memory.reset_peak()
            self.peak_is_new = False
            if recorded and self.slot.gpu_id is not None:
                self.memory_reports.begin()
            if recorded:
                self.reports.begin(frame.ident, meta.name, meta.attempt, clock)
            context.set_worker(self._worker(meta, frame.ident, folder) if frame.meta else self.plain)
            read_values_with(
                functools.partial(self._value_of, meta, folder.path) if frame.meta else self.no_values
            )
            fn, args, kwargs = payload.loads(frame.body, frame.fds)
            if isinstance(fn, str):
                fn = import_path(fn)
            self.ground.imported()
            self._seed(meta.seed)
            value = self.ground.call(fn, args, kwargs)
            self.end_fork(0)
            _synchronize()  # a kernel that fails is this task's error, and its time is this task's
            seconds = time.perf_counter() - clock
            if folder.path is not None:
                stored = store_value(folder.path, meta.store_as, value)
            result = payload.dumps_value(value, guest.value_pickler())
            self.ground.quiet()
        except BaseException as error:
            if os.getpid() != self.pid:
                raise
            self.ground.quiet()
            seconds = time.perf_counter() - clock
            failure, result = _failure(error), None
        self.end_fork(0)  # of a fork made while the value was pickled, say
        if recorded:
            self.memory_reports.end()
            self.reports.end()
        if self.log_sender is not None:
            self.log_sender.end()
        # What the task leaves behind is judged when nothing of it is in use any more.
        name = getattr(fn, "__qualname__", "")
        fn = args = kwargs = value = None
        main_module.renew()
        self.ground.end_output(folder.path, meta.store_as)
        self.sources.scan()
        broken = result is None and _cuda_is_broken()
        held = 0 if broken else self.growth.held(name, seconds)
        if self.slot.shared and not broken:
            self.memory.release_cached()
        self.seconds = seconds
        measured = None
        if recorded or held or broken:
            measured = Measured(
                started,
                seconds,
                *self.memory.peaks(),
                held,
                broken,
                stored,
                name if held else "",
                bool(folder.note),
            )
        if result is None:
            failure = replace(failure, measured=measured or Measured(started, seconds))
            self.channel.send(Message.ERROR, frame.ident, pack(failure))
        else:
            self.channel.send(
                Message.VALUE,
                frame.ident,
                pack(measured) if measured else b"",
                result.body,
                result.fds,
            )
            self.retain(result)
        self.ground.restore()  # now, while the scheduler chooses the next task
        if recorded and len(frame.body) + (len(result.body) if result else 0) < payload.LARGE:
            self.memory.reset_peak()  # now, for nothing of this one is left
            self.peak_is_new = True
        return not held and not broken

    def _seed(self, seed: int | None) -> None:
        """Seed the generators for a task; anew for one without a seed if an earlier one has seeded torch's."""
        if seed is not None:
            _seed(seed)
        elif _torch_seed() != self.own_seed:
            self.own_seed = _random_seed()
            _seed(self.own_seed)

    def _value_of(self, meta: TaskMeta, folder: Path | None, name: str) -> Any:
        """Value of another task of the run, in place of a `ValueOf` among the arguments."""
        if (text := dict(meta.values).get(name)) is None:
            raise TypeError(
                f"ValueOf({name!r}) has no value here: it is for the tasks of a run, see pool.run"
            )
        try:
            if not text or (folder is None and has_files(text)):
                return self._ask(name)
            return load_value(folder or Path(), json.loads(text))
        except (NotStored, OSError, ValueError) as error:
            add_note(error, f"it is the value of task {name!r}: return plain data, arrays, tensors or tables")
            raise

    def _ask(self, name: str) -> Any:
        """Value of another task of the run, from the parent process."""
        self.channel.send(Message.ASK, self.job, name.encode())
        for frame in self.channel.receive():
            if frame.kind != Message.ANSWER:
                raise ProtocolError(f"a message of kind {frame.kind} came in place of an answer")
            there, answer = payload.loads(frame.body, frame.fds)
            if not there:
                raise answer
            return answer
        raise EOFError("the parent process has ended")

    def _worker(self, meta: TaskMeta, ident: int, folder: RunFolder) -> Worker:
        slot = self.slot
        return Worker(
            slot=slot.slot,
            device=slot.devices[0],
            devices=slot.devices,
            gpu_id=slot.gpu_id,
            uuid=slot.uuid,
            task=meta.name,
            index=meta.place,
            seed=meta.seed,
            attempt=meta.attempt,
            folder=folder.path,
            folder_note=folder.note,
            state=self.state,
            members=slot.members,
            _send=functools.partial(self.reports.add, ident) if meta.name else None,
        )


@functools.cache
def blas() -> Any:
    """Controller of the BLAS libraries' threads; to find them takes milliseconds, so the server does it for all.

    None in an interpreter without threadpoolctl, where a worker is spawned: its libraries read how many they may have.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def _set_threads(threads: int) -> None:
    """Let the libraries that the server has already imported use this worker's share of the cores.

    They were imported with one thread each: a process that has run threads cannot be forked safely.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    if threads > 1 and (found := blas()) is not None:
        found.limit(limits=threads, user_api="blas")


def _seed(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch.

    `torch.manual_seed` would queue a call for each kind of device there might be; here it is known which there is.
    """
    random.seed(seed)
    if (np := guest.numpy()) is not None:
        np.random.seed(seed % 2**32)
    if (torch := sys.modules.get("torch")) is None:
        return
    torch.default_generator.manual_seed(seed)
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        torch.cuda.manual_seed_all(seed)


def _random_seed() -> int:
    return int.from_bytes(os.urandom(7), "big")


def _torch_seed() -> int | None:
    """Seed of torch's generator for the CPU; None without torch."""
    torch: Any = sys.modules.get("torch")
    return None if torch is None else int(torch.default_generator.initial_seed())


def _synchronize() -> None:
    """Wait for the kernels of all GPUs in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)


def _cuda_is_broken() -> bool:
    """Whether the CUDA context is unusable: after an assertion or an illegal access on a device every call fails."""
    try:
        _synchronize()
    except Exception:
        return True
    return False


_PACKAGE = str(Path(__file__).parents[1])
_WORKLOADS = os.path.join(_PACKAGE, "workloads", "")


def _is_ours(file: str) -> bool:
    """Whether a file is of this package, and is not a workload's."""
    return file.startswith(os.path.join(_PACKAGE, "")) and not file.startswith(_WORKLOADS)


def _failure(error: BaseException) -> Failure:
    """An exception as it is sent; pickled if it survives the round trip."""
    guest.explain(error)
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next  # our own frames say nothing about the task
    text = "".join(traceback.format_exception(type(error), error, trace))
    try:
        pickled = payload.dumps_in_band(error.with_traceback(None), ValuePickler).body
        pickle.loads(pickled)
    except BaseException:
        pickled = b""
    return Failure(
        kind=type(error).__qualname__,
        message=message_of(error),
        traceback=text,
        out_of_memory=out_of_memory(error),
        exception=pickled,
    )
