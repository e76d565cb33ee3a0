"""Runs on machines that have not the run's folder, beside some that have."""

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from unshared import Unshared

from mgpu_nb import GPUPool, Run, Task, ValueOf, runs, worker
from mgpu_nb.runs.batch import Batch
from mgpu_nb.scheduler import dispatcher
from mgpu_nb.store import journal, token, values
from mgpu_nb.store.journal import read_journal

Share = Callable[[GPUPool], AbstractContextManager[GPUPool]]


class Point:
    """Of a type that is not kept on disk."""

    x = 1


def where() -> tuple[Path | None, str]:
    here = worker()
    return here.folder, here.folder_note


def needs() -> str:
    return str(worker().need_folder())


def makes(kind: str) -> Any:
    print("makes", kind)
    return {
        "none": None, "number": 0.5, "text": "text", "nested": {"a": (1, [2.5, "x"]), "b": b"bytes"},
        "array": {"rows": np.arange(6.0).reshape(2, 3), "n": 3}, "tensor": [torch.arange(4), torch.ones(2)],
        "large": np.arange(200_000.0), "point": Point(), "points": [1, Point()],
    }[kind]  # fmt: skip


KINDS = ("none", "number", "text", "nested", "array", "tensor", "large", "point", "points")


def meet(here: Path, name: str, count: int) -> str:
    """Wait until so many tasks have begun, and return the host of this one's slot."""
    (here / name).touch()
    end = time.monotonic() + 60
    while len(list(here.iterdir())) < count:
        assert time.monotonic() < end
        time.sleep(0.005)
    return "n2" if worker().folder is None else "n1"


def starts(here: Path, name: str) -> dict[str, Any]:
    return {"host": meet(here, name, 2), "rows": np.full(3, float(name == "b")), "name": name}


def adds(
    here: Path, name: str, first: dict[str, Any], both: list[dict[str, Any]]
) -> tuple[str, float, list[str]]:
    host = meet(here, name, 2)
    return (
        host,
        float(first["rows"].sum() + sum(each["rows"].sum() for each in both)),
        [e["host"] for e in both],
    )


def follows(value: Any) -> Any:
    return value


def grows(value: Any) -> Any:
    return value + np.ones(3)


def pool_of(*hosts: str, without: Sequence[str] = ("n2",), **options: Any) -> GPUPool:
    """A pool of slots on hosts."""
    return GPUPool(engine=Unshared(*hosts, without=without), **options)


@pytest.fixture(scope="module")
def away(share: Share) -> Iterator[GPUPool]:
    """A pool of a host that has not the folders of runs."""
    with share(pool_of("n2", "n2")) as pool:
        yield pool


def stored(folder: Path) -> dict[str, Any]:
    found = read_journal(folder)
    return {name: found.records[name]["value"] for name in found.tasks}


def test_a_worker_without_the_folder_says_why(away: GPUPool, tmp_path: Path) -> None:
    run = away.run([Task(where), Task(needs, name="needs")], folder=tmp_path / "run")
    run.wait()
    folder, note = run.records[0].value
    assert folder is None
    assert note == (
        f"the run's folder {tmp_path / 'run'} of host laptop is not on node n2: return what must be kept, or give the "
        "run a folder that both machines have"
    )
    assert (run.records[1].status, run.records[1].error) == ("error", f"FileNotFoundError: {note}")
    assert [record.host for record in run.records] == ["n2", "n2"]
    assert away.submit(where).result() == (None, "")


def test_a_worker_with_the_folder_uses_it(tmp_path: Path) -> None:
    with pool_of("n1") as pool:
        run = pool.run([Task(where), Task(makes, "array", name="array")], folder=tmp_path / "run")
        assert run.results()[0] == (tmp_path / "run", "")
    assert (tmp_path / "run" / "values" / "00001-array.npz").exists()
    assert not list((tmp_path / "run").glob(".*"))  # it goes with the run


def test_the_journal_is_what_it_would_be_if_workers_had_written_it(
    away: GPUPool, pool: GPUPool, tmp_path: Path
) -> None:
    tasks = [Task(makes, kind, name=kind) for kind in KINDS]
    made = [
        each.run(tasks, name="r", folder=tmp_path / name) for each, name in ((pool, "here"), (away, "away"))
    ]
    for run in made:
        run.wait()
        assert run.problem == ""
    assert stored(tmp_path / "away") == stored(tmp_path / "here")
    assert [record.notes for record in made[0].records] == [record.notes for record in made[1].records]
    assert "its kind is not kept on disk" in made[1].records[KINDS.index("points")].notes[0]
    files = [sorted(path.name for path in run.folder.glob("[lv]*s/*")) for run in made]
    assert files[0] == files[1]
    opened = Run.open(tmp_path / "away")
    assert (opened.records[KINDS.index("large")].value == np.arange(200_000.0)).all()
    assert opened.logs("text") == "makes text\n"


@pytest.mark.slow
def test_other_workers_of_a_host_do_not_look_again(tmp_path: Path) -> None:
    engine = Unshared("n2", without=["n2"])
    with GPUPool(engine=engine, isolation="task") as pool:
        pool.run([Task(where, name=f"t{n}") for n in range(3)], folder=tmp_path / "run").wait()
    assert [name is None for name in engine.tokens] == [False, True, True]


def test_values_reach_tasks_of_any_host(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    tasks = [Task(starts, first, name, name=name) for name in "ab"]
    tasks += [Task(adds, second, name, ValueOf("b"), ValueOf("a", "b"), name=name) for name in "cd"]
    with pool_of("n1", "n2") as pool:
        run = pool.run(tasks, folder=tmp_path / "run")
        found = run.results()[2:]
    assert sorted(host for host, *_ in found) == ["n1", "n2"]
    assert [total for _, total, _ in found] == [6.0, 6.0]
    assert sorted(found[0][2]) == ["n1", "n2"]
    assert run.records[0].host in ("n1", "n2")
    assert {r.host for r in run.records} == {"n1", "n2"}


def test_what_a_resumed_run_has_on_disk_reaches_a_host_without_it(
    away: GPUPool, pool: GPUPool, tmp_path: Path
) -> None:
    tasks = [Task(makes, "array", name="first"), Task(follows, ValueOf("first"), name="second")]
    pool.run(tasks[:1], name="r", folder=tmp_path / "run").wait()
    assert away.run(tasks, name="r", folder=tmp_path / "run").results()[1]["rows"].shape == (2, 3)


def test_a_value_that_is_not_kept_is_the_error_of_who_asks(away: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(makes, "points", name="first"), Task(follows, ValueOf("first"), name="second")]
    run = away.run(tasks, folder=tmp_path / "run")
    run.wait()
    assert run.records[1].status == "error"
    assert "NotStored" in run.records[1].error
    assert "the value of task 'first'" in run.records[1].traceback


def test_a_file_that_is_gone_is_the_error_of_who_asks(away: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(makes, "array", name="first"), Task(follows, ValueOf("first"), name="second")]
    with pytest.MonkeyPatch.context() as patch:
        real = Batch.answer

        def answer(self: Batch, name: str) -> Any:
            (self.store.path / "values" / "00000-first.npz").unlink()
            return real(self, name)

        patch.setattr(Batch, "answer", answer)
        run = away.run(tasks, folder=tmp_path / "run")
        run.wait()
    assert run.records[1].status == "error"
    assert "00000-first.npz" in run.records[1].error


def test_tasks_that_wait_begin_though_the_pool_is_closing(tmp_path: Path) -> None:
    tasks = [Task(np.zeros, 3, name="t0")]
    tasks += [Task(grows, ValueOf(f"t{n}"), name=f"t{n + 1}") for n in range(4)]
    with pool_of("n2") as pool:
        run = pool.run(tasks, folder=tmp_path / "run")
    assert run.results()[-1].tolist() == [4.0, 4.0, 4.0]


def test_a_full_disk_is_noted_and_the_value_written_when_there_is_room(
    away: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]
    real = values._save_npz

    def save(*arguments: Any) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(values, "_save_npz", save)
    run = away.run([Task(makes, "array", name="a")], folder=tmp_path / "run")
    with pytest.warns(UserWarning, match="1 value in memory only"):
        run.wait()
    assert run.records[0].notes == ("this process could not write its value (No space left on device)",)
    assert "1 value in memory only" in run.problem
    full.clear()
    run._ledger.release()
    assert Run.open(tmp_path / "run").records[0].value["rows"].shape == (2, 3)


def test_a_disk_that_stands_still_keeps_no_task(
    away: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    real = values._save_npz

    def save(*arguments: Any) -> None:
        assert goes_on.wait(60)
        real(*arguments)

    monkeypatch.setattr(values, "_save_npz", save)
    monkeypatch.setattr(dispatcher, "KEEPS", 0.1)
    tasks = [
        Task(makes, "array", name="a"),
        Task(follows, 1, name="b", after="a"),
        Task(follows, ValueOf("a"), name="c"),
    ]
    run = away.run(tasks, folder=tmp_path / "run")
    run._ledger.wait_for(lambda: run._ledger.record("b") is not None, 60)
    assert run._ledger.record("c") is None
    goes_on.set()
    assert run.results()[2]["n"] == 3
    assert Run.open(tmp_path / "run").records[0].value["rows"].shape == (2, 3)


def test_a_run_is_cancelled_while_a_value_is_written(
    away: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, goes_on = threading.Event(), threading.Event()
    real = values._save_npz

    def save(*arguments: Any) -> None:
        began.set()
        assert goes_on.wait(60)
        real(*arguments)

    monkeypatch.setattr(values, "_save_npz", save)
    run = away.run(
        [Task(makes, "array", name="a"), Task(follows, ValueOf("a"), name="b")], folder=tmp_path / "run"
    )
    assert began.wait(60)
    run.cancel()
    run._ledger.wait_for(lambda: run._ledger.done, 60)
    goes_on.set()
    run.wait()
    assert [record.status for record in run.records] == ["cancelled", "skipped"]
    assert "read or written" in run.records[0].error


def test_tokens_are_of_runs_on_other_machines_and_go_with_them(tmp_path: Path, pool: GPUPool) -> None:
    def tokens() -> list[Path]:
        return list((tmp_path / "run").glob(f"{token.PREFIX}*"))

    here = tmp_path / "here"
    here.mkdir()
    task = Task(meet, here, "a", 2, name="t")
    run = pool.run([task], name="r", folder=tmp_path / "run")
    assert tokens() == []
    (here / "b").touch()
    run.wait()
    (tmp_path / "run" / f"{token.PREFIX}of-a-process-that-was-killed").touch()
    with pool_of("n1") as nodes:
        (here / "b").unlink()
        run = nodes.run([task, Task(meet, here, "a", 2, name="u")], name="r", folder=tmp_path / "run")
        assert len(tokens()) == 1
        assert "killed" not in tokens()[0].name
        (here / "b").touch()
        run.wait()
        run._ledger.release()
        assert tokens() == []


def test_a_folder_that_is_deleted_has_its_token_again(tmp_path: Path) -> None:
    store = journal.RunFolder(tmp_path / "run", "r", 0, [("t", "m:f", "1" * 32)], elsewhere=True)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert store.is_lost
    store.restore()
    assert (tmp_path / "run" / store.token).exists()
    store.close()
    assert not list((tmp_path / "run").glob(".*"))


def test_the_journal_says_what_nodes_are_made_of(away: GPUPool, pool: GPUPool, tmp_path: Path) -> None:
    away.run([Task(follows, n, name=f"t{n}") for n in range(3)], folder=tmp_path / "away").wait()
    pool.run([Task(follows, 1, name="t")], folder=tmp_path / "here").wait()
    made = {"path": "/n2/python", "python": "3.11.7", "packages": {"torch": "2.9.0"}}
    assert read_journal(tmp_path / "away").nodes == {"n2": made}
    found = {row.folder.name: row.nodes for row in runs(tmp_path).rows}
    assert found == {"away": {"n2": made}, "here": {}}


def test_it_is_logged_once_that_a_node_has_not_the_folder(
    away: GPUPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mgpu_nb"):
        away.run([Task(follows, n, name=f"t{n}") for n in range(4)], folder=tmp_path / "run").wait()
    assert [r.getMessage() for r in caplog.records if "is not on node n2" in r.getMessage()] == [
        f"run 'run': its folder {tmp_path / 'run'} is not on node n2: values of tasks there are written by this process"
    ]
