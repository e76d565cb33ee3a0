"""A gang of processes from a notebook."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from psutil import Process
from records import span

import mgpu_nb
from mgpu_nb import GPUPool, Run, Task, TaskError, WorkerDied, launch
from mgpu_nb.distributed import rank as ranks

pytestmark = pytest.mark.slow  # seconds of work each


def total(factor: Any = 1.0) -> Any:
    x = torch.tensor([factor * (dist.get_rank() + 1)])
    dist.all_reduce(x)
    return x.item()


def surroundings() -> Any:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "GROUP_RANK")
    here = mgpu_nb.worker()
    here.report(loss=0.5 * dist.get_rank())
    print("I am rank", dist.get_rank())
    return {name: os.environ[name] for name in names}, here.task, dist.get_backend(), os.getpid()


def fails(rank: Any, how: Any) -> None:
    if dist.get_rank() == rank:
        how()
    dist.barrier()


def raises() -> None:
    raise ValueError("mine")


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exits() -> None:
    os._exit(3)


def stays_away(rank: Any, touched: Any) -> None:
    if dist.get_rank() in rank:
        while not Path(touched).exists():
            time.sleep(0.01)
    dist.barrier()


def uneven() -> Any:
    if dist.get_rank() == 0:
        return "early"
    return "late"


@pytest.mark.slow
def test_values_logs_and_surroundings_of_every_rank(tmp_path: Path) -> None:
    run = launch(surroundings, nprocs=2, name="first", folder=tmp_path / "run")
    values = run.results(60)
    same = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "GROUP_RANK": "0"}
    assert [value[0] for value in values] == [
        {"RANK": str(n), "LOCAL_RANK": str(n), **same} for n in range(2)
    ]
    assert [value[1:3] for value in values] == [("rank-0", "gloo"), ("rank-1", "gloo")]
    assert len({value[3] for value in values} | {os.getpid()}) == 3
    assert run.logs("rank-1") == "I am rank 1\n"
    assert [record.metrics["loss"] for record in run.records] == [0.0, 0.5]
    assert [record.device for record in Run.open(tmp_path / "run").records] == ["cpu:0", "cpu:1"]


def test_what_ranks_print_is_streamed_with_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(surroundings, nprocs=2, folder=tmp_path / "run").results(60, stream=True)
    assert sorted(capsys.readouterr().out.splitlines()) == ["rank-0 | I am rank 0", "rank-1 | I am rank 1"]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_group_works(tmp_path: Path, ranks: int) -> None:
    assert (
        launch(total, nprocs=ranks, folder=tmp_path / "run").results(60) == [ranks * (ranks + 1) / 2] * ranks
    )
    values = launch(total, 2.0, nprocs=ranks, folder=tmp_path / "other").results(60)
    assert values == [ranks * (ranks + 1)] * ranks
    values = launch(lambda *, x: x + dist.get_rank(), nprocs=ranks, folder=tmp_path / "lambda", x=5).results(
        60
    )
    assert values == [5 + n for n in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("how", "status", "words"),
    [(raises, "error", "ValueError: mine"), (is_killed, "killed", "SIGKILL"), (exits, "killed", "os._exit")],
)
def test_one_rank_s_end_ends_the_others(
    tmp_path: Path, rank: int, how: Callable[..., Any], status: str, words: str
) -> None:
    run = launch(fails, rank, how, nprocs=3, folder=tmp_path / "run")
    run.wait(60)
    records = run.records
    failed = records.pop(rank)
    assert failed.status == status
    assert words in failed.error
    assert failed.name == f"rank-{rank}"
    for other in records:
        assert other.status == "cancelled"
        assert f"'rank-{rank}' ended {status}" in other.error
        assert span(other)[1] - span(failed)[1] < 5
    if how is raises:
        assert "in raises" in failed.traceback
        with pytest.raises(ValueError, match="mine"):
            run.results()
    else:
        with pytest.raises(WorkerDied):
            run.results()


@pytest.mark.slow
def test_a_hung_collective_names_who_was_missing(tmp_path: Path) -> None:
    run = launch(stays_away, (1,), str(tmp_path / "never"), nprocs=3, timeout=10.0, folder=tmp_path / "run")
    run.wait(120)
    assert run.records[1].status == "cancelled"
    with pytest.raises(TimeoutError, match=r"waited 10 s in a collective; missing: rank 1(\n|$)"):
        run.results()


def test_a_slow_rank_is_waited_for(tmp_path: Path) -> None:
    run = launch(stays_away, (1,), str(tmp_path / "touched"), nprocs=2, timeout=60, folder=tmp_path / "run")
    with pytest.raises(TimeoutError, match="it continues"):
        run.wait(0.5)
    (tmp_path / "touched").touch()
    assert run.results(60) == [None, None]
    assert launch(uneven, nprocs=2, folder=tmp_path / "uneven").results(60) == ["early", "late"]


def test_a_gang_takes_slots_of_a_pool_all_or_none(tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    with GPUPool(slots=2) as pool:
        busy = pool.run([Task(jobs.blocks_until, go, name="busy")], folder=tmp_path / "busy")
        gangs = [launch(total, pool=pool, name=f"gang-{n}", folder=tmp_path / f"gang-{n}") for n in range(4)]
        with pytest.raises(TimeoutError):
            gangs[0].wait(0.3)
        assert not gangs[0].running
        after = pool.run([Task(jobs.add, 1, name="after")], folder=tmp_path / "after")
        (tmp_path / "go").touch()
        assert busy.results(60) == [go]
        assert [gang.results(60) for gang in gangs] == [[3.0, 3.0]] * 4
        assert after.results(60) == [2]
        assert pool.submit(pow, 2, 2).result(60) == 4
        later = launch(stays_away, (0, 1), str(tmp_path / "never"), pool=pool, folder=tmp_path / "later")
        waiting = launch(total, pool=pool, folder=tmp_path / "waiting")
        waiting.cancel()
        later.cancel()
        for run in (later, waiting):
            assert {record.status for record in run.wait(60).records} == {"cancelled"}


def test_a_gang_is_resumed_whole_or_not_at_all(tmp_path: Path) -> None:
    first = launch(surroundings, nprocs=2, folder=tmp_path / "run").wait(60)
    again = launch(surroundings, nprocs=2, folder=tmp_path / "run").wait(60)
    assert all(record.ok for record in (*first.records, *again.records))
    seeds = [
        launch(lambda: float(torch.rand(1)), nprocs=2, seed=seed, folder=tmp_path / f"s{n}").results(60)
        for n, seed in enumerate((0, 0, 1))
    ]
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[0][0] != seeds[0][1]


def test_arrays_travel_to_and_from_every_rank(tmp_path: Path) -> None:
    data = np.arange(300_000.0)
    values = launch(lambda x: x[dist.get_rank() :: 2], data, nprocs=2, folder=tmp_path / "run").results(60)
    assert [value.sum() for value in values] == [data[::2].sum(), data[1::2].sum()]


def test_nobody_else_can_reach_the_store(tmp_path: Path) -> None:
    run = launch(stays_away, (0, 1), str(tmp_path / "go"), nprocs=2, folder=tmp_path / "run")
    listening = [
        c.laddr
        for c in mgpu_psutil().net_connections("tcp")
        if c.status == "LISTEN" and c.laddr.ip != "127.0.0.1"
    ]
    (tmp_path / "go").touch()
    run.wait(60)
    assert listening == []


def mgpu_psutil() -> Process:
    import psutil

    return psutil.Process()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nprocs": 0}, ValueError, "nprocs must be an integer >= 1 or None, got 0"),
        ({"nprocs": 2, "timeout": 0}, ValueError, "timeout must be a number > 0"),
        ({"nprocs": 2, "backend": "mpi"}, ValueError, "backend must be one of gloo, nccl"),
        ({"nprocs": 2, "backend": "nccl"}, ValueError, "needs a GPU for each rank"),
        ({"nprocs": 2, "name": "a/b"}, ValueError, "name"),
        ({"gpu_ids": [0]}, ValueError, "0"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, options: dict[str, Any], error: type[ValueError], words: str
) -> None:
    with pytest.raises(error, match=words):
        launch(total, folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_in_a_pool_is_refused(pool: GPUPool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the pool has 2 slots"):
        launch(total, nprocs=3, pool=pool)
    with pytest.raises(ValueError, match="give one of the two"):
        launch(total, gpu_ids=[0], pool=pool)
    with pytest.raises(ValueError, match="give it to the pool"):
        launch(total, preload=["json"], pool=pool)
    with pytest.raises(ValueError, match="no module named 'no_such_module'"):
        launch(total, preload=["no_such_module"], nprocs=1)
    with pytest.raises(TypeError, match="fn must be a function"):
        launch(5, pool=pool)  # type: ignore[arg-type]
    for task in (Task(pow, 2, 2, retries=1), Task(pow, 2, 2, devices=2)):
        with pytest.raises(ValueError, match="start at once"):
            pool.run([task, Task(pow, 2, 2)], gang=True, folder=tmp_path / "run")
    with pytest.raises(ValueError, match="needs as many slots"):
        pool.run([Task(pow, 2, 2)] * 3, gang=True, folder=tmp_path / "run")


def already_there() -> Any:
    return "xmlrpc.client" in sys.modules


@pytest.mark.slow
def test_ranks_begin_with_what_is_preloaded(tmp_path: Path) -> None:
    assert launch(already_there, nprocs=1, folder=tmp_path / "a").results(60) == [False]
    assert launch(already_there, nprocs=1, preload=["xmlrpc.client"], folder=tmp_path / "b").results(60) == [
        True
    ]


def times_out() -> None:
    ranks.OTHERS_RECORD = 3600.0  # it is not kept waiting for the death of another
    raise RuntimeError("the solver timed out, connection refused")


def test_a_ranks_own_error_that_sounds_like_a_lost_one_stays_what_it_is(tmp_path: Path) -> None:
    run = launch(times_out, nprocs=1, folder=tmp_path / "run").wait(120)
    assert run.records[0].error == "RuntimeError: the solver timed out, connection refused"


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_a_time_that_is_no_time_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        launch(total, nprocs=1, timeout=timeout)


@pytest.mark.slow
def test_a_dead_kernel_leaves_no_rank(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys
        sys.path[:0] = {[str(Path(file).parent) for file in (__file__, jobs.__file__)]!r}
        from mgpu_nb import launch
        from mgpu_nb.engines.servers import runtime
        from test_launch import stays_away
        run = launch(stays_away, (0, 1), {str(tmp_path / "never")!r}, nprocs=2, folder={str(tmp_path / "run")!r})
        def pids():
            return [post.worker.pid for pool in runtime.pools for post in list(pool.workers.processes.values())]
        while len(run.running) < 2 or len(pids()) < 2 or None in pids():
            pass
        print(*pids(), flush=True)
        run.wait()
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    assert all(psutil.pid_exists(pid) for pid in pids)
    process.kill()
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.01)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_the_error_of_a_plain_run_is_the_cause_not_what_was_skipped(pool: GPUPool, tmp_path: Path) -> None:
    tasks = [Task(pow, 2, 2, name="late", after="first"), Task(raises, name="first")]
    run = pool.run(tasks, folder=tmp_path / "run").wait(60)
    with pytest.raises(ValueError, match="mine"):
        run.results()
    assert run.records[0].status == "skipped"
    assert isinstance(run.records[0].exception, TaskError)
    assert run.records[1].host in {slot.host for slot in pool.slots}


def test_a_rank_that_ends_at_once_waits_until_all_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    from mgpu_nb.distributed import rank, rendezvous

    store = rendezvous.serve(30.0)
    events: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: events.append("joined"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: events.append("left"))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    first = threading.Thread(
        target=rank.run_rank, args=(lambda: events.append("done"), (), {}, 0, 2, store.port, "gloo", 30.0)
    )
    first.start()
    while "done" not in events:
        time.sleep(0.01)
    first.join(0.2)
    assert events == ["joined", "done"]  # it stays in the group: the other has not joined
    rank.run_rank(lambda: None, (), {}, 1, 2, store.port, "gloo", 30.0)
    first.join(30)
    assert events.count("left") == 2
