"""The thread that has agents placed, and says when none will come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .placer import Failures, NoMore, Placer, TakesBack

__all__ = ["Placement"]

log = logging.getLogger("mgpu_nb")

ASK_EVERY = 10.0  # seconds between looks at what the scheduler of the cluster says
MOST_REFUSALS = 3  # in a row of what starts agents, after which it is not asked again
MOST_BESIDE = 10  # as many, beside agents that are there
PAUSE = 1.0  # seconds before it is asked again; beside agents that are there twice as long each time
LONGEST_PAUSE = 60.0


class Placement(threading.Thread):
    """Has the placer start agents, again for those that were lost, and asks it what became of them.

    What was given back, as it had nothing to do, is not missing until it is asked for again. Three agents in a row that
    were of no use are enough: then no more come, also beside others that work.

    Parameters
    ----------
    placer
        What starts agents.
    command, invitation
        See `Placer.start`.
    patience
        Seconds that it waits for a first agent, and for another when the last has gone.
    gave_up
        Called by this thread with the reason when no more agents will come.
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
        self._have_joined: list[Mapping[str, Any]] = []  # facts of agents, until the thread has taken note
        self._to_give_back: list[Mapping[str, Any]] = []  # the same, of agents that have ended
        self._useless = Failures("agents in a row were lost before they had slots")
        self._refusals, self._refused = 0, ""  # in a row, the last one
        self._not_before = -float("inf")  # time of the next start
        self._since = time.monotonic()  # that no agent was there
        self._begun = self._served = self._over = self._closing = False

    # From any thread.

    def came(self, facts: Mapping[str, Any]) -> None:
        """An agent has come, which has told these facts."""
        with self._changed:
            self._there += 1
            self._have_joined.append(facts)
            if self._placer.nodes is not None:  # one may come that was not asked for
                self._given_back = max(0, min(self._given_back, self._placer.nodes - self._there))
            self._changed.notify()

    def served(self) -> None:
        """An agent that has come has slots: it is of use."""
        with self._changed:
            self._served = True
            self._useless.reset()

    def went(self, *, useless: str = "", given_back: Mapping[str, Any] | None = None) -> None:
        """An agent has gone: where the number of agents is known, another is asked for.

        Parameters
        ----------
        useless
            Why it has gone, if it never had slots: after three in a row no other is asked for.
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
            if useless:
                self._useless.add(useless)
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
        try:
            while not self._closing:
                self._take_note()
                if not self._over:
                    self._start()
                if not self._over:
                    self._ask()
                with self._changed:
                    if not (self._closing or self._can_start or self._have_joined or self._to_give_back):
                        self._changed.wait(self._rest())
        finally:
            self._placer.close()

    def _take_note(self) -> None:
        """Tell the placer who has joined, and what is given back."""
        with self._changed:
            joined, self._have_joined = self._have_joined, []
            ended, self._to_give_back = self._to_give_back, []
        for facts in joined:
            self._placer.joined(facts)
        if isinstance(self._placer, TakesBack):
            for facts in ended:
                self._placer.give_back(facts)

    def _pause(self) -> float:
        """Seconds until what is to be started is."""
        return self._not_before - time.monotonic() if self._to_start else float("inf")

    @property
    def _can_start(self) -> bool:
        return not self._over and self._pause() <= 0

    def _rest(self) -> float | None:
        """Seconds until it has something to do by itself; None for never."""
        return None if self._over else max(0.1, min(ASK_EVERY, self._left(), self._pause()))

    def _start(self) -> None:
        """Have agents started."""
        with self._changed:
            if self._begun and not self._can_start:
                return
            count, self._to_start = self._to_start, 0
        self._begun = True  # as many as come: the placer says how
        try:
            self._useless.check()
            self._placer.start(self._command, self._invitation, count)
        except Exception as error:  # of a library of the cluster, say: the pool says it
            self._was_refused(error, count)
        else:
            self._refusals, self._refused = 0, ""

    def _was_refused(self, error: Exception, count: int) -> None:
        self._refusals, self._refused = self._refusals + 1, str(error)
        log.warning("no agent could be started: %s", error)
        beside = self._there > 0
        if isinstance(error, ValueError | NoMore) or self._refusals >= (
            MOST_BESIDE if beside else MOST_REFUSALS
        ):
            self._give_up(f"no agent can be started: {error}")
            return
        # Those that are there need not wait: the controller of a cluster may be away for minutes.
        pause = min(LONGEST_PAUSE, PAUSE * 2**self._refusals) if beside else PAUSE
        with self._changed:
            self._to_start += count
            self._not_before = time.monotonic() + pause

    def _give_up(self, reason: str) -> None:
        self._over = True
        if self._there:  # else whoever waits is told
            log.warning(
                "%d of %s nodes are there, no other is asked for: %s", self._there, self._placer.nodes, reason
            )
        self._gave_up(reason)

    def _left(self) -> float:
        """Seconds of patience that are left."""
        expected = self._there or self.missing() == 0
        return float("inf") if expected else self._since + self._patience - time.monotonic()

    def _ask(self) -> None:
        """Ask the placer what became of those that have not come, and have those replaced that will not."""
        if self.missing() == 0:
            self.words = ""
            return
        try:
            self.words = "; ".join(filter(None, (self._refused, self._placer.status())))
            self._replace()
        except NoMore as error:
            self.words = str(error)
            self._give_up(f"no agent will come: {error}")
        except OSError as error:
            self.words = str(error)
            self._replace()
            with self._changed:
                over = not (self._there or self._to_start)  # some may have been asked for meanwhile
            if over:
                self._give_up(f"no agent will come: {error}")
        except Exception as error:
            self.words = f"{type(error).__name__}: {error}"
        if not self._over and self._left() <= 0:
            told = f": {self.words}" if self.words else ""
            self._give_up(f"no agent has come within {self._patience:g} s (start_timeout of the pool){told}")

    def _replace(self) -> None:
        """Have those started again that have ended before they joined, once others have shown that it works."""
        if self._served and (count := self._placer.unheard()):
            with self._changed:
                missing = self.missing()
                self._to_start += count if missing is None else max(0, min(count, missing - self._to_start))
