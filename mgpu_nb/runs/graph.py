"""Dependencies between tasks: the order that ``after`` asks for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

__all__ = ["Graph"]


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
        self._waits_for = {name: set(others) for name, others in after.items()}
        for name, others in self._waits_for.items():
            for other in others:
                if other in after:
                    continue
                near = difflib.get_close_matches(other, after, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"task {name!r} waits for {other!r}, which is not a task of this run{hint}")
        try:
            self._order = list(TopologicalSorter(self._waits_for).static_order())
        except CycleError as error:
            cycle = " -> ".join(reversed(error.args[1]))
            raise ValueError(f"tasks wait for one another in a cycle: {cycle}; remove one 'after'") from None
        self._followers: dict[str, list[str]] = {}
        for name, others in self._waits_for.items():
            for other in others:
                self._followers.setdefault(other, []).append(name)

    def order(self) -> list[str]:
        """All tasks, each after those it waits for."""
        return self._order

    def ready(self) -> list[str]:
        """Tasks that wait for nothing."""
        return [name for name, others in self._waits_for.items() if not others]

    def done(self, name: str) -> list[str]:
        """Mark a task as ok; returns the tasks that may start because of it."""
        free = []
        for follower in self._followers.get(name, ()):
            self._waits_for[follower].discard(name)
            if not self._waits_for[follower]:
                free.append(follower)
        return free

    def followers(self, name: str) -> list[str]:
        """Tasks that wait for this one."""
        return self._followers.get(name, [])
