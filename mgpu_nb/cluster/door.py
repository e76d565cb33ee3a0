"""Where agents come in: the listener of a pool, and at the other end the dialling."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ..engines.servers import runtime
from .facts import Refused
from .handshake import Stranger, agent_context, introduce, pool_context, receive_agent
from .invitation import Invitation
from .link import Link

__all__ = ["Door", "Refused", "dial", "route_to"]

log = logging.getLogger("mgpu_nb")

HANDSHAKE = 10.0  # seconds for the whole of it
AT_ONCE = 32  # connections that shake hands
FAILURES, WITHIN = 100, 60.0  # count, and seconds: so many in so short a time, and it closes
SHUT = 60.0  # seconds that it stays closed then
RETRY = 0.25  # seconds between tries to listen, or to dial

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Admit = Callable[[dict[str, Any]], Mapping[str, Any]]
Joined = Callable[[Link, dict[str, Any]], object]


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
        self._reception: _Reception | None = None
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
                self._reception = _Reception(
                    listener, self._invitation, self._context, self._admit, self._joined
                )
                self._reception.start()
            except BaseException:
                listener.close()
                raise
            return self._invitation

    def _listen(self) -> socket.socket:
        if self._invitation is not None:
            with contextlib.suppress(OSError):
                return _listener(self._address, self._invitation.port)
        return _listener(self._address, self._port)

    def close(self) -> None:
        """Stop listening, and hang up on those who have not joined yet; links that have joined stay."""
        with runtime.lock:
            reception, self._reception = self._reception, None
        if reception is not None:
            reception.close()


class _Reception:
    """A door while it is open. Its state is guarded by the runtime's lock: a fork finds it whole."""

    def __init__(
        self,
        listener: socket.socket,
        invitation: Invitation,
        context: ssl.SSLContext,
        admit: Admit,
        joined: Joined,
    ) -> None:
        self._listener: socket.socket | None = listener
        self._invitation, self._context = invitation, context
        self._admit, self._joined = admit, joined
        self._owner = os.getpid()
        self._bell, self._rope = os.pipe()  # closed at one end, it wakes the thread that polls the other
        self._closing = False
        self._guests: dict[threading.Thread, ssl.SSLSocket] = {}
        self._failures: deque[tuple[float, str]] = deque(maxlen=FAILURES)
        self._shut_until = 0.0
        self._thread = threading.Thread(target=self._run, name="mgpu_nb-door", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        try:
            self._thread.start()
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """End it and its threads, but for the one that calls this."""
        with runtime.lock:
            self._closing = True
            guests = dict(self._guests)
            if (
                self._owner != os.getpid()
            ):  # in a fork: the threads are not here, and the connections not ours
                for sock in guests.values():
                    sock.close()
                os.close(self._rope)
                self._release()
                return
            for sock in guests.values():
                _hang_up(sock)
            os.close(self._rope)
        for thread in (self._thread, *guests):
            if thread is not threading.current_thread():
                thread.join()

    def _release(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        os.close(self._bell)

    def _run(self) -> None:
        while True:
            with runtime.lock:
                if self._closing:
                    self._release()
                    return
                pause = self._look()
                poll = select.poll()
                poll.register(self._bell, select.POLLIN)
                if pause is None and self._listener is not None:
                    poll.register(self._listener, select.POLLIN)
            ready = poll.poll(None if pause is None else pause * 1000)
            if ready and pause is None:
                self._accept()

    def _look(self) -> float | None:
        """Close after too many failures, open again a while later; return seconds to wait, None if it listens."""
        now = time.monotonic()
        if self._listener is not None:
            if len(self._failures) < FAILURES or now - self._failures[0][0] > WITHIN:
                return None
            self._listener.close()
            self._listener = None
            self._shut_until = now + SHUT
            others = ", ".join(sorted({address for _, address in self._failures}))
            self._failures.clear()
            log.warning(
                "%d connections within %.0f s were none of an agent of this pool, from %s: port %d is closed for %.0f "
                "s. Agents try again; if these addresses should not reach this machine, have a firewall keep them out.",
                FAILURES, WITHIN, others, self._invitation.port, SHUT,
            )  # fmt: skip
        if (left := self._shut_until - now) > 0:
            return left
        try:
            self._listener = _listener(self._invitation.address, self._invitation.port)
        except OSError:  # another program has the port just now
            return RETRY
        return None

    def _accept(self) -> None:
        """Take one connection in, and have a thread shake hands with it."""
        with runtime.lock:
            if self._listener is None:
                return
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:  # the connection stays, and poll would say so at once
                    self._shut_until = time.monotonic() + RETRY
                return
            if len(self._guests) >= AT_ONCE or self._closing:
                sock.close()  # an agent tries again
                return
            try:
                sock.setblocking(True)
                guest = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except (OSError, ValueError):  # it has gone
                sock.close()
                return
            thread = threading.Thread(
                target=self._receive, args=(guest, address[0]), name="mgpu_nb-guest", daemon=True
            )
            self._guests[thread] = guest
            try:
                thread.start()
            except RuntimeError:  # no thread more is allowed
                del self._guests[thread]
                guest.close()

    def _receive(self, sock: ssl.SSLSocket, address: str) -> None:
        """Shake hands with one, and let it join if it is an agent."""
        try:
            self._introduce(sock)
        except Refused as refused:
            log.info("an agent at %s was refused: %s", address, _plain(str(refused)))
        except (Stranger, OSError) as error:
            log.debug("a connection from %s is none of an agent: %s", address, error)
            with runtime.lock:
                if not self._closing:
                    self._failures.append((time.monotonic(), address))
        except Exception:
            log.exception("an agent at %s could not join", address)
        finally:
            with runtime.lock:
                if self._guests.pop(threading.current_thread(), None) is not None:
                    sock.close()

    def _introduce(self, sock: ssl.SSLSocket) -> None:
        facts = receive_agent(sock, self._invitation, self._admit, time.monotonic() + HANDSHAKE)
        with runtime.lock:
            if self._closing:
                return
            link = Link(sock, files=False)
            del self._guests[threading.current_thread()]
        try:
            self._joined(link, facts)
        except BaseException:
            link.close()
            raise


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
        If that is impossible; the message says why, and what to do.
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
            raise ConnectionError(
                f"{place} was reached, but {stranger}: the invitation is of a pool that has ended, or another program "
                "has its port; take the invitation of the pool that runs now"
            ) from None
        except OSError as error:
            if time.monotonic() + RETRY >= deadline:
                raise ConnectionError(
                    f"Nobody answers at {place} ({_words(error)}): the pool has ended or takes no agents now, or this "
                    f"machine cannot reach it. See whether its process runs, and whether `nc -vz {invitation.address} "
                    f"{invitation.port}` connects from here; if not, make the pool with the `address` of an interface "
                    "that its nodes reach, or have the firewall let this port through"
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


def _listener(address: str, port: int) -> socket.socket:
    family, _, _, _, place = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.create_server(place[:2], family=family, backlog=128)  # with SO_REUSEADDR
    listener.setblocking(False)
    return listener


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


def _hang_up(sock: ssl.SSLSocket) -> None:
    """End whatever its thread waits for, which closes it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(
            sock, socket.SHUT_RDWR
        )  # that of ssl would have the thread read on without TLS


def _plain(text: str) -> str:
    """Text for a log: one line without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:500]


def _words(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
