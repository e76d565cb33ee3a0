"""Where ranks meet: a store that one process serves and all others know the port of."""

from __future__ import annotations

import functools
import os
import socket
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["LONGEST", "LOOPBACK", "join", "serve", "stay_on_loopback"]

LOOPBACK = "127.0.0.1"
LONGEST = 365 * 86400.0  # seconds that anybody may wait


def serve(timeout: float, address: str = LOOPBACK) -> TCPStore:
    """Serve a store at an address of this machine, ``""`` for all of them. Its port is free because it has it already.

    Parameters
    ----------
    timeout
        Seconds that who asks for something waits for it.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server((address, 0), backlog=1024)
    make = functools.partial(
        TCPStore,
        LOOPBACK,
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
    """Connect to a store that another process serves."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout))


def stay_on_loopback() -> None:
    """Have gloo talk over the loopback, unless it was told otherwise: else it looks for this machine in the network."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
