"""What the panels show of a real GPU, and what it costs to look."""

import os
import subprocess
import time
from pathlib import Path

import gpu_jobs
import gpu_private
import psutil
import pytest
from gpu_fixtures import Figures
from gpu_jobs import GIB
from gpu_other import other_program

from mgpu_nb import Device, GPUPool, Task, devices, watch


def keep(name: str, html: str) -> None:
    """Keep a frame for pictures: all in one file, each behind a line that names it."""
    if out := os.environ.get("OUT"):
        with Path(out, "frames.html").open("a") as file:
            file.write(f"<!-- frame: {name} -->\n{html}\n")


def test_devices_are_listed_with_all_figures(figures: Figures) -> None:
    table = devices()
    (gpu,) = table.gpus[:1]
    print(table)
    figures(name=gpu.name, driver=gpu.driver, total=gpu.total, used=gpu.used, uuid=gpu.uuid)
    assert gpu.kind == "cuda"
    assert gpu.total is not None
    assert gpu.used is not None
    assert gpu.free is not None
    assert gpu.total > 10 * GIB
    assert gpu.used + gpu.free <= gpu.total
    for figure in (gpu.utilisation, gpu.temperature, gpu.power, gpu.pci_bus, gpu.driver):
        assert figure not in (None, "")


def test_frames_of_watch_and_of_a_run(tmp_path: Path, gpu: Device, figures: Figures) -> None:
    with GPUPool([0, 0]) as pool, gpu_private.listen() as seen:
        tasks = [Task(gpu_jobs.holds, 4 * GIB, 3.5, name=f"holds-{n}") for n in range(2)]
        tasks.append(Task(gpu_jobs.holds, 2 * GIB, 1.0, name="later"))
        tasks.append(Task(gpu_jobs.asserts_in_a_kernel, name="asserts"))
        run = pool.run(tasks, name="frames", folder=tmp_path / "run")
        shown = []
        end = time.monotonic() + 24
        while not run.done and time.monotonic() < end:
            time.sleep(0.5)
            history = gpu_private.history()
            if history:
                shown.append(
                    (
                        gpu_private.devices_html(history, live=True),
                        gpu_private.run_html(gpu_private.state_of(run._ledger, history), live=True),
                    )
                )
        text = repr(watch())
        run.wait(5)
    print(text)
    busy = [s for s in seen if sum(bool(w.state.task) and (w.memory or 0) > 2 * GIB for w in s.workers) == 2]
    assert busy, "no snapshot shows the two tasks at work"
    device = next(d for d in busy[-1].devices if d.uuid == gpu.uuid)
    sources = {worker.source for worker in busy[-1].workers if worker.state.task}
    figures(
        snapshots=len(seen), used=device.used, ours=device.ours, others=device.others, sources=sorted(sources),
        utilisation=[next(d for d in s.devices if d.uuid == gpu.uuid).utilisation for s in seen],
        temperature=device.temperature, power=device.power, note=busy[-1].note,
        statuses=[r.status for r in run.records],
    )  # fmt: skip
    # A container may keep the pids from NVML; then it is torch in the worker that says what it holds.
    assert sources in ({"nvml"}, {"torch"})
    assert ("names no processes" in busy[-1].note) == (sources == {"torch"})
    assert device.ours >= 8 * GIB
    assert max(d.utilisation or 0 for s in busy for d in s.devices) > 20
    frame, panel = shown[len(shown) // 2]
    for piece in ("holds-0", "holds-1", " %", "°C", " W"):
        assert piece in frame, piece
    assert "holds-0" in panel
    keep("watch", frame)
    keep("run", panel)
    keep(
        "run, ended",
        gpu_private.run_html(gpu_private.state_of(run._ledger, gpu_private.history()), live=False),
    )


def test_the_samples_of_a_run_tell_the_gpus_figures(tmp_path: Path) -> None:
    with GPUPool([0]) as pool:
        run = pool.run([Task(gpu_jobs.holds, GIB, 1.6, name="holds")], folder=tmp_path / "run").wait(25)
    samples = run.samples()
    of_device = samples[samples["kind"] == "device"]
    assert of_device[["used", "total", "utilisation", "temperature", "power"]].notna().all().all()
    assert run.plot_memory() is not None


def test_a_holder_that_is_not_ours_is_named(gpu: Device, tmp_path: Path, figures: Figures) -> None:
    """Another program that holds memory of the GPU is told by its pid, and in the frame, where NVML names processes."""
    with other_program(3 * GIB, tmp_path) as other:
        snapshot = gpu_private.tick()
        table = devices()
        frame = gpu_private.devices_html([snapshot], live=False)
    device = next(d for d in snapshot.devices if d.uuid == gpu.uuid)
    figures(others=device.others, holders=device.holders, pid=other.pid)
    assert device.others is not None
    assert device.others >= 3 * GIB
    if not device.holders:
        pytest.skip("NVML names no processes here (a container)")
    holder = {holder.pid: holder for holder in device.holders}[other.pid]
    assert holder.size is not None
    assert holder.size >= 3 * GIB
    assert (holder.user, holder.command.split()[-1]) == (psutil.Process().username(), "stranger.py")
    assert f"{holder.user}: {holder.command} (pid {other.pid})" in frame
    assert str(holder) in str(table)
    keep("watch, a holder that is not ours", frame)


def test_looking_costs_next_to_nothing(figures: Figures) -> None:
    """A tick of the sampler with four workers on the GPU; nvidia-smi is what people call instead."""
    with GPUPool([0] * 4) as pool:
        list(pool.map(gpu_jobs.holds, [2**20] * 4))
        gpu_private.tick()
        began, spent = time.perf_counter(), time.process_time()
        for _ in range(100):
            gpu_private.tick()
        wall, cpu = (time.perf_counter() - began) / 100, (time.process_time() - spent) / 100
    peer = None
    try:
        began = time.perf_counter()
        subprocess.run(["nvidia-smi", "-q"], check=True, capture_output=True, timeout=10)
        peer = time.perf_counter() - began
    except (OSError, subprocess.SubprocessError):
        pass
    figures(tick_ms=1e3 * wall, cpu_ms=1e3 * cpu, share_of_a_core_percent=200 * cpu, nvidia_smi_s=peer)
    assert cpu < 0.025  # twice a second: a twentieth of a core at the very most
