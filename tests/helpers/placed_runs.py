"""Whole runs on nodes that something placed agents on: a value from each, a task that waits to be let go."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil
from standing_in import until

from mgpu_nb import GPUPool, Run, Task

__all__ = ["SECONDS", "agents", "both_nodes", "hold", "meet"]

SECONDS = 120.0


def meet(folder: str, number: int) -> str | None:
    """Wait until all have begun, so that each has a slot of its own; return the name of the node as SLURM has it."""
    (Path(folder) / str(number)).touch()
    until(lambda: len(list(Path(folder).iterdir())) >= 2)
    return os.environ.get("SLURMD_NODENAME")


def hold(folder: str) -> int:
    """Say who runs, and wait until somebody says to go on."""
    part = Path(folder) / f"{os.getpid()}.part"
    part.write_text(os.environ.get("SLURMD_NODENAME", ""))
    part.rename(part.with_suffix(".pid"))
    until(lambda: (Path(folder) / "go").exists())
    return os.getpid()


def both_nodes(pool: GPUPool, folder: Path) -> Run:
    """A run whose tasks meet; it has ended well, on two nodes."""
    (folder / "met").mkdir()
    pool.wait_for_slots(timeout=SECONDS)
    run = pool.run([Task(meet, str(folder / "met"), n) for n in range(2)], folder=folder / "run")
    run.wait(SECONDS, progress=False)
    assert [record.status for record in run.records] == ["ok", "ok"], run.failures
    assert len({record.host for record in run.records}) == 2
    return run


def agents(word: str) -> list[int]:
    """Process ids of the agents on this machine whose command or environment has a word."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[1:4] == ["-m", "mgpu_nb", "agent"]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in " ".join([*command, *process.environ().values()]):
                    found.append(process.pid)
    return found
