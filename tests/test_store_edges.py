"""The run folder when what is written is hostile or damaged."""

import csv
import json
import math

import pytest

from mgpu_nb import Record
from mgpu_nb.store.journal import RunFolder, export, read_journal

TASKS = [("a", "m:f", "1" * 32)]


def record(**more):
    return Record(**{"name": "a", "index": 0, "kind": "m:f", "status": "ok", **more})


@pytest.fixture
def store(tmp_path):
    store = RunFolder(tmp_path / "run", "r", 0, TASKS)
    yield store
    store.close()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_kept_and_leaves_the_export_strict_json(store, loss):
    store.append(record(metrics={"loss": loss}), "1")
    assert repr(read_journal(store.path).record(store.path, "a").metrics["loss"]) == repr(loss)
    export(store.path, [record()], [{"name": "a"}])
    text = (store.path / "detailed_results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)[0]["value"] == 1


def test_no_heading_of_the_table_is_a_formula(store):
    store.append(record(), "1")
    export(store.path, [record()], [{"name": "a", '=HYPERLINK("x")': 1}])
    with (store.path / "summary_results.csv").open(newline="") as file:
        heading, row = csv.reader(file)
    assert not [cell for cell in heading if cell.startswith("=")]
    assert row == ["a", "1"]


def test_text_of_every_kind_survives_a_record_and_the_exports(store):
    text = "grüße\u2028\x85\r\n\x00\udc80"
    store.append(record(error=text, notes=(text, "second")), '"v"')
    back = read_journal(store.path).record(store.path, "a")
    assert (back.error, back.notes, back.value) == (text, (text, "second"), "v")
    export(store.path, [record()], [{"name": "a", "error": text}])
    (entry,) = json.loads((store.path / "detailed_results.json").read_text(encoding="utf-8"))
    assert entry["error"] == text
    assert not list(store.path.glob("*.part"))


def test_a_torn_line_in_the_middle_is_dropped_and_the_others_stay(store):
    store.append(record(), "1")
    with (store.path / "journal.jsonl").open("ab") as file:
        file.write(b'{"event": "rec\n')
    store.append(record(), "2")
    with pytest.warns(UserWarning, match="torn line of 15 bytes"):
        journal = read_journal(store.path)
    assert journal.record(store.path, "a").value == 2


def test_a_run_killed_before_its_first_line_starts_anew(tmp_path):
    (tmp_path / "journal.jsonl").touch()
    store = RunFolder(tmp_path, "r", 0, TASKS)
    store.close()
    assert store.earlier is None
    assert read_journal(tmp_path).header["seed"] == 0


def test_a_file_is_no_folder_and_a_closed_one_is_free_again(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        RunFolder(tmp_path / "file", "r", 0, TASKS)
    for _ in range(2):
        store = RunFolder(tmp_path / "run", "r", 0, TASKS)
        store.close()
        store.close()
    assert (tmp_path / "run" / "journal.jsonl").read_bytes().count(b"\n") == 2


def test_facts_of_a_newer_version_are_left_out_of_a_record(store):
    store.append(record(), "1")
    with (store.path / "journal.jsonl").open("a") as file:
        file.write(json.dumps({"event": "record", **entry(store), "colour": "blue"}) + "\n")
        file.write(json.dumps({"event": "of tomorrow"}) + "\n")
    assert read_journal(store.path).record(store.path, "a").value == 1


def entry(store):
    return read_journal(store.path).records["a"]
