"""Check of a set-up: ranks that compute gradients of a tiny model together, timed."""

from __future__ import annotations

import socket
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..context import worker
from ..places import device_names

__all__ = ["ITERATIONS", "check_here", "check_rank", "format_check", "summary"]

ITERATIONS = 10


def check_here() -> dict[str, Any]:
    """Check the rank that `launch` started; see `check_rank`."""
    here = worker()
    name = here.uuid if here.gpu_id is None else f"GPU {here.gpu_id}"
    return check_rank(here.device) | {"device": name}


def check_rank(device: str) -> dict[str, Any]:
    """Go ten times forward and backward through a linear model as one rank; return what was measured.

    Returns
    -------
    dict
        ``seconds`` of the slowest rank and ``own_seconds``, both for all iterations; ``weights``, ``device``,
        ``host``, ``backend``.

    Raises
    ------
    RuntimeError
        If ranks do not add up, or do not hold the same gradients.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(100, 10).to(device))
    generator = torch.Generator().manual_seed(rank)
    x, y = (torch.randn(32, n, generator=generator).to(device) for n in (100, 10))
    began = time.perf_counter()
    for _ in range(ITERATIONS):
        loss = nn.functional.mse_loss(model(x), y)
        torch.autograd.backward(loss)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    own = time.perf_counter() - began
    slowest = torch.tensor(own, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    ones = torch.ones(1, device=device)
    dist.all_reduce(ones)
    if ones.item() != world:
        raise RuntimeError(f"rank {rank}: {world} ones were added up to {ones.item():g}")
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    mean = gradient.clone()
    dist.all_reduce(mean)
    if not torch.allclose(gradient, mean / world, rtol=1e-5, atol=1e-7):
        raise RuntimeError(f"rank {rank} holds other gradients than the rest")
    return {
        "seconds": slowest.item(),
        "own_seconds": own,
        "weights": sum(p.numel() for p in model.parameters()),
        "device": device.replace("cuda:", "GPU "),
        "host": socket.gethostname(),
        "backend": dist.get_backend(),
    }


def format_check(found: list[dict[str, Any]], gpus: int) -> str:
    """Text of what the ranks found, in the lines of the script that this replaces."""
    world = len(found)
    kind = "GPU" if found[0]["device"].startswith("GPU") else "CPU device"
    lines = [f"Available GPUs: {gpus}", f"Testing DDP with {world} {kind}(s)"]
    names = device_names([(rank["device"], rank.get("host", "")) for rank in found])
    lines += [f"Process {n}/{world} initialized on {name}" for n, name in enumerate(names)]
    lines += [summary(found[0], world)]
    lines += [f"Rank {n}: Test completed successfully" for n in range(world)]
    return "\n".join([*lines, "DDP test completed!"])


def summary(found: dict[str, Any], world: int) -> str:
    """Lines about all ranks together; the time is that of the slowest."""
    lines = [
        "DDP test completed successfully!",
        f"World size: {world}",
        f"Time for {ITERATIONS} iterations: {found['seconds']:.4f} seconds",
        f"Average time per iteration: {found['seconds'] / ITERATIONS:.4f} seconds",
        f"Model parameters: {found['weights']}",
    ]
    return "\n".join(lines)
