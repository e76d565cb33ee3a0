"""Memory of a real GPU: what records say of it, that it comes back, who waits for it, what follows when it runs out."""

import functools
import time
from collections.abc import Sequence
from pathlib import Path

import gpu_jobs
import pytest
from gpu_dry import DRY
from gpu_fixtures import Figures, Isolation, Settles, Used
from gpu_jobs import GIB, MIB
from gpu_other import other_program
from records import span

from mgpu_nb import Device, GPUPool, Record, Task, largest_batch


def most_at_once(records: Sequence[Record]) -> int:
    """Largest number of tasks that ran at the same time."""
    edges = sorted(edge for start, end in map(span, records) for edge in ((start, 1), (end, -1)))
    count = most = 0
    for _, change in edges:
        count += change
        most = max(most, count)
    return most


def test_peaks_of_a_task_are_those_of_torch_and_nvml(tmp_path: Path, figures: Figures) -> None:
    with GPUPool([0], isolation="task") as pool:
        run = pool.run([Task(gpu_jobs.holds, 2 * GIB, 1.8, name="holds")], folder=tmp_path / "run").wait(25)
    (record,) = run.records
    assert record.ok, record.error
    said = record.value
    figures(
        allocated=said["allocated"], reserved=said["reserved"], nvml=said["nvml"], peak_memory=record.peak_memory,
        peak_allocated=record.peak_allocated, peak_reserved=record.peak_reserved,
    )  # fmt: skip
    assert record.peak_allocated is not None
    assert record.peak_reserved is not None
    assert record.peak_memory is not None
    assert record.peak_allocated == pytest.approx(said["allocated"], abs=2 * MIB)
    assert record.peak_reserved == pytest.approx(said["reserved"], abs=2 * MIB)
    assert 2 * GIB <= record.peak_allocated <= 2 * GIB + 64 * MIB
    assert record.peak_memory >= record.peak_reserved
    if said["nvml"] is None:  # in a container it may name nobody: then torch's word is all there is
        figures(note="NVML names no process here: the peak is what torch reserved")
        assert record.peak_memory == record.peak_reserved
    else:
        assert record.peak_memory == pytest.approx(said["nvml"], rel=0.05)
    samples = run.samples()
    tasks = samples[samples["kind"] == "task"]
    assert tasks["used"].max() >= 2 * GIB


def test_peaks_are_those_of_each_task_alone(tmp_path: Path, figures: Figures) -> None:
    """Not those of a neighbour on the same GPU, and in a warm worker not those of the task before."""
    with GPUPool([0, 0]) as pool:
        large, small = (functools.partial(Task, gpu_jobs.holds, size, 1.2) for size in (3 * GIB, MIB))
        together = [
            large(str(tmp_path / "one"), 2, name="large"),
            Task(gpu_jobs.holds, GIB, 1.2, str(tmp_path / "one"), 2, name="middle"),
        ]
        first = pool.run(together, folder=tmp_path / "first").wait(28).records
        after = [small(str(tmp_path / "two"), 2, name=f"small-{n}") for n in range(2)]
        second = pool.run(after, folder=tmp_path / "second").wait(28).records
    with GPUPool([0]) as pool:
        in_turn = [Task(gpu_jobs.holds, size, name=f"{size}", cost=size) for size in (2 * GIB, MIB)]
        third = pool.run(in_turn, folder=tmp_path / "third").wait(28).records
    records = [*first, *second, *third]
    kinds = ("peak_allocated", "peak_reserved", "peak_memory")
    figures(**{f"{n} {r.name}": [getattr(r, kind) for kind in kinds] for n, r in enumerate(records)})
    assert [record.error for record in records] == [""] * 6
    assert {record.pid for record in first} == {record.pid for record in second}
    assert third[0].pid == third[1].pid
    little = 64 * MIB
    context = 1536 * MIB  # CUDA's own memory in a process: 610 MiB on an H100, less on smaller GPUs
    for record, size in zip(records, (3 * GIB, GIB, MIB, MIB, 2 * GIB, MIB), strict=True):
        assert record.peak_allocated is not None
        assert size <= record.peak_allocated <= size + little, record.name
        if record is third[1]:
            continue  # alone on its GPU: what the task before it had stays reserved for its worker
        assert record.peak_reserved is not None
        assert record.peak_memory is not None
        assert record.peak_allocated <= record.peak_reserved <= size + little, record.name
        assert record.peak_reserved <= record.peak_memory <= size + context, record.name


def test_an_isolated_task_gives_all_of_it_back(
    tmp_path: Path, used: Used, settles: Settles, figures: Figures
) -> None:
    with GPUPool([0], isolation="task") as pool:
        pool.submit(gpu_jobs.pid).result(25)
        before, waits, held = used(), [], []
        for n in range(3):
            task = Task(gpu_jobs.holds, 4 * GIB, keep=True, name="keeps")
            run = pool.run([task], folder=tmp_path / f"run-{n}").wait(25)
            assert run.records[0].ok, run.records[0].error
            held.append(run.records[0].peak_reserved)
            waits.append(settles(before))
    figures(held=held, seconds_until_it_was_back=waits, before=before, after=used())


def test_a_warm_worker_that_keeps_memory_is_replaced(tmp_path: Path, used: Used, settles: Settles) -> None:
    before = used()
    with GPUPool([0], memory_growth=256 * MIB) as pool:
        first = pool.submit(gpu_jobs.pid).result(25)
        run = pool.run([Task(gpu_jobs.holds, GIB, keep=True, name="keeps")], folder=tmp_path / "run").wait(25)
        assert run.records[0].ok, run.records[0].error
        assert run.records[0].value["pid"] == first
        assert pool.submit(gpu_jobs.pid).result(25) != first
        assert len(run.records[0].notes) == 1
        assert "worker replaced: it kept 10" in run.records[0].notes[0]
        settles(before)  # the new worker has not waked CUDA
    settles(before)


def test_a_warm_worker_that_gives_all_back_stays(tmp_path: Path) -> None:
    with GPUPool([0], memory_growth=256 * MIB) as pool:
        first = pool.submit(gpu_jobs.pid).result(25)
        run = pool.run([Task(gpu_jobs.holds, GIB, name="frees")], folder=tmp_path / "run").wait(25)
        assert run.records[0].ok, run.records[0].error
        assert pool.submit(gpu_jobs.pid).result(25) == first
        assert run.records[0].notes == ()


def test_out_of_memory_is_a_record_with_the_figures(tmp_path: Path, gpu: Device, figures: Figures) -> None:
    assert gpu.total is not None
    with GPUPool([0]) as pool:
        too_much = Task(gpu_jobs.holds, gpu.total + GIB, name="too-much", cost=2)
        following = Task(gpu_jobs.holds, GIB, name="next", cost=1)
        run = pool.run([too_much, following], folder=tmp_path / "run").wait(25)
    failed, after = run.records
    figures(error=failed.error)
    assert failed.status == "out-of-memory"
    assert f"Tried to allocate {(gpu.total + GIB) / GIB:.2f} GiB" in failed.error
    assert "total capacity of" in failed.error
    assert "free" in failed.error
    assert after.ok, after.error
    assert after.pid == failed.pid, "a worker that ran out of memory can go on"


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_what_ran_out_of_memory_gets_through_alone(isolation: Isolation, gpu: Device, tmp_path: Path) -> None:
    """Two tasks of 60 % each meet on the GPU; one runs out of memory and is tried again alone."""
    assert gpu.free is not None
    size = int(0.6 * gpu.free) // MIB * MIB
    with GPUPool([0, 0], isolation=isolation) as pool:
        meeting = str(tmp_path / "meet")
        tasks = [Task(gpu_jobs.holds, size, 1.5, meeting, 2, name=f"t{n}") for n in range(2)]
        run = pool.run(tasks, folder=tmp_path / "run", retry_alone=True).wait(28)
    assert [record.error for record in run.records] == ["", ""]
    assert sorted(record.attempt for record in run.records) == [1, 2]
    again = max(run.records, key=lambda record: record.attempt)
    assert "ran out of memory, the next was alone on its device" in again.notes[0]


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_four_tasks_that_state_their_memory_run_two_at_a_time(
    isolation: Isolation, gpu: Device, used: Used, tmp_path: Path, figures: Figures
) -> None:
    """Each needs 40 % of the GPU, which has four slots. In warm workers, what torch keeps of them must not stand in
    the way of those that wait."""
    assert gpu.free is not None
    size = int(0.4 * gpu.free) // MIB * MIB
    with GPUPool([0] * 4, isolation=isolation, memory_timeout=8) as pool:
        tasks = [
            Task(gpu_jobs.holds, size - GIB, 1.5, memory=size, timeout=12, name=f"t{n}") for n in range(4)
        ]
        run = pool.run(tasks, folder=tmp_path / "run")
        most, end = 0, time.monotonic() + 28
        while not run.done and time.monotonic() < end:
            most = max(most, used())
            time.sleep(0.05)
        run.wait(1)
    queued = run.records[0].queued
    assert queued is not None
    spans = [(r.started and r.started - queued, r.seconds) for r in run.records]
    peaks = [record.peak_memory for record in run.records]
    figures(
        at_once=most_at_once([r for r in run.records if r.started]), started_and_seconds=spans,
        stated=size, peaks=peaks, most_in_use=most, total=gpu.total,
    )  # fmt: skip
    assert [record.error for record in run.records] == [""] * 4
    assert [record.attempt for record in run.records] == [1] * 4
    assert most_at_once(run.records) == 2
    assert all(peak is not None and size - GIB <= peak <= size for peak in peaks)
    assert most >= 2 * (size - GIB), "two of them never held their memory together"
    assert len({record.slot for record in run.records}) >= 2
    # Those that waited began when one of the first gave its memory back, not before.
    first, second, *later = sorted(map(span, run.records))
    assert min(start for start, _ in later) > min(first[1], second[1]) - 0.1


@pytest.mark.limit(45)
def test_a_task_waits_for_memory_that_another_program_holds(
    gpu: Device, tmp_path: Path, figures: Figures
) -> None:
    """Up to the pool's memory_timeout; tasks that fit beside the other program do not wait with it."""
    assert gpu.free is not None
    size = int(0.6 * gpu.free) // MIB * MIB
    large = functools.partial(Task, gpu_jobs.holds, size - GIB, memory=size)
    with other_program(size, tmp_path) as other:
        with GPUPool([0], memory_timeout=1.5) as pool:
            pool.submit(gpu_jobs.pid).result(25)
            refused = pool.run([large(name="refused")], folder=tmp_path / "refused").wait(15).records[0]
        with GPUPool([0, 0], memory_timeout=25) as pool:
            run = pool.run([large(name="waits")], folder=tmp_path / "waits")
            fits = pool.run(
                [Task(gpu_jobs.holds, GIB, memory=2 * GIB, name="fits")], folder=tmp_path / "fits"
            )
            fits.wait(15)
            time.sleep(1.0)
            waited = not run.done
            gone = time.time()
            other.kill()
            run.wait(15)
    (record,), (beside,) = run.records, fits.records
    figures(
        refused=refused.error, status=refused.status, waits=record.error, fits=beside.error,
        began_after_it_was_gone=None if record.started is None else record.started - gone,
    )  # fmt: skip
    assert refused.status == "out-of-memory"
    assert f"{size:,} bytes" in refused.error
    assert "memory_timeout" in refused.error
    assert beside.ok, beside.error
    assert waited
    assert record.ok, record.error
    assert gone - 0.1 < span(record)[0] < gone + 5


def test_what_an_idle_worker_keeps_for_later_is_free_for_others(
    gpu: Device, tmp_path: Path, figures: Figures
) -> None:
    """torch keeps freed memory for the process that had it. A warm worker without a task should not keep it from the
    other slots of its GPU."""
    assert gpu.free is not None
    size = int(0.6 * gpu.free) // MIB * MIB
    large, small = (
        functools.partial(Task, gpu_jobs.holds, amount, 0.3, timeout=12) for amount in (size, MIB)
    )
    with GPUPool([0, 0]) as pool:
        runs = []
        # Slots are given out in order, so the large task has the first slot in one run and the second in the other.
        for n, order in enumerate(((large, small), (small, large))):
            tasks = [make(str(tmp_path / f"meet-{n}"), 2, name=f"t{i}") for i, make in enumerate(order)]
            runs.append(pool.run(tasks, folder=tmp_path / f"run-{n}").wait(25))
    figures(slots_of_the_large_one=[runs[0].records[0].slot, runs[1].records[1].slot])
    assert [record.error for run in runs for record in run.records] == [""] * 4


@pytest.mark.limit(60)
def test_largest_batch_is_what_a_formula_predicts(figures: Figures) -> None:
    unit = 256 * MIB
    with GPUPool([0], isolation="task") as pool:
        free = pool.submit(gpu_jobs.free_here).result(25)
        predicted = free // (3 * unit)
        began = time.monotonic()
        found = largest_batch(
            functools.partial(gpu_jobs.activations, unit), pool, start=max(1, predicted // 3), tolerance=0.02
        )
        figures(predicted=predicted, found=found, seconds=time.monotonic() - began, free=free)
    assert found == pytest.approx(predicted, rel=0.1)


def test_memory_that_is_never_there_is_refused(gpu: Device, tmp_path: Path) -> None:
    assert gpu.total is not None
    with GPUPool([0]) as pool, pytest.raises(ValueError, match="no device has as much"):
        pool.run([Task(gpu_jobs.pid, memory=2 * gpu.total)], folder=tmp_path / "run")


def test_nothing_is_left_on_the_gpu_by_a_pool_that_was_closed(
    used: Used, settles: Settles, figures: Figures
) -> None:
    before = used()
    with GPUPool([0] * 4) as pool:
        list(pool.map(gpu_jobs.holds, [MIB] * 4))
        during = used()
    figures(four_contexts=during - before, seconds=settles(before))
    assert DRY or during > before + 100 * MIB
