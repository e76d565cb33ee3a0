"""Tokens, by which a machine knows whether it has the folder of a run."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.store import token
from mgpu_nb.store.token import has_token, remove_tokens, write_token


def test_a_folder_is_known_by_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token, "PAUSES", (0.0, 0.0))
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    names = write_token(one), write_token(other)
    assert [has_token(one, name) for name in names] == [True, False]
    assert not has_token(tmp_path / "nowhere" / "at" / "all", names[0])
    remove_tokens(one)
    assert list(one.iterdir()) == []
    assert has_token(other, names[1])
    remove_tokens(tmp_path / "nowhere")


def test_a_file_that_a_network_file_system_shows_late_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, looks, opened = write_token(tmp_path), [False, False], []
    real_exists, real_open = os.path.exists, os.open

    def exists(path: os.PathLike[str]) -> bool:
        late = Path(path) == tmp_path / name and bool(looks)
        return looks.pop() if late else real_exists(path)

    def opens(path: os.PathLike[str], *arguments: Any) -> int:
        if threading.current_thread().name == "mgpu_nb-token":
            opened.append(Path(path))
        return real_open(path, *arguments)

    monkeypatch.setattr(os.path, "exists", exists)
    monkeypatch.setattr(os, "open", opens)
    monkeypatch.setattr(token, "_is_local", lambda folder: False)
    assert has_token(tmp_path, name)
    assert not looks
    assert opened == [*reversed(tmp_path.parents), tmp_path] * 2  # by which it is asked again


@pytest.mark.parametrize(
    ("kind", "mount", "local"),
    [
        ("ext4", "", True),
        ("nfs4", "", False),
        ("nfs4", "/my runs", False),
        ("ext4", "/my runs", True),
        ("fuse.x", "", False),
    ],
)
def test_only_on_a_network_file_system_it_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mount: str, local: bool
) -> None:
    (tmp_path / "my runs").mkdir()
    other = {True: "nfs4", False: "ext4"}[local] if mount else kind
    mounts = tmp_path / "mountinfo"
    escaped = str(tmp_path / mount.strip("/")).replace(" ", "\\040")
    mounts.write_text(
        f"22 1 8:1 / / rw - {other} /dev/sda rw\n30 22 8:2 / {escaped} rw,relatime shared:1 - autofs auto rw\n"
        f"31 22 8:2 / {escaped} rw,relatime shared:1 - {kind} source rw\n"
    )
    monkeypatch.setattr(token, "MOUNTS", str(mounts))
    assert token._is_local(tmp_path / "my runs" / "r1") is local
    monkeypatch.setattr(token, "MOUNTS", str(tmp_path / "none"))
    assert not token._is_local(tmp_path)


def test_a_file_system_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(token, "PATIENCE", 0.1)
    monkeypatch.setattr(token, "_look", lambda *_: answers.wait(60))
    with pytest.raises(TimeoutError, match=f"the file system of {tmp_path} does not answer within 0.1 s"):
        has_token(tmp_path, "any")
    answers.set()
