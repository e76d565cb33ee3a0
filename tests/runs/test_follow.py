"""A run that another process has under way: followed, finished, killed, cancelled."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jobs
import psutil
import pytest

from mgpu_nb import GPUPool, Run, Task, TaskError
from mgpu_nb.runs import follow
from mgpu_nb.store.lock import FolderLock, is_held

pytestmark = pytest.mark.slow  # seconds of work each

SCRIPT = """
import sys, time
from pathlib import Path
from mgpu_nb import GPUPool, Task, worker
def until(path):
    worker().report(seen=1.5)
    while not Path(path).exists(): time.sleep(0.01)
    return Path(path).name
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with GPUPool(slots=1) as pool:
        run = pool.run([Task(until, str(folder / f"go-{n}"), name=f"t{n}") for n in range(3)],
                       name="long", folder=folder / "run")
        if (folder / "cancel").exists() or len(sys.argv) > 2:
            while not (folder / "cancel").exists(): time.sleep(0.01)
            run.cancel()
        run.wait()
"""


def wait_until(what: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextlib.contextmanager
def elsewhere(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs three tasks, of which the first has ended."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    (folder / "go-0").touch()
    process = subprocess.Popen([sys.executable, script, folder, *arguments])
    try:
        journal = folder / "run" / "journal.jsonl"
        wait_until(lambda: journal.exists() and journal.read_text().count('"event": "record"') == 1)
        yield process
    finally:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait(30)
        psutil.wait_procs(left, timeout=30)


def test_it_is_followed_to_its_end(tmp_path: Path) -> None:
    with elsewhere(tmp_path) as process:
        run = Run.open(tmp_path / "run")
        assert not run.done
        assert [record.name for record in run.records] == ["t0"]
        assert f"under way in process {process.pid} on " in repr(run)
        with pytest.raises(RuntimeError, match=f"process {process.pid} on .* cancel it there"):
            run.cancel()
        with pytest.raises(TimeoutError, match="1 of 3 done"):
            run.wait(0.1)
        with pytest.raises(BlockingIOError), GPUPool(slots=1) as pool:
            pool.run([Task(abs, 1, name="t0")], name="long", folder=tmp_path / "run")
        wait_until(lambda: len(run.metrics()) == 2)  # the second task has begun
        frame = run.frame()
        assert list(frame["status"]) == ["ok", "running", "not ended"]
        assert list(frame["seen"][:2]) == [1.5, 1.5]
        assert str(run.table()).count("not ended") == 1
        (tmp_path / "go-1").touch()
        records = run.as_completed(60)
        assert [next(records).name for _ in range(2)] == ["t0", "t1"]
        assert not run.done
        (tmp_path / "go-2").touch()
        assert run.results(60) == ["go-0", "go-1", "go-2"]
        assert run.done
        assert process.wait(60) == 0
        assert "under way" not in repr(run)
        assert Run.open(tmp_path / "run").done


def test_its_writer_is_killed(tmp_path: Path) -> None:
    with elsewhere(tmp_path) as process:
        run = Run.open(tmp_path / "run")
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        run.wait(60)
        psutil.wait_procs(children, timeout=30)
    assert run.done
    assert "interrupted: 2 tasks have no record" in repr(run)
    assert "interrupted: 2 tasks have no record" in repr(Run.open(tmp_path / "run"))
    with pytest.raises(TaskError, match="interrupted\\. Run its tasks into"):
        run.results()
    assert list(run.frame()["status"]) == ["ok", "no record", "no record"]
    run.cancel()  # nothing to cancel, and nobody to name


def test_it_is_cancelled_where_it_runs(tmp_path: Path) -> None:
    with elsewhere(tmp_path, "cancels") as process:
        run = Run.open(tmp_path / "run")
        (tmp_path / "cancel").touch()
        assert [record.status for record in run.wait(60).records] == ["ok", "cancelled", "cancelled"]
        assert process.wait(60) == 0


def test_one_of_this_process_is_the_run_itself(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(jobs.blocks_until, str(tmp_path / "go"))], folder=tmp_path / "run")
    assert Run.open(tmp_path / "run") is run
    (tmp_path / "go").touch()
    run.wait(60)
    assert Run.open(tmp_path / "run") is not run


HEADER = {
    "event": "run", "format": 1, "name": "r", "seed": 0, "at": 1e9, "host": "elsewhere", "pid": 7,
    "tasks": [{"name": name, "kind": "k", "fingerprint": name} for name in "ab"],
}  # fmt: skip


def record(name: str, status: str = "ok") -> str:
    return json.dumps(
        {"event": "record", "name": name, "index": 0, "kind": "k", "status": status, "fingerprint": name}
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    """A journal that somebody holds."""
    file = tmp_path / "journal.jsonl"
    file.write_text(json.dumps(HEADER) + "\n")
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    lock = FolderLock(tmp_path, descriptor)
    yield file
    lock.release()
    os.close(descriptor)


def test_a_line_that_is_being_written_is_no_error(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PERIOD", 0.01)
    line = record("a")
    with journal.open("a") as file:
        file.write(line[:20])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Run.open(journal.parent)
        assert run.records == []
        assert "under way in process 7 on elsewhere since 2001-09-09" in repr(run)
        with journal.open("a") as file:
            file.write(line[20:] + "\n")
        wait_until(lambda: [r.name for r in run.records] == ["a"])


def test_what_is_run_again_has_no_record_yet(journal: Path) -> None:
    with journal.open("a") as file:
        file.write(record("a", "error") + "\n" + record("b") + "\n" + json.dumps(HEADER) + "\n")
    assert [r.name for r in Run.open(journal.parent).records] == ["b"]


def test_only_what_was_appended_is_read(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mgpu_nb.store.tail import JournalTail

    tail = JournalTail(journal.parent)
    assert len(tail.read()) == 1
    journal.write_bytes(b"x" * journal.stat().st_size)  # what was read is not looked at again
    with journal.open("a") as file:
        file.write(record("a") + "\n")
    assert [entry["name"] for entry in tail.read()] == ["a"]


def test_asking_who_holds_a_folder_does_not_keep_a_writer_out(tmp_path: Path) -> None:
    import threading

    file = tmp_path / "journal.jsonl"
    file.touch()
    stop = threading.Event()

    def asks() -> None:
        while not stop.is_set():
            is_held(tmp_path)

    thread = threading.Thread(target=asks)
    thread.start()
    try:
        for _ in range(200):
            descriptor = os.open(file, os.O_WRONLY)
            lock = FolderLock(tmp_path, descriptor)
            lock.release()
            os.close(descriptor)
    finally:
        stop.set()
        thread.join()
    assert not is_held(tmp_path)
    assert not is_held(tmp_path / "nowhere")


def test_a_journal_of_a_later_version_is_not_followed(journal: Path) -> None:
    journal.write_text(json.dumps({**HEADER, "format": 2}) + "\n")
    with pytest.raises(ValueError, match="format 2, this version reads format 1"):
        Run.open(journal.parent)


def test_a_record_of_the_gang_before_is_replaced(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PERIOD", 0.01)
    with journal.open("a") as file:
        file.write(record("a") + "\n" + json.dumps(HEADER) + "\n")
    run = Run.open(journal.parent)
    assert run.progress.counts == {"ok": 1}
    with journal.open("a") as file:
        file.write(record("a", "error") + "\n" + record("b") + "\n")
    wait_until(lambda: len(run.records) == 2)
    assert run.progress.counts == {"ok": 1, "error": 1}


def test_interrupts_do_not_cancel_what_another_process_runs(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    run = Run.open(journal.parent)
    monkeypatch.setattr(run._ledger, "wait_for", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="continues in process 7 on elsewhere") as error:
            run.wait()
        assert "cancel" not in str(error.value)
