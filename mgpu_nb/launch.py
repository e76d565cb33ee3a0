"""`launch`: a function in a gang of processes with a process group, as torchrun would start it, from a notebook."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from .context import worker
from .pool import GPUPool
from .run import Run
from .tasks import Task

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["launch"]

BACKENDS = ("gloo", "nccl")
GRACE = 2.0  # seconds between asking a rank to end and killing it
OTHERS_RECORD = 3.0  # seconds in which the death of another rank becomes the reason of this one's end
OTHERS_TIME_OUT = 0.5  # seconds in which ranks that waited for the same collective give up, too
_OTHER_IS_GONE = ("closed by peer", "reset by peer", "broken pipe", "connection refused")


def launch(
    fn: Callable[..., Any],
    *args: Any,
    nprocs: int | None = None,
    gpu_ids: Sequence[int | str] | Literal["cpu"] | None = None,
    pool: GPUPool | None = None,
    backend: str | None = None,
    timeout: float = 300.0,
    name: str = "launch",
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Run:
    """Run ``fn(*args, **kwargs)`` in `nprocs` processes that form a process group; return at once the handle on them.

    Every process is a rank, a fresh one on a device of its own, with the environment that torchrun gives (``RANK``,
    ``LOCAL_RANK``, ``WORLD_SIZE``, ...). The group is there when `fn` begins; code that makes its own asks
    ``torch.distributed.is_initialized()`` first. The run has a task for each, ``rank-0``, ``rank-1`` and so on: its
    value, its log, its memory and what it reports. When one fails the others are ended, and ``run.results()`` raises
    its error.

    Parameters
    ----------
    fn
        Any function, one from a cell as well. On GPUs rank `i` works on ``cuda:i``, which is the current device.
    *args, **kwargs
        Of `fn`, the same for all ranks.
    nprocs
        Number of ranks; by default one per slot of the pool, or one per id of `gpu_ids`, or one per device.
    gpu_ids
        GPUs for the ranks, as `GPUPool` takes them.
    pool
        Where to take slots; the gang waits until `nprocs` of them are free at once. By default a pool of its own.
    backend
        ``nccl`` or ``gloo``; by default nccl on GPUs, gloo elsewhere.
    timeout
        Seconds that a collective waits for all ranks. When it is over, the error names those that were missing.
    name, folder, seed
        As `GPUPool.run` takes them. Rank `i` has the seed ``derive_seed(seed, i)``.

    Raises
    ------
    ValueError, TypeError
        For what cannot be, before any process starts.

    Examples
    --------
    >>> def total():
    ...     import torch, torch.distributed as dist
    ...     x = torch.tensor([dist.get_rank() + 1.0])
    ...     dist.all_reduce(x)
    ...     return x.item()
    >>> launch(total, nprocs=2).results()
    [3.0, 3.0]
    """
    if not callable(fn):
        raise TypeError(f"launch runs a function, not a {type(fn).__name__}")
    if nprocs is not None and (isinstance(nprocs, bool) or not isinstance(nprocs, int) or nprocs < 1):
        raise ValueError(f"nprocs={nprocs!r}: give a whole number, one or more")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ValueError(f"timeout={timeout!r}: give seconds, more than zero")
    if pool is not None and gpu_ids is not None:
        raise ValueError("gpu_ids and pool both choose devices: give one of the two")
    if gpu_ids is not None and gpu_ids != "cpu" and nprocs not in (None, len(gpu_ids)):
        raise ValueError(f"nprocs={nprocs}: gpu_ids names {len(gpu_ids)}; leave nprocs out")
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: there is {', '.join(BACKENDS)}")
    ids = gpu_ids if gpu_ids == "cpu" or gpu_ids is None else list(gpu_ids)
    own = pool is None
    if pool is None:
        pool = GPUPool(ids, nprocs if ids is None or ids == "cpu" else None, isolation="task", grace=GRACE)
    try:
        world = len(pool.slots) if nprocs is None else nprocs
        group = backend or ("nccl" if pool.slots[0].kind == "cuda" else "gloo")
        _check_backend(pool, world, group)
        store = _store(timeout)
        tasks = [
            Task(_rank, fn, args, kwargs, rank, world, store.port, group, timeout, name=f"rank-{rank}")
            for rank in range(world)
        ]
        run = pool.run(tasks, name=name, folder=folder, seed=seed, gang=True)
    finally:
        if own:
            pool.shutdown(wait=False)
    kept = [store]  # it serves the ranks from here for as long as they run
    run.when_done(kept.clear)
    return run


def _check_backend(pool: GPUPool, world: int, backend: str) -> None:
    if world > len(pool.slots):
        raise ValueError(
            f"nprocs={world}: the pool has {len(pool.slots)} slots; give it more, or fewer ranks"
        )
    if backend == "nccl" and any(slot.kind == "cpu" for slot in pool.slots):
        raise ValueError(
            "backend='nccl' needs a GPU for each rank, and these are CPU devices: leave backend out"
        )
    if backend == "nccl" and len({slot.uuid for slot in pool.slots}) < world:
        raise ValueError(
            f"backend='nccl' needs a GPU of its own for each of {world} ranks, and there are fewer: give "
            "backend='gloo', or fewer ranks"
        )


def _store(timeout: float) -> TCPStore:
    """Return the store at which the ranks meet, served from here: its port is free because it has it already."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))  # nobody else's business
    listener.listen(1024)
    port = listener.getsockname()[1]
    return TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=listener.detach(),
    )


def _rank(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rank: int,
    world: int,
    port: int,
    backend: str,
    timeout: float,
) -> Any:
    """Be a rank: join the group, call the function, leave the group."""
    import torch
    import torch.distributed as dist

    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.setdefault(
        "GLOO_SOCKET_IFNAME", loopback
    )  # else it looks for the machine's name in the network
    os.environ.update(_environment(rank, world, port))
    if (device := worker().device).startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        return fn(*args, **kwargs)
    except RuntimeError as error:
        said = str(error).lower()
        if any(words in said for words in _OTHER_IS_GONE):
            time.sleep(OTHERS_RECORD)  # the kernel hears of that other rank, and ends this one for it
        if "timed out" in said or "timeout" in said:
            raise TimeoutError(_who_was_missing(rank, world, port, timeout)) from error
        raise
    finally:
        with contextlib.suppress(Exception):  # it is broken where another rank is gone
            dist.destroy_process_group()


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    """Return what torchrun sets for a rank of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "ROLE_RANK": str(rank),
        "ROLE_NAME": "default",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_WORLD_SIZE": "1",
        "ROLE_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is served by the kernel, as it is by torchrun's agent
    }


def _who_was_missing(rank: int, world: int, port: int, timeout: float) -> str:
    """Say which ranks did not come to a collective: those that have not given up waiting for it as well."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    waited = f"rank {rank} waited {timeout:g} s in a collective"
    try:
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=5))
        store.set(f"mgpu_nb/timed_out/{rank}", "1")
        time.sleep(OTHERS_TIME_OUT)
        there = [other for other in range(world) if store.check([f"mgpu_nb/timed_out/{other}"])]
    except Exception:
        return f"{waited}; which rank was missing could not be found out"
    missing = [str(other) for other in range(world) if other not in there]
    if not missing:
        return f"{waited} that all ranks came to; they may have called different ones"
    return f"{waited}; missing: rank {', '.join(missing)}"
