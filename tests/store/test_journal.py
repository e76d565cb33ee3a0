"""The run folder."""

import csv
import errno
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb import Record, Run
from mgpu_nb.store.files import escape_formula
from mgpu_nb.store.journal import RunFolder, export, read_journal, text_of
from mgpu_nb.store.lines import seal
from mgpu_nb.store.lock import FolderLock

TASKS = [("a", "m:f", "1" * 32), ("b", "m:f", "2" * 32)]


def record(name: str = "a", **more: Any) -> Record:
    return Record(**{"name": name, "index": "ab".index(name), "kind": "m:f", "status": "ok", **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = RunFolder(tmp_path / "run", "r", 0, TASKS)
    store.append(record("a", seconds=1.5), "[1]")
    store.append(record("b", status="error", error="bad"), "null")
    store.close()
    return tmp_path / "run"


def test_what_was_written_is_read(folder: Path) -> None:
    journal = read_journal(folder)
    assert journal.header["name"] == "r"
    assert journal.record(folder, "a").value == [1]
    assert journal.record(folder, "b").error == "bad"
    run = Run.open(folder)
    assert [r.status for r in run.records] == ["ok", "error"]


def test_a_torn_last_line_is_dropped_with_a_warning_and_mended(folder: Path) -> None:
    whole = (folder / "journal.jsonl").read_bytes()
    (folder / "journal.jsonl").write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match="truncated line"):
        assert list(read_journal(folder).records) == ["a"]
    with pytest.warns(UserWarning, match="truncated line"):
        store = RunFolder(folder, "r", 0, TASKS)
    store.append(record("b"), "2")
    store.close()
    assert read_journal(folder).record(folder, "b").value == 2


def test_the_newest_record_counts(folder: Path) -> None:
    store = RunFolder(folder, "r", 0, TASKS)
    store.append(record("b"), '"good"')
    store.close()
    assert read_journal(folder).record(folder, "b").value == "good"


@pytest.mark.parametrize(
    ("name", "tasks", "message"),
    [("other", TASKS, "holds the run 'r', not 'other'"), ("r", [("z", "m:f", "3" * 32)], "of other tasks")],
)
def test_another_run_is_refused(
    folder: Path, name: str, tasks: list[tuple[str, str, str]], message: str
) -> None:
    before = (folder / "journal.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=message):
        RunFolder(folder, name, 0, tasks)
    assert (folder / "journal.jsonl").read_bytes() == before


def test_files_of_others_and_a_second_writer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a run's"):
        RunFolder(tmp_path, "r", 0, TASKS)
    store = RunFolder(tmp_path / "run", "r", 0, TASKS)
    with pytest.raises(BlockingIOError, match="being written"):
        RunFolder(tmp_path / "run", "r", 0, TASKS)
    store.close()


def test_other_journals_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a run's folder"):
        read_journal(tmp_path)
    (tmp_path / "journal.jsonl").write_text(json.dumps({"event": "run", "format": 99}) + "\n")
    with pytest.raises(ValueError, match="format 99"):
        read_journal(tmp_path)
    (tmp_path / "journal.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="no header"):
        read_journal(tmp_path)


def test_a_damaged_value_leaves_its_record(folder: Path) -> None:
    store = RunFolder(folder, "r", 0, TASKS)
    store.append(record("a"), '{"$array": "values/gone.npz#a0"}')
    store.close()
    again = read_journal(folder).record(folder, "a")
    assert again.value is None
    assert again.notes[0].startswith("value not on disk: FileNotFoundError")


def numbered(n: int) -> Record:
    return replace(record(), name=f"t{n}", index=n, fingerprint="f")


@pytest.mark.parametrize("begun", [True, False], ids=["read before", "not there before"])
def test_what_was_written_while_the_lock_was_waited_for_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    path, tasks = tmp_path / "run", [(f"t{n}", "k", "f") for n in range(8)]
    if begun:
        first = RunFolder(path, "r", 0, tasks)
        first.append(numbered(0), "0")
        first.close()
    take = FolderLock._take

    def taken(lock: FolderLock, descriptor: int) -> Path | None:
        monkeypatch.setattr(FolderLock, "_take", take)
        other = RunFolder(path, "r", 0, tasks)  # has it until just now
        for n in (1, 2, 3):
            other.append(numbered(n), str(n))
        other.close()
        return take(lock, descriptor)

    monkeypatch.setattr(FolderLock, "_take", taken)
    second = RunFolder(path, "r", 0, tasks)
    assert [second.kept(f"t{n}", "f")[0] is not None for n in range(5)] == [begun, True, True, True, False]
    for n in (5, 6, 7):
        second.append(numbered(n), str(n))
    second.close()
    journal = read_journal(path)
    assert sorted(journal.records) == ["t0"] * begun + ["t1", "t2", "t3", "t5", "t6", "t7"]
    assert len(journal.headers) == 2 + begun


def test_a_folder_that_became_another_run_s_is_refused_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, take = tmp_path / "run", FolderLock._take

    def taken(lock: FolderLock, descriptor: int) -> Path | None:
        monkeypatch.setattr(FolderLock, "_take", take)
        RunFolder(path, "another", 0, TASKS).close()
        return take(lock, descriptor)

    monkeypatch.setattr(FolderLock, "_take", taken)
    with pytest.raises(FileExistsError, match="holds the run 'another', not 'r'"):
        RunFolder(path, "r", 0, TASKS)
    RunFolder(path, "another", 0, TASKS).close()


def test_exports_are_strict_json_and_harmless_csv(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "=1+1", "queued": 0.5, "n": 1.0},
        {"name": "b", "queued": None, "more": "x,y"},
    ]
    export(folder, [record("a"), record("b")], rows)
    entries = json.loads((folder / "detailed_results.json").read_text(), parse_constant=pytest.fail)
    assert [entry["name"] for entry in entries] == ["a", "b"]
    table = (folder / "summary_results.csv").read_text().splitlines()
    assert table == ["name,queued,n,more", "'=1+1,1970-01-01 00:00:00.500+00:00,1.0,", 'b,,,"x,y"']


@pytest.mark.parametrize("first", list("=+-@\t\r"))
def test_no_cell_is_a_formula(first: str) -> None:
    assert escape_formula(f"{first}x") == f"'{first}x"
    assert escape_formula(f"x{first}") == f"x{first}"
    assert escape_formula(-1) == -1


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_that_was_killed_in_its_first_line_can_begin_again(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"event": "run", "fo')
    RunFolder(tmp_path, "r", 0, TASKS).close()
    assert read_journal(tmp_path).header["name"] == "r"


def test_a_run_that_could_not_begin_does_not_keep_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            RunFolder(tmp_path / "run", "r", 0, TASKS)
    RunFolder(tmp_path / "run", "r", 0, TASKS).close()


def test_a_record_after_a_full_disk_is_not_glued_to_the_torn_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunFolder(tmp_path / "run", "r", 0, TASKS)
    real = os.write
    answers: list[Callable[..., int]] = [lambda fd, data: real(fd, data[:10]), full]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *args: answers.pop(0)(*args))
        with pytest.raises(OSError, match="No space"):
            store.append(record("a"), "1")
    store.append(record("b"), "2")
    store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_journal(tmp_path / "run").record(tmp_path / "run", "b").value == 2


def test_records_that_are_appended_together_are_there_all_or_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunFolder(folder, "r", 0, TASKS)
    both = [(name, text_of(record(name, error=name), "2")) for name in "ab"]
    real = os.write
    answers: list[Callable[..., int]] = [lambda fd, data: real(fd, data[: len(data) - 9]), full]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *args: answers.pop(0)(*args))
        with pytest.raises(OSError, match="No space"):
            store.append_all(both)
    assert [store.journal.record(folder, name).error for name in "ab"] == ["", "bad"]
    store.append_all(both)
    assert [store.journal.record(folder, name).error for name in "ab"] == ["a", "b"]
    store.close()
    assert [read_journal(folder).record(folder, name).error for name in "ab"] == ["a", "b"]


def test_a_metric_that_is_no_number_leaves_the_export_strict_json(tmp_path: Path) -> None:
    store = RunFolder(tmp_path / "run", "r", 0, TASKS)
    store.append(done := record("a", metrics={"loss": float("nan"), "n": 1}), "1")
    store.close()
    export(tmp_path / "run", [done], [])
    text = (tmp_path / "run" / "detailed_results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)[0]["metrics"]["n"] == 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunFolder]:
    store = RunFolder(tmp_path / "run", "r", 0, TASKS)
    yield store
    store.close()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_kept_and_leaves_the_export_strict_json(
    store: RunFolder, loss: float
) -> None:
    store.append(record(metrics={"loss": loss}), "1")
    assert repr(read_journal(store.path).record(store.path, "a").metrics["loss"]) == repr(loss)
    export(store.path, [record()], [{"name": "a"}])
    text = (store.path / "detailed_results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)[0]["value"] == 1


def test_no_heading_of_the_table_is_a_formula(store: RunFolder) -> None:
    store.append(record(), "1")
    export(store.path, [record()], [{"name": "a", '=HYPERLINK("x")': 1}])
    with (store.path / "summary_results.csv").open(newline="") as file:
        heading, row = csv.reader(file)
    assert not [cell for cell in heading if cell.startswith("=")]
    assert row == ["a", "1"]


def test_text_of_every_kind_survives_a_record_and_the_exports(store: RunFolder) -> None:
    text = "grüße\u2028\x85\r\n\x00\udc80"
    store.append(record(error=text, notes=(text, "second")), '"v"')
    back = read_journal(store.path).record(store.path, "a")
    assert (back.error, back.notes, back.value) == (text, (text, "second"), "v")
    export(store.path, [record()], [{"name": "a", "error": text}])
    (entry,) = json.loads((store.path / "detailed_results.json").read_text(encoding="utf-8"))
    assert entry["error"] == text
    assert not list(store.path.glob("*.part"))


def test_a_torn_line_in_the_middle_is_dropped_and_the_others_stay(store: RunFolder) -> None:
    store.append(record(), "1")
    with (store.path / "journal.jsonl").open("ab") as file:
        file.write(b'{"event": "rec\n')
    store.append(record(), "2")
    with pytest.warns(UserWarning, match="truncated line of 15 bytes"):
        journal = read_journal(store.path)
    assert journal.record(store.path, "a").value == 2


def test_a_run_killed_before_its_first_line_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    store = RunFolder(tmp_path, "r", 0, TASKS)
    store.close()
    assert store.earlier is None
    assert read_journal(tmp_path).header["seed"] == 0


def test_a_file_is_no_folder_and_a_closed_one_is_free_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        RunFolder(tmp_path / "file", "r", 0, TASKS)
    for _ in range(2):
        store = RunFolder(tmp_path / "run", "r", 0, TASKS)
        store.close()
        store.close()
    assert (tmp_path / "run" / "journal.jsonl").read_bytes().count(b"\n") == 2


def test_facts_of_a_newer_version_are_left_out_of_a_record(store: RunFolder) -> None:
    store.append(record(), "1")
    later = {**read_journal(store.path).records["a"], "colour": "blue", "value": 2}
    del later["n"]
    with (store.path / "journal.jsonl").open("ab") as file:
        file.write(seal(json.dumps(later), 2) + seal(json.dumps({"event": "of tomorrow"}), 3))
    assert read_journal(store.path).record(store.path, "a").value == 2
