"""Strikes from outside: workers and servers are killed and stopped at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import psutil

from ..engines.servers import runtime

__all__ = ["Strike", "Strikes"]

STOPPED = (0.02, 0.3)  # seconds that a worker is stopped
BETWEEN = 3  # tasks that end between two strikes, at least
SHOWN = 10.0  # seconds until the death of a server has come to all records


@dataclass(frozen=True)
class Strike:
    """A strike: at what, at which moment (seconds since the epoch), and the processes that it may have ended."""

    kind: Literal["kill", "stop", "server"]
    at: float
    pids: frozenset[int]


class Strikes:
    """A thread that strikes at the workers and servers of this process, until its block ends.

    Parameters
    ----------
    dice
        Random numbers: what is struck, and the pauses. Which worker that is, and what it does then, is chance.
    pause
        Mean seconds between two strikes.
    servers
        Servers that may be killed at most.
    ended
        Number of tasks that have ended: a slow machine must get on with them between two strikes.
    """

    def __init__(
        self, dice: random.Random, pause: float, servers: int, ended: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.struck: list[Strike] = []
        self._dice, self._pause, self._servers, self._ended = dice, pause, servers, ended
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mgpu_nb-chaos", daemon=True)

    def __enter__(self) -> Strikes:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def may_have_ended(self, pid: int | None, started: float | None, finished: float | None) -> bool:
        """Whether a strike may have ended a process between two moments."""
        first, last = started or 0.0, (finished or time.time()) + SHOWN
        return any(
            pid in each.pids or (each.kind == "server" and first - SHOWN <= each.at <= last)
            for each in self.struck
            if each.kind != "stop"
        )

    def most_lost(self, slots: int) -> int:
        """Number of calls that the strikes may have cost at most: one for each worker that they ended."""
        return sum({"kill": 1, "stop": 0, "server": slots}[each.kind] for each in self.struck)

    def _run(self) -> None:
        before = self._ended()
        while not self._over.wait(self._dice.expovariate(1 / self._pause)):
            if self._ended() < before + BETWEEN:
                continue
            before = self._ended()
            drawn = self._dice.random()
            with contextlib.suppress(psutil.Error, ProcessLookupError, IndexError):
                if drawn < 0.08 and self._servers:
                    self._kill_server()
                elif drawn < 0.3:
                    self._stop_worker()
                else:
                    self._kill_worker()

    def _workers(self) -> list[psutil.Process]:
        """Workers, also those that just start."""
        return [child for server in self._servers_now() for child in server.children()]

    def _servers_now(self) -> list[psutil.Process]:
        return [psutil.Process(server.process.pid) for server in runtime.servers]

    def _kill_worker(self) -> None:
        worker = self._dice.choice(self._workers())
        self.struck.append(Strike("kill", time.time(), frozenset([worker.pid])))
        os.kill(worker.pid, signal.SIGKILL)

    def _stop_worker(self) -> None:
        worker = self._dice.choice(self._workers())
        self.struck.append(Strike("stop", time.time(), frozenset([worker.pid])))
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            self._over.wait(self._dice.uniform(*STOPPED))
        finally:
            os.kill(worker.pid, signal.SIGCONT)

    def _kill_server(self) -> None:
        server = self._dice.choice(self._servers_now())
        self._servers -= 1
        pids = frozenset(child.pid for child in server.children())
        self.struck.append(Strike("server", time.time(), pids))
        os.kill(server.pid, signal.SIGKILL)
