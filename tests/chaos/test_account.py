"""The account of a storm: each kind of broken promise is found, and nothing else is."""

import json
import os
import random
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mgpu_nb import GPUPool, Record, Run, Task
from mgpu_nb.chaos import storm as storms
from mgpu_nb.chaos.faults import FAULTS, SOUND, double
from mgpu_nb.chaos.storm import Planned, plan
from mgpu_nb.chaos.strikes import Strike, Strikes
from mgpu_nb.chaos.traces import Traces, _of, private_temporary_folder
from mgpu_nb.store.lines import seal

COUNT, FILL = SOUND[0], SOUND[1]
KILL = next(kind for kind in FAULTS if kind.fn.__name__ == "kill_itself")


@pytest.fixture
def strikes() -> Strikes:
    return Strikes(random.Random(0), 1.0, 0)


@pytest.fixture
def planned() -> list[Planned]:
    return [
        Planned("0-count", COUNT, 3),
        Planned("1-kill", KILL, 4),
        Planned("2-chain", None, 5, "0-count"),
        Planned("3-chain", None, 5, "1-kill"),
    ]


@pytest.fixture
def records() -> list[Record]:
    return [
        Record(
            name="0-count", index=0, kind="", status="ok", value=6, attempt=1, pid=10, started=5, finished=6
        ),
        Record(name="1-kill", index=1, kind="", status="killed", error="killed", attempt=1, pid=11),
        Record(name="2-chain", index=2, kind="", status="ok", value=11, attempt=1, pid=12),
        Record(name="3-chain", index=3, kind="", status="skipped", error="1-kill was killed"),
    ]


def test_a_plan_is_of_its_seed_and_has_every_kind() -> None:
    assert plan(3, 200, 4) == plan(3, 200, 4) != plan(4, 200, 4)
    kinds = Counter(each.kind for each in plan(0, 2000, 4))
    assert set(kinds) == {None, *SOUND, *FAULTS}
    assert all(each.kind is None or each.kind.devices == 1 for each in plan(0, 200, 1))


def test_what_is_as_promised_is_no_finding(
    planned: list[Planned], records: list[Record], strikes: Strikes
) -> None:
    assert storms._wrong_records(planned, records, strikes) == []
    assert storms._expected_deaths(planned, records) == 1


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda records: records.pop(0), "0-count has 0 records"),
        (lambda records: records.append(records[1]), "1-kill has 2 records"),
        (lambda records: records.append(replace(records[1], name="4")), "a record of 4, which is no task"),
        (
            lambda records: records.__setitem__(0, replace(records[0], value=8)),
            "0-count has another task's value",
        ),
        (
            lambda records: records.__setitem__(2, replace(records[2], value=6)),
            "2-chain has another task's value",
        ),
        (
            lambda records: records.__setitem__(1, replace(records[1], status="error")),
            "1-kill is error, not killed",
        ),
        (
            lambda records: records.__setitem__(1, replace(records[1], error="")),
            "1-kill is killed and says no reason",
        ),
        (
            lambda records: records.__setitem__(0, replace(records[0], status="killed", error="x")),
            "0-count is killed, not ok",
        ),
        (
            lambda records: records.__setitem__(3, replace(records[3], status="ok", value=5)),
            "3-chain is ok, not skipped",
        ),
    ],
)
def test_a_wrong_record_is_a_finding(
    planned: list[Planned], records: list[Record], strikes: Strikes, change: object, finding: str
) -> None:
    assert callable(change)
    change(records)
    found = storms._wrong_records(planned, records, strikes)
    assert any(each.startswith(finding) for each in found), found


def test_a_task_whose_worker_was_struck_may_be_killed(
    planned: list[Planned], records: list[Record], strikes: Strikes
) -> None:
    records[0] = replace(records[0], status="killed", error="its worker was killed")
    records[2] = replace(records[2], status="skipped", error="0-count was killed", value=None)
    assert storms._wrong_records(planned, records, strikes)
    strikes.struck.append(Strike("kill", 5.5, frozenset([10])))
    assert storms._wrong_records(planned, records, strikes) == []
    assert strikes.most_lost(4) == 1
    strikes.struck[0] = Strike("server", 5.5, frozenset())
    assert storms._wrong_records(planned, records, strikes) == []
    assert strikes.most_lost(4) == 4
    strikes.struck[0] = Strike("stop", 5.5, frozenset([10]))
    assert storms._wrong_records(planned, records, strikes)


@pytest.mark.parametrize(
    ("starts", "finding"),
    [
        ("0-count 1 10\n1-kill 1 11\n2-chain 1 12\n", None),
        ("0-count 1 10\n1-kill 1 11\n2-chain 1 12\n0-count 1 13\n", "attempt 1 of 0-count was begun 2 times"),
        ("0-count 1 10\n1-kill 1 11\n1-kill 2 11\n2-chain 1 12\n", "1-kill was begun 2 times in 1 attempts"),
        ("1-kill 1 11\n2-chain 1 12\n", "0-count is ok and was never begun"),
    ],
)
def test_tasks_begun_twice_are_found(
    tmp_path: Path, records: list[Record], starts: str, finding: str | None
) -> None:
    (tmp_path / "starts").write_text(starts)
    found = storms._doubled(records, tmp_path / "starts")
    assert found == [] if finding is None else finding in found


@pytest.fixture(scope="module")
def run(pool: GPUPool, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pool.run(
        [Task(double, k, name=f"t{k}") for k in range(3)], folder=tmp_path_factory.mktemp("a") / "r"
    ).wait(60)


def _with(line: str, **changed: object) -> str:
    """A line with other content, and a sum that is right."""
    entry = json.loads(line) | changed
    number = entry.pop("n")
    del entry["crc"]
    return seal(json.dumps(entry), number).decode()


def test_a_journal_that_says_otherwise_is_found(run: Run, tmp_path: Path) -> None:
    assert storms._wrong_journal(run.folder, run.records) == []
    lines = (run.folder / "journal.jsonl").read_text().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if json.loads(line)["event"] == "record")
    for changed, finding in (
        ([*lines, lines[place]], "the journal has 2 records of t"),
        (lines[:place] + lines[place + 1 :], "the journal has 2 records, the run 3"),
        ([line.replace('"value": 0,', '"value": 1,') for line in lines], "the journal is damaged: "),
        (
            [_with(line, value=1) if '"value": 0,' in line else line for line in lines],
            "the journal says Record('t0': ok, value=1",
        ),
    ):
        (tmp_path / "journal.jsonl").write_text("".join(changed))
        found = storms._wrong_journal(tmp_path, run.records)
        assert any(each.startswith(finding) for each in found), found
    (tmp_path / "x.part").touch()
    assert any(each.endswith("x.part is left") for each in storms._wrong_journal(tmp_path, run.records))


@pytest.mark.slow
@pytest.mark.usefixtures("small_heap")
def test_what_is_left_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgpu_nb.chaos.traces.PATIENCE", 0.0)
    with private_temporary_folder(tmp_path / "tmp"):
        before = Traces.now()
        assert before.left() == []
        first, second = os.pipe()
        assert before.left() == ["2 descriptors are open on pipe"]
        os.close(first)
        os.close(second)
        handle, name = tempfile.mkstemp()
        os.close(handle)
        assert before.left() == [f"file {name} is left"]
        Path(name).unlink()
        assert before.left() == []
    assert tempfile.gettempdir() != str(tmp_path / "tmp")
    assert _of("/dev/shm/torch_17_3", [17])
    assert not _of("/dev/shm/torch_17_3", [3000])
    assert storms._alive({os.getpid()}, "worker") == [f"worker {os.getpid()} lives"]
