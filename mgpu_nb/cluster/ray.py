"""Nodes of a Ray cluster: an actor on each holds what Ray gives, and is the parent of an agent."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple, Unpack

from ..engines.base import Engine, EngineOptions
from ..engines.process import Lifeline
from ..engines.servers import runtime
from ..options import Between, Matches, NonNegativeInt, PositiveFloat, PositiveInt, check_options
from .placer import Host, NoMore

__all__ = ["Ray", "RayPlacer"]

_ADDRESS = re.compile(r"auto|(ray://)?(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")
_Address = Annotated[str, Matches(_ADDRESS, "HOST:PORT, ray://HOST:PORT or auto")]
_CONNECT = 10.0  # seconds in which the address must answer
_JOIN = 30.0  # seconds in which it must answer as Ray does
_LINES = 5  # last ones that the driver wrote, in a message
_ANSWER = 120.0  # seconds that Ray may take for anything
_END = 30.0  # seconds that it has to end what it runs for a pool


@dataclass(frozen=True)
class Ray:
    """Nodes of a Ray cluster, for ``GPUPool(cluster=Ray(nodes=2, gpus_per_node=4))``.

    A placement group asks for all of them, each on another node (STRICT_SPREAD); an actor on each starts an agent,
    which dials this process. What Ray gives is given back with the pool, or with this process. mgpu_nb must be
    installed in the environment of Ray's workers. A connection of this process to Ray is not touched.

    The agent of a node without a task for `idle` seconds ends, and with it what its workers hold. A placement group
    cannot become smaller: Ray has the nodes back once the last agent of those that were asked for together has ended.
    When tasks wait again, agents are started again where the pool still has nodes, and others are asked for.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid; the message names it and the accepted values.
    """

    address: _Address | None = None
    """Address of the cluster, HOST:PORT; by default that of RAY_ADDRESS, or of the cluster that runs here."""
    nodes: PositiveInt = 1
    """Number of nodes."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs on each, and slots by default; 0 for nodes without."""
    cpus_per_node: PositiveInt = 1
    """Cores on each, as Ray counts them: workers are not bound to so many."""
    idle: PositiveFloat | None = 300.0
    """Seconds without a task after which a node is given back; None for never."""
    trust: bool = False
    """Whether to trust all who reach a cluster without authentication: they can run programs in it and join pools."""
    host: Host | None = None
    """Address of this machine that the nodes reach; by default that of the way to the cluster."""
    port: Annotated[int, Between(0, 65535)] = 0
    """Port of this machine that agents dial, where only some are let through; by default any that is free."""

    def __post_init__(self) -> None:
        """Check what can be checked without the cluster."""
        check_options(self)

    def engine(self, **options: Unpack[EngineOptions]) -> Engine:
        """Engine of a pool whose workers are on the nodes.

        Raises
        ------
        ImportError
            If Ray is not installed.
        ValueError
            If the cluster is not to be trusted.
        OSError
            If nobody answers at its address.
        """
        if importlib.util.find_spec("ray") is None:
            raise ModuleNotFoundError("Ray is not installed: pip install 'mgpu_nb[ray]'", name="ray")
        place = find_cluster(self.address)
        if not (self.trust or place.is_local or has_token()):
            raise ValueError(
                f"address={place.address!r}: whoever reaches a Ray cluster without authentication can run programs in "
                "it, and read what lets agents join this pool. Give the cluster a token (RAY_AUTH_MODE=token, see the "
                "security guide of Ray), or say trust=True where you trust all who reach it"
            )
        place.check_answer()
        from .door import route_to
        from .engine import ClusterEngine

        return ClusterEngine(
            RayPlacer(self, place),
            address=self.host or route_to(place.host),
            port=self.port,
            **options,
        )


class Place(NamedTuple):
    """Where a Ray cluster is.

    Attributes
    ----------
    address
        As ``ray.init`` takes it.
    is_local
        Whether it is reached by loopback, or was found on this machine.
    """

    address: str
    is_local: bool

    @property
    def host(self) -> str:
        """Host of the address."""
        return self.address.removeprefix("ray://").rpartition(":")[0].strip("[]")

    def check_answer(self) -> None:
        """Raise an OSError if nobody answers within ten seconds."""
        port = int(self.address.rpartition(":")[2])
        try:
            socket.create_connection((self.host, port), _CONNECT).close()
        except OSError as error:
            raise ConnectionError(
                f"no Ray cluster answers at {self.address} ({error.strerror or error}): `ray status` on its head node "
                "says whether it runs, and at which address"
            ) from error


def find_cluster(address: str | None) -> Place:
    """Cluster of an address; without one that of RAY_ADDRESS, or else that which runs on this machine.

    Raises
    ------
    OSError
        If there is none.
    ValueError
        If RAY_ADDRESS is no address.
    """
    if address is None and (given := os.environ.get("RAY_ADDRESS")):
        if not _ADDRESS.fullmatch(given):
            raise ValueError(f"RAY_ADDRESS={given!r} is no address: HOST:PORT, ray://HOST:PORT or auto")
        address = given
    if address not in (None, "auto"):
        return Place(address, _is_loopback(Place(address, False).host))
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    file = Path(folder) / "ray" / "ray_current_cluster"
    owner, found = 0, ""
    with contextlib.suppress(OSError):
        owner, found = file.stat().st_uid, file.read_text(encoding="utf-8").strip()
    if _ADDRESS.fullmatch(found):
        if owner not in (0, os.getuid()):  # anybody may write there
            raise ConnectionError(
                f"{file} is another user's: give address={found!r} if you trust that cluster"
            )
        return Place(found, _is_here(Place(found, False).host))
    raise ConnectionError(
        "no Ray cluster runs on this machine: start one by `ray start --head`, or give address=HOST:PORT"
    )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _is_here(host: str) -> bool:
    """Whether a host is this machine; where a worker node of Ray is, it is not."""
    from .door import route_to

    with contextlib.suppress(OSError):
        return _is_loopback(host) or route_to(host) == socket.getaddrinfo(host, None)[0][4][0]
    return False


def has_token() -> bool:
    """Whether Ray is told to prove itself by a token, as `ray.init` finds it."""
    if mode := os.environ.get("RAY_AUTH_MODE"):
        return mode.lower() == "token"
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    return (Path.home() / ".ray" / "auth_token").is_file()


class RayPlacer:
    """Asks Ray for nodes, by a process of its own, which is Ray's driver.

    Parameters
    ----------
    wanted
        What to ask the cluster for.
    place
        Where that is.
    """

    def __init__(self, wanted: Ray, place: Place) -> None:
        self.nodes: int | None = wanted.nodes
        self.slots_per_node: int | None = wanted.gpus_per_node or None
        self.idle = wanted.idle
        self._wanted, self._place = wanted, place
        self._driver: _Driver | None = None
        self._on_the_way = self._lost = 0  # agents that were asked for; of a driver that has ended

    def start(self, command: Sequence[str], invitation: Path, count: int) -> int:
        """Ask for so many nodes.

        Raises
        ------
        NoMore
            If the agents of three nodes in a row have ended at once.
        OSError
            If Ray cannot be asked.
        """
        if self._driver is None or self._driver.has_ended():
            self.close()
            self._driver, self._lost, self._on_the_way = None, self._lost + self._on_the_way, 0
            self._driver = self._connect()
        content = invitation.read_text(encoding="utf-8")
        own = str(invitation)
        arguments = [
            None if word == own else word for word in command[1:]
        ]  # its interpreter and file are the node's
        self._driver.ask(do="start", count=count, arguments=arguments, content=content)
        self._on_the_way += count
        return count

    def _connect(self) -> _Driver:
        driver = _Driver()
        resources = {"CPU": self._wanted.cpus_per_node, "GPU": self._wanted.gpus_per_node}
        try:
            driver.ask(seconds=_JOIN, do="connect", address=self._place.address, resources=resources)
        except BaseException:
            driver.close()
            raise
        return driver

    def joined(self, facts: Mapping[str, Any]) -> None:
        """Take note of an agent that has joined."""
        self._on_the_way = max(0, self._on_the_way - 1)
        with contextlib.suppress(OSError):  # the next question says it
            if self._driver is not None:
                self._driver.ask(do="joined", name=facts["node"])

    def unheard(self) -> int:
        """Number of agents that have ended before they joined, or whose driver has, since this was asked."""
        found = 0
        with contextlib.suppress(OSError):
            if self._driver is not None:
                found = int(self._driver.ask(do="unheard"))
        self._on_the_way = max(0, self._on_the_way - found)
        lost, self._lost = self._lost, 0
        return found + lost

    def worked(self) -> None:
        """Take note that an agent has worked for a while."""
        with contextlib.suppress(OSError):
            if self._driver is not None:
                self._driver.ask(do="worked")

    def give_back(self, facts: Mapping[str, Any]) -> None:
        """Have Ray take back the placement group of an agent, if it was the last one of that."""
        with contextlib.suppress(OSError):  # the next look does it
            if self._driver is not None:
                self._driver.ask(do="give_back", name=facts["node"])

    def status(self) -> str:
        """What Ray lacks, or what became of agents that have not come.

        Raises
        ------
        OSError
            If none will come any more.
        """
        return self._driver.ask(do="status") if self._driver is not None else ""

    def close(self) -> None:
        """End the agents, and give back what Ray gave."""
        if self._driver is not None:
            self._driver.close()


class _Driver:
    """The process that talks to Ray; it is killed when this one is gone, and Ray then ends what it has started."""

    def __init__(self) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        lifeline = Lifeline()
        # RAY_ADDRESS would win against the address that it is told.
        environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from mgpu_nb.cluster.ray_driver import main; main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                pass_fds=[lifeline.read],
                env=environ,
                process_group=0,  # an interrupt of a terminal is for the parent process
            )
            lifeline.watch(self._process.pid)
            runtime.channels.add(lifeline)  # a fork of this process does not keep it alive
        except BaseException:
            lifeline.close()
            self._errors.close()
            raise
        self._lifeline = lifeline
        self._answers = b""

    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def ask(self, *, seconds: float = _ANSWER, **request: Any) -> str:
        """Have it do something; its answer.

        Raises
        ------
        OSError
            If it could not; the message has the words of Ray. `NoMore`, if it never can.
        """
        assert self._process.stdin is not None  # noqa: S101 (a pipe was asked for)
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._line(seconds))
        except (BrokenPipeError, EOFError):
            self._process.wait()
            raise OSError(f"the driver of Ray has ended: {self._last_words()}") from None
        if answer["error"]:
            raise (NoMore if answer["over"] else OSError)(answer["error"])
        return str(answer["words"])

    def _line(self, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        assert self._process.stdout is not None  # noqa: S101
        fd = self._process.stdout.fileno()
        while b"\n" not in self._answers:
            if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                self._process.kill()  # its next answer would be taken for another's
                raise TimeoutError(f"Ray has not answered in {seconds:g} s: {self._last_words()}")
            data = os.read(fd, 2**16)
            if not data:
                raise EOFError
            self._answers += data
        line, _, self._answers = self._answers.partition(b"\n")
        return line

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()[-_LINES:]
        return "\n".join(lines) or "it wrote nothing"

    def close(self) -> None:
        """Have it end, kill it if it does not."""
        if self._errors.closed:
            return
        with contextlib.suppress(OSError, ValueError):
            if not self.has_ended():
                self.ask(do="close", seconds=_END)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        self._lifeline.close()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
