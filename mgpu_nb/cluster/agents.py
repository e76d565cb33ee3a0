"""Nodes on which a person starts agents, and agents on this machine."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Unpack

from ..engines.base import Engine, EngineOptions
from ..options import Between, NonNegativeInt, PositiveInt, check_options
from ..store.files import make_private
from .children import Child, PlacesChildren
from .placer import Host

__all__ = ["Agents", "AgentsPlacer"]

_GRACE = 5.0  # seconds in which an agent may end by itself
_ANYWHERE = "192.0.2.1"  # of the network for documentation: whatever interface leads out


@dataclass(frozen=True)
class Agents:
    """Nodes on which you start agents yourself, for ``GPUPool(cluster=Agents())``.

    The pool prints the command for each node, ``mgpu-nb agent --connect FILE``. Who can read this file can join the
    pool.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names it and the accepted values.
    """

    nodes: PositiveInt | None = None
    """Number of agents in all; by default those that are started here, or else as many as come."""
    here: NonNegativeInt = 0
    """Number of agents that are started on this machine, as processes that end with this one: to try things out. They
    are the nodes here-0, here-1 and so on."""
    address: Host | None = None
    """Address of this machine that the nodes reach; by default that of its way out, loopback if all agents are here."""
    port: Annotated[int, Between(0, 65535)] = 0
    """Port of this machine that agents dial, where only some are let through; by default any that is free."""

    def __post_init__(self) -> None:
        """Check the options."""
        check_options(self)
        if self.nodes is not None and self.here > self.nodes:
            raise ValueError(f"here={self.here} agents are more than nodes={self.nodes}, the number of all")

    @property
    def elsewhere(self) -> int | None:
        """Number of agents that a person starts; None for as many as come."""
        return None if self.nodes is None and not self.here else (self.nodes or self.here) - self.here

    def engine(self, **options: Unpack[EngineOptions]) -> Engine:
        """Engine of a pool whose workers are where agents come from.

        Raises
        ------
        OSError
            If this machine has no way out, and no address was given.
        """
        from .door import route_to
        from .engine import ClusterEngine

        address = self.address or ("127.0.0.1" if self.elsewhere == 0 else route_to(_ANYWHERE))
        return ClusterEngine(
            AgentsPlacer(self),
            address=address,
            port=self.port,
            **options,
        )


class AgentsPlacer(PlacesChildren):
    """Starts agents here, and says how to start others.

    Parameters
    ----------
    wanted
        How many, and where.
    """

    def __init__(self, wanted: Agents) -> None:
        super().__init__()
        self.nodes: int | None = wanted.nodes or wanted.here or None
        self.slots_per_node: int | None = None
        self._wanted = wanted
        self._folder: Path | None = None
        self._words = ""

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        """Start agents here as far as they are asked for, and print the command for the others.

        Raises
        ------
        NoMore
            If the last three have ended at once, and no other is expected.
        OSError
            If no process can be started.
        """
        self._children.look()
        failures, elsewhere = self._children.failures, self._wanted.elsewhere
        if elsewhere == 0:
            failures.check()
        alive = len(self._children.alive)
        # One that was lost and lives on, as it was stopped, say, is replaced where no other can come.
        own = min(count, max(self._wanted.here - alive, 0 if elsewhere else count))
        own = own if self._wanted.here and not failures.are_enough else 0
        self._folder = invitation.with_suffix("")
        make_private(self._folder)
        for _ in range(own):
            name = f"here-{len(self._children)}"
            self._children.append(Child([*command, "--name", name], name, self._folder / f"{name}.log"))
        if (others := count - own) or self.nodes is None:
            self._tell(invitation, others)
        return count

    def _tell(self, invitation: Path, count: int) -> None:
        call = f"mgpu-nb agent --connect {shlex.quote(str(invitation))}"
        self._words = f"start {'them' if count != 1 else 'it'} by: {call}"
        nodes = {0: "each node", 1: "a node"}.get(count, f"{count} nodes")
        sys.stderr.write(
            f"The pool waits for agents. Run this on {nodes}, in an environment with mgpu_nb:\n    {call}\n"
            f"Where that file is not seen, copy it first (scp -p {shlex.quote(str(invitation))} NODE:) and name the "
            "copy. Who can read it can join the pool.\n"
        )
        sys.stderr.flush()

    def status(self) -> str:
        """What became of the agents here, and how to start the others.

        Raises
        ------
        OSError
            If those here have ended, and no other is expected.
        """
        if self._children and not self._children.alive and not self._words:
            raise OSError(self._children.last_words)
        failed = str(self._children[-1]) if self._children and self._children[-1].failed else ""
        return "; ".join(filter(None, [failed, self._words]))

    def close(self) -> None:
        """End the agents here."""
        self._children.close(_GRACE)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
