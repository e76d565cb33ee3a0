"""The seam between a pool's agents and what starts them: a person, SLURM, Ray."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from ..options import Matches

__all__ = ["Host", "Placer", "TakesBack"]

_HOST = re.compile(r"[\w.-]+|[\da-fA-F]*:[\da-fA-F]*:[\da-fA-F:.]*(%\w+)?")
Host = Annotated[str, Matches(_HOST, "a host name or an IP address, without a port")]


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

    def start(self, command: Sequence[str], invitation: Path, count: int) -> None:
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

        Raises
        ------
        OSError, ValueError
            If none can be started now; the message says what the scheduler of the cluster said, and what to do.
        """

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
