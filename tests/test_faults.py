"""Faults that took a pool, a record or a figure with them once."""

import enum
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import jobs
import numpy as np
import psutil
import pytest

import mgpu_nb
from mgpu_nb import GPUPool, Task, compare, speedup


def test_a_cancelled_run_takes_no_task_of_another_with_it(tmp_path):
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


def test_a_long_chain_is_skipped_and_cancelled(tmp_path):
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


def test_a_gang_keeps_its_slots_when_an_idle_worker_dies(tmp_path):
    go = str(tmp_path / "go")
    with GPUPool(slots=2) as pool:
        list(pool.map(jobs.add, range(8)))
        idle = [post.worker.pid for post in pool._dispatcher.crew.posts.values()]
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
        assert second.started >= first.finished


class Colour(enum.IntEnum):
    RED = 3


def reports_odd_things():
    mgpu_nb.worker().report(
        long=10**5000, colour=Colour.RED, share=np.float64(0.5), text=type("S", (str,), {})("s")
    )
    mgpu_nb.worker().report(none=None, yes=True)


def test_odd_reports_harm_nobody(tmp_path):
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


def test_more_large_arguments_than_descriptors(pool):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        futures = [pool.submit(np.sum, np.ones(40_000)) for _ in range(300)]
        assert {float(future.result(120)) for future in futures} == {40_000.0}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_module_from_the_future_can_be_preloaded(tmp_path, monkeypatch):
    module = tmp_path / "from_the_future.py"
    module.write_text("def f():\n    return 4\n")
    os.utime(module, (time.time() + 86_400,) * 2)
    monkeypatch.syspath_prepend(str(tmp_path))
    with GPUPool(slots=1, preload=["from_the_future"]) as pool:
        assert pool.submit(pow, 2, 2).result(60) == 4


def test_a_retry_alone_is_alone(tmp_path):
    tasks = [Task(jobs.says_nothing, i, name=f"s{i}") for i in range(20)]
    with GPUPool(slots=2, isolation="task") as pool:
        greedy = Task(jobs.too_large_at_first, str(tmp_path / "tried"), name="greedy")
        run = pool.run([greedy, *tasks], folder=tmp_path / "run", retry_alone=True).wait(120)
    (one,) = [record for record in run.records if record.name == "greedy"]
    assert one.ok
    assert any("alone on its device" in note for note in one.notes)
    others = [record for record in run.records if record.name != "greedy"]
    assert not [o for o in others if o.started < one.finished and o.finished > one.started]


def test_a_study_does_not_resume_another(tmp_path):
    tasks = [Task(jobs.add, i, name=str(i)) for i in range(4)]
    speedup(tasks, slots=[1, 2], repeats=1, folder=tmp_path)
    with pytest.raises(FileExistsError, match="earlier study"):
        speedup(tasks, slots=[1, 2], repeats=1, folder=tmp_path)
    with pytest.raises(TypeError, match=r"slots=2: give"):
        speedup(tasks, slots=2)
    with pytest.raises(TypeError, match="gpu_ids='cpu'"):
        speedup(tasks, slots=[1, 2], gpu_ids="cpu")


def test_a_pause_before_resuming_is_not_time_spent(tmp_path, pool):
    folder = tmp_path / "run"
    pool.run([Task(jobs.add, 1, name="a")], folder=folder).wait(60)
    text = (folder / "journal.jsonl").read_text()
    run = pool.run([Task(jobs.add, 2, name="b"), Task(jobs.add, 1, name="a")], folder=folder).wait(60)
    assert text != (folder / "journal.jsonl").read_text()
    first, second = run.records
    assert (second.name, second.index) == ("a", 1)
    apart = [second, _moved(first, 1000.0)]
    from mgpu_nb.tasks import busy_time

    assert busy_time(apart) == pytest.approx(sum(r.finished - r.started for r in apart))
    assert compare([run])["wall"][0] < 100


def _moved(record, seconds):
    import dataclasses

    return dataclasses.replace(record, started=record.started + seconds, finished=record.finished + seconds)


def test_a_log_of_an_earlier_run_is_found_under_its_old_number(tmp_path, pool):
    folder = tmp_path / "run"
    pool.run([Task(print, "said once", name="a")], folder=folder).wait(60)
    run = pool.run([Task(jobs.add, 2, name="b"), Task(print, "said once", name="a")], folder=folder).wait(60)
    assert run.logs("a") == "said once\n"


def test_names_that_look_like_markup_or_formulas(tmp_path, pool):
    run = pool.run(
        [Task(reports_markup, name="cost $a_$ x"), Task(jobs.raises, "$", name="$b")], folder=tmp_path / "run"
    )
    run.wait(60)
    html = run.table().to_html()
    assert "<img" not in html
    assert "&lt;img" in html
    assert "attempts" in html
    run.plot_timeline().figure.canvas.draw()


def reports_markup():
    mgpu_nb.worker().report(
        **{"<img src=x onerror=alert(1)>": 1, "attempts": 3, "name": "mine", "seconds": 1}
    )


_SPAWNED = """
import multiprocessing

def double(x):
    return 2 * x

def f(x):
    return double(x) + 1

def child():
    from mgpu_nb import GPUPool

    with GPUPool(slots=1) as pool:
        print(pool.submit(f, 3).result(60))

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""


def test_a_pool_in_a_process_that_multiprocessing_spawned(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_SPAWNED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "7\n", done.stderr
