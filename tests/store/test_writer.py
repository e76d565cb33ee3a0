"""The thread that writes a run's folder: slow, full, read-only and missing disks."""

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgpu_nb import Record
from mgpu_nb.store import writer as writer_module
from mgpu_nb.store.journal import RunFolder, read_journal
from mgpu_nb.store.values import store_value
from mgpu_nb.store.writer import FolderWriter

NAMES = [f"t{n}" for n in range(20)]
TASKS = [(name, "m:f", "1" * 32) for name in NAMES]


def record(name: str = "t0", value: Any = None, **more: Any) -> Record:
    index = NAMES.index(name)
    return Record(**{"name": name, "index": index, "kind": "m:f", "status": "ok", "value": value, **more})


class Writing:
    """A folder that is being written, with the records of its run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self.store = RunFolder(path, "r", 0, TASKS)
        self.writer = FolderWriter(self.store, lambda: self.records)
        self.settled: list[bool] = []
        self.over = threading.Event()
        self.exports = True

    def write(self, name: str, value: Any = None) -> None:
        self.records.append(record(name, value))
        stem = f"{NAMES.index(name):05d}-{name}"
        self.writer.record(self.records[-1], store_value(self.path, stem, value))

    def finish(self) -> None:
        def settle(written: bool) -> None:
            self.settled.append(written)
            self.over.set()

        self.writer.finish(lambda: self.exports, settle)
        assert self.over.wait(30)

    def values(self) -> dict[str, Any]:
        """What the journal has by now."""
        assert self.writer.flush(30)
        journal = read_journal(self.path)
        return {
            name: journal.record(self.path, name).value for name in journal.tasks if name in journal.records
        }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writing]:
    monkeypatch.setattr(writer_module, "AGAIN", 0.05)
    monkeypatch.setattr(writer_module, "SYNC", 0.05)
    run = Writing(tmp_path / "run")
    yield run
    run.writer.leave(30)
    run.writer.thread.join(30)
    assert not run.writer.thread.is_alive()


class Disk:
    """Refuses what is written to a folder, while `error` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self._write, self._open = os.write, os.open
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, data: Any) -> int:
        if self.error:
            if len(data) > 10:
                self._write(descriptor, bytes(data[:10]))  # a part still fits
            raise OSError(self.error, os.strerror(self.error))
        return self._write(descriptor, data)


@pytest.fixture
def disk(run: Writing, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_is_handed_over_is_written_in_order_and_the_folder_is_free(run: Writing) -> None:
    for n, name in enumerate(NAMES):
        run.write(name, n)
    run.finish()
    assert run.settled == [True]
    assert list(run.values().values()) == list(range(20))
    assert not run.writer.problem
    RunFolder(run.path, "r", 0, TASKS).close()


def test_nobody_waits_for_a_disk_that_stands_still(run: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    free, synced = threading.Event(), threading.Event()

    def fsync(descriptor: int) -> None:
        synced.set()
        assert free.wait(30)

    monkeypatch.setattr(os, "fsync", fsync)
    run.write("t0", 0)
    assert synced.wait(30)
    run.write("t1", 1)
    assert run.values() == {"t0": 0, "t1": 1}  # an fsync keeps no record from being written
    began = time.monotonic()
    run.writer.finish(lambda: True, lambda written: run.over.set())
    assert time.monotonic() - began < 10
    assert not run.over.wait(0.05)
    free.set()
    assert run.over.wait(30)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_a_disk_refuses_is_told_once_and_written_later(
    run: Writing, disk: Disk, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    run.write("t0", 0)
    assert run.values() == {"t0": 0}
    disk.error = number
    log = run.writer.log(run.path / "logs" / "t1.log")
    for name in NAMES[1:]:
        run.write(name, name)
    log.write(b"said\n")
    log.close()
    assert run.writer.flush(30)
    assert f"the journal could not be written ({os.strerror(number)}): 19 records, 1 log in memory only" in (
        run.writer.problem
    )
    assert run.values() == {"t0": 0}  # and no part of a line
    disk.error = 0
    wait_until(lambda: not run.writer.problem)
    assert run.values() == {"t0": 0} | {name: name for name in NAMES[1:]}
    assert (run.path / "logs" / "t1.log").read_bytes().endswith(b"said\n")
    told = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert len(told) == 1


def test_a_run_that_ends_on_a_full_disk_is_written_when_it_is_waited_for(run: Writing, disk: Disk) -> None:
    disk.error = errno.ENOSPC
    run.write("t0", 0)
    run.finish()
    assert run.settled == [False]
    with pytest.raises(BlockingIOError, match="another run of this process"):
        RunFolder(run.path, "r", 0, TASKS)
    run.writer.try_again(30)
    assert "1 record in memory only" in run.writer.problem
    disk.error = 0
    run.writer.try_again(30)
    assert not run.writer.problem
    assert run.settled == [False, True]
    assert run.values() == {"t0": 0}
    RunFolder(run.path, "r", 0, TASKS).close()


def test_tables_that_cannot_be_written_are_tried_again(run: Writing) -> None:
    run.exports = False
    run.finish()
    assert run.settled == [False]
    run.exports = True
    run.writer.try_again(30)
    assert run.settled == [False, True]


def test_a_value_that_its_worker_could_not_write_is_written_from_memory(
    run: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.path / "values").write_text("in the way")
    run.write("t0", np.arange(3.0))
    run.write("t1", 1)
    assert run.writer.flush(30)
    assert "1 value in memory only" in run.writer.problem
    found = read_journal(run.path).record(run.path, "t0")
    assert found.value is None
    assert "value not on disk: it could not be written" in found.notes[0]
    (run.path / "values").unlink()
    wait_until(lambda: not run.writer.problem)
    assert run.values()["t0"].tolist() == [0, 1, 2]
    assert run.values()["t1"] == 1


def test_text_beyond_the_bound_is_made_anew(
    run: Writing, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MOST", 100)
    disk.error = errno.ENOSPC
    for name in NAMES:
        run.write(name, name * 20)
    assert run.writer.flush(30)
    assert sum(len(text or "") for _, text in run.writer._records) < 300
    disk.error = 0
    wait_until(lambda: not run.writer.problem)
    assert run.values() == {name: name * 20 for name in NAMES}


def test_output_beyond_the_bound_is_left_out_and_counted(
    run: Writing, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MOST", 10)
    disk.error = errno.ENOSPC
    log = run.writer.log(run.path / "logs" / "t0.log")
    for _ in range(5):
        log.write(b"12345678")
    log.close()
    assert run.writer.flush(30)
    disk.error = 0
    run.finish()
    text = (run.path / "logs" / "t0.log").read_bytes()
    assert text.endswith(b"1234567812345678\n... 24 bytes are left out: the disk was too slow\n")
    assert log.begins == 0


def test_a_log_goes_on_behind_what_is_there(run: Writing) -> None:
    file = run.path / "logs" / "t0.log"
    file.write_bytes(b"before\n")
    log = run.writer.log(file)
    log.write(b"now\n")
    log.close()
    assert run.writer.flush(30)
    assert (file.read_bytes(), log.begins) == (b"before\nnow\n", 7)


def test_a_record_that_cannot_be_written_keeps_no_other(run: Writing) -> None:
    loop: dict[str, Any] = {}
    loop["own"] = loop
    run.writer.record(record("t0", metrics=loop), "0")
    run.write("t1", 1)
    assert run.values() == {"t1": 1}
    assert "the journal could not be written for 't0' (ValueError" in run.writer.problem


def test_a_fault_of_one_action_keeps_no_other(run: Writing) -> None:
    def fails() -> None:
        raise RuntimeError("no")

    run.writer.call(fails)
    run.write("t1", 1)
    assert run.values() == {"t1": 1}


def deleted(path: Path) -> None:
    shutil.rmtree(path)


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def made_anew(path: Path) -> None:
    shutil.rmtree(path)
    (path / "values").mkdir(parents=True)


def linked_to_a_copy(path: Path) -> None:
    shutil.copytree(path, path.with_name("copy"))
    shutil.rmtree(path)
    path.symlink_to(path.with_name("copy"))


def linked_to_an_empty_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.with_name("empty").mkdir()
    path.symlink_to(path.with_name("empty"))


@pytest.mark.parametrize("change", [deleted, moved, made_anew, linked_to_a_copy, linked_to_an_empty_folder])
def test_a_folder_that_is_gone_is_written_again(
    run: Writing, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SYNC", 1000.0)  # it is noticed at the end, not within the change
    run.write("t0", np.arange(3.0))
    run.write("t1", 1)
    assert run.writer.flush(30)
    change(run.path)
    run.write("t2", 2)
    run.finish()
    assert run.settled == [True]
    assert "the journal was written again" in run.writer.problem
    found = run.values()
    assert found["t0"].tolist() == [0, 1, 2]
    assert (found["t1"], found["t2"]) == (1, 2)


@pytest.mark.parametrize("how", ["another run", "other files", "a file"])
def test_what_others_have_put_in_its_place_is_left_alone(
    run: Writing, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SYNC", 1000.0)
    run.write("t0", 0)
    assert run.writer.flush(30)
    shutil.rmtree(run.path)
    theirs = run.path.with_name("theirs")
    if how == "another run":
        RunFolder(run.path, "other", 0, TASKS).close()
    elif how == "other files":
        theirs.mkdir()
        (theirs / "thesis.tex").write_text("dear to somebody")
        run.path.symlink_to(theirs)
    else:
        run.path.write_text("dear to somebody")
    before = {path: path.read_bytes() for path in run.path.parent.rglob("*") if path.is_file()}
    run.write("t1", 1)
    run.finish()
    assert run.settled == [False]
    assert "the journal cannot be written there again" in run.writer.problem
    run.writer.leave(30)
    assert {path: path.read_bytes() for path in run.path.parent.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_deleted_after_the_end_stays_deleted(run: Writing, disk: Disk) -> None:
    disk.error = errno.ENOSPC
    run.write("t0", np.arange(3.0))
    run.finish()
    shutil.rmtree(run.path)
    disk.error = 0
    run.writer.try_again(30)
    run.writer.thread.join(30)
    assert not run.path.exists()
    assert run.settled == [False, True]


def test_no_part_of_a_file_is_left(run: Writing) -> None:
    (run.path / "values").mkdir()
    (run.path / "values" / ".00003-t3.npz.77-1.part").write_bytes(b"of a worker that was killed")
    (run.path / ".summary_results.csv.77-1.part").touch()
    (run.path / ".mine.part").touch()
    run.finish()
    assert [path.name for path in run.path.rglob("*.part")] == [".mine.part"]


def test_a_fork_does_not_hold_the_folder(run: Writing) -> None:
    begin, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        os.read(begin, 1)
        os._exit(0)
    os.close(begin)
    try:
        run.store.close()  # as if this process were killed: no unlock by hand
        RunFolder(run.path, "r", 0, TASKS).close()
    finally:
        os.close(end)
        os.waitpid(child, 0)
