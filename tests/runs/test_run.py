import dataclasses
import enum
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any, cast

import jobs
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from records import span

import mgpu_nb
from mgpu_nb import GPUPool, Record, Run, Task, TaskError, TaskSkipped, TaskTimeout, compare
from mgpu_nb.tasks import Progress, busy_time


def test_twelve_unequal_tasks(tmp_path: Path) -> None:
    tasks = [Task(jobs.hangs, 0.02 * i, name=f"good-{i}") for i in range(6)]
    tasks[1:1] = [
        Task(jobs.raises, name="raises"),
        Task(jobs.killed, name="killed"),
        Task(jobs.segfaults, name="segfaults"),
        Task(jobs.exits, name="exits"),
        Task(jobs.hangs, name="times-out", timeout=3),
        Task(jobs.unpicklable, name="unpicklable"),
    ]
    with GPUPool(slots=2) as pool:
        run = pool.run(tasks, name="twelve", folder=tmp_path / "run").wait(60)
        assert all(seat.ready or seat.free for seat in pool._dispatcher.slots)
        assert pool.submit(jobs.add, 1).result(30) == 2
    status = {record.name: record.status for record in run.records}
    assert len(run.records) == 12
    assert [status[f"good-{i}"] for i in range(6)] == ["ok"] * 6
    failed = {n: s for n, s in status.items() if s != "ok"}
    assert failed == {
        "raises": "error",
        "killed": "killed",
        "segfaults": "killed",
        "exits": "killed",
        "times-out": "timeout",
        "unpicklable": "error",
    }
    for record in run.records:
        assert record.device in ("cpu:0", "cpu:1")
        assert record.pid
        if record.status != "ok":
            assert record.error
            assert record.exception is not None
    assert "Segmentation fault" in run.logs("segfaults")
    assert "hangs" in run.logs("times-out")  # the stack where the timeout struck
    again = Run.open(tmp_path / "run")
    assert [r.status for r in again.records] == [r.status for r in run.records]
    with pytest.raises(ValueError, match="bad"):
        run.results()


def test_frame_and_folder(pool: GPUPool, tmp_path: Path) -> None:
    def work(x: int) -> dict[str, object]:
        import mgpu_nb

        mgpu_nb.worker().report(loss=x / 2, step=x)
        return {
            "score": float("nan"),
            "coords": np.full((2, 3), x),
            "t": torch.tensor([x]),
            "table": pd.DataFrame({"a": [x]}),
        }

    run = pool.run(
        [Task(work, i, name=f"=w-{i}") for i in range(3)], name="frame", folder=tmp_path / "run"
    ).wait(60)
    frame = run.frame()
    assert list(frame.columns[:8]) == ["name", "status", "x", "score", "coords", "t", "table", "loss"]
    assert list(frame.columns[8:14]) == ["step", "device", "seconds", "started", "peak_memory", "error"]
    assert list(frame.x) == [0, 1, 2]
    assert np.array_equal(frame.coords[1], np.full((2, 3), 1))
    assert run.best("loss").name == "=w-2"
    assert run.best("loss", mode="min").arguments == {"x": 0}
    with pytest.raises(ValueError, match="mode must be one of max, min"):
        run.best("loss", mode="least")  # type: ignore[arg-type]
    assert list(run.frame(sort="loss", ascending=False)["name"]) == ["=w-2", "=w-1", "=w-0"]
    assert (
        Run.open(run.folder)
        .frame()
        .drop(columns=["coords", "t", "table"])
        .equals(frame.drop(columns=["coords", "t", "table"]))
    )
    assert list(frame.loss) == [0.0, 0.5, 1.0]
    assert frame.peak_memory.min() > 2**20
    values = [record.value for record in Run.open(run.folder).records]
    assert np.isnan(values[1]["score"])
    assert np.array_equal(values[1]["coords"], np.full((2, 3), 1))
    assert torch.equal(values[2]["t"], torch.tensor([2]))
    assert values[2]["table"].a[0] == 2
    details = json.loads((run.folder / "detailed_results.json").read_text())
    assert [d["name"] for d in details] == ["=w-0", "=w-1", "=w-2"]
    assert list(pd.read_csv(run.folder / "summary_results.csv").name) == ["'=w-0", "'=w-1", "'=w-2"]
    assert not list(run.folder.rglob("*.pkl"))


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_same_numbers_on_any_number_of_slots(tmp_path: Path, slots: int) -> None:
    with GPUPool(slots=slots, threads=1) as pool:
        values = pool.run([Task(jobs.random_numbers, 8) for _ in range(6)], folder=tmp_path / "run").results(
            60
        )
    expected = []
    from mgpu_nb.tasks import derive_seed

    for i in range(6):
        torch.manual_seed(derive_seed(0, i))
        expected.append(jobs.random_numbers(8))
    assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))


def test_after_and_skipped(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [
        Task(jobs.touches, str(tmp_path / "log"), 3, name="c", after=["a", "b"]),
        Task(jobs.touches, str(tmp_path / "log"), 1, name="a"),
        Task(jobs.raises, name="bad", after="a"),
        Task(jobs.add, 1, name="b"),
        Task(jobs.add, 1, name="never", after="bad"),
        Task(jobs.add, 1, name="nor this", after=["never", "a"]),
    ]
    run = pool.run(tasks, folder=tmp_path / "run").wait(60)
    assert [r.status for r in run.records] == ["ok", "ok", "error", "ok", "skipped", "skipped"]
    assert "'bad', which ended error" in run.records[4].error
    assert isinstance(run.records[5].exception, TaskSkipped)


def test_retries_and_deaths(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [
        Task(jobs.fails_until, str(tmp_path / "n"), 3, name="third", retries=5),
        Task(jobs.killed, name="deadly", retries=10),
        Task(jobs.hangs, name="slow", timeout=0.1),
    ]
    run = pool.run(tasks, folder=tmp_path / "run").wait(60)
    third, deadly, slow = run.records
    assert (third.status, third.attempt, third.value) == ("ok", 3, 3)
    assert len(third.notes) == 2
    assert (deadly.status, deadly.attempt) == ("killed", 3)
    assert "not tried again" in deadly.notes[-1]
    assert isinstance(slow.exception, TaskTimeout)


def test_out_of_memory_is_a_record_and_is_tried_alone(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(jobs.out_of_memory)], folder=tmp_path / "run", retry_alone=True).wait(60)
    assert run.records[0].status == "out-of-memory"
    assert run.records[0].attempt == 2
    assert "alone on its device" in run.records[0].notes[0]


def test_resume_runs_only_what_is_missing(pool: GPUPool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def tasks(third: int) -> list[Task]:
        return [
            Task(jobs.touches, log, 1, name="a"),
            Task(jobs.fails_until, log, 2, name="b"),
            Task(jobs.touches, log, third, name="c"),
        ]

    first = pool.run(tasks(3), name="r", folder=tmp_path / "run").wait(60)
    assert first.records[0].ok
    before = len(Path(log).read_text())
    second = pool.run(tasks(4), name="r", folder=tmp_path / "run")
    assert second.results(60)[0] == 1
    assert second.results(60)[2] == 4
    assert "run again" in second.records[2].notes[0]
    assert len(Path(log).read_text()) == before + 1 + (0 if first.records[1].ok else 1)
    third = pool.run(tasks(4), name="r", folder=tmp_path / "run")
    assert third.results(60)[2] == 4
    assert len(Path(log).read_text()) == before + 1 + (0 if first.records[1].ok else 1)


def test_cancel(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(jobs.hangs) for _ in range(6)], folder=tmp_path / "run")
    while run.progress.running < 2:
        time.sleep(0.005)
    with pytest.raises(TimeoutError, match="it continues"):
        run.wait(0.01)
    run.cancel()
    assert [r.status for r in run.wait(60).records] == ["cancelled"] * 6
    assert isinstance(run.progress, Progress)


@pytest.mark.slow
def test_interrupt_of_the_group_leaves_the_run_going(tmp_path: Path) -> None:
    code = f"""
        import os, signal, sys, threading, time
        sys.path.insert(0, {str(Path(jobs.__file__).parent)!r})
        import jobs
        from mgpu_nb import GPUPool, Task
        with GPUPool(slots=1) as pool:
            run = pool.run([Task(jobs.blocks_until, {str(tmp_path / "go")!r})], folder={str(tmp_path / "run")!r})
            while not run.progress.running:
                time.sleep(0.01)
            threading.Timer(1.0, lambda: os.killpg(0, signal.SIGINT)).start()
            try:
                run.wait(30)
            except KeyboardInterrupt as interrupt:
                print(interrupt)
            open({str(tmp_path / "go")!r}, "w").close()
            print(run.wait(30).records[0].status, run.records[0].attempt)
    """
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    # A session of its own: the signal goes to the whole group, as Jupyter's does.
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, start_new_session=True)
    assert "continues (0 of 1 done, 1 running)" in done.stdout
    assert done.stdout.endswith("ok 1\n")


def test_second_interrupt_cancels(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(jobs.hangs)], folder=tmp_path / "run")
    for words in ("continues", "being cancelled"):

        def interrupts() -> None:
            while not run._ledger._watchers:  # until it waits
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupts).start()
        with pytest.raises(KeyboardInterrupt, match=words):
            run.wait(60)
    assert run.wait(30).records[0].status == "cancelled"


@pytest.mark.slow
def test_resume_after_the_kernel_was_killed(tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(jobs.__file__).parent)!r})
        import jobs
        from mgpu_nb import GPUPool, Task
        pool = GPUPool(slots=2)
        tasks = [Task(jobs.touches, {str(tmp_path)!r} + f"/t{{i}}", i, name=f"t{{i}}") for i in range(8)]
        tasks[5] = Task(jobs.blocks_until, {str(tmp_path / "go")!r}, name="t5")
        tasks[6] = Task(jobs.blocks_until, {str(tmp_path / "go")!r}, name="t6")
        run = pool.run(tasks, name="k", folder={str(tmp_path / "run")!r})
        print("ready", flush=True)
        run.wait()
    """
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    kernel = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert kernel.stdout
    kernel.stdout.readline()
    journal = tmp_path / "run" / "journal.jsonl"
    while journal.read_text().count('"status": "ok"') < 5:
        time.sleep(0.01)
    kernel.kill()
    kernel.wait()
    kernel.stdout.close()
    (tmp_path / "go").touch()
    subprocess.run(argv, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert all(record.ok for record in Run.open(tmp_path / "run").records)
    assert [(tmp_path / f"t{i}").read_text() for i in (0, 1, 2, 3, 4, 7)] == ["x"] * 6


def test_torn_journal_is_mended(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run(
        [Task(jobs.add, 1, name="a"), Task(jobs.add, 2, name="b")], name="t", folder=tmp_path / "run"
    ).wait(60)
    journal = run.folder / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="truncated"):
        assert len(Run.open(run.folder).records) == 1
    with pytest.warns(UserWarning, match="truncated"):
        again = pool.run(
            [Task(jobs.add, 1, name="a"), Task(jobs.add, 2, name="b")], name="t", folder=run.folder
        )
    assert again.results(60) == [2, 3]
    assert len(Run.open(run.folder).records) == 2


def test_floods_unicode_and_control_characters(pool: GPUPool, tmp_path: Path) -> None:
    name = "naïve \x1b[31m 蛋白 <img src=x>"
    run = pool.run(
        [Task(jobs.floods, 10_000_000, name="flood"), Task(jobs.says, name + "\udcff", name=name)],
        folder=tmp_path / "run",
    )
    assert run.wait(60).records[0].value == 10_000_000
    assert len(run.logs("flood")) == 10_000_000
    assert "蛋白" in run.logs(name)


def test_longest_first(tmp_path: Path) -> None:
    order = tmp_path / "order"

    def work(i: int) -> None:
        with order.open("a") as file:
            file.write(str(i))

    with GPUPool(slots=1) as pool:
        pool.run([Task(work, i, cost=i) for i in range(5)], folder=tmp_path / "a").wait(60)
    assert order.read_text() == "43210"


def test_memory_admission(pool: GPUPool, tmp_path: Path) -> None:

    total = psutil.virtual_memory().total
    with pytest.raises(ValueError, match="no device has as much"):
        pool.run([Task(jobs.add, 1, memory=2 * total)], folder=tmp_path / "a")
    half = int(psutil.virtual_memory().available * 0.7)
    tasks = [Task(jobs.hangs, 0.1, memory=half) for _ in range(2)]
    run = pool.run(tasks, folder=tmp_path / "b").wait(60)
    first, second = sorted(run.records, key=span)
    assert span(second)[0] >= span(first)[1]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "no tasks"),
        ([Task(jobs.add, 1, name="a"), Task(jobs.add, 2, name="a")], "two tasks are named"),
        ([Task(jobs.add, 1, name="a", after="b")], "not a task of this run"),
        ([Task(jobs.add, 1, name="a", after="b"), Task(jobs.add, 1, name="b", after="a")], "cycle"),
        ([Task(jobs.add, 1, devices=3)], "takes 3 slots"),
        ([Task("no_such_module:f")], "does not import"),
    ],
)
def test_bad_tasks(pool: GPUPool, tmp_path: Path, tasks: list[Task], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool.run(tasks, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "bad", [{"name": "a/b"}, {"timeout": 0}, {"retries": -1}, {"devices": 0}, {"memory": 0}, {"cost": -1}]
)
def test_bad_task(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Task(jobs.add, 1, **bad)


def test_bad_folders(pool: GPUPool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        pool.run([Task(jobs.add, 1)], folder=tmp_path / "file")
    with pytest.raises(TypeError, match="folder must be a path, got 3"):
        pool.run([Task(jobs.add, 1)], folder=cast(Any, 3))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="not a run's"):
        pool.run([Task(jobs.add, 1)], folder=tmp_path / "other")
    pool.run([Task(jobs.add, 1)], name="one", folder=tmp_path / "run").wait(60)
    with pytest.raises(FileExistsError, match="holds the run 'one'"):
        pool.run([Task(jobs.add, 1)], name="two", folder=tmp_path / "run")
    with pytest.raises(FileExistsError, match="other tasks"):
        pool.run([Task(jobs.add, 1, name="other")], name="one", folder=tmp_path / "run")
    blocked = pool.run([Task(jobs.blocks_until, str(tmp_path / "go"))], name="b", folder=tmp_path / "b")
    with pytest.raises(BlockingIOError, match="by run 'b' of this process"):
        pool.run([Task(jobs.blocks_until, str(tmp_path / "go"))], name="b", folder=tmp_path / "b")
    (tmp_path / "go").touch()
    blocked.wait(60)
    with pytest.raises(FileNotFoundError, match=r"journal\.jsonl"):
        Run.open(tmp_path / "nowhere")


def test_results_name_the_failure(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.run([Task(jobs.killed, name="dead")], folder=tmp_path / "run")
    with pytest.raises(TaskError, match=r"'dead' on .*cpu:"):
        run.results(60)


def test_a_log_that_cannot_be_written_is_told(pool: GPUPool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    tasks = [Task(jobs.blocks_until, str(go), name="first"), Task(jobs.says, "x", after=["first"])]
    run = pool.run(tasks, folder=tmp_path / "run")
    logs = tmp_path / "run" / "logs"
    logs.rmdir()
    logs.write_text("a file where the folder of logs was")
    go.touch()
    with pytest.warns(UserWarning, match=r"logs are incomplete \(Not a directory\)"):
        record = run.wait(60).records[1]
    assert record.ok


def test_a_cancelled_run_takes_no_task_of_another_with_it(tmp_path: Path) -> None:
    with GPUPool(slots=2) as pool:
        pool.submit(pow, 2, 2).result(60)
        for n in range(6):
            go = tmp_path / f"go-{n}"
            first = pool.run(
                [Task(jobs.blocks_until, str(go), name=f"a{i}") for i in range(2)], folder=tmp_path / f"a{n}"
            )
            other = pool.run([Task(jobs.add, i, name=f"b{i}") for i in range(20)], folder=tmp_path / f"b{n}")
            threading.Timer(0.001 * n, go.touch).start()
            first.cancel()
            assert {record.status for record in other.wait(60).records} == {"ok"}
            first.wait(60)


def test_a_long_chain_is_skipped_and_cancelled(tmp_path: Path) -> None:
    chain = [Task(jobs.add, i, name=f"t{i}", after=f"t{i - 1}") for i in range(1, 600)]
    with GPUPool(slots=1) as pool:
        run = pool.run([Task(jobs.raises, "first", name="t0"), *chain], folder=tmp_path / "failed").wait(60)
        assert [record.status for record in run.records] == ["error"] + ["skipped"] * 599
        run = pool.run([Task(jobs.add, 0, name="t0"), *chain], folder=tmp_path / "cancelled")
        next(run.as_completed(60))
        run.cancel()
        run.wait(60)
        statuses = [record.status for record in run.records]
        assert set(statuses[statuses.index("cancelled") :]) <= {"cancelled", "skipped"}


def test_a_gang_keeps_its_slots_when_an_idle_worker_dies(tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    with GPUPool(slots=2) as pool:
        list(pool.map(jobs.add, range(8)))
        idle = [post.worker.pid for post in pool._dispatcher.workers.processes.values() if post.worker.pid]
        gang = pool.run([Task(jobs.blocks_until, go, devices=2, name="gang")], folder=tmp_path / "gang")
        while not gang.running:
            time.sleep(0.01)
        other = pool.run([Task(jobs.add, 1, name="one")], folder=tmp_path / "one")
        for pid in idle:
            os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid) for pid in idle if psutil.pid_exists(pid)], 10)
        with pytest.raises(TimeoutError):
            other.wait(0.5)
        (tmp_path / "go").touch()
        (first,), (second,) = gang.wait(60).records, other.wait(60).records
        assert (first.status, second.status) == ("ok", "ok")
        assert span(second)[0] >= span(first)[1]


def test_a_retry_alone_is_alone(tmp_path: Path) -> None:
    tasks = [Task(jobs.says_nothing, i, name=f"s{i}") for i in range(20)]
    with GPUPool(slots=2, isolation="task") as pool:
        greedy = Task(jobs.too_large_at_first, str(tmp_path / "tried"), name="greedy")
        run = pool.run([greedy, *tasks], folder=tmp_path / "run", retry_alone=True).wait(120)
    (one,) = [record for record in run.records if record.name == "greedy"]
    assert one.ok
    assert any("alone on its device" in note for note in one.notes)
    others = [record for record in run.records if record.name != "greedy"]
    began, ended = span(one)
    assert not [o for o in others if span(o)[0] < ended and span(o)[1] > began]


class Colour(enum.IntEnum):
    RED = 3


def reports_odd_things() -> None:
    mgpu_nb.worker().report(
        long=10**5000, colour=Colour.RED, share=np.float64(0.5), text=type("S", (str,), {})("s")
    )
    mgpu_nb.worker().report(none=None, yes=True)


def test_odd_reports_harm_nobody(tmp_path: Path) -> None:
    with GPUPool(slots=1) as pool:
        run = pool.run(
            [Task(reports_odd_things, name="odd"), Task(jobs.add, 1, name="plain")], folder=tmp_path / "run"
        )
        with pytest.warns(UserWarning, match="journal could not be written"):
            run.wait(60)
        assert [record.status for record in run.records] == ["ok", "ok"]
        metrics = run.records[0].metrics
        assert {name: type(value) for name, value in metrics.items() if name != "long"} == {
            "colour": int, "share": float, "text": str, "none": type(None), "yes": bool,
        }  # fmt: skip


def test_a_pause_before_resuming_is_not_time_spent(tmp_path: Path, pool: GPUPool) -> None:
    folder = tmp_path / "run"
    pool.run([Task(jobs.add, 1, name="a")], folder=folder).wait(60)
    text = (folder / "journal.jsonl").read_text()
    run = pool.run([Task(jobs.add, 2, name="b"), Task(jobs.add, 1, name="a")], folder=folder).wait(60)
    assert text != (folder / "journal.jsonl").read_text()
    first, second = run.records
    assert (second.name, second.index) == ("a", 1)
    apart = [second, _moved(first, 1000.0)]
    assert busy_time(apart) == pytest.approx(sum(end - start for start, end in map(span, apart)))
    assert compare([run])["wall"][0] < 100


def _moved(record: Record, seconds: float) -> Record:
    started, finished = span(record)
    return dataclasses.replace(record, started=started + seconds, finished=finished + seconds)


def test_a_log_of_an_earlier_run_is_found_under_its_old_number(tmp_path: Path, pool: GPUPool) -> None:
    folder = tmp_path / "run"
    pool.run([Task(print, "said once", name="a")], folder=folder).wait(60)
    run = pool.run([Task(jobs.add, 2, name="b"), Task(print, "said once", name="a")], folder=folder).wait(60)
    assert run.logs("a") == "said once\n"


def test_callbacks_of_the_end_are_called_once_and_harm_nobody(
    pool: GPUPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    called = []

    def fails(run: Run) -> None:
        called.append("fails")
        raise RuntimeError("no use")

    run = pool.run([Task(jobs.add, 1)], folder=tmp_path / "run")
    run.add_done_callback(fails)
    run.add_done_callback(lambda run: called.append(run.name))
    assert run.results(30) == [2]
    assert run._ledger.settled
    run.add_done_callback(fails)
    run.wait(30)
    assert sorted(called) == ["fails", "fails", "run"]
    assert caplog.text.count("a callback for its end failed") == 2
