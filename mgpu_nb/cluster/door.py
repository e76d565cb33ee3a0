"""Where agents come in: the listener of a pool, and at the other end the dialling."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

from ..engines.servers import runtime
from .facts import Refused
from .handshake import HANDSHAKE, Stranger, agent_context, introduce, pool_context
from .invitation import Invitation
from .link import Link, words_of
from .reception import Admit, Joined, Reception, listen

__all__ = ["Door", "Refused", "dial", "route_to"]

RETRY = 0.25  # seconds until a door that did not answer is tried again


class Door:
    """The listener of a pool, open while agents are expected.

    Each connection shakes hands in a thread of its own, so that a stranger who says nothing keeps nobody waiting.

    Parameters
    ----------
    admit
        Given the facts of an agent that has proved to be one, returns what it is told (for JSON), or raises `Refused`.
    joined
        Given the link to an agent that was admitted, and its facts. Both are called in threads of the door, and must
        not wait for the thread that closes it.
    address
        Address of this machine that the agents can reach.
    port
        Port, 0 for any that is free.
    pool
        Name of the pool, for the invitation.

    Raises
    ------
    ValueError
        If the address is that of no one interface.
    """

    def __init__(
        self, admit: Admit, joined: Joined, *, address: str = "127.0.0.1", port: int = 0, pool: str = ""
    ) -> None:
        self._admit, self._joined = admit, joined
        self._address, self._port = _one_interface(address), port
        self._pool = pool
        self._invitation: Invitation | None = None
        self._context: ssl.SSLContext | None = None
        self._reception: Reception | None = None
        runtime.channels.add(self)

    @property
    def is_open(self) -> bool:
        """Whether agents can come in, now or when it opens again after too many failures."""
        return self._reception is not None

    @property
    def port(self) -> int | None:
        """Port on which it listens, or did last; None before it was opened."""
        return None if self._invitation is None else self._invitation.port

    def open(self) -> Invitation:
        """Listen, if it does not yet; return what agents need to come in.

        The secret and the certificate are always the same, and the port is that of before unless another program has
        taken it: compare, and write the invitation again if it is another.

        Raises
        ------
        OSError
            If the address is none of this machine, or no port is left.
        """
        with runtime.lock:  # it is held while this process is forked
            if self._reception is not None and self._invitation is not None:
                return self._invitation
            listener = self._listen()
            try:
                port = listener.getsockname()[1]
                if self._invitation is None or self._context is None:
                    self._invitation, key = Invitation.new(self._address, port, self._pool)
                    self._context = pool_context(self._invitation, key)
                elif port != self._invitation.port:
                    self._invitation = dataclasses.replace(self._invitation, port=port, path=None)
                reception = Reception(listener, self._invitation, self._context, self._admit, self._joined)
                reception.start()
                self._reception = reception
            except BaseException:
                listener.close()
                raise
            return self._invitation

    def _listen(self) -> socket.socket:
        if self._invitation is not None:
            with contextlib.suppress(OSError):
                return listen(self._address, self._invitation.port)
        return listen(self._address, self._port)

    def close(self) -> None:
        """Stop listening, and hang up on those who have not joined yet; links that have joined stay.

        After it nothing more is called.
        """
        with runtime.lock:
            reception, self._reception = self._reception, None
        if reception is not None:
            reception.close()


def dial(
    invitation: Invitation, facts: Mapping[str, Any], timeout: float = HANDSHAKE
) -> tuple[Link, dict[str, Any]]:
    """Join a pool: the link to it, and what it tells.

    Parameters
    ----------
    facts
        What the pool is told, see `facts_of_this_node`.
    timeout
        Seconds for all of it. For so long a door that does not answer, or is too busy, is tried again.

    Raises
    ------
    ConnectionError
        If that is impossible; the message says why, and what to do. ConnectionRefusedError with the pool's own words
        if it refused this agent.
    ValueError
        If the facts are longer than a pool takes.
    """
    place = f"{invitation.address} port {invitation.port}"
    deadline = time.monotonic() + timeout
    context = agent_context(invitation)
    while True:
        try:
            return _dial(invitation, context, facts, deadline)
        except Refused as refused:
            raise ConnectionRefusedError(f"The pool at {place} refused this agent: {refused}") from None
        except Stranger as stranger:
            raise ConnectionError(f"{place} was reached, but {stranger}") from None
        except OSError as error:
            if time.monotonic() + RETRY >= deadline:
                raise ConnectionError(
                    f"Nobody answers at {place} ({words_of(error)}): the pool has ended or has all of its nodes, or "
                    "this machine cannot reach it. See whether its process runs, and whether "
                    f"`nc -vz {invitation.address} {invitation.port}` connects from here; if not, make the pool with "
                    "the `address` of an interface that its nodes reach, or have the firewall let this port through"
                ) from error
        time.sleep(RETRY)


def _dial(
    invitation: Invitation, context: ssl.SSLContext, facts: Mapping[str, Any], deadline: float
) -> tuple[Link, dict[str, Any]]:
    left = max(0.1, deadline - time.monotonic())
    plain = socket.create_connection((invitation.address, invitation.port), timeout=left)
    with contextlib.ExitStack() as failed:
        failed.callback(plain.close)
        sock = context.wrap_socket(plain, do_handshake_on_connect=False)
        failed.callback(sock.close)
        welcome = introduce(sock, invitation, facts, deadline)
        with runtime.lock:
            link = Link(sock, files=True)
        failed.pop_all()
        return link, welcome


def route_to(host: str) -> str:
    """Address of this machine on the route to another; nothing is sent.

    Raises
    ------
    OSError
        If there is no such host, or no route to it.
    """
    family, kind, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as sock:
        sock.connect(place)
        return str(sock.getsockname()[0])


def _one_interface(address: str) -> str:
    try:
        every = ipaddress.ip_address(address).is_unspecified
    except ValueError:  # it is a name
        every = not address
    if every:
        raise ValueError(
            f"address={address!r} is every interface of this machine, and agents must be told one: give that which the "
            "nodes reach"
        )
    return address
