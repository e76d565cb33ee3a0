"""Processes of this machine that start agents, or are agents themselves, and end with this process."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engines.process import Lifeline
from ..engines.servers import runtime
from .placer import WORKED, Failures

__all__ = ["Child", "Children", "PlacesChildren"]

_LINES = 5  # last ones of an agent's output in a message


class Child:
    """What starts an agent, or is one: a process that is killed when this one is gone, whatever it does then.

    Parameters
    ----------
    command
        Its command line.
    name
        Name of the node.
    log
        File for what it writes.
    env
        Its variables; by default those of this process.

    Attributes
    ----------
    joined
        Whether the pool has seen it, and will see its end.
    told
        Whether its end was told.

    Raises
    ------
    OSError
        If it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], name: str, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log, self.began = name, log, time.monotonic()
        self.told = self.joined = False
        lifeline = Lifeline()
        try:
            with log.open("wb") as out:
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=env,
                    pass_fds=[lifeline.read],
                    process_group=0,  # an interrupt of a terminal is for the parent process
                )
            lifeline.watch(self._process.pid)
            runtime.channels.add(lifeline)  # a fork of this process does not keep it alive
        except BaseException:
            lifeline.close()
            raise
        self._lifeline = lifeline

    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    @property
    def failed(self) -> bool:
        """Whether it has ended before it joined, or soon and by itself, and not because the pool let it go."""
        if not self.has_ended():
            return False
        return not self.joined or (self._process.returncode > 0 and time.monotonic() - self.began < WORKED)

    def __str__(self) -> str:
        code = self._process.poll()
        if code is None:
            return f"agent {self.name} (pid {self._process.pid}) is starting"
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
        return f"agent {self.name} has ended {how}" + "".join(f"\n{line}" for line in lines)

    def end(self, seconds: float) -> None:
        """Wait until it has ended, which it does with its connection; kill it after these seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._lifeline.close()


class Children(list[Child]):
    """Those of a placer, as they were started.

    Attributes
    ----------
    failures
        Those that have failed in a row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures = Failures("agents in a row have ended at once")
        self._unheard = 0

    def joined(self, name: str) -> None:
        """Take note of the last one of a name: it has joined the pool."""
        for child in [child for child in self if child.name == name][-1:]:
            child.joined = True

    def unheard(self) -> int:
        """Number of those that have ended before they joined, since this was asked."""
        self.look()
        count, self._unheard = self._unheard, 0
        return count

    def drop(self, name: str) -> None:
        """End that of a name, if there is one, and forget it."""
        for child in [child for child in self if child.name == name]:
            child.end(0)
            self.remove(child)

    def look(self) -> None:
        """Count those that have ended since."""
        for child in self:
            if child.has_ended() and not child.told:
                child.told = True
                self._unheard += not child.joined
                if child.failed:
                    self.failures.add(str(child))

    @property
    def alive(self) -> list[Child]:
        """Those that have not ended."""
        return [child for child in self if not child.has_ended()]

    @property
    def last_words(self) -> str:
        """How the last one of those that have ended did so; empty if none has."""
        ended = [child for child in self if child.has_ended()]
        return str(ended[-1]) if ended else ""

    def close(self, seconds: float) -> None:
        """End all; they have these seconds to do it by themselves."""
        end = time.monotonic() + seconds
        for child in self:
            with contextlib.suppress(OSError):
                child.end(max(0.0, end - time.monotonic()))


class PlacesChildren:
    """What placers of children have in common: they notice by themselves how each has ended."""

    def __init__(self) -> None:
        self._children = Children()

    def joined(self, facts: Mapping[str, Any]) -> None:
        """Take note of an agent that has joined."""
        self._children.joined(facts["node"])

    def unheard(self) -> int:
        """Number of agents here that have ended before they joined, since this was asked."""
        return self._children.unheard()

    def worked(self) -> None:
        """Take note that an agent has worked for a while."""
        self._children.failures.reset()
