"""The check of a set-up: ranks that train a tiny model together, timed."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...context import worker

__all__ = ["ITERATIONS", "check_rank", "tell"]

ITERATIONS = 10


def check_rank() -> dict[str, Any]:
    """Train a linear model for ten iterations as one rank of a gang; return what was measured.

    Raises
    ------
    RuntimeError
        Where ranks do not add up, or do not hold the same gradients.
    """
    device, rank, world = worker().device, dist.get_rank(), dist.get_world_size()
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
    seconds = time.perf_counter() - began
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
        "seconds": seconds,
        "weights": sum(p.numel() for p in model.parameters()),
        "device": f"GPU {worker().gpu_id}" if worker().gpu_id is not None else worker().uuid,
        "backend": dist.get_backend(),
    }


def tell(found: list[dict[str, Any]], gpus: int) -> str:
    """Return what the ranks found, in the lines of the script that this replaces."""
    world = len(found)
    kind = "GPU" if found[0]["device"].startswith("GPU") else "CPU device"
    lines = [f"Available GPUs: {gpus}", f"Testing DDP with {world} {kind}(s)"]
    lines += [f"Process {n}/{world} initialized on {rank['device']}" for n, rank in enumerate(found)]
    seconds = max(rank["seconds"] for rank in found)
    lines += [
        "DDP test completed successfully!",
        f"World size: {world}",
        f"Time for {ITERATIONS} iterations: {seconds:.4f} seconds",
        f"Average time per iteration: {seconds / ITERATIONS:.4f} seconds",
        f"Model parameters: {found[0]['weights']}",
    ]
    lines += [f"Rank {n}: Test completed successfully" for n in range(world)]
    return "\n".join([*lines, "DDP test completed!"])
