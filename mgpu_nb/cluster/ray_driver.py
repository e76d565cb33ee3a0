"""The process that talks to Ray for a pool: nodes are asked for, agents started on them, what is missing told.

Reads requests, lines of JSON, and answers each by one. Ray takes over much of a process that connects to it, and a
process can connect to one cluster only: the parent process does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import placement_group_table
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..engines.process import Lifeline
from .placer import WORKED, Failures, NoMore

__all__ = ["Keeper", "Nodes", "main"]

_NOTICED = 10.0  # seconds in which Ray notices that a node or an agent has gone
_LOOK = 0.5  # seconds between looks at what Ray has begun
_POLL = 5.0  # seconds that an actor may take to answer
_GRACE = 3.0  # seconds in which an agent may end by itself
_LINES = 5  # last ones of an agent's output in a message


class Keeper:
    """An actor: holds a node's share, and is the parent of the agent there, which ends with it."""

    def __init__(self) -> None:
        self._agent: subprocess.Popen[bytes] | None = None
        self._lifeline: Lifeline | None = None
        self._folder = Path()

    def where(self) -> tuple[str, str]:
        """Name of the host, and Ray's id of the node."""
        return socket.gethostname().partition(".")[0], ray.get_runtime_context().get_node_id()

    def begin(self, arguments: Sequence[str | None], content: str, name: str) -> None:
        """Start an agent; None among the arguments is its invitation, a file of this user alone."""
        self._folder = Path(tempfile.mkdtemp(prefix="mgpu_nb-agent-"))  # of mode 700
        file = self._folder / "invitation.json"
        with os.fdopen(
            os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as out:
            out.write(content)
        words = [str(file) if word is None else word for word in arguments]
        lifeline = Lifeline()
        try:
            with (self._folder / "output").open("wb") as output:
                self._agent = subprocess.Popen(
                    [sys.executable, *words, "--name", name],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[lifeline.read],
                    process_group=0,
                )
            lifeline.watch(self._agent.pid)
        except BaseException:
            lifeline.close()
            raise
        self._lifeline = lifeline

    def ended(self) -> tuple[int, str] | None:
        """Exit code of the agent and the last lines that it wrote; None while it runs."""
        if self._agent is None or (code := self._agent.poll()) is None:
            return None
        lines = (self._folder / "output").read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
        self.end(0)
        return code, "\n".join(lines)

    def end(self, seconds: float) -> None:
        """Wait until the agent has ended, which it does with its connection; kill it after these seconds."""
        if self._agent is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._agent.wait(seconds)
            self._agent.kill()
            self._agent.wait()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._agent = None
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None


class Bundle:
    """The share of a node in a placement group, and what was started there.

    Attributes
    ----------
    state
        ``waits`` for Ray, ``starts``, ``runs``, or is ``free``.
    joined
        Whether the pool has seen the agent there, and sees its end.
    again
        Whether it is kept for another one, as the last one has ended before it joined.
    """

    def __init__(self, group: Any, index: int, resources: Mapping[str, float]) -> None:
        self.group, self.index, self.resources = group, index, resources
        self.state = "free"
        self.name = ""
        self._actor: Any = None
        self._call: Any = None
        self._began = 0.0
        self.joined = self.again = False

    def begin(self) -> None:
        """Have Ray start an actor there, as soon as there is a node."""
        self.drop()
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.index)
        options = {"num_cpus": self.resources.get("CPU", 0), "num_gpus": self.resources.get("GPU", 0)}
        self._actor = (
            ray.remote(Keeper).options(**options, scheduling_strategy=strategy, max_restarts=0).remote()
        )
        self._call = self._actor.where.remote()
        self._began = time.monotonic()
        self.name = ""
        self.joined = self.again = False
        self.state = "waits"

    def look(
        self, arguments: Sequence[str | None], content: str, several_on: Mapping[str, bool]
    ) -> str | None:
        """Go on with what can go on; None, or how it failed: it is free then.

        An agent that ended after a while, or because the pool let it go, has not failed: it is free, and the words are
        empty.
        """
        try:
            return self._look(arguments, content, several_on)
        except RayError as error:
            # One that has joined has ended where the pool sees it, which asks for another.
            failed = self.state != "runs" or not self.joined
            self.state = "free"
            return _in_words(error) if failed else ""

    def _look(
        self, arguments: Sequence[str | None], content: str, several_on: Mapping[str, bool]
    ) -> str | None:
        if self.state == "free" or not ray.wait([self._call], timeout=0)[0]:
            return None
        found = ray.get(self._call)
        if self.state == "waits":
            host, node = found
            self.name = f"{host}-{node[:6]}" if several_on.get(host) else host
            self._call = self._actor.begin.remote(arguments, content, self.name)
            self.state = "starts"
            self._began = time.monotonic()
            return None
        if self.state == "runs" and found is not None:
            self.state = "free"
            code, lines = found
            if self.joined and (code <= 0 or time.monotonic() - self._began >= WORKED):
                return ""
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return f"the agent on {self.name} has ended {how}" + f"\n{lines}" * bool(lines)
        self.state = "runs"
        self._call = self._actor.ended.remote()
        return None

    def settle(self) -> None:
        """Wait a moment for the answer of the actor."""
        if self.state in ("starts", "runs"):
            ray.wait([self._call], timeout=_POLL)

    def drop(self) -> None:
        """Kill the actor, and what it has started."""
        if self._actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(self._actor)
            self._actor = None

    def end(self, seconds: float) -> Any:
        """Have the agent end; a reference to wait for, or None."""
        return None if self._actor is None or self.state == "waits" else self._actor.end.remote(seconds)


class Nodes:
    """The nodes of a pool.

    Parameters
    ----------
    address
        Of the cluster.
    resources
        What each node must have for the pool, by Ray's names; 0 for none.
    """

    def __init__(self, address: str, resources: Mapping[str, float]) -> None:
        self._resources = {name: count for name, count in resources.items() if count}
        self._bundles: list[Bundle] = []
        self._owed = 0  # agents to be started as soon as a bundle is free
        self._failures = Failures("agents in a row have ended at once")
        self._unheard = 0
        self._arguments: Sequence[str | None] = ()
        self._content = ""
        ray.init(address=address, log_to_driver=False, configure_logging=False)

    def start(self, count: int, arguments: Sequence[str | None], content: str) -> str:
        """Have agents started: on nodes that are held and have none, else on others."""
        self._failures.check()
        self._arguments, self._content = arguments, content
        self._owed += count
        end = time.monotonic() + (_NOTICED if self._bundles else 0)
        while self._owed and time.monotonic() < end:
            self._look()
            time.sleep(0.2)
        if self._owed:
            group = placement_group([self._resources] * self._owed, strategy="STRICT_SPREAD")
            made = [Bundle(group, index, self._resources) for index in range(self._owed)]
            self._owed = 0
            self._bundles += made
            for bundle in made:
                bundle.begin()
        return ""

    def _look(self) -> None:
        """Go on with all bundles, and start what is owed in those that are free."""
        hosts = [node["NodeManagerHostname"].partition(".")[0] for node in ray.nodes() if node["Alive"]]
        several_on = {host: hosts.count(host) > 1 for host in hosts}
        for bundle in self._bundles:
            bundle.settle()
            while (before := bundle.state) != "free":
                failed = bundle.look(self._arguments, self._content, several_on)
                if failed:
                    self._failures.add(failed)
                    bundle.again = not bundle.joined
                    self._unheard += bundle.again
                if bundle.state == before:
                    break
        for bundle in [bundle for bundle in self._bundles if bundle.state == "free"][: self._owed]:
            self._owed -= 1
            bundle.begin()
        self._give_back()

    def go_on(self) -> bool:
        """Start agents where Ray has begun actors; whether there are such that it has not."""
        with contextlib.suppress(Exception):  # `status` says it
            self._look()
        return any(bundle.state in ("waits", "starts") for bundle in self._bundles)

    def joined(self, name: str) -> str:
        """Take note of an agent that has joined the pool."""
        for bundle in self._bundles:
            if bundle.name == name and bundle.state in ("starts", "runs") and not bundle.joined:
                bundle.joined = True
                break
        return ""

    def worked(self) -> str:
        """Take note that an agent has worked for a while."""
        self._failures.reset()
        return ""

    def unheard(self) -> str:
        """Number of agents that have ended before they joined, since this was asked."""
        count, self._unheard = self._unheard, 0
        return str(count)

    def give_back(self, name: str) -> str:
        """Take note that an agent has just ended, and give back what is of no use any more."""
        end = time.monotonic() + _NOTICED
        while (
            any(each.name == name and each.state == "runs" for each in self._bundles)
            and time.monotonic() < end
        ):
            self._look()
            time.sleep(0.2)
        return ""

    def _give_back(self) -> None:
        """Remove the groups of which all bundles are free."""
        tried_again = not self._failures.are_enough
        used = {
            bundle.group.id
            for bundle in self._bundles
            if bundle.state != "free" or (bundle.again and tried_again)
        }
        for bundle in [bundle for bundle in self._bundles if bundle.group.id not in used]:
            bundle.drop()
            remove_placement_group(bundle.group)
            self._bundles.remove(bundle)

    def status(self) -> str:
        """What is missing, in words.

        Raises
        ------
        OSError
            If no agent runs or waits.
        """
        self._look()
        if all(bundle.state == "free" for bundle in self._bundles):
            raise OSError(self._failures.last or "the agents on Ray's nodes have ended")
        waiting = [bundle for bundle in self._bundles if bundle.state == "waits"]
        return "; ".join(filter(None, [self._lacking(waiting) if waiting else "", self._failures.last]))

    def _lacking(self, waiting: Sequence[Bundle]) -> str:
        need = " and ".join(f"{count:g} {name}" for name, count in self._resources.items())
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fit = sum(all(has.get(name, 0) >= count for name, count in self._resources.items()) for has in alive)
        total, free = ray.cluster_resources(), ray.available_resources()
        left = " and ".join(
            f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in self._resources
        )
        states = {placement_group_table(bundle.group)["state"] for bundle in waiting}
        if states == {"CREATED"}:
            return f"Ray starts {len(waiting)} of its actors"
        return (
            f"Ray: {len(waiting)} nodes with {need} each are pending; {fit} of its {len(alive)} nodes have so much, "
            f"and {left} are free now"
        )

    def close(self) -> str:
        """End all of it, and the connection."""
        ends = [call for bundle in self._bundles if (call := bundle.end(_GRACE)) is not None]
        with contextlib.suppress(RayError):
            ray.wait(ends, num_returns=len(ends), timeout=2 * _POLL) if ends else None
        for bundle in self._bundles:
            bundle.state, bundle.again = "free", False
        self._give_back()
        ray.shutdown()
        return ""


def _in_words(error: RayError) -> str:
    """What Ray says of an actor that did not start."""
    text = str(error).strip()
    if "No module named 'mgpu_nb'" in text:
        return (
            "the Python environment of Ray's workers has no mgpu_nb: pip install mgpu_nb in it, on each node"
        )
    return f"Ray could not start an agent: {text[-1000:]}"


def _requests(meanwhile: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Requests from stdin, until it is closed; `meanwhile` is called from time to time as long as it says so."""
    received = b""
    again = False
    while True:
        if b"\n" in received:
            line, _, received = received.partition(b"\n")
            yield json.loads(line)
            again = True
        elif again and not select.select([0], [], [], _LOOK)[0]:
            again = meanwhile()
        elif data := os.read(0, 2**16):
            received += data
        else:
            return


def main() -> None:
    """Answer requests until there are none any more."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Ray prints is none of the answers
    made: list[Nodes] = []
    for request in _requests(lambda: bool(made) and made[0].go_on()):
        what = request.pop("do")
        words, failed, over = "", "", False
        try:
            if what == "connect":
                made.append(Nodes(**request))
            elif made:
                words = getattr(made[0], what)(**request)
        except Exception as error:  # whatever Ray raises: the pool says it
            failed, over = str(error).strip() or type(error).__name__, isinstance(error, NoMore)
        print(json.dumps({"words": words, "error": failed, "over": over}), file=out, flush=True)
        if what == "close":
            return
