"""Gangs on one GPU: nccl with one rank, gloo with several, devices and seeds of ranks."""

from pathlib import Path
from typing import Any

import gpu_jobs
import pytest
from gpu_dry import DRY
from gpu_fixtures import ComputePool, Figures, Settles, Used

from mgpu_nb import Device, GPUPool, Task, launch


def where(ranks: int) -> dict[str, Any]:
    """Options of `launch`: dry, on virtual devices."""
    return {"gpu_ids": "cpu", "nprocs": ranks} if DRY else {"gpu_ids": [0] * ranks}


def test_nccl_with_one_rank(tmp_path: Path, gpu: Device, figures: Figures) -> None:
    run = launch(gpu_jobs.rank, **where(1), name="nccl", folder=tmp_path / "run").wait(28)
    (record,) = run.records
    assert record.ok, record.error + run.logs("rank-0")
    figures(seconds=record.seconds, peak_memory=record.peak_memory)
    assert record.value["sum"] == 1.0
    if not DRY:
        assert record.value["backend"] == "nccl"
        assert (record.value["device"], record.value["current"]) == ("cuda:0", 0)
        assert (record.value["pinned"], record.uuid) == (gpu.uuid, gpu.uuid)


def test_gloo_with_two_ranks_on_one_gpu(tmp_path: Path, gpu: Device, figures: Figures) -> None:
    run = launch(gpu_jobs.rank, **where(2), backend="gloo", folder=tmp_path / "run").wait(28)
    assert [record.error for record in run.records] == ["", ""]
    figures(seconds=[record.seconds for record in run.records])
    first, second = run.results()
    assert (first["sum"], second["sum"]) == (3.0, 3.0)
    assert first["backend"] == second["backend"] == "gloo"
    assert first["pid"] != second["pid"]
    if not DRY:
        assert (first["device"], second["device"]) == ("cuda:0", "cuda:0")
        assert {first["pinned"], second["pinned"]} == {gpu.uuid}


def test_nccl_with_two_ranks_on_one_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="GPU of its own for each of 2 ranks"):
        launch(gpu_jobs.rank, gpu_ids=[0, 0])


def test_seeds_follow_the_rank_and_the_run(tmp_path: Path) -> None:
    with GPUPool("cpu", 2, isolation="task") if DRY else GPUPool([0, 0], isolation="task") as pool:
        runs = [
            launch(
                gpu_jobs.rank, pool=pool, backend="gloo", seed=seed, name=f"s{n}", folder=tmp_path / f"s{n}"
            ).results(25)
            for n, seed in enumerate((0, 0, 1))
        ]
    drawn = [[(value["drawn"], value["drawn_on_gpu"]) for value in values] for values in runs]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


def test_seeds_of_tasks_reach_the_generator_on_the_gpu(tmp_path: Path, compute_pool: ComputePool) -> None:
    tasks = [Task(gpu_jobs.draws, name=f"t{n}") for n in range(4)]
    with compute_pool(1) as one, compute_pool(2) as two:
        first = one.run(tasks, seed=3, folder=tmp_path / "one").results(25)
        second = two.run(tasks, seed=3, folder=tmp_path / "two").results(25)
        third = two.run(tasks, seed=4, folder=tmp_path / "three").results(25)
    assert first == second != third
    assert len({value[1] for value in first}) == 4


def test_a_rank_that_fails_ends_the_other_in_its_collective(
    tmp_path: Path, used: Used, settles: Settles
) -> None:
    before = used()
    run = launch(gpu_jobs.fails_on_the_second, **where(2), backend="gloo", folder=tmp_path / "run").wait(28)
    assert [record.status for record in run.records] == ["cancelled", "error"]
    with pytest.raises(ValueError, match="mine"):
        run.results()
    settles(before)


def test_a_gang_waits_for_slots_on_the_gpu(tmp_path: Path) -> None:
    with GPUPool("cpu", 2) if DRY else GPUPool([0, 0]) as pool:
        busy = pool.run([Task(gpu_jobs.pid, name="first")], folder=tmp_path / "first")
        gang = launch(gpu_jobs.rank, pool=pool, backend="gloo", folder=tmp_path / "gang")
        after = pool.run([Task(gpu_jobs.pid, name="after")], folder=tmp_path / "after")
        assert [value["sum"] for value in gang.results(28)] == [3.0, 3.0]
        busy.results(5)
        after.results(10)
