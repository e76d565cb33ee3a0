"""The thread that has agents placed, and says when none will come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .placer import WORKED, Failures, NoMore, Placer, TakesBack

__all__ = ["Placement"]

log = logging.getLogger("mgpu_nb")

ASK_EVERY = 10.0  # seconds between looks at what the scheduler of the cluster says
MOST_REFUSALS = 3  # in a row of what starts agents, after which it is not asked again
MOST_BESIDE = 10  # as many, once an agent has been of use
PAUSE = 1.0  # seconds before it is asked again; once an agent has been of use, twice as long each time
LONGEST_PAUSE = 60.0


class Placement(threading.Thread):
    """Has the placer start agents, again for those that were lost, and asks it what became of them.

    What was given back, as it had nothing to do, is not missing until it is asked for again. Three agents in a row that
    were of no use are enough: then no more are started, and once all have come that are on their way, no more are
    expected, also beside others that work.

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
        # Agents: those that are there, of them those that have slots, those that were started and have not come, those
        # that were given back, and those that ended before they joined and are not replaced yet.
        self._there = self._serving = self._on_the_way = self._given_back = self._unreplaced = 0
        # Those that have slots, and when they will have worked for a while.
        self._proving: dict[object, float] = {}
        self._have_joined: list[Mapping[str, Any]] = []  # facts of agents, until the thread has taken note
        self._to_give_back: list[Mapping[str, Any]] = []  # the same, of agents that have ended
        self._useless = Failures("agents in a row were lost before they had slots")
        self._hopeless = ""  # why an agent that came can have no slots
        self._none = ""  # why none will come, as the placer said last
        self._no_more = ""  # why none is started any more
        self._refusals, self._refused = 0, ""  # in a row, the last one
        self._not_before = -float("inf")  # time of the next start
        self._since = time.monotonic()  # that no agent was there
        self._begun = self._served = self._over = self._closing = False

    # From any thread.

    def came(self, facts: Mapping[str, Any]) -> None:
        """An agent has come, which has told these facts."""
        with self._changed:
            self._there += 1
            if self._placer.nodes is not None:  # one may come that was not asked for
                self._given_back = max(0, min(self._given_back, self._placer.nodes - self._there))
            self._arrived(facts)

    def turned_away(self, facts: Mapping[str, Any]) -> None:
        """An agent has come for which there is no room."""
        with self._changed:
            self._arrived(facts)

    def _arrived(self, facts: Mapping[str, Any]) -> None:
        self._on_the_way = max(0, self._on_the_way - 1)
        self._have_joined.append(facts)
        self._changed.notify()

    def served(self, node: object) -> None:
        """An agent that has come has slots: it is of use."""
        with self._changed:
            self._serving += 1
            self._served = True
            self._proving[node] = time.monotonic() + WORKED
            self._useless.reset()
            self._no_more = ""  # it is tried once more
            self._changed.notify()

    def went(
        self,
        node: object,
        *,
        useless: str = "",
        hopeless: bool = False,
        given_back: Mapping[str, Any] | None = None,
    ) -> None:
        """An agent has gone: where the number of agents is known, another is asked for.

        Parameters
        ----------
        node
            The one that `served` was told of, if it had slots.
        useless
            Why it has gone, if it never had slots: after three in a row no other is asked for.
        hopeless
            Whether one that is like it would have none either.
        given_back
            Its facts, if it had nothing to do and its node is given back: then no other is asked for.
        """
        with self._changed:
            self._there -= 1
            self._proving.pop(node, None)
            if given_back is not None:
                self._given_back += 1
                self._to_give_back.append(given_back)
            if useless:
                self._useless.add(useless)
                self._hopeless = useless if hopeless else self._hopeless
            else:
                self._serving -= 1
            self._since = time.monotonic()
            self._changed.notify()

    def lacking(self, count: int) -> int:
        """How many agents to ask for in place of those that were given back, for so many with those on their way."""
        return min(self._given_back, count - (self.missing() or 0))

    def ask_again(self, count: int) -> None:
        """Ask for so many agents in place of those that were given back."""
        with self._changed:
            self._given_back -= count
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
                    self._go_on()
                with self._changed:
                    if not (self._closing or self._can_start or self._have_joined or self._to_give_back):
                        self._changed.wait(self._rest())
        except Exception as error:  # nobody else would say that none is started any more
            log.exception("no agents can be placed any more")
            self._give_up(f"{type(error).__name__}: {error}")
            with self._changed:
                self._changed.wait_for(lambda: self._closing)
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

    def _go_on(self) -> None:
        self._prove()
        if self._begun:
            self._ask()
        if reason := self._why_none_comes():
            self._give_up(reason)
        else:
            self._start()

    def _prove(self) -> None:
        """Forget what failed before, once for each agent that has worked for a while."""
        now = time.monotonic()
        with self._changed:
            proven = [node for node, at in self._proving.items() if at <= now]
            for node in proven:
                del self._proving[node]
        if proven:
            self._placer.worked()

    def _ask(self) -> None:
        """Ask the placer what became of those that have not come."""
        self._none = ""
        if self.missing() == 0:
            self.words = ""
            return
        try:
            self.words = "; ".join(filter(None, (self._refused, self._placer.status())))
        except OSError as error:
            self.words = self._none = str(error)
        except Exception as error:
            self.words = f"{type(error).__name__}: {error}"
        self._take_note()  # who has joined meanwhile is not missed
        unheard = self._placer.unheard()
        with self._changed:
            self._on_the_way = 0 if self._none else max(0, self._on_the_way - unheard)
            self._unreplaced = 0 if self._served else self._unreplaced + unheard

    def _why_none_comes(self) -> str:
        """Why no agent will come any more; empty if one may."""
        with self._changed:
            coming = self._on_the_way + self._there - self._serving
            alone = not (self._there or self._on_the_way or self._served)
        if self._no_more and not coming:
            return self._no_more
        if alone and self._hopeless:
            return self._hopeless
        if alone and self._none:
            return f"no agent will come: {self._none}"
        if self._left() <= 0:
            told = f": {self.words}" if self.words else ""
            return f"no agent has come within {self._patience:g} s (start_timeout of the pool){told}"
        return ""

    @property
    def _to_start(self) -> int:
        """Number of agents to start; one that ended before it joined is replaced once another has had slots."""
        unreplaced = 0 if self._served else self._unreplaced
        return max(0, (self.missing() or 0) - self._on_the_way - unreplaced)

    def _pause(self) -> float:
        """Seconds until what is to be started is."""
        start = self._to_start and not (self._over or self._no_more)
        return self._not_before - time.monotonic() if start else float("inf")

    @property
    def _can_start(self) -> bool:
        return self._pause() <= 0

    def _left(self) -> float:
        """Seconds of patience that are left."""
        expected = self._there or self.missing() == 0
        return float("inf") if expected else self._since + self._patience - time.monotonic()

    def _rest(self) -> float | None:
        """Seconds until it has something to do by itself; None for never."""
        if self._over:
            return None
        proof = min(self._proving.values(), default=float("inf")) - time.monotonic()
        ask = float("inf") if self.missing() == 0 else ASK_EVERY
        rest = max(0.1, min(ask, proof, self._left(), self._pause()))
        return None if rest == float("inf") else rest

    def _start(self) -> None:
        """Have agents started."""
        with self._changed:
            if self._begun and not self._can_start:
                return
            count = self._to_start
            self._on_the_way += count  # before: it may have come when `start` returns
        self._begun = True  # as many as come: the placer says how
        try:
            self._useless.check()
            started = self._placer.start(self._command, self._invitation, count)
        except Exception as error:  # of a library of the cluster, say: the pool says it
            started = 0
            self._was_refused(error)
        else:
            self._refusals, self._refused = 0, ""
        with self._changed:
            self._on_the_way = max(0, self._on_the_way + started - count)

    def _was_refused(self, error: Exception) -> None:
        self._refusals, self._refused = self._refusals + 1, str(error)
        log.warning("no agent could be started: %s", error)
        most = MOST_BESIDE if self._served else MOST_REFUSALS
        if isinstance(error, ValueError | NoMore) or self._refusals >= most:
            self._no_more = f"no agent can be started: {error}"
        # Those that are there need not wait: the controller of a cluster may be away for minutes.
        pause = min(LONGEST_PAUSE, PAUSE * 2**self._refusals) if self._served else PAUSE
        self._not_before = time.monotonic() + pause

    def _give_up(self, reason: str) -> None:
        self._over = True
        if self._there:  # else whoever waits is told
            log.warning("%d of %s nodes are there, and no more will come", self._there, self._placer.nodes)
        self._gave_up(reason)
