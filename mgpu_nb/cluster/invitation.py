"""What an agent needs to join a pool: where the pool listens, and what proves each to the other."""

from __future__ import annotations

import base64
import binascii
import datetime
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from ..store.files import PRIVATE, atomic_write

__all__ = ["Invitation", "default_folder"]

SECRET = 32  # bytes
LARGEST = 64 * 2**10  # bytes of a file
VALID_FOR = datetime.timedelta(days=3650)
CLOCKS_DIFFER = datetime.timedelta(days=2)  # a node whose clock is so late still takes the certificate
FORMAT = 1  # of the file
_TYPES: dict[str, type] = {
    "format": int, "address": str, "port": int, "secret": str, "certificate": str, "pool": str
}  # fmt: skip


@dataclass(frozen=True)
class Invitation:
    """What an agent needs to join a pool; whoever has it may run code in the pool's name.

    Attributes
    ----------
    address, port
        Where the pool listens.
    secret
        Known to the pool and its agents alone.
    certificate
        The pool's own, in PEM; an agent takes no other.
    pool
        Name of the pool, for messages.
    path
        File that holds it; None before `write`.
    """

    address: str
    port: int
    secret: bytes
    certificate: str
    pool: str = ""
    path: Path | None = None

    def __repr__(self) -> str:
        return f"<Invitation to {self.pool or 'a pool'} at {self.address} port {self.port}>"

    @staticmethod
    def new(address: str, port: int, pool: str = "") -> tuple[Invitation, bytes]:
        """Invitation with a secret and a certificate made now, and the private key (PEM), which is written nowhere."""
        certificate, key = _make_certificate()
        return Invitation(address, port, secrets.token_bytes(SECRET), certificate, pool), key

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate)).digest()

    def write(self, path: str | os.PathLike[str] | None = None) -> Invitation:
        """Write it to a file that none but this user may read; return it with its `path`.

        Parameters
        ----------
        path
            File, in a folder of this user alone, which is made if it is missing. A file that is there is replaced. By
            default a new one in ``~/.local/state/mgpu_nb/invitations`` (``$XDG_STATE_HOME``), for all pools of a user.

        Raises
        ------
        OSError
            If the folder is another user's, may be used by others, or cannot be written to; the message says what to
            do.
        """
        file = self._unused_file() if path is None else Path(path).expanduser().absolute()
        file.parent.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(mode=PRIVATE, exist_ok=True)
        _check_private(file.parent, file.parent.stat(), "folder")
        if path is None:
            _remove_left_behind(file.parent)
        content = {
            "format": FORMAT,
            "address": self.address,
            "port": self.port,
            "secret": base64.b64encode(self.secret).decode(),
            "certificate": self.certificate,
            "pool": self.pool,
        }
        with atomic_write(file) as part:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as out:
                json.dump(content, out, indent=1)
                out.flush()
                os.fsync(fd)  # it is read on other nodes
        return replace(self, path=file)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Invitation:
        """Read it from a file.

        Raises
        ------
        OSError
            If the file is not there, is another user's, or others may use it.
        ValueError
            If it holds no invitation. Both messages name the file and say what to do.
        """
        file = Path(path).expanduser().absolute()
        try:
            # A pipe must not make it wait; it is refused below.
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"There is no invitation {file}: its pool has ended, or this node does not see the folder in which it "
                "was written; have it written where both see it"
            ) from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{file} is no file, so no invitation: {_ANOTHER}")
            _check_private(file, status, "file")
            with open(fd, "rb", closefd=False) as opened:
                text = opened.read(LARGEST + 1)
        finally:
            os.close(fd)
        if len(text) > LARGEST:
            raise ValueError(f"{file} is larger than any invitation ({LARGEST} bytes): {_ANOTHER}")
        return replace(_parse(file, text), path=file)

    def remove(self) -> None:
        """Remove its file, if it was written; whoever has read it already can still join."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _unused_file(self) -> Path:
        # Folders of a user are shared by many machines, so its name is that of no other pool on any of them.
        parts = (
            self.pool or "pool",
            socket.gethostname().partition(".")[0],
            os.getpid(),
            secrets.token_hex(4),
        )
        return default_folder() / (re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(map(str, parts))) + ".json")


def _remove_left_behind(folder: Path) -> None:
    """Remove what pools have left there whose processes were killed on this machine."""
    host = socket.gethostname().partition(".")[0]
    for file in folder.glob(f"*-{glob.escape(host)}-*.json"):
        found = re.search(rf"-{re.escape(host)}-(\d+)-[0-9a-f]{{8}}\.json$", file.name)
        if found and not psutil.pid_exists(int(found[1])):
            file.unlink(missing_ok=True)
            shutil.rmtree(file.with_suffix(""), ignore_errors=True)  # scripts and logs of its agents


_ANOTHER = "name the file that the pool wrote, as its `mgpu-nb agent --connect FILE` does"


def default_folder() -> Path:
    """Folder for the invitations of this user's pools."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = (
        Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    )  # as the standard has it
    return base / "mgpu_nb" / "invitations"


def _check_private(path: Path, status: os.stat_result, what: str) -> None:
    if status.st_uid != os.geteuid():
        raise PermissionError(
            f"The {what} {path} belongs to user {status.st_uid} and this process to {os.geteuid()}, and an invitation "
            f"is for one user: name a {what} of your own"
        )
    if open_to := stat.S_IMODE(status.st_mode) & 0o077:
        fix = f"chmod {'700' if what == 'folder' else '600'} {path}"
        raise PermissionError(
            f"The {what} {path} is open to other users (mode {stat.S_IMODE(status.st_mode):o}, of which {open_to:o} is "
            f"too much), and who can read an invitation can run code as you: {fix}"
            + (
                ", or name a folder that is not there yet"
                if what == "folder"
                else ", if nobody has read it yet"
            )
        )


def _parse(file: Path, text: bytes) -> Invitation:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{file} holds no invitation, it is no JSON: {_ANOTHER}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no invitation, it is no JSON object: {_ANOTHER}")  # noqa: TRY004
    for name, kind in _TYPES.items():
        if type(found.get(name)) is not kind:
            has = f"is a {type(found[name]).__name__}" if name in found else "is missing"
            raise ValueError(f"{file} holds no invitation, its {name!r} {has}: {_ANOTHER}")
    if found["format"] != FORMAT:
        raise ValueError(
            f"{file} is an invitation of format {found['format']}, this mgpu_nb reads {FORMAT}: install the version "
            "of the pool here as well"
        )
    if not 0 < found["port"] < 2**16 or not found["address"]:
        raise ValueError(f"{file} holds no invitation, its address and port are no place: {_ANOTHER}")
    try:
        secret = base64.b64decode(found["secret"], validate=True)
        ssl.PEM_cert_to_DER_cert(found["certificate"])
    except (ValueError, binascii.Error):
        secret = b""
    if len(secret) != SECRET:
        raise ValueError(f"{file} holds no invitation, its secret or certificate is damaged: {_ANOTHER}")
    return Invitation(found["address"], found["port"], secret, found["certificate"], found["pool"])


def _make_certificate() -> tuple[str, bytes]:
    """A self-signed certificate and its private key, both PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mgpu_nb pool")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + VALID_FOR)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private
