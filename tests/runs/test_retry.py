"""What failed is run again, and nothing that a folder holds is hidden by it."""

import csv
import json
import weakref
from pathlib import Path
from typing import Any

import jobs
import pytest

from mgpu_nb import GPUPool, Record, Run, Task
from mgpu_nb.runs.retry import to_retry
from mgpu_nb.tasks import Status


def flaky(path: str, n: int) -> int:
    """Fail until the file is there; note each call."""
    with Path(f"{path}.calls").open("a") as file:
        file.write(f"{n} ")
    if n % 2 and not Path(path).exists():
        raise RuntimeError("not yet")
    return n


def names(run: Run) -> list[str]:
    return [record.name for record in run.records]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary_results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_retry_runs_what_failed_and_the_run_has_all(pool: GPUPool, tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    tasks = [Task(flaky, go, n) for n in range(4)]
    tasks.append(Task(jobs.add, 5, name="follows", after="flaky-3"))
    tasks.append(Task(jobs.not_for_disk, name="in memory"))
    first = pool.run(tasks, name="r", folder=tmp_path / "run", seed=3).wait(60)
    assert [r.status for r in first.records] == ["ok", "error", "ok", "error", "skipped", "ok"]
    Path(go).touch()
    again = first.retry()
    assert again.results(60)[:5] == [0, 1, 2, 3, 6]
    assert (again.name, again.folder, again.tasks) == (first.name, first.folder, first.tasks)
    assert again.records[5].value is first.records[5].value
    assert [r.fingerprint for r in again.records] == [r.fingerprint for r in first.records]
    assert [r.index for r in again.records] == list(range(6))
    assert sorted(Path(f"{go}.calls").read_text().split()) == ["0", "1", "1", "2", "3", "3"]
    assert [row["status"] for row in table(first.folder)] == ["ok"] * 6
    opened = Run.open(first.folder)
    assert (opened.tasks, [r.status for r in opened.records]) == (first.tasks, ["ok"] * 6)
    assert again.retry() is again
    assert [r.status for r in first.records][1] == "error"
    assert again.logs("flaky-1") == first.logs("flaky-1")
    assert list(again.frame()["status"]) == ["ok"] * 6


def test_a_retry_of_what_was_cancelled_is_asked_for(pool: GPUPool, tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    tasks = [
        Task(jobs.add, 1, name="a"),
        Task(jobs.blocks_until, go, name="b"),
        Task(jobs.add, 2, name="c", after="b"),
    ]
    run = pool.run(tasks, folder=tmp_path / "run")
    while "a" not in names(run) or "b" not in run.running:
        run._ledger.wait_for(lambda: "a" in names(run), 60)
    run.cancel()
    assert [r.status for r in run.wait(60).records] == ["ok", "cancelled", "skipped"]
    with pytest.warns(UserWarning, match=r"2 tasks were cancelled or skipped: run\.retry\(cancelled=True\)"):
        assert run.retry() is run
    Path(go).touch()
    assert run.retry(cancelled=True).results(60) == [2, go, 3]


def test_a_retry_says_what_it_cannot(tmp_path: Path) -> None:
    with GPUPool(slots=1) as pool:
        run = pool.run([Task(jobs.raises, name="bad")], name="r", folder=tmp_path / "run").wait(60)
        with pytest.raises(
            ValueError, match=r"pool\.run\(tasks, name='r', folder=.*runs those without a good record"
        ):
            Run.open(run.folder).retry()
        slow = pool.run([Task(jobs.blocks_until, str(tmp_path / "go"))], folder=tmp_path / "slow")
        with pytest.raises(RuntimeError, match=r"under way .*run\.wait\(\) first"):
            slow.retry()
        (tmp_path / "go").touch()
        gang = pool.run([Task(jobs.raises, name="rank")], folder=tmp_path / "gang", gang=True).wait(60)
        with pytest.raises(ValueError, match="start all of it again"):
            gang.retry()
    with pytest.raises(RuntimeError, match="after shutdown") as closed:
        run.retry()
    assert "run.retry(pool) takes another pool" in closed.value.__notes__
    gone = weakref.ref(pool)
    del pool
    if gone() is None:
        with pytest.raises(ValueError, match=r"run\.retry\(pool\)"):
            run.retry()
    with GPUPool(slots=1) as other:
        assert run.retry(other).wait(60).records[0].attempt == 1


def status_of(**statuses: Status) -> dict[str, Record]:
    return {name: Record(name=name, index=0, kind="m:f", status=status) for name, status in statuses.items()}


@pytest.mark.parametrize(
    ("cancelled", "chosen"),
    [(False, {"bad", "after_bad", "lost"}), (True, {"bad", "after_bad", "lost", "c", "after_c"})],
)
def test_what_a_retry_runs(cancelled: bool, chosen: set[str]) -> None:
    after = {
        "good": (),
        "bad": ("good",),
        "after_bad": ("bad",),
        "c": (),
        "after_c": ("c", "bad"),
        "lost": ("good",),
    }
    records = status_of(good="ok", bad="timeout", after_bad="skipped", c="cancelled", after_c="skipped")
    assert to_retry(after, records, cancelled) == chosen


def test_a_part_of_the_tasks_hides_no_other(pool: GPUPool, tmp_path: Path) -> None:
    go, folder = str(tmp_path / "go"), tmp_path / "run"
    tasks = [Task(flaky, go, n, name=f"t{n}") for n in range(4)]
    pool.run(tasks, name="r", folder=folder).wait(60)
    Path(go).touch()
    part = pool.run([tasks[3], Task(jobs.add, 1, name="new")], name="r", folder=folder).wait(60)
    assert part.tasks == ("t3", "new")
    opened = Run.open(folder)
    assert opened.tasks == ("t0", "t1", "t2", "t3", "new")
    assert [r.status for r in opened.records] == ["ok", "error", "ok", "ok", "ok"]
    rows = table(folder)
    assert [(row["name"], row["status"], row["value"]) for row in rows] == [
        ("t0", "ok", "0"), ("t1", "error", ""), ("t2", "ok", "2"), ("t3", "ok", "3"), ("new", "ok", "2"),
    ]  # fmt: skip
    details = json.loads((folder / "detailed_results.json").read_text())
    assert [entry["name"] for entry in details] == ["t0", "t1", "t2", "t3", "new"]
    whole = pool.run(tasks[:2], name="r", folder=folder, whole=True).wait(60)
    assert Run.open(folder).tasks == whole.tasks == ("t0", "t1")
    assert [row["name"] for row in table(folder)] == ["t0", "t1"]


def test_a_folder_of_an_older_version_opens(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(jobs.add, 1, name="a")], name="r", folder=tmp_path / "run").wait(60)
    journal = run.folder / "journal.jsonl"
    kept = ("event", "format", "name", "seed", "at", "host", "pid", "tasks")
    header, *records = map(json.loads, journal.read_text().splitlines())
    for record in records:
        for key in ("arguments", "n", "crc"):
            record.pop(key)
    old: list[Any] = [{key: header[key] for key in kept}, *records]
    journal.write_text("".join(f"{json.dumps(entry)}\n" for entry in old))
    opened = Run.open(run.folder)
    assert opened.results() == [2]
    assert list(opened.frame()["value"]) == [2]
    assert pool.run([Task(jobs.add, 1, name="a")], name="r", folder=run.folder).results(60) == [2]


def test_a_run_whose_handle_is_lost_is_retried(pool: GPUPool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    ledger = (
        pool.run([Task(flaky, str(go), 1)], folder=tmp_path / "run").wait(60)._ledger
    )  # as a panel has it
    assert ledger.handle is not None
    assert ledger.handle() is None
    go.touch()
    assert pool.runs[0].retry().results(60) == [1]
