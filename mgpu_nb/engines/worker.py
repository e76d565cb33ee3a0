"""The process that runs tasks: one at a time, told over its channel, until the channel ends."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import gc
import os
import pickle
import random
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import context
from ..context import Worker
from ..errors import message_of, out_of_memory
from ..hardware.slots import SAME_SUMS
from ..store.values import store_value
from ..tasks import import_path
from . import payload
from .channel import Channel, Frame
from .memory import Memory, MemoryReports, keep_freed
from .process import become_subreaper
from .protocol import Begin, Environment, Failure, Measured, Message, TaskMeta
from .sources import Sources

__all__ = ["blas", "main"]

_PR_SET_PDEATHSIG = 1
_NO_META = TaskMeta()
_path = functools.lru_cache(maxsize=1)(Path)  # of one run after the other


def main(channel: int, log: int, claims: int, sources: Sources) -> int:
    """Run tasks until the kernel closes the channel; return the exit code."""
    _adopt(log)
    keep_freed()
    link = Channel(socket.socket(fileno=channel), blocking=True)
    runner = Runner(link, claims, sources)
    while not link.closed:
        for frame in list(link.receive()):
            if frame.kind == Message.TASK_AHEAD and not runner.claim():
                link.send(Message.PASSED)
            elif not (runner.begin(frame) if frame.kind == Message.BEGIN else runner.run(frame)):
                return 0
    return 0


def _adopt(log: int) -> None:
    """Make this process a worker: its output goes to the log, it lives no longer than the server."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    # New streams: those of the server were made for a file. A whole line is out before a crash can take it.
    sys.stdout = open(1, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter interrupts the whole group; the kernel decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGTERM, sys.stderr, all_threads=True, chain=True)  # where a timeout struck
    become_subreaper()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1:  # the server died before that
            os._exit(1)


class Runner:
    """Sets the worker up, runs its tasks, measures them."""

    def __init__(self, channel: Channel, claims: int, sources: Sources) -> None:
        self.channel = channel
        self.claims = claims
        self.sources = sources
        self.place: Begin
        self.state: Any = None
        self.memory = Memory()
        self.peak_is_new = False
        self.lent: payload.Payload | None = None
        self.reports = MemoryReports(self.memory, lambda meta: channel.send(Message.MEMORY, meta=meta))

    def lend(self, result: payload.Payload) -> None:
        """Keep the shared memory of a small result, to use it again; give up any other's."""
        if result.small and self.lent is None:
            self.lent = result
        else:
            result.close()

    def claim(self) -> bool:
        """Take the right to run the task that was sent ahead; False where the kernel took it back."""
        try:
            return bool(os.read(self.claims, 1))
        except BlockingIOError:
            return False

    def begin(self, frame: Frame) -> bool:
        """Take the place the kernel gives and call the pool's setup there. Return whether that worked."""
        self.place = begin = pickle.loads(frame.meta)
        self._surround(begin.environment)
        import torch  # here, for what it reads from the environment is in place only now

        if torch.cuda._is_in_bad_fork():
            self.channel.send(Message.BAD_FORK)
            return False
        _set_threads(begin.threads)
        _seed(int.from_bytes(os.urandom(7)))  # forks share the state of their parent's generators
        context.set_worker(self._worker(_NO_META, 0))
        try:
            setup = payload.loads(frame.body, frame.fds)
            self.state = None if setup is None else setup()
        except BaseException as error:
            self.channel.send(Message.SETUP_FAILED, meta=pickle.dumps(_failure(error)))
            return False
        self.memory.mark()
        self.channel.send(Message.READY, os.getpid())
        return True

    def run(self, frame: Frame) -> bool:
        """Run one task and send what became of it. Return whether this worker is fit for another."""
        if self.sources.edited():
            self.channel.send(Message.OUTDATED, frame.ident)
            return False
        if frame.kind == Message.TASK and self.lent is not None:
            # Not with a task sent ahead: the kernel sends this one when it has loaded the last result.
            self.lent.release()
            self.lent = None
        meta: TaskMeta = pickle.loads(frame.meta) if frame.meta else _NO_META
        measured = bool(meta.name)
        started, clock = time.time(), time.perf_counter()
        stored = ""
        try:
            if meta.environment is not None:
                self._surround(meta.environment)
            if measured and not self.peak_is_new:
                self.memory.reset_peak()
            self.peak_is_new = False
            if measured and self.place.gpu_id is not None:
                self.reports.begin()
            context.set_worker(self._worker(meta, frame.ident))
            fn, args, kwargs = payload.loads(frame.body, frame.fds)
            if isinstance(fn, str):
                fn = import_path(fn)
            if meta.seed is not None:
                _seed(meta.seed)
            value = fn(*args, **kwargs)
            seconds = time.perf_counter() - clock
            if meta.folder is not None:
                stored = store_value(_path(meta.folder), meta.store_as, value)
            result = payload.dumps(value)
        except BaseException as error:
            seconds = time.perf_counter() - clock
            failure, result = _failure(error), None
        self.reports.end()
        # What the task leaves behind is judged when nothing of it is in use any more.
        fn = args = kwargs = value = None
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        self.sources.scan()
        held = self._held()
        told = Measured(started, seconds, *self.memory.peaks(), held, stored) if measured or held else None
        if result is None:
            failure = replace(failure, measured=told or Measured(started, seconds))
            self.channel.send(Message.ERROR, frame.ident, pickle.dumps(failure))
        else:
            self.channel.send(
                Message.VALUE, frame.ident, pickle.dumps(told) if told else b"", result.body, result.fds
            )
            self.lend(result)
        if measured and len(frame.body) + (len(result.body) if result else 0) < payload.LARGE:
            self.memory.reset_peak()  # now, while the kernel chooses the next task, and nothing of this one is left
            self.peak_is_new = True
        return not held

    def _surround(self, environment: Environment) -> None:
        """Take over the kernel's environment (less what pins this worker), folder and import path."""
        wanted = {**SAME_SUMS, **environment.variables, **self.place.pins}
        if wanted != dict(os.environ):
            for name in os.environ.keys() - wanted.keys():
                del os.environ[name]
            os.environ.update(wanted.items() - os.environ.items())
        with contextlib.suppress(OSError):  # a folder that is gone: stay where we are
            os.chdir(environment.folder)
        sys.path[:] = environment.path

    def _worker(self, meta: TaskMeta, ident: int) -> Worker:
        place = self.place
        return Worker(
            slot=place.slot,
            device=place.devices[0],
            devices=place.devices,
            gpu_id=place.gpu_id,
            uuid=place.uuid,
            task=meta.name,
            index=meta.place,
            seed=meta.seed,
            attempt=meta.attempt,
            folder=None if meta.folder is None else _path(meta.folder),
            state=self.state,
            _send=lambda values: self.channel.send(Message.REPORT, ident, pickle.dumps(values)),
        )

    def _held(self) -> int:
        """Bytes that the tasks so far did not give back, where that is more than the pool allows."""
        allowed = self.place.memory_growth
        if allowed is None or self.memory.growth() <= allowed:
            return 0
        gc.collect()
        self.memory.trim()
        held = self.memory.growth()
        return held if held > allowed else 0


@functools.cache
def blas() -> Any:
    """Return what sets the threads of the BLAS libraries; finding them takes ms, so the server does it for all."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _set_threads(threads: int) -> None:
    """Let the libraries that the server has already imported use this worker's share of the cores.

    They were imported with one thread each: a process that has run threads cannot be forked safely.
    """
    import torch

    torch.set_num_threads(threads)
    if threads > 1:
        blas().limit(limits=threads, user_api="blas")


def _seed(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch.

    `torch.manual_seed` would queue a call for each kind of device there might be; here it is known which there is.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        torch.cuda.manual_seed_all(seed)


def _failure(error: BaseException) -> Failure:
    """Tell an exception; pickle it where it survives the round trip."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next  # our own frames say nothing about the task
    text = "".join(traceback.format_exception(type(error), error, trace))
    try:
        pickled = payload.dumps_in_band(error.with_traceback(None)).body
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
