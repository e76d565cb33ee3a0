"""A door while it is open: who comes is shaken hands with, side by side, and agents join."""

from __future__ import annotations

import contextlib
import errno
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
from .handshake import HANDSHAKE, Stranger, receive_agent
from .invitation import Invitation
from .link import Link

__all__ = ["Admit", "Joined", "Reception", "listen"]

log = logging.getLogger("mgpu_nb")

AT_ONCE = 32  # connections that shake hands
FAILURES, WITHIN = 100, 60.0  # count, and seconds: so many in so short a time, and it closes
SHUT = 60.0  # seconds that it stays closed then
RETRY = 0.25  # seconds until it tries again what failed for want of a port, or of a descriptor

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Admit = Callable[[dict[str, Any]], Mapping[str, Any]]
Joined = Callable[[Link, dict[str, Any]], object]


def listen(address: str, port: int) -> socket.socket:
    """Listener that does not block; port 0 is any.

    Raises
    ------
    OSError
        If the address is none of this machine, or the port is taken.
    """
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    try:
        # Whole: an address of one link alone has its interface there. SO_REUSEADDR is set.
        listener = socket.create_server(place, family=family, backlog=128)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        raise OSError(
            error.errno,
            f"{address} is no address of this machine, so no agent can be waited for there: give one that `ip address` "
            "shows and the nodes reach",
        ) from None
    listener.setblocking(False)
    return listener


class Reception:
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
        self._bell, self._rope = os.pipe()  # written to or closed at one end, it wakes who polls the other
        self._closing = False
        self._guests: dict[threading.Thread, ssl.SSLSocket | None] = {}  # None once it has a link
        self._failures: deque[tuple[float, str]] = deque(maxlen=FAILURES)
        self._wait_until = 0.0
        self._thread = threading.Thread(target=self._run, name="mgpu_nb-door", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        try:
            self._thread.start()
        except BaseException:
            os.close(self._rope)
            self._release()
            raise

    def close(self) -> None:
        """End it and its threads, but for the one that calls this."""
        with runtime.lock:
            self._closing = True
            guests = dict(self._guests)
            if self._owner != os.getpid():
                # A fork: the threads are not here, and the connections are not its own.
                for sock in filter(None, guests.values()):
                    sock.close()
                os.close(self._rope)
                self._release()
                return
            for sock in filter(None, guests.values()):
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
                pause, warning = self._look()
                poll = select.poll()
                poll.register(self._bell, select.POLLIN)
                if pause is None and self._listener is not None:
                    poll.register(self._listener, select.POLLIN)
            if warning:
                log.warning("%s", warning)  # without the lock, for handlers have locks of their own
            ready = dict(poll.poll(None if pause is None else pause * 1000))
            if self._bell in ready:
                os.read(self._bell, 64)
            elif ready:
                self._accept()

    def _look(self) -> tuple[float | None, str]:
        """Close after too many failures, open again a while later.

        Returns
        -------
        tuple
            Seconds to wait, None if it listens, and what the user is to be told.
        """
        now = time.monotonic()
        if (left := self._wait_until - now) > 0:
            return left, ""
        if self._listener is not None:
            if len(self._failures) < FAILURES or now - self._failures[0][0] > WITHIN:
                return None, ""
            self._listener.close()
            self._listener = None
            self._wait_until = now + SHUT
            others = ", ".join(sorted({address for _, address in self._failures}))
            self._failures.clear()
            return SHUT, (
                f"{FAILURES} connections within {WITHIN:.0f} s were none of an agent of this pool, from {others}: port "
                f"{self._invitation.port} is closed for {SHUT:.0f} s. Agents try again; if these addresses should not "
                "reach this machine, have a firewall keep them out."
            )
        try:
            self._listener = listen(self._invitation.address, self._invitation.port)
        except OSError:  # another program has the port just now
            return RETRY, ""
        return None, ""

    def _accept(self) -> None:
        """Take one connection in, and have a thread shake hands with it."""
        with runtime.lock:
            if self._listener is None:
                return
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:  # the connection stays, and poll would say so at once
                    self._wait_until = time.monotonic() + RETRY
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
                    if len(self._failures) == FAILURES:
                        os.write(self._rope, b"!")
        except Exception:
            log.exception("an agent at %s could not join", address)
        finally:
            with runtime.lock:
                if self._guests.pop(threading.current_thread()) is not None:
                    sock.close()

    def _introduce(self, sock: ssl.SSLSocket) -> None:
        facts = receive_agent(sock, self._invitation, self._admit, time.monotonic() + HANDSHAKE)
        with runtime.lock:
            if self._closing:
                return
            link = Link(sock, files=False)
            self._guests[threading.current_thread()] = None
        try:
            self._joined(link, facts)
        except Exception as error:
            link.close()
            raise RuntimeError("its link was not taken") from error


def _hang_up(sock: ssl.SSLSocket) -> None:
    """End whatever its thread waits for, which closes it."""
    with contextlib.suppress(OSError):
        # That of ssl would have the thread read on without TLS.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _plain(text: str) -> str:
    """Text for a log: one line without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:500]
