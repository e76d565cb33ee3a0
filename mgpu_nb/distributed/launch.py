"""`launch`: a function in a gang of processes with a process group, as torchrun would start it, from a notebook."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from ..engines.base import Cluster, MeetingPoints
from ..hardware.slots import GpuIds
from ..interrupts import uninterrupted
from ..options import Between, OneOf, PositiveInt, check_arguments
from ..pool import GPUPool
from ..runs.rerun import Rerun
from ..runs.run import Run
from ..signature import join, left_out, named_arguments, refuse_shared, value_of
from ..tasks import Task
from .rank import run_rank
from .rendezvous import LONGEST, serve

__all__ = ["expected_ranks", "launch"]

GRACE = 2.0  # seconds between asking a rank to end and killing it


def launch(
    fn: Callable[..., Any],
    *arguments: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    nprocs: PositiveInt | None = None,
    gpu_ids: GpuIds | Literal["cpu"] | None = None,
    pool: GPUPool | None = None,
    cluster: Cluster | None = None,
    backend: Annotated[str, OneOf(("gloo", "nccl"))] | None = None,
    timeout: Annotated[float, Between(0, LONGEST, low_open=True)] = left_out(300.0),
    preload: Sequence[str] = (),
    name: str = left_out("launch"),
    folder: str | os.PathLike[str] | None = None,
    seed: int = left_out(0),
    rerun: Rerun = "ask",
    **keywords: Any,
) -> Run:
    """Run a function in `nprocs` processes that form a process group; return at once the handle on them.

    Every process is a rank, a fresh one on a device of its own, with the environment that torchrun gives (``RANK``,
    ``LOCAL_RANK``, ``WORLD_SIZE``, ...). The group is there when `fn` begins; code that makes its own asks
    ``torch.distributed.is_initialized()`` first. The run has a task for each, ``rank-0``, ``rank-1`` and so on: its
    value, its log, its memory and what it reports. When one fails the others are ended, and ``run.results()`` raises
    its error. A notebook cell that waits for it shows the ranks; ``run.results(stream=True)`` prints what they print.

    On a cluster the ranks of a node have numbers next to each other, and each sees the GPUs of its own node alone. Rank
    0 serves the store at which they meet (``MASTER_ADDR``, ``MASTER_PORT``) and ends after all others. Whoever reaches
    that address can join and change what the ranks tell each other, as with torchrun: the network between nodes must
    be one that you trust. gloo and NCCL talk over the interface that leads to rank 0's node, unless
    ``GLOO_SOCKET_IFNAME`` or ``NCCL_SOCKET_IFNAME`` is set; the store, gloo and NCCL listen at that address alone.

    Parameters
    ----------
    fn
        Any function, one from a cell as well. On GPUs a rank works on ``cuda:LOCAL_RANK``, which is the current device.
    *arguments, **keywords
        Of `fn`, the same for all ranks. A keyword that has one of the names below belongs to `launch`; if `fn` has a
        parameter of that name, or takes any keyword by ``**kwargs`` and it is backend, timeout or seed, this is an
        error that says what to write.
    args, kwargs
        Arguments of `fn` as a tuple and a mapping, which is never ambiguous:
        ``launch(fit, args=(x,), kwargs={"seed": 3})``. They may stand beside `keywords`.
    nprocs
        Number of ranks; by default one per slot of the pool, of a cluster all that are expected or, where that is not
        known, that are there; or one per id of `gpu_ids`, or one per device.
    gpu_ids
        GPUs for the ranks, as `GPUPool` takes them.
    pool
        Where to take slots; the gang waits until `nprocs` of them are free at once. By default a pool of its own.
    cluster
        Other machines, as `GPUPool` takes them, for a pool of its own there; `gpu_ids` are those of each node.
    backend
        ``nccl`` or ``gloo``; by default nccl if all ranks are on GPUs, else gloo.
    timeout
        Seconds that a collective waits for all ranks. When it is over, the error names those that were missing; NCCL
        ends the processes itself then, and their logs say in which collective.
    preload
        Modules that ranks import at once, as `GPUPool` takes them: ``["torch._dynamo"]`` saves training code the two
        seconds that an optimizer's first step takes to import it. A `pool` has its own.
    name, folder, seed, rerun
        As `GPUPool.run` takes them. Rank `i` has the seed ``derive_seed(seed, i)``.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, before any process starts.

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
        raise TypeError(f"fn must be a function, got {fn!r}")
    positional, named = _call_of(fn, arguments, keywords, args, kwargs, locals())
    timeout, name, seed = value_of(timeout), value_of(name), value_of(seed)
    nprocs, ids, backend, timeout, rerun = check_arguments(
        launch, nprocs=nprocs, gpu_ids=gpu_ids, backend=backend, timeout=timeout, rerun=rerun
    )
    if pool is not None and gpu_ids is not None:
        raise ValueError("gpu_ids and pool both choose devices: give one of the two")
    if pool is not None and cluster is not None:
        raise ValueError("cluster and pool both say where the ranks are: give one of the two")
    if pool is not None and preload:
        raise ValueError("preload: a pool's workers exist already; give it to the pool")
    if cluster is None and ids not in (None, "cpu") and nprocs not in (None, len(ids)):
        raise ValueError(f"nprocs={nprocs}: gpu_ids names {len(ids)}; leave nprocs out")
    own = pool is None
    if pool is None:
        each = nprocs if cluster is None and (ids is None or ids == "cpu") else None
        pool = GPUPool(
            ids,
            each,
            cluster=cluster,
            isolation="task",
            grace=GRACE,
            preload=preload,
            rerun="keep",
            share=True,
        )
    started: list[Run] = []
    try:
        world = expected_ranks(pool) if nprocs is None else nprocs
        remote = isinstance(
            pool._engine, MeetingPoints
        )  # rank 0 serves the store; slots may be still to come
        group = backend or (None if remote else "nccl" if pool.slots[0].kind == "cuda" else "gloo")
        _check_backend(pool, world, group)
        store = None if remote else uninterrupted(lambda: serve(timeout))
        port = None if store is None else store.port
        tasks = [
            Task(run_rank, fn, positional, named, rank, world, port, group, timeout, name=f"rank-{rank}")
            for rank in range(world)
        ]
        begin = partial(
            pool.run,
            tasks,
            name=name,
            folder=folder,
            seed=seed,
            gang=True if group == "gloo" else "devices",
            rerun=rerun,
        )
        started.append(begin())  # in one line: an interrupt comes before it or after it
        kept = [store]  # it serves the ranks from here for as long as they run
        started[0].add_done_callback(lambda _: kept.clear())
        if own:
            pool.shutdown(wait=False)
        return started[0]
    except BaseException:
        for run in started:
            run._abandon()
        if own:
            pool.shutdown(wait=False)
        raise


def _arguments_of_rank(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], rank: int, *_: Any
) -> dict[str, Any]:
    """Arguments of the user's function, for `Run.frame`."""
    return {"rank": rank, **named_arguments(fn, args, kwargs)}


run_rank.named_arguments = _arguments_of_rank  # type: ignore[attr-defined]


def _call_of(
    fn: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    args: Any,
    kwargs: Any,
    options: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the function; options of `launch` that it could want for itself are refused, as `Task` does."""
    defaults = launch.__kwdefaults__ or {}
    stated = {name: options[name] for name, value in defaults.items() if options[name] is not value}
    explicit = stated.keys() & {"args", "kwargs"}
    if len(explicit) == 1:  # a function may have one parameter of such a name
        refuse_shared("launch", fn, {name: stated[name] for name in explicit}, exempt=explicit)
    elif not explicit:
        own = stated.keys() - {"backend", "timeout", "seed"}
        refuse_shared("launch", fn, stated, exempt=own, filled=len(arguments))
    return join(arguments, keywords, args, kwargs)


def expected_ranks(pool: GPUPool) -> int:
    """Number of ranks that a pool has a slot for, or will have when all of its nodes are there.

    Raises
    ------
    ValueError
        If there is no slot yet, and nobody knows how many will come.
    """
    if world := pool.expected_slots or len(pool.slots):
        return world
    raise ValueError(
        "nprocs: no slot is there yet, and it is not known how many will come; give nprocs, or wait for them by "
        "pool.wait_for_slots(n)"
    )


def _check_backend(pool: GPUPool, world: int, backend: str | None) -> None:
    slots, expected = pool.slots, pool.expected_slots
    if expected is not None and world > expected:
        raise ValueError(f"nprocs={world}: the pool has {expected} slots; give it more, or fewer ranks")
    if backend != "nccl":
        return
    if any(slot.kind == "cpu" for slot in slots):
        raise ValueError(
            "backend='nccl' needs a GPU for each rank, and these are CPU devices: leave backend out"
        )
    if expected is not None and len(slots) >= expected and len({slot.device for slot in slots}) < world:
        raise ValueError(
            f"backend='nccl' needs a GPU of its own for each of {world} ranks, and there are fewer: give "
            "backend='gloo', or fewer ranks"
        )
