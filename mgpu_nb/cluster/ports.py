"""Ports of a node that are kept for the gangs of a pool: where the first rank serves the others."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["KeptPorts"]


class KeptPorts:
    """Ports of an address of this machine that nobody else is given, one for each slot.

    Nothing listens there: a process of this user binds one of them with ``SO_REUSEPORT`` when it wants to.

    Parameters
    ----------
    address
        Of this machine.
    count
        Number of ports.

    Attributes
    ----------
    ports
        Their numbers.

    Raises
    ------
    OSError
        If the address is none of this machine, or there are no ports or descriptors left.
    """

    def __init__(self, address: str, count: int) -> None:
        self.address = address
        with contextlib.ExitStack() as kept:
            sockets = [kept.enter_context(_kept(address)) for _ in range(count)]
            self.ports = tuple(int(each.getsockname()[1]) for each in sockets)
            self._kept = kept.pop_all()

    def close(self) -> None:
        """Keep them no more."""
        self._kept.close()


def _kept(address: str) -> socket.socket:
    kept = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind((address, 0))
    except OSError:
        kept.close()
        raise
    return kept
