"""The thread that has agents placed, and says when none will come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .placer import Placer, TakesBack

__all__ = ["Placement"]

log = logging.getLogger("mgpu_nb")

ASK_EVERY = 10.0  # seconds between looks at what the scheduler of the cluster says
MOST_FAILURES = 3  # starts in a row that failed, after which no other is tried


class Placement(threading.Thread):
    """Has the placer start agents, again for those that were lost, and asks it what became of them.

    What was given back, as it had nothing to do, is not missing until it is asked for again.

    Parameters
    ----------
    placer
        What starts agents.
    command, invitation
        See `Placer.start`.
    patience
        Seconds that it waits for a first agent, and for another when the last has gone.
    gave_up
        Called by this thread with the reason when no agent will come.
    """

    def __init__(
        self,
        placer: Placer,
        command: Sequence[str],
        invitation: Path,
        patience: float,
        gave_up: Callable[[str], None],
    ) -> None:
        super().__init__(name="mgpu_nb-placement", daemon=True)
        self.words = ""  # of the placer, for those who look at the pool
        self._placer, self._command, self._invitation = placer, command, invitation
        self._patience, self._gave_up = patience, gave_up
        self._changed = threading.Condition()
        self._there = 0
        self._to_start = placer.nodes or 0
        self._given_back = 0
        self._to_give_back: list[Mapping[str, Any]] = []  # facts of agents that have ended
        self._since = time.monotonic()  # that no agent was there
        self._begun = self._closing = False

    # From any thread.

    def came(self) -> None:
        """An agent has come."""
        with self._changed:
            self._there += 1
            if self._placer.nodes is not None:  # one may come that was not asked for
                self._given_back = max(0, min(self._given_back, self._placer.nodes - self._there))
            self._changed.notify()

    def went(self, given_back: Mapping[str, Any] | None = None) -> None:
        """An agent has gone: where the number of agents is known, another is asked for.

        Parameters
        ----------
        given_back
            Its facts, if it had nothing to do and its node is given back: then no other is asked for.
        """
        with self._changed:
            self._there -= 1
            if given_back is not None:
                self._given_back += 1
                self._to_give_back.append(given_back)
            elif self._placer.nodes is not None:
                self._to_start += 1
            self._since = time.monotonic()
            self._changed.notify()

    def lacking(self, count: int) -> int:
        """How many agents to ask for in place of those that were given back, for so many with those on their way."""
        return min(self._given_back, count - (self.missing() or 0))

    def ask_again(self, count: int) -> None:
        """Ask for so many agents in place of those that were given back."""
        with self._changed:
            self._given_back -= count
            self._to_start += count
            self._since = time.monotonic()
            self._changed.notify()

    @property
    def given_back(self) -> int:
        """Number of nodes that were given back and not asked for since."""
        return self._given_back

    def missing(self) -> int | None:
        """Number of agents that have not come; None where it is not known how many will."""
        nodes = self._placer.nodes
        return None if nodes is None else max(0, nodes - self._given_back - self._there)

    def close(self, seconds: float = 30.0) -> None:
        """End what was started, and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self.ident is not None and self is not threading.current_thread():
            self.join(seconds)

    # The thread.

    def run(self) -> None:
        """Start agents, ask, until it is closed."""
        failures = 0
        try:
            while True:
                with self._changed:
                    if self._closing:
                        return
                    count, self._to_start = self._to_start, 0
                    ended, self._to_give_back = self._to_give_back, []
                if isinstance(self._placer, TakesBack):
                    for facts in ended:
                        self._placer.give_back(facts)
                failures = self._start(count, failures)
                if failures < 0 or self._is_over():
                    self._wait_for_end()
                    return
                self._ask()
                with self._changed:
                    if not (self._closing or self._to_start or self._to_give_back):
                        self._changed.wait(min(ASK_EVERY, max(0.1, self._left())))
        finally:
            self._placer.close()

    def _start(self, count: int, failures: int) -> int:
        """Have agents started; the failures in a row, negative if no more is tried."""
        if not count and self._begun:
            return failures
        self._begun = True  # as many as come: the placer says how
        try:
            self._placer.start(self._command, self._invitation, count)
        except Exception as error:  # of a library of the cluster, say: the pool says it
            failures += 1
            log.warning("no agent could be started: %s", error)
            if isinstance(error, ValueError) or (failures >= MOST_FAILURES and not self._there):
                self._gave_up(f"no agent can be started: {error}")
                return -1
            with self._changed:
                self._to_start += count if failures < MOST_FAILURES else 0
                self._changed.wait(1.0)
            return failures
        return 0

    def _left(self) -> float:
        """Seconds of patience that are left."""
        expected = self._there or self.missing() == 0
        return float("inf") if expected else self._since + self._patience - time.monotonic()

    def _is_over(self) -> bool:
        if self._left() > 0:
            return False
        self._ask()
        told = f": {self.words}" if self.words else ""
        self._gave_up(f"no agent has come within {self._patience:g} s (start_timeout of the pool){told}")
        return True

    def _ask(self) -> None:
        if self.missing() == 0:
            self.words = ""
            return
        try:
            self.words = self._placer.status()
        except OSError as error:
            self.words = str(error)
            with self._changed:
                over = not (self._there or self._to_start)  # some may have been asked for meanwhile
            if over:
                self._gave_up(f"no agent will come: {error}")
                self._wait_for_end()
        except Exception as error:
            self.words = f"{type(error).__name__}: {error}"

    def _wait_for_end(self) -> None:
        with self._changed:
            while not self._closing:
                self._changed.wait()
