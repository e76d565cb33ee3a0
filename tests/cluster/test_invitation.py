"""Invitations: files of one user alone, and what is said of any other."""

import datetime
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.cluster.invitation import LARGEST, Invitation, default_folder


@pytest.fixture(scope="module")
def made() -> tuple[Invitation, bytes]:
    return Invitation.new("10.0.0.7", 4711, "pool-3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "invitations"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_is_read(made: tuple[Invitation, bytes], folder: Path) -> None:
    written = made[0].write(folder / "a.json")
    assert written.path == folder / "a.json"
    assert Invitation.read(str(written.path)) == written
    assert (written.address, written.port, written.pool) == ("10.0.0.7", 4711, "pool-3")
    assert written.fingerprint == made[0].fingerprint
    assert (mode(folder), mode(written.path)) == (0o700, 0o600)
    written.remove()
    written.remove()
    made[0].remove()
    assert not list(folder.iterdir())


def test_whatever_the_umask_nobody_else_may_use_it(made: tuple[Invitation, bytes], folder: Path) -> None:
    before = os.umask(0)
    try:
        written = made[0].write(folder / "deep" / "a.json")
    finally:
        os.umask(before)
    assert written.path is not None
    assert (mode(folder / "deep"), mode(written.path)) == (0o700, 0o600)


def test_by_default_it_has_a_file_of_its_own_in_the_users_state(
    made: tuple[Invitation, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    first, second = made[0].write(), made[0].write()
    assert first.path is not None
    assert second.path is not None
    assert first.path != second.path
    assert first.path.parent == second.path.parent == tmp_path / "state" / "mgpu_nb" / "invitations"
    assert first.path.name.startswith("pool-3-")
    assert mode(first.path.parent) == 0o700
    for nothing in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", nothing)
        assert default_folder() == Path.home() / ".local/state/mgpu_nb/invitations"


def test_a_name_of_a_pool_is_no_path(
    made: tuple[Invitation, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    written = Invitation("a", 1, made[0].secret, made[0].certificate, "../../../up \n").write()
    assert written.path is not None
    assert written.path.parent == default_folder()
    assert Invitation.read(written.path).pool == "../../../up \n"


def test_a_file_that_is_there_is_replaced_at_once(made: tuple[Invitation, bytes], folder: Path) -> None:
    path = folder / "a.json"
    made[0].write(path)
    Invitation("other", 1, made[0].secret, made[0].certificate).write(path)
    assert Invitation.read(path).address == "other"
    assert list(folder.iterdir()) == [path]
    assert mode(path) == 0o600


def test_no_secret_is_shown_and_no_key_is_in_it(made: tuple[Invitation, bytes], folder: Path) -> None:
    invitation, key = made
    written = invitation.write(folder / "a.json")
    assert written.path is not None
    assert repr(invitation) == str(invitation) == "<Invitation to pool-3 at 10.0.0.7 port 4711>"
    assert b"PRIVATE KEY" in key
    text = written.path.read_text()
    assert "PRIVATE" not in text
    assert not any(line.decode() in text for line in key.splitlines())


def test_each_has_a_secret_and_a_certificate_of_its_own(made: tuple[Invitation, bytes]) -> None:
    other, key = Invitation.new("10.0.0.7", 4711)
    assert len(other.secret) == len(made[0].secret) == 32
    assert other.secret != made[0].secret
    assert other.fingerprint != made[0].fingerprint
    assert key != made[1]


def test_a_node_whose_clock_differs_takes_the_certificate(made: tuple[Invitation, bytes]) -> None:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(made[0].certificate.encode())
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc < now - datetime.timedelta(days=1.9)
    assert certificate.not_valid_after_utc > now + datetime.timedelta(days=365)


def test_a_folder_that_others_may_use_is_refused(made: tuple[Invitation, bytes], folder: Path) -> None:
    folder.mkdir()
    for bits in (0o755, 0o710, 0o701, 0o777):
        folder.chmod(bits)
        with pytest.raises(PermissionError, match=rf"mode {bits:o}.*chmod 700 {folder}"):
            made[0].write(folder / "a.json")
    assert not list(folder.iterdir())
    folder.chmod(0o700)
    made[0].write(folder / "a.json")


def test_a_file_that_others_may_use_is_refused(made: tuple[Invitation, bytes], folder: Path) -> None:
    path = made[0].write(folder / "a.json").path
    assert path is not None
    for bits in (0o644, 0o640, 0o604, 0o601):
        path.chmod(bits)
        with pytest.raises(PermissionError, match=rf"mode {bits:o}.*chmod 600 {path}"):
            Invitation.read(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_is_another_users_is_refused(made: tuple[Invitation, bytes], folder: Path) -> None:
    path = made[0].write(folder / "a.json").path
    assert path is not None
    os.chown(path, 12345, -1)
    with pytest.raises(PermissionError, match="user 12345"):
        Invitation.read(path)
    os.chown(folder, 12345, -1)
    with pytest.raises(PermissionError, match="name a folder of your own"):
        made[0].write(folder / "b.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(made: tuple[Invitation, bytes]) -> None:
    with pytest.raises(OSError, match="/proc"):
        made[0].write("/proc/invitations/a.json")


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no invitation {folder}/a.json: its pool has ended"):
        Invitation.read(folder / "a.json")


def test_what_is_no_file_is_refused_and_waited_for_by_nobody(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "pipe", 0o600)
    for path in (folder / "pipe", folder):
        with pytest.raises(ValueError, match="no invitation"):
            Invitation.read(path)


def written_as(folder: Path, made: Invitation, **changed: Any) -> Path:
    path = made.write(folder / "a.json").path
    assert path is not None
    content = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    return path


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"secret": ...}, "'secret' is missing"),
        ({"certificate": ...}, "'certificate' is missing"),
        ({"port": "4711"}, "'port' is a str"),
        ({"port": True}, "'port' is a bool"),
        ({"port": 0}, "no place"),
        ({"port": 65536}, "no place"),
        ({"address": ""}, "no place"),
        ({"address": None}, "'address' is a NoneType"),
        ({"secret": "c2hvcnQ="}, "damaged"),
        ({"secret": "!" * 44}, "damaged"),
        ({"secret": "\u00e9" * 44}, "damaged"),
        ({"certificate": "x"}, "damaged"),
        ({"certificate": "-----BEGIN CERTIFICATE-----\n\u00e9\n-----END CERTIFICATE-----\n"}, "damaged"),
        ({"format": 2}, "format 2, this mgpu_nb reads 1: install"),
    ],
)
def test_fields_that_are_none(
    made: tuple[Invitation, bytes], folder: Path, changed: dict[str, Any], said: str
) -> None:
    path = written_as(folder, made[0], **changed)
    with pytest.raises(ValueError, match=said) as raised:
        Invitation.read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 60_000, "no JSON"),
        (b"[]", "no JSON object"),
        (b"5", "no JSON object"),
        (b" " * (LARGEST + 1), "larger than any"),
    ],
    ids=["empty", "bytes", "deep", "list", "number", "large"],
)
def test_files_that_hold_anything_else(folder: Path, text: bytes, said: str) -> None:
    folder.mkdir()
    path = folder / "a.json"
    path.touch(0o600)
    path.write_bytes(text)
    with pytest.raises(ValueError, match=said) as raised:
        Invitation.read(path)
    assert str(path) in str(raised.value)


def test_a_link_to_a_file_of_ones_own_is_followed(made: tuple[Invitation, bytes], folder: Path) -> None:
    made[0].write(folder / "a.json")
    (folder / "b.json").symlink_to("a.json")
    assert Invitation.read(folder / "b.json").secret == made[0].secret


def test_reading_one_needs_no_cryptography() -> None:
    """An agent starts without it, and it costs the import of nothing else."""
    code = "import sys, mgpu_nb.cluster.door; print('cryptography' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "False", done.stderr


def test_what_a_killed_process_has_left_is_removed(
    made: tuple[Invitation, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    mine = made[0].write()
    assert mine.path is not None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = mine.path.with_name(mine.path.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    elsewhere = mine.path.with_name(f"pool-another_host-{ended.pid}-0123abcd.json")
    for file in (left, elsewhere):
        file.write_text("{}")
        file.with_suffix("").mkdir()
        (file.with_suffix("") / "agent.log").touch()
    other = made[0].write()
    assert other.path is not None
    assert sorted(mine.path.parent.iterdir()) == sorted(
        [mine.path, other.path, elsewhere, elsewhere.with_suffix("")]
    )
