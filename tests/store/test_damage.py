"""Journals of which any bytes were changed: an error that says so or the rest with a warning, never a wrong value."""

import json
import os
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb import Record, Run
from mgpu_nb.store.journal import RunFolder, read_journal
from mgpu_nb.store.lines import seal

NAMES = [f"t{n}" for n in range(6)]
VALUES: list[Any] = [{"loss": 0.125, "step": 12}, [1, 2, 3], "text", 1234567, None, (1, "x")]
STORED = ['{"loss": 0.125, "step": 12}', "[1, 2, 3]", '"text"', "1234567", "null", '{"$tuple": [1, "x"]}']
VARIANTS = int(os.environ.get("MGPU_FUZZ", "2000"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Lines of a good journal: of two calls, with a task that was run twice."""
    folder = tmp_path_factory.mktemp("good") / "run"
    for call in range(2):
        store = RunFolder(folder, "r", 0, [(name, "m:f", "1" * 32) for name in NAMES])
        if not call:
            store.append(Record(name="t0", index=0, kind="m:f", status="error", error="no"), "null")
        else:
            for index, name in enumerate(NAMES):
                more: dict[str, Any] = {
                    "seconds": 1.5,
                    "started": 1e9,
                    "finished": 1e9 + 1.5,
                    "pid": 7 + index,
                }
                store.append(Record(name=name, index=index, kind="m:f", status="ok", **more), STORED[index])
        store.close()
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


Change = Callable[[random.Random, list[bytes]], bytes]


def flip_bits(dice: random.Random, lines: list[bytes]) -> bytes:
    data = bytearray(b"".join(lines))
    for _ in range(dice.choice((1, 1, 2, 5, 50))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def truncate(dice: random.Random, lines: list[bytes]) -> bytes:
    data = b"".join(lines)
    begin = dice.choice((0, 0, dice.randrange(len(data))))
    return data[begin : dice.randrange(begin, len(data))]


def cut_out(dice: random.Random, lines: list[bytes]) -> bytes:
    data = b"".join(lines)
    begin = dice.randrange(len(data))
    return data[:begin] + data[dice.randrange(begin, len(data)) :]


def double_lines(dice: random.Random, lines: list[bytes]) -> bytes:
    return b"".join(line * dice.choice((1, 1, 2)) for line in lines)


def swap_lines(dice: random.Random, lines: list[bytes]) -> bytes:
    return b"".join(dice.sample(lines, len(lines)))


def put_in(dice: random.Random, lines: list[bytes]) -> bytes:
    data = b"".join(lines)
    what = dice.choice(
        (b"\0" * 64, b"\xff\xfe\xc3", b"\n", b"\r", b'"', b"{" * 50_000, b"[" * 200_000, b"9" * 5000)
    )
    at = dice.randrange(len(data))
    return data[:at] + what + data[at + dice.choice((0, len(what))) :]


def change_number(dice: random.Random, lines: list[bytes]) -> bytes:
    data = b"".join(lines)
    found = dice.choice(list(re.finditer(rb"\d+", data)))
    number = dice.choice((b"0", b"-1", b"1e999", b"9" * 400, b"NaN", b"1.5", b"null", b'"5"', b"[]"))
    return data[: found.start()] + number + data[found.end() :]


def change_type(dice: random.Random, lines: list[bytes]) -> bytes:
    """A line that is sound JSON, with a value of another type in it, and without a sum."""
    number = dice.randrange(len(lines))
    entry = json.loads(lines[number])
    odd: Any = dice.choice(
        (None, [], {}, "x", -1, 1.5, True, [["x"]], {"$tuple": 3}, {"$array": "../x"}, 10**30)
    )
    entry[dice.choice(list(entry))] = odd
    if dice.random() < 0.5:
        entry.pop("n", None)
        entry.pop("crc", None)
    return b"".join([*lines[:number], json.dumps(entry).encode() + b"\n", *lines[number + 1 :]])


CHANGES: list[Change] = [
    flip_bits, truncate, cut_out, double_lines, swap_lines, put_in, change_number, change_type,
]  # fmt: skip


def check(folder: Path, data: bytes, good: bytes) -> None:
    """Read a journal; what it gives is as it was written, and what it lacks is told."""
    (folder / "journal.jsonl").write_bytes(data)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            run = Run.open(folder)
            records = {record.name: record for record in run.records}
        except ValueError as error:
            assert "journal" in str(error)  # noqa: PT017 (it says whose fault it is)
            return
    for name, record in records.items():
        index = NAMES.index(name)
        if record.status == "ok":
            assert repr(record.value) == repr(VALUES[index])
            assert (record.index, record.seconds, record.pid) == (index, 1.5, 7 + index)
        else:
            assert (name, record.error) == ("t0", "no")
    whole = [record.status for record in records.values()] == ["ok"] * 6
    ends = data == good[: len(data)] and data.endswith(
        b"\n"
    )  # whole lines are missing at its end: nobody can tell
    assert whole or told or ends


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_gives_a_wrong_value(change: Change, lines: list[bytes], tmp_path: Path) -> None:
    dice = random.Random(change.__name__)
    for _ in range(12):
        check(tmp_path, change(dice, lines), b"".join(lines))


@pytest.mark.slow
def test_ten_thousand_changes_give_no_wrong_value(lines: list[bytes], tmp_path: Path) -> None:
    dice = random.Random(16)
    for _ in range(VARIANTS):
        data = dice.choice(CHANGES)(dice, lines)
        if dice.random() < 0.3:
            data = dice.choice(CHANGES[:2])(dice, [data]) if len(data) > 1 else data
        check(tmp_path, data, b"".join(lines))


OLD_HEADER: dict[str, Any] = {
    "event": "run", "format": 1, "name": "r", "seed": 0, "at": 1e9, "host": "h", "pid": 7,
    "tasks": [{"name": "t0", "kind": "m:f", "fingerprint": "1"}],
}  # fmt: skip
OLD_RECORD: dict[str, Any] = {
    "event": "record",
    "name": "t0",
    "index": 0,
    "kind": "m:f",
    "status": "ok",
    "value": 1,
}


@pytest.mark.parametrize(
    "more",
    [
        {"name": 3}, {"name": ["t0"]}, {"index": "0"}, {"status": "fine"}, {"status": []}, {"notes": "x"},
        {"metrics": []}, {"seconds": "1"}, {"started": [1]}, {"log": 3}, {"arguments": None}, {"attempt": None},
    ],
)  # fmt: skip
def test_lines_of_older_versions_are_checked_for_their_types(tmp_path: Path, more: dict[str, Any]) -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in (OLD_HEADER, OLD_RECORD, OLD_RECORD | more))
    (tmp_path / "journal.jsonl").write_text(text)
    with pytest.warns(UserWarning, match="dropped a damaged"):
        run = Run.open(tmp_path)
    assert [record.value for record in run.records] == [1]


@pytest.mark.parametrize(
    "more",
    [
        {"name": None},
        {"tasks": "t0"},
        {"tasks": [{}]},
        {"tasks": [3]},
        {"at": "x"},
        {"pid": "7"},
        {"made": 3},
    ],
)
def test_headers_are_checked_for_their_types(tmp_path: Path, more: dict[str, Any]) -> None:
    (tmp_path / "journal.jsonl").write_text(json.dumps(OLD_HEADER | more) + "\n")
    with pytest.warns(UserWarning, match="dropped a damaged"), pytest.raises(ValueError, match="no header"):
        Run.open(tmp_path)


def test_a_line_without_a_sum_is_taken_for_an_old_one_only_before_the_first_that_has_one(
    tmp_path: Path,
) -> None:
    lines = [json.dumps(OLD_HEADER).encode() + b"\n", json.dumps(OLD_RECORD).encode() + b"\n"]
    lines += [
        seal(json.dumps(OLD_RECORD | {"value": 2}), 2),
        json.dumps(OLD_RECORD | {"value": 3}).encode() + b"\n",
    ]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    with pytest.warns(UserWarning, match="dropped a damaged"):
        assert read_journal(tmp_path).record(tmp_path, "t0").value == 2


def test_lines_that_changed_places_keep_their_order(lines: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b"".join(reversed(lines)))
    run = Run.open(tmp_path)
    assert [record.value for record in run.records] == VALUES


def test_a_journal_cannot_have_files_elsewhere_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of others")
    folder = tmp_path / "run"
    folder.mkdir()
    for log in ("../secret", str(tmp_path / "secret"), "logs/../../secret"):
        text = json.dumps(OLD_HEADER) + "\n" + json.dumps(OLD_RECORD | {"log": log}) + "\n"
        (folder / "journal.jsonl").write_text(text)
        assert Run.open(folder).logs("t0") == ""


def test_values_are_read_from_line_to_line(tmp_path: Path) -> None:
    import tracemalloc

    store = RunFolder(tmp_path, "r", 0, [(name, "m:f", "1") for name in NAMES])
    text = json.dumps("x" * 2**20)
    for index, name in enumerate(NAMES):
        store.append(Record(name=name, index=index, kind="m:f", status="ok"), text)
    store.close()
    tracemalloc.start()
    try:
        journal = read_journal(tmp_path)
        held, peak = tracemalloc.get_traced_memory()
        assert held < 2**19
        assert peak < 5 * 2**20
        assert len(journal.record(tmp_path, "t5").value) == 2**20
    finally:
        tracemalloc.stop()
