"""How ranks share a model: whole on each (DistributedDataParallel), or in shards (FSDP).

State dicts look the same under both and for any world: shards are gathered when a checkpoint is written and dealt when
it is read.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from .config import Config

__all__ = [
    "blocks_of",
    "check_fsdp",
    "gathered",
    "load",
    "load_optimizer",
    "local",
    "recompute",
    "unsynced",
    "wrap",
]


def check_fsdp() -> Callable[..., Any]:
    """`fully_shard` of torch.

    Raises
    ------
    ValueError
        If this torch has none.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise ValueError(
            f"strategy='fsdp' needs torch.distributed.fsdp.fully_shard of torch 2.6 or later, and this is "
            f"{torch.__version__}: use ddp, or a later torch"
        ) from None
    return fully_shard


def wrap(model: nn.Module, config: Config, device: str) -> nn.Module:
    """Model that gradients of all ranks flow through; `model` itself where that would change nothing."""
    if not dist.is_initialized():
        return model
    if config.strategy == "fsdp":
        return _sharded(model, config, device)
    # DistributedDataParallel takes a millisecond of each step for gradients that go from a rank to itself.
    rounded = config.fp16_allreduce or config.bf16_allreduce
    return _replicated(model, config) if dist.get_world_size() > 1 or rounded else model


def _replicated(model: nn.Module, config: Config) -> nn.Module:
    with warnings.catch_warnings():
        # broadcast_buffers has another name since torch 2.13; the old one works in all that we run with.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = DistributedDataParallel(
            model,
            find_unused_parameters=config.find_unused_parameters,
            gradient_as_bucket_view=config.gradient_as_bucket_view,
            broadcast_buffers=config.broadcast_buffers,
            bucket_cap_mb=config.bucket_cap_mb,
            static_graph=config.static_graph,
        )
    if config.fp16_allreduce:
        wrapped.register_comm_hook(None, fp16_compress_hook)
    elif config.bf16_allreduce:
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def _sharded(model: nn.Module, config: Config, device: str) -> nn.Module:
    """The model with weights in shards, a unit for each of its blocks and one for the rest."""
    fully_shard = check_fsdp()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    kind = torch.float16 if config.fp16_allreduce else torch.bfloat16 if config.bf16_allreduce else None
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.partition(":")[0], (dist.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=kind),
        # By default the weights outside of blocks stay gathered after a validation: a copy that grows old.
        "reshard_after_forward": True,
    }
    for block in blocks_of(model):
        if any(True for _ in block.parameters()):
            fully_shard(block, **options)
    fully_shard(model, **options)
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Modules that a model has in a ModuleList, the layers of a Transformer say; not those within them."""
    found: list[nn.Module] = []
    within: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and id(module) not in within:
            for block in module:
                found.append(block)
                within |= {id(each) for each in block.modules()}
    return found


def recompute(model: nn.Module) -> None:
    """Have a model compute activations again in the backward pass (gradient checkpointing).

    A model that has an attribute ``recompute``, as the emulator, or ``gradient_checkpointing_enable()``, as those of
    transformers, does it its own way; of any other the blocks do it.

    Raises
    ------
    ValueError
        If it has no blocks.
    """
    if isinstance(getattr(model, "recompute", None), bool):
        model.recompute = True  # type: ignore[assignment]
        return
    if callable(enable := getattr(model, "gradient_checkpointing_enable", None)):
        enable()
        return
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(
            "gradient_checkpointing: the model has no blocks, which are items of a torch.nn.ModuleList; call "
            "torch.utils.checkpoint in its forward instead"
        )
    for block in blocks:
        block.forward = functools.partial(_forward, block, type(block).forward)


def _forward(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if block.training and torch.is_grad_enabled():
        return checkpoint(functools.partial(forward, block), *args, use_reentrant=False, **kwargs)
    return forward(block, *args, **kwargs)


@contextlib.contextmanager
def unsynced(wrapped: nn.Module) -> Iterator[None]:
    """Keep gradients to this rank."""
    if isinstance(wrapped, DistributedDataParallel):
        with wrapped.no_sync():
            yield
    elif hasattr(wrapped, "set_requires_gradient_sync"):  # of fully_shard
        sync: Callable[[bool], None] = wrapped.set_requires_gradient_sync  # type: ignore[assignment]
        sync(False)
        try:
            yield
        finally:
            sync(True)
    else:
        yield


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, without a copy."""
    shard: Any = tensor.detach()
    mine: Tensor = shard.to_local() if _is_sharded(shard) else shard
    return mine


def gathered(state: Any, keep: bool) -> Any:
    """State with whole tensors in place of shards; called by all ranks. Those that do not `keep` it get None."""
    if _is_sharded(state):
        whole = state.detach().full_tensor()
        return whole.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: gathered(value, keep) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(gathered(value, keep) for value in state)
    return state


def load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole weights into a model, which may be sharded."""
    there = model.state_dict()
    model.load_state_dict({name: _dealt(value, there.get(name)) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole state into an optimizer, whose weights may be sharded; its options stay those of today."""
    asked = [{n: v for n, v in g.items() if n != "params"} for g in optimizer.param_groups]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    dealt = {
        number: {name: _dealt(value, weights[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": dealt})
    for group, options in zip(optimizer.param_groups, asked, strict=True):
        group.update(options)  # those of today, weight_decay say


def _dealt(value: Any, like: Any) -> Any:
    """Shard of a whole tensor, where `like` is sharded and of the same shape."""
    if not _is_sharded(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _is_sharded(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")
