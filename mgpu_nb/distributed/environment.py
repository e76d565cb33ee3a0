"""Which rank of how many a process is, where torchrun or SLURM started it, and how it meets the others."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.files import atomic_write
from .rendezvous import LOOPBACK, join, serve, stay_on_loopback

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

__all__ = ["RankEnvironment", "gpus_per_node", "group", "meet"]


@dataclass(frozen=True, slots=True)
class RankEnvironment:
    """A rank among ranks.

    Attributes
    ----------
    rank, world
        Number of this process, and how many there are.
    local_rank, local_world
        The same on this machine.
    job
        What tells this start of the ranks from others; empty where the ranks are told where to meet.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    job: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> RankEnvironment | None:
        """Read the environment of torchrun (``RANK``, ...) or of a task of srun (``SLURM_PROCID``, ...).

        None for a process that stands alone: one of neither, a batch script itself, the only task of a job.

        Raises
        ------
        ValueError
            If a variable is missing or no number; the message says which.
        """
        env = os.environ if environ is None else environ
        if "RANK" in env and "WORLD_SIZE" in env:
            rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
            local_rank = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank
            local_world = _number(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else world
            missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
            if missing:
                raise ValueError(
                    f"RANK is set and {' and '.join(missing)} not: start the ranks by torchrun or srun"
                )
            return cls(rank, world, local_rank, local_world)
        if "SLURM_PROCID" not in env or "SLURM_STEP_NUM_TASKS" not in env:  # a batch script has the one alone
            return None
        world = _number(env, "SLURM_STEP_NUM_TASKS")
        if world == 1:
            return None
        nodes = _number(env, "SLURM_STEP_NUM_NODES") if "SLURM_STEP_NUM_NODES" in env else 1
        job = ".".join(env.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
        local_rank = _number(env, "SLURM_LOCALID")
        tasks = _per_node(env.get("SLURM_STEP_TASKS_PER_NODE", str(world)))
        local_world = tasks[min(_number(env, "SLURM_NODEID"), len(tasks) - 1)] if nodes > 1 else world
        return cls(_number(env, "SLURM_PROCID"), world, local_rank, local_world, job)

    @property
    def machines(self) -> bool:
        """Whether there are ranks on other machines."""
        return self.local_world < self.world

    @property
    def device(self) -> str:
        """The device of this rank as torch names it: the GPU of its local number, of those that it sees, or ``cpu``."""
        import torch

        if not torch.cuda.is_available():
            return "cpu"
        return (
            f"cuda:{self.local_rank % torch.cuda.device_count()}"  # srun may show each task its own GPU alone
        )


def gpus_per_node(environ: Mapping[str, str] | None = None) -> int | None:
    """Read ``SLURM_GPUS_PER_NODE``, which may say ``4``, ``a100:4`` or ``a100:2,v100:2``; None where it is not set.

    Raises
    ------
    ValueError
        If it says something else.
    """
    text = (os.environ if environ is None else environ).get("SLURM_GPUS_PER_NODE", "")
    if not text:
        return None
    counts = [part.rpartition(":")[2] for part in re.sub(r"\(.*?\)", "", text).split(",")]
    if not all(count.isdecimal() for count in counts):
        raise ValueError(f"SLURM_GPUS_PER_NODE={text!r}: expected a number, or kind:number")
    return sum(map(int, counts))


@contextlib.contextmanager
def group(ranks: RankEnvironment, backend: str, folder: Path, timeout: float) -> Iterator[None]:
    """Be in the process group of all ranks, which meet as `meet` says.

    Raises
    ------
    TimeoutError
        If rank 0 has not told within `timeout` seconds where it is.
    """
    import torch.distributed as dist

    if not ranks.machines:
        stay_on_loopback()
    wait = timedelta(seconds=timeout)
    try:
        if ranks.job:
            with meet(ranks, folder, timeout) as store:
                dist.init_process_group(
                    backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=wait
                )
        else:
            dist.init_process_group(backend, timeout=wait)
        yield
    finally:
        _leave()


@contextlib.contextmanager
def meet(ranks: RankEnvironment, folder: Path, timeout: float) -> Iterator[Store]:
    """Store that all ranks share; those that have entered are connected.

    Ranks that torchrun started are told where to meet. Those of srun meet at a port that was free when rank 0 took it,
    and which it tells the others through a file in `folder`, which they share.

    Parameters
    ----------
    ranks
        This rank.
    folder
        Folder for the file.
    timeout
        Seconds that a rank waits for the others, and for a key of the store.

    Raises
    ------
    TimeoutError
        If rank 0 has not told within `timeout` seconds where it is.
    """
    if not ranks.job:
        from torch.distributed.rendezvous import rendezvous

        wait = timedelta(seconds=timeout)
        yield next(rendezvous("env://", ranks.rank, ranks.world, timeout=wait))[0]
        return
    meeting = folder / f".meeting-{ranks.job}"
    store = _serve(ranks, meeting, timeout) if ranks.rank == 0 else _join(ranks, meeting, timeout)
    yield store
    if ranks.rank == 0:
        store.wait([f"joined-{rank}" for rank in range(1, ranks.world)], timedelta(seconds=timeout))
        meeting.unlink(missing_ok=True)


def _leave() -> None:
    import torch.distributed as dist

    with contextlib.suppress(Exception):  # it is broken where another rank is gone
        dist.destroy_process_group()


def _serve(ranks: RankEnvironment, meeting: Path, timeout: float) -> TCPStore:
    """Serve the store at which the ranks meet, and write where."""
    address = _address() if ranks.machines else LOOPBACK
    store = serve(timeout, "" if ranks.machines else address)
    with atomic_write(meeting) as part:
        part.write_text(f"{address} {store.port}\n")
    return store


def _join(ranks: RankEnvironment, meeting: Path, timeout: float) -> TCPStore:
    end = time.monotonic() + timeout
    while True:
        with contextlib.suppress(FileNotFoundError):
            address, port = meeting.read_text().split()
            break
        if time.monotonic() > end:
            raise TimeoutError(
                f"rank {ranks.rank} waited {timeout:g} s for rank 0 to write {meeting}: has it failed, or do the "
                "machines not share that folder?"
            )
        time.sleep(0.05)
    store = join(address, int(port), timeout)
    store.set(f"joined-{ranks.rank}", "1")
    return store


def _address() -> str:
    """Address at which others reach this machine: what SLURM has for it, else its host name.

    It is not resolved here, where a machine's own name often means its loopback.
    """
    command = ["scontrol", "show", "node", os.environ.get("SLURMD_NODENAME", ""), "--oneliner"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        if found := re.search(r"\bNodeAddr=(\S+)", shown):
            return found[1]
    return socket.gethostname()


def _number(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "")
    if not text.isdecimal():
        raise ValueError(f"{name}={text!r} in the environment: expected a number")
    return int(text)


def _per_node(text: str) -> list[int]:
    """Read SLURM's list of tasks on each node, ``2(x3),1`` say."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts
