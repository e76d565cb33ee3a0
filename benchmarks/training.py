"""Training of the emulator: time and figures of `minimal`, what a second rank gains, and torchrun with the same module.

python benchmarks/training.py
"""

import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mgpu_nb import GPUPool
from mgpu_nb.workloads import training


def main(folder):
    for ranks in (1, 2):
        config = training.named("minimal", world_size=ranks, output_dir=folder / f"minimal-{ranks}")
        began = time.perf_counter()
        report = training.collect(training.start(config).wait())
        seconds, r = time.perf_counter() - began, report.results
        print(
            f"minimal, {ranks} rank{'s' * (ranks > 1)}: {seconds:.1f} s in all, {r['seconds']:.1f} s of training; "
            f"validation {r['best_validation']:.3f}, the mean predictor's {r['baseline']:.3f}"
        )
    few = training.named("minimal", epochs=3, output_dir=folder / "warm", world_size=2)
    began = time.perf_counter()
    training.start(few).wait()
    ours = time.perf_counter() - began
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = ["--config", "minimal", "--epochs", "3", "--output_dir", str(folder / "torchrun")]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "-m", "mgpu_nb.workloads.training", *options], capture_output=True, check=True
    )
    peer = time.perf_counter() - began
    assert b"validation" in done.stdout
    print(
        f"three epochs by two ranks, from the call to the files: ours {ours:.1f} s; "
        f"torchrun {peer:.1f} s (ours {ours / peer:.2f} of it)"
    )
    with GPUPool(slots=2, isolation="task", preload=["torch._dynamo"]) as pool:
        for size in (32, 128):
            reports = []
            for ranks in (1, 2):
                config = training.named("minimal", columns=1024, epochs=3, batch_size=size, world_size=ranks)
                config = dataclasses.replace(config, output_dir=folder / f"{size}-{ranks}")
                reports.append(training.collect(training.start(config, pool).wait()))
            table = training.speedup_table(reports)
            one, two = (report.frame()["loss"] for report in reports)
            speed, gain = table["columns_per_second"].iloc[0], table["speedup"].iloc[1]
            apart = np.abs(two / one - 1).max()
            print(
                f"batch of {size}, a core per rank: {speed:.0f} columns/s by one rank, {gain:.2f} times by two, "
                f"{table['peak_memory_per_rank'].iloc[1] / 2**20:.0f} MiB each; losses {apart:.0e} "
                f"apart in {reports[0].results['steps']} steps"
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
