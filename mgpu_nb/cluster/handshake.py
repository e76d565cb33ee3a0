"""The handshake of a pool and an agent: TLS with the pool's certificate, proofs of the secret, then what each tells.

Until the other has proved that it knows the secret nothing of what it sends is read but bytes of a fixed number.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import ssl
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..engines.segment import Segment
from .facts import LINK, Refused
from .invitation import Invitation

__all__ = ["HANDSHAKE", "Stranger", "agent_context", "introduce", "pool_context", "receive_agent"]

HANDSHAKE = 10.0  # seconds for the whole of it
_GREETING = struct.Struct("!8sH32s")  # mark, version of the link, nonce
_MARK = b"mgpu_nb\n"
_LENGTH = struct.Struct("!I")
_LONGEST = 2**20  # bytes of what each tells
_NO_PROOF = bytes(32)
_ANOTHER = (
    "the invitation is of a pool that has ended, or another program has its port now; take the invitation of the pool "
    "that runs"
)
_POOL, _AGENT = b"mgpu_nb pool\0", b"mgpu_nb agent"


class Stranger(Exception):
    """The other end is no agent of the pool, or not the pool; the message says what it did, as a clause."""


def pool_context(invitation: Invitation, key: bytes) -> ssl.SSLContext:
    """TLS of a pool."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody comes back to a session
    # The library reads them from files alone, and the key must never be in one that has a name.
    with contextlib.closing(Segment()) as certificate, contextlib.closing(Segment()) as private:
        certificate.append(invitation.certificate.encode())
        private.append(key)
        context.load_cert_chain(f"/dev/fd/{certificate.fd}", f"/dev/fd/{private.fd}")
    return context


def agent_context(invitation: Invitation) -> ssl.SSLContext:
    """TLS of an agent: it takes the certificate of its invitation, and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate itself is what is known, at whatever address
    context.load_verify_locations(cadata=invitation.certificate)
    return context


def receive_agent(
    sock: ssl.SSLSocket,
    invitation: Invitation,
    admit: Callable[[dict[str, Any]], Mapping[str, Any]],
    deadline: float,
) -> dict[str, Any]:
    """The pool's half; return the facts of an agent that was admitted.

    Raises
    ------
    Stranger
        If the other end is no agent of this pool.
    Refused
        If `admit` does not take it, which it was told.
    OSError
        If the connection ends, or is not done by the deadline (of ``time.monotonic``).
    """
    talk = _Talk(sock, deadline)
    talk.shake()
    nonce = secrets.token_bytes(32)
    talk.write(_GREETING.pack(_MARK, LINK, nonce))
    mark, version, theirs = _GREETING.unpack(talk.read(_GREETING.size))
    proof = talk.read(32)
    if mark != _MARK:
        raise Stranger("it is no agent of mgpu_nb")
    if version != LINK:
        raise Stranger(f"its mgpu_nb has link version {version}, this one {LINK}")
    if not hmac.compare_digest(proof, _proof(invitation, _AGENT, nonce, theirs)):
        talk.write(_NO_PROOF)
        raise Stranger("it does not know the secret of this pool")
    talk.write(_proof(invitation, _POOL, nonce, theirs))
    facts = talk.read_json()
    try:
        welcome = admit(facts)
    except Refused as refused:
        talk.write_json({"refused": str(refused)})
        raise
    except Exception as error:
        talk.write_json({"refused": "the pool failed to take it in, see its log"})
        raise RuntimeError("an agent was not taken in") from error
    talk.write_json({"welcome": dict(welcome)})
    return facts


def introduce(
    sock: ssl.SSLSocket, invitation: Invitation, facts: Mapping[str, Any], deadline: float
) -> dict[str, Any]:
    """The agent's half; return what the pool answers to an agent that it takes.

    Raises
    ------
    Stranger, Refused, OSError
        As `receive_agent`; `Refused` with the pool's words.
    """
    talk = _Talk(sock, deadline)
    try:
        talk.shake()
    except ssl.SSLCertVerificationError as error:
        raise Stranger(_certificate_words(error)) from None
    except ssl.SSLEOFError:
        raise
    except ssl.SSLError:
        raise Stranger(f"it does not speak TLS as a pool of mgpu_nb does: {_ANOTHER}") from None
    if sock.getpeercert(binary_form=True) != ssl.PEM_cert_to_DER_cert(invitation.certificate):
        raise Stranger(f"it has another certificate than the invitation's: {_ANOTHER}")
    mark, version, theirs = _GREETING.unpack(talk.read(_GREETING.size))
    if mark != _MARK:
        raise Stranger(f"it is no pool of mgpu_nb: {_ANOTHER}")
    if version != LINK:
        raise Stranger(
            f"its mgpu_nb has link version {version}, this one {LINK}: install the same version for both"
        )
    nonce = secrets.token_bytes(32)
    talk.write(_GREETING.pack(_MARK, LINK, nonce) + _proof(invitation, _AGENT, theirs, nonce))
    proof = talk.read(32)
    if proof == _NO_PROOF:
        raise Stranger(f"it does not take the secret of the invitation: {_ANOTHER}")
    if not hmac.compare_digest(proof, _proof(invitation, _POOL, theirs, nonce)):
        raise Stranger(f"it does not know the secret of the invitation: {_ANOTHER}")
    talk.write_json(facts)
    answer = talk.read_json()
    if isinstance(refused := answer.get("refused"), str):
        raise Refused(refused)
    if not isinstance(welcome := answer.get("welcome"), dict):
        raise Stranger("its answer is neither a welcome nor a refusal: install the same mgpu_nb for both")
    return welcome


def _certificate_words(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in {9, 10}:  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
        return f"its certificate is not valid at the time of this machine ({time.ctime()}): see to the clocks of both"
    return f"it has another certificate than the invitation's: {_ANOTHER}"


def _proof(invitation: Invitation, role: bytes, pools: bytes, agents: bytes) -> bytes:
    """Proof that the secret is known, by one of the two, in this handshake alone."""
    message = role + LINK.to_bytes(2) + pools + agents + invitation.fingerprint
    return hmac.digest(invitation.secret, message, "sha256")


class _Talk:
    """A connection of which all that is read and written is done by a deadline."""

    def __init__(self, sock: ssl.SSLSocket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def _set_timeout(self) -> None:
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError("the handshake took too long")
        self._sock.settimeout(left)

    def shake(self) -> None:
        self._set_timeout()
        self._sock.do_handshake()

    def read(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            self._set_timeout()
            part = self._sock.recv(min(size - len(got), 2**16))
            if not part:
                raise ConnectionResetError("it closed the connection")
            got += part
        return bytes(got)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._set_timeout()
            view = view[self._sock.send(view) :]

    def read_json(self) -> dict[str, Any]:
        (size,) = _LENGTH.unpack(self.read(_LENGTH.size))
        if size > _LONGEST:
            raise Stranger(f"it tells {size} bytes, more than {_LONGEST}")
        try:
            told = json.loads(self.read(size))
        except (ValueError, RecursionError):
            raise Stranger("what it tells is no JSON") from None
        if not isinstance(told, dict):
            raise Stranger("what it tells is no JSON object")
        return told

    def write_json(self, told: Mapping[str, Any]) -> None:
        data = json.dumps(told).encode()
        if len(data) > _LONGEST:
            raise ValueError(
                f"there are {len(data)} bytes to tell the other end, which takes {_LONGEST}: an agent tells its "
                "environment variables and sys.path, start it with less of them"
            )
        self.write(_LENGTH.pack(len(data)) + data)
