"""What it costs to look: the sampler with 8 faked GPUs, and a run's panel over 10,000 tasks, beside nvidia-smi's way.

    python benchmarks/telemetry.py

Shares are of one core. The peer of the sampler is what people do today: a process per look.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from fake_nvml import GIB, FakeNvml, Gpu, uuid

from mgpu_nb.hardware import nvml
from mgpu_nb.hardware.slots import Slot
from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.tasks import Record
from mgpu_nb.telemetry import sampler
from mgpu_nb.telemetry.samples import PoolActivity, SlotActivity, WorkerState
from mgpu_nb.views.devices import devices_html
from mgpu_nb.views.run import run_html, state_of


class Pool:
    """Eight workers that nobody started."""

    def states(self):
        """Return their states."""
        return [
            WorkerState(pool=1, slot=n, label=f"cuda:{n}", uuid=uuid(n), kind="cuda", pid=1, task=f"task-{n}")
            for n in range(8)
        ]


def cpu_of(action, times):
    began = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - began) / times


def main():
    gpus = [
        Gpu(uuid=uuid(n), bus=f"00000000:{n:02x}:00.0", used=9 * GIB, compute=[(1, 8 * GIB)])
        for n in range(8)
    ]
    fake = FakeNvml(gpus)
    nvml.load = lambda: fake
    pool = Pool()
    sampler.shared.add_pool(pool)
    tick = cpu_of(sampler.shared.take, 300)
    peer = [sys.executable, "-S", "-c", "pass"]  # the least that a process can cost; nvidia-smi takes more
    began = time.perf_counter()
    for _ in range(10):
        subprocess.run(peer, check=True)
    process = (time.perf_counter() - began) / 10
    print(f"sampler, 8 faked GPUs, 2 Hz: {1e3 * tick:.2f} ms a tick, {200 * tick:.2f} % of a core; ", end="")
    print(f"an empty process per look {1e3 * process:.1f} ms (ours {tick / process:.3g} of it)")
    history = list(sampler.shared.history)
    frame, drawing = devices_html(history, live=True), cpu_of(lambda: devices_html(history, live=True), 50)
    print(f"frame of 8 GPUs: {len(frame.encode())} bytes, {1e3 * drawing:.2f} ms")

    with tempfile.TemporaryDirectory() as folder:
        slots = [
            Slot(index=n, kind="cuda", gpu_id=n, uuid=uuid(n), name="H100", threads=1) for n in range(64)
        ]
        does = [
            SlotActivity(
                slot=n, label=f"cuda:{n}", state="busy", task=f"t{n}", run="/other", run_name="other"
            )
            for n in range(64)
        ]
        activity = PoolActivity(pool=1, slots=tuple(does))
        names = [f"t{n}" for n in range(10_000)]
        run = Ledger("many", Path(folder), names, slots=tuple(slots), pool=1, observe=lambda: activity)
        for n in range(9_990):
            run.ended(
                Record(name=f"t{n}", index=n, kind="m:f", status="ok" if n % 100 else "error", error="bad")
            )
        cost = cpu_of(lambda: run_html(state_of(run, history[-240:]), live=True), 100)
        size = len(run_html(state_of(run, history[-240:]), live=True).encode())
    print(
        f"panel of a run of 10,000 tasks on 64 slots: {1e3 * cost:.2f} ms and {size} bytes a frame, two a second"
    )


if __name__ == "__main__":
    main()
