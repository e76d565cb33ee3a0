"""One writer of a run folder, with flock and without."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mgpu_nb.store.journal import RunFolder
from mgpu_nb.store.lock import is_held

TASKS = [("a", "m:f", "1" * 32)]


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def holder(**more: Any) -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "began": 0.0} | more)


@pytest.fixture(params=["flock", errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=str)
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "flock":
        refuse(monkeypatch, request.param)


@pytest.mark.usefixtures("file_system")
def test_a_folder_has_one_writer_and_is_free_when_it_is_closed(tmp_path: Path) -> None:
    for _ in range(2):
        store = RunFolder(tmp_path, "r", 0, TASKS)
        with pytest.raises(BlockingIOError, match=r"is being written by (another run|process \d+ on)"):
            RunFolder(tmp_path, "r", 0, TASKS)
        store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "logs"]


def test_a_file_system_that_fails_is_not_taken_for_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.EIO)
    before = psutil.Process().num_fds()
    with pytest.raises(OSError, match="Input/output error") as caught:
        RunFolder(tmp_path, "r", 0, TASKS)
    assert not isinstance(caught.value, BlockingIOError)
    assert psutil.Process().num_fds() == before


def test_the_lock_file_of_a_process_that_ended_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.ENOLCK)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for stale in (holder(pid=ended.pid), holder(began=1.0)):  # gone, and its number given to another process
        (tmp_path / "journal.jsonl").touch()
        (tmp_path / "journal.lock").write_text(stale)
        store = RunFolder(tmp_path, "r", 0, TASKS)
        assert json.loads((tmp_path / "journal.lock").read_text())["pid"] == os.getpid()
        store.close()
        assert not list(tmp_path.glob("*.lock*")) + list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("text", "who"), [(holder(host="node7", pid=12), "process 12 on node7"), ('{"host', "another run")]
)
def test_a_lock_file_that_may_be_held_says_what_to_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, who: str
) -> None:
    refuse(monkeypatch, errno.ENOLCK)
    (tmp_path / "journal.jsonl").touch()
    (tmp_path / "journal.lock").write_text(text)
    with pytest.raises(
        BlockingIOError, match=rf"{who}: wait for it, or delete .*journal\.lock if it has ended"
    ):
        RunFolder(tmp_path, "r", 0, TASKS)
    assert (tmp_path / "journal.lock").read_text() == text


def test_of_two_that_find_a_stale_lock_file_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has taken it over between the first one's look at it and its move."""
    from pathlib import Path

    refuse(monkeypatch, errno.ENOLCK)
    file = tmp_path / "journal.lock"
    (tmp_path / "journal.jsonl").touch()
    file.write_text(holder(began=1.0))
    new = holder(began=2.0)
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        if path == file:
            file.write_text(new)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(BlockingIOError, match="another run"):
        RunFolder(tmp_path, "r", 0, TASKS)
    assert file.read_text() == new


def test_the_process_that_writes_is_named(tmp_path: Path) -> None:
    store = RunFolder(tmp_path, "r", 0, TASKS)
    with pytest.raises(BlockingIOError, match="another run of this process"):
        RunFolder(tmp_path, "r", 0, TASKS)
    store.close()
    text = (
        "import sys; from pathlib import Path; from mgpu_nb.store.journal import RunFolder\n"
        "store = RunFolder(Path(sys.argv[1]), 'r', 0, [('a', 'm:f', '1' * 32)])\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", text, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=rf"process {other.pid} on {socket.gethostname()}"):
            RunFolder(tmp_path, "r", 0, TASKS)
        other.kill()
        other.wait()
    RunFolder(tmp_path, "r", 0, TASKS).close()  # that of a dead process is free


def test_a_clock_that_is_set_frees_no_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.ENOLCK)
    store = RunFolder(tmp_path, "r", 0, TASKS)
    monkeypatch.setattr(psutil, "boot_time", lambda: 1e9)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert is_held(tmp_path)
    with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
        RunFolder(tmp_path, "r", 0, TASKS)
    store.close()
    assert not is_held(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", '{"pid": 3}', holder(pid="x"), "null", "{" * 1000])
def test_a_lock_file_of_odd_content_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    refuse(monkeypatch, errno.ENOLCK)
    (tmp_path / "journal.jsonl").touch()
    (tmp_path / "journal.lock").write_text(text)
    is_held(tmp_path)
    with pytest.raises(BlockingIOError, match="another run: wait for it, or delete"):
        RunFolder(tmp_path, "r", 0, TASKS)
