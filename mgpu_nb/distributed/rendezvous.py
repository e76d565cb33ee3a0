"""Where ranks meet: a store that one process serves and all others know the address of."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["LONGEST", "LOOPBACK", "Meeting", "interface_to", "join", "serve", "stay_on_loopback", "talk_over"]

LOOPBACK = "127.0.0.1"
LONGEST = 365 * 86400.0  # seconds that anybody may wait
_START, _LEFT, _ALL_LEFT = "mgpu_nb/start", "mgpu_nb/left", "mgpu_nb/all_left"
_LOOK, _LOOK_LONGEST = 0.005, 0.1  # seconds between looks whether a store is served
_ANSWER = 5.0  # seconds in which a machine answers a look, if it is one that can be reached


class Meeting(NamedTuple):
    """Where a rank meets the others of its gang: at a store that the parent process serves, or rank 0.

    Attributes
    ----------
    rank
        Number of this rank.
    hosts
        Name of the machine of each rank.
    address, port
        Where the store is.
    start
        What tells this start of the gang from all others; empty if the parent process serves the store.
    timeout
        Seconds that a rank waits for others.
    """

    rank: int
    hosts: Sequence[str]
    address: str
    port: int
    start: str
    timeout: float

    @property
    def world(self) -> int:
        """Number of ranks."""
        return len(self.hosts)

    @property
    def serves(self) -> bool:
        """Whether this rank serves the store."""
        return self.rank == 0 and bool(self.start)

    @contextlib.contextmanager
    def store(self) -> Iterator[TCPStore]:
        """The store. At the end of the block, but not after an error, the rank leaves it: as the last if it serves it.

        Raises
        ------
        OSError
            See `join`; or the port is another process's.
        """
        served = serve(self.timeout, self.address, self.port) if self.serves else None
        if served is not None:
            served.set(_START, self.start)
        store = self.join()
        yield store
        with contextlib.suppress(
            RuntimeError
        ):  # where another rank is gone, the parent process ends this one
            if self.start and store.add(_LEFT, 1) == self.world:
                store.set(_ALL_LEFT, "")
            if served is not None:
                served.wait([_ALL_LEFT], timedelta(seconds=LONGEST))

    def join(self) -> TCPStore:
        """Connect to the store that another process serves, or this one.

        Raises
        ------
        TimeoutError
            If rank 0 does not serve it in time, or cannot be reached.
        RuntimeError
            If it is another gang's.
        """
        try:
            store = join(self.address, self.port, self.timeout)
        except TimeoutError as error:
            own = ipaddress.ip_address(self.address.partition("%")[0]).is_loopback
            others = len(set(self.hosts)) > 1 and own
            hint = "that address is each machine's own" if others else "does a firewall lie between them?"
            where = f"rank 0 on {self.hosts[0]}"
            raise TimeoutError(f"rank {self.rank} cannot reach {where}: {error}; {hint}") from None
        if self.start and store.get(_START).decode() != self.start:
            raise RuntimeError(f"{self.address} port {self.port} belongs to another gang by now")
        return store

    def environment(self) -> dict[str, str]:
        """Environment variables that torchrun sets for this rank."""
        here = self.hosts[self.rank]
        groups = list(dict.fromkeys(self.hosts))
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.hosts[: self.rank].count(here)),
            "GROUP_RANK": str(groups.index(here)),
            "ROLE_RANK": str(self.rank),
            "ROLE_NAME": "default",
            "WORLD_SIZE": str(self.world),
            "LOCAL_WORLD_SIZE": str(self.hosts.count(here)),
            "GROUP_WORLD_SIZE": str(len(groups)),
            "ROLE_WORLD_SIZE": str(self.world),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            # The store is served already when a rank joins the group, as torchrun's agent does it.
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }


def serve(timeout: float, address: str = LOOPBACK, port: int = 0) -> TCPStore:
    """Serve a store at an address of this machine, ``""`` for all of them. Its port is free because it has it already.

    Parameters
    ----------
    timeout
        Seconds that who asks for something waits for it.
    address
        Of this machine.
    port
        One that another process of this user keeps with ``SO_REUSEPORT`` and does not listen at; by default any.

    Raises
    ------
    OSError
        If the port is another's.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=1024, reuse_port=bool(port))
    make = functools.partial(
        TCPStore,
        address or LOOPBACK,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=listener.fileno(),
    )
    try:
        store = make()
    except NotImplementedError:  # until torch 2.7 or so: the default backend, libuv, takes no open socket
        store = make(use_libuv=False)
    listener.detach()  # it is the store's now
    return store


def join(address: str, port: int, timeout: float) -> TCPStore:
    """Connect to a store that another process serves, or will serve.

    Raises
    ------
    TimeoutError
        If nobody serves one there within `timeout` seconds.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    _wait_until_served(address, port, timeout)
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout))


def _wait_until_served(address: str, port: int, timeout: float) -> None:
    """Look again and again: torch waits for up to two seconds between its own looks, and logs a page for each."""
    end, pause = time.monotonic() + timeout, _LOOK
    while True:
        left = end - time.monotonic()
        try:
            socket.create_connection((address, port), timeout=max(_LOOK, min(left, _ANSWER))).close()
            return
        except OSError as error:
            if left <= 0:
                raise TimeoutError(
                    f"nobody served at {address} port {port} within {timeout:g} s: {error}"
                ) from None
        time.sleep(max(0.0, min(pause, left)))
        pause = min(2 * pause, _LOOK_LONGEST)


def stay_on_loopback() -> None:
    """Have gloo talk over the loopback, unless it was told otherwise: else it looks for this machine in the network."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")


def talk_over(interface: str) -> None:
    """Have gloo and NCCL talk over an interface of this machine, unless they were told otherwise."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # else it would take a prefix for it


def interface_to(address: str) -> str | None:
    """Name of the interface by which this machine reaches an address, or has it; None if there is none."""
    with contextlib.suppress(OSError):
        family, kind, protocol, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # sends nothing
            own = ipaddress.ip_address(probe.getsockname()[0])
        for name, addresses in psutil.net_if_addrs().items():
            for each in addresses:
                if each.family == family and ipaddress.ip_address(each.address) == own:
                    return name
    return None
