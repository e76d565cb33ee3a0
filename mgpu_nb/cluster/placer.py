"""The seam between a pool's agents and what starts them: a person, SLURM, Ray."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from ..options import Matches

__all__ = ["WORKED", "Failures", "Host", "NoMore", "Placer", "TakesBack"]

WORKED = 60.0  # seconds after which an agent that has joined was no failure, however it ends
_MOST_FAILURES = 3  # in a row, after which no other is started
_HOST = re.compile(r"[\w.-]+|[\da-fA-F]*:[\da-fA-F]*:[\da-fA-F:.]*(%\w+)?")
Host = Annotated[str, Matches(_HOST, "a host name or an IP address, without a port")]


class NoMore(OSError):
    """No agent is started any more: another one would be of no more use than those before it."""


class Failures:
    """What was started and was of no use; three in a row are enough.

    Parameters
    ----------
    what
        What they are, and what became of them: ``agents in a row have ended at once``.

    Attributes
    ----------
    count
        How many there were in a row.
    last
        Words about the last one of these; empty for none.
    """

    def __init__(self, what: str) -> None:
        self.count, self.last = 0, ""
        self._what = what

    def add(self, words: str) -> None:
        """Count one, of which these words tell."""
        self.count += 1
        self.last = words

    def reset(self) -> None:
        """Begin to count anew: another one is of use, so that these were no sign."""
        self.count, self.last = 0, ""

    @property
    def are_enough(self) -> bool:
        """Whether there were so many that another one would fail as well."""
        return self.count >= _MOST_FAILURES

    def check(self) -> None:
        """Raise `NoMore` if there were enough of them."""
        if self.are_enough:
            raise NoMore(f"{_MOST_FAILURES} {self._what}, the last: {self.last}")


class Placer(Protocol):
    """Has agents started on nodes, for one pool. Its methods are called one at a time, by a thread that may wait.

    Attributes
    ----------
    nodes
        Number of agents that it starts; None where as many come as come.
    slots_per_node
        Number of slots on each, where that is known before they are there.
    """

    nodes: int | None
    slots_per_node: int | None

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        """Have agents started; also again later, for those that were lost.

        Parameters
        ----------
        command
            Command line of an agent, its own interpreter first.
        invitation
            File that the command names: address, secret and certificate of the pool. It is of this user alone, and must
            be readable where the agent runs.
        count
            Number of agents.

        Returns
        -------
        int
            How many come by it: fewer, if the others are to be asked for again.

        Raises
        ------
        NoMore, ValueError
            If none can be started, now and later.
        OSError
            If none can be started now; the message says what the scheduler of the cluster said, and what to do.
        """

    def joined(self, facts: Mapping[str, Any]) -> None:
        """Take note of an agent that has joined the pool, which sees its end by itself; must not raise.

        Parameters
        ----------
        facts
            What the agent has told, see `facts_of_this_node`.
        """
        del facts  # of one that cannot know more by it

    def unheard(self) -> int:
        """Number of agents that have ended before they joined since this was asked, as far as it is known.

        Called after `status`, and after `joined` for those that have.
        """
        return 0  # of one that cannot know

    def worked(self) -> None:
        """Take note that an agent has worked for a while: those that failed before were no sign; must not raise."""
        return  # of one that counts none

    def status(self) -> str:
        """What the scheduler of the cluster says of those that have not come: ``SLURM job 17: PENDING (Resources)``.

        Called every ten seconds at the most, and never per task.

        Raises
        ------
        OSError
            If none will come any more.
        """

    def close(self) -> None:
        """End all that it has started and that has not ended; must not raise. No job of it is left afterwards."""


@runtime_checkable
class TakesBack(Protocol):
    """What a placer has beside `Placer` if its cluster takes nodes back that have nothing to do.

    Attributes
    ----------
    idle
        Seconds without a task after which a node is given back; None for never.
    """

    idle: float | None

    def give_back(self, facts: Mapping[str, Any]) -> None:
        """Have the cluster take back what it gave for an agent, which has just ended; must not raise.

        Parameters
        ----------
        facts
            What the agent has told, see `facts_of_this_node`.
        """
