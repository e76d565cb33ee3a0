"""What kernels can do to a process, and that no more than a task is lost by it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import gpu_jobs
import pytest
from gpu_dry import DRY
from gpu_fixtures import Figures, Isolation, Settles, Used
from gpu_jobs import GIB, MIB
from records import span

from mgpu_nb import GPUPool, Task


def written(path: Path, seconds: float = 25.0) -> int:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)
    return int(path.read_text())


BREAKS: dict[str, tuple[Callable[[], object], str]] = {
    "assert": (gpu_jobs.asserts_in_a_kernel, "device-side assert"),
    "address": (gpu_jobs.writes_to_an_illegal_address, "illegal memory access"),
}


@pytest.mark.parametrize("isolation", ["task", "worker"])
@pytest.mark.parametrize("what", BREAKS)
def test_a_kernel_that_breaks_its_context_ends_one_task(
    what: str, isolation: Isolation, tmp_path: Path, used: Used, settles: Settles, figures: Figures
) -> None:
    """The context of its process is of no use any more: the next task must not meet it, in a warm worker neither."""
    breaks, message = BREAKS[what]
    before = used()
    with GPUPool([0], isolation=isolation) as pool:
        tasks = [
            Task(gpu_jobs.holds, MIB, name="before", cost=3),
            Task(breaks, name="breaks", cost=2),
            Task(gpu_jobs.holds, GIB, name="after", cost=1),
        ]
        run = pool.run(tasks, folder=tmp_path / "run").wait(28)
    first, failed, after = run.records
    figures(error=failed.error[:200], after=after.error[:200], notes=failed.notes, status=failed.status)
    assert first.ok, first.error
    assert failed.status in ("error", "killed")
    assert message in failed.error + failed.traceback + run.logs("breaks")
    assert after.ok, after.error
    assert after.value["pid"] != failed.pid
    assert failed.status == "killed" or "CUDA context was unusable" in failed.notes[0]
    if isolation == "worker":  # what was right before stays with the worker that it had
        assert first.pid == failed.pid
    settles(before)


def test_a_worker_killed_in_the_middle_of_a_kernel_frees_its_memory(
    tmp_path: Path, used: Used, settles: Settles, figures: Figures
) -> None:
    before = used()
    with GPUPool([0]) as pool:
        task = Task(gpu_jobs.spins_with_memory, 4 * GIB, str(tmp_path / "pid"), 60.0, name="spins", cost=2)
        run = pool.run([task, Task(gpu_jobs.holds, GIB, name="next", cost=1)], folder=tmp_path / "run")
        pid = written(tmp_path / "pid")
        time.sleep(0.3)
        during = used()
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        run.wait(20)
        until_next = time.monotonic() - began
        killed, following = run.records
        assert killed.status == "killed"
        assert "SIGKILL" in killed.error
        assert following.ok, following.error
        assert following.seconds is not None
        assert following.seconds < 10
    figures(
        held=during - before,
        seconds_until_the_next_task_was_done=until_next,
        seconds_until_back=settles(before),
    )
    assert during - before > 4 * GIB


def test_a_hung_kernel_is_ended_by_the_timeout(
    tmp_path: Path, used: Used, settles: Settles, figures: Figures
) -> None:
    before = used()
    with GPUPool([0]) as pool:
        task = Task(
            gpu_jobs.spins_with_memory, GIB, str(tmp_path / "pid"), 300.0, name="hangs", timeout=2.0, cost=2
        )
        # Costs are stated: what the suite has run before would else be known to be quick, and come first.
        following = Task(gpu_jobs.holds, GIB, name="next", cost=1)
        run = pool.run([task, following], folder=tmp_path / "run").wait(25)
    hung, after = run.records
    gap = span(after)[0] - span(hung)[1]
    figures(seconds=hung.seconds, next_began_after=gap, error=hung.error)
    assert hung.status == "timeout"
    assert "2 s" in hung.error
    assert hung.seconds is not None
    assert hung.seconds < 2.0 + 8.0
    assert after.ok, after.error
    assert gap > -0.1
    assert after.pid != hung.pid
    settles(before)


def test_cancelling_a_run_ends_its_kernel(
    tmp_path: Path, used: Used, settles: Settles, figures: Figures
) -> None:
    before = used()
    with GPUPool([0], isolation="task") as pool:
        task = Task(gpu_jobs.spins_with_memory, GIB, str(tmp_path / "pid"), 300.0, name="spins")
        run = pool.run([task], folder=tmp_path / "run")
        written(tmp_path / "pid")
        began = time.monotonic()
        run.cancel()
        run.wait(20)
    figures(seconds=time.monotonic() - began)
    assert run.records[0].status == "cancelled"
    settles(before)


def test_a_segfault_with_memory_on_the_gpu_frees_it(tmp_path: Path, used: Used, settles: Settles) -> None:
    before = used()
    with GPUPool([0]) as pool:
        run = pool.run(
            [
                Task(gpu_jobs.crashes_with_memory, GIB, name="crashes", cost=2),
                Task(gpu_jobs.holds, GIB, name="next", cost=1),
            ],
            folder=tmp_path / "run",
        ).wait(28)
    crashed, following = run.records
    assert crashed.status == "killed"
    assert "segmentation fault" in crashed.error
    assert "crashes_with_memory" in run.logs("crashes")
    assert following.ok, following.error
    settles(before)


@pytest.mark.parametrize("how", ["killed", "address"])
def test_a_dead_neighbour_leaves_the_others_on_the_gpu_alone(
    how: str, tmp_path: Path, figures: Figures
) -> None:
    """Four slots on one GPU; one worker is killed, or breaks its context, while all have kernels in flight."""
    meeting = str(tmp_path / "meet")
    tasks = [Task(gpu_jobs.holds, GIB, 1.5, meeting, 4, name=f"t{n}") for n in range(3)]
    if how == "killed":
        tasks.append(Task(gpu_jobs.meets_and_spins, meeting, str(tmp_path / "pid"), name="dies"))
    else:
        tasks.append(Task(gpu_jobs.meets_and_writes_to_an_illegal_address, meeting, 4, name="dies"))
    with GPUPool([0] * 4) as pool:
        run = pool.run(tasks, folder=tmp_path / "run")
        if how == "killed":
            os.kill(written(tmp_path / "pid"), signal.SIGKILL)
        run.wait(28)
    figures(errors=[record.error[:200] for record in run.records])
    assert [record.status for record in run.records[:3]] == ["ok"] * 3
    assert run.records[3].status in (("killed",) if how == "killed" else ("error", "killed"))


def test_a_kernel_that_dies_leaves_nothing_on_the_gpu(
    tmp_path: Path, used: Used, settles: Settles, figures: Figures
) -> None:
    import subprocess
    import sys

    before = used()
    dry = "import pytest, gpu_dry; gpu_dry.install(pytest.MonkeyPatch())\n" if DRY else ""
    script = (
        f"{dry}import gpu_jobs\nfrom mgpu_nb import GPUPool\n"
        f"pool = GPUPool([0])\n"
        f"pool.submit(gpu_jobs.spins_with_memory, {GIB}, {str(tmp_path / 'pid')!r}, 60.0).result()\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    kernel = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path})
    pid = written(tmp_path / "pid")
    time.sleep(0.2)
    assert used() - before > GIB - 64 * MIB
    kernel.kill()
    kernel.wait()
    began = time.monotonic()
    while Path(f"/proc/{pid}").exists() and time.monotonic() - began < 10:
        time.sleep(0.01)
    figures(seconds_until_the_worker_was_gone=time.monotonic() - began, seconds_until_back=settles(before))
    assert not Path(f"/proc/{pid}").exists()
