"""Dependencies between tasks: the order that ``after`` asks for."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

__all__ = ["Barrier", "Graph"]


class Graph:
    """Tasks and the tasks that they wait for.

    Parameters
    ----------
    after
        Names that each task waits for.

    Raises
    ------
    ValueError
        If a name is unknown, or tasks wait for one another in a cycle.
    """

    def __init__(self, after: Mapping[str, Iterable[str]]) -> None:
        self._waits_for = {name: set(others) for name, others in after.items() if others}
        self._followers: dict[str, list[str]] = {}
        for name, others in self._waits_for.items():
            for other in others:
                if other not in after:
                    near = difflib.get_close_matches(other, after, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise ValueError(
                        f"task {name!r} waits for {other!r}, which is not a task of this run{hint}"
                    )
                self._followers.setdefault(other, []).append(name)
        self._order = [name for name in after if name not in self._waits_for]
        self._ready = self._order.copy()
        left = {name: len(others) for name, others in self._waits_for.items()}
        for name in self._order:  # grows meanwhile
            for follower in self._followers.get(name, ()):
                left[follower] -= 1
                if not left[follower]:
                    self._order.append(follower)
        if len(self._order) < len(after):
            raise ValueError(f"tasks wait for one another in a cycle: {self._cycle()}; remove one 'after'")

    def _cycle(self) -> str:
        try:
            TopologicalSorter(self._waits_for).prepare()
        except CycleError as error:
            return " -> ".join(reversed(error.args[1]))
        return ""

    def order(self) -> list[str]:
        """All tasks, each after those it waits for."""
        return self._order

    def ready(self) -> list[str]:
        """Tasks that wait for nothing."""
        return self._ready

    def done(self, name: str) -> list[str]:
        """Mark a task as ok; returns the tasks that may start because of it."""
        free = []
        for follower in self._followers.get(name, ()):
            self._waits_for[follower].discard(name)
            if not self._waits_for[follower]:
                free.append(follower)
        return free

    def rest(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Seconds from the start of each task to the end of the longest chain that it begins.

        To start the task with the longest rest first keeps the critical path going: the upward rank of HEFT (Topcuoglu
        et al., 2002) without costs of communication.

        Parameters
        ----------
        seconds
            Duration of each task.
        """
        rest: dict[str, float] = {}
        for name in reversed(self._order):
            after = (rest[follower] for follower in self._followers.get(name, ()))
            rest[name] = seconds[name] + max(after, default=0.0)
        return rest

    def rounds(self) -> dict[str, int]:
        """Number of tasks in the longest chain that comes before each task."""
        rounds = dict.fromkeys(self._order, 0)
        for name in self._order:
            for follower in self._followers.get(name, ()):
                rounds[follower] = max(rounds[follower], rounds[name] + 1)
        return rounds

    def followers(self, name: str) -> list[str]:
        """Tasks that wait for this one."""
        return self._followers.get(name, [])


class Barrier:
    """Tasks in rounds: those of a round pass when all of the earlier rounds have ended, however they did.

    Parameters
    ----------
    rounds
        Number of the round of each task.
    """

    @staticmethod
    def check(rounds: Mapping[str, int], after: Mapping[str, Iterable[str]]) -> None:
        """Check that every task has a round, and none waits for a task of a later one.

        Raises
        ------
        ValueError
            If not; the message names the task.
        """
        if missing := [name for name in after if name not in rounds]:
            raise ValueError(f"by_round has no round for task {missing[0]!r}; give a number for every task")
        for name, others in after.items():
            for other in others:
                if rounds[other] > rounds[name]:
                    raise ValueError(
                        f"by_round: task {name!r} of round {rounds[name]} waits for {other!r} of round "
                        f"{rounds[other]}, which would begin after it; give it a later round"
                    )

    def __init__(self, rounds: Mapping[str, int]) -> None:
        self._rounds = rounds
        self._left = Counter(rounds.values())
        self._waiting: dict[int, list[str]] = {}

    def let_pass(self, names: Iterable[str]) -> list[str]:
        """Those of these tasks that may begin; the others wait until `ended` gives them."""
        open_round = min(self._left, default=0)
        passed = []
        for name in names:
            if self._rounds[name] <= open_round:
                passed.append(name)
            else:
                self._waiting.setdefault(self._rounds[name], []).append(name)
        return passed

    def ended(self, name: str) -> list[str]:
        """Note that a task has ended; returns the tasks that waited for its round to end."""
        number = self._rounds.get(name)
        if number is None:  # a record that was kept
            return []
        self._left[number] -= 1
        if self._left[number]:
            return []
        del self._left[number]
        open_round = min(self._left, default=0)
        return [
            name
            for round_ in sorted(self._waiting)
            if round_ <= open_round
            for name in self._waiting.pop(round_)
        ]
