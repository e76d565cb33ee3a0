"""Training of the emulator by one rank of a gang, or by a process alone."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from . import land
from .columns import Batch, Columns, Deal
from .config import Config
from .emulator import Emulator, loss_of

__all__ = ["Trainer"]

CHECKPOINT = "checkpoint.pt"
MADE_FOR = ("columns", "validation_share", "seed", "width", "layers", "heads", "batch_norm")


class Trainer:
    """Trains the emulator; every rank of a group makes one.

    Parameters
    ----------
    config
        What to train.
    folder
        Where rank 0 writes.
    device
        Of torch.
    report
        Called by every rank with ``progress``, ``loss``, ``validation`` after each epoch.

    Raises
    ------
    ValueError
        Where the config and the world do not go together.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        device: str = "cpu",
        report: Callable[..., None] = lambda **values: None,
    ) -> None:
        self.config, self.folder, self.device, self.report = config, folder, device, report
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        if config.sync_batch_norm and not device.startswith("cuda"):
            raise ValueError("sync_batch_norm needs GPUs: leave it out on a CPU")
        size = config.per_rank(self.world)
        torch.manual_seed(config.seed)
        whole = land.generate(config.columns, config.seed) if config.data is None else land.load(config.data)
        order = np.random.default_rng(config.seed).permutation(len(whole))
        kept = max(1, round(config.validation_share * len(whole)))
        if kept >= len(whole):
            raise ValueError(f"{len(whole)} columns cannot be split for validation: give more")
        self.train, self.held_out = np.sort(order[kept:]), np.sort(order[:kept])
        self.columns = Columns(whole, self.train, device)
        mine = (self.rank, self.world) if config.distributed_sampler else (0, 1)
        self.deal = Deal(self.train, size, *mine, seed=config.seed)
        self.shares = config.distributed_sampler
        self.validation = Deal(self.held_out, size, self.rank, self.world)
        self.model = Emulator(
            config.width, config.layers, config.heads, config.batch_norm, config.gradient_checkpointing
        ).to(device)
        if config.sync_batch_norm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.wrapped: nn.Module = self._wrap()
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.rate(self.world), weight_decay=config.weight_decay
        )
        scaled = config.use_amp and config.amp_dtype == "fp16"
        self.scaler = torch.amp.GradScaler(device.partition(":")[0], enabled=scaled)
        self.steps = 0
        self.epoch = 0
        self.history: list[dict[str, float]] = []

    def _wrap(self) -> nn.Module:
        config = self.config
        if not dist.is_initialized():
            return self.model
        wrapped = DistributedDataParallel(
            self.model,
            find_unused_parameters=config.find_unused_parameters,
            gradient_as_bucket_view=config.gradient_as_bucket_view,
            broadcast_buffers=config.broadcast_buffers,
            bucket_cap_mb=config.bucket_cap_mb,
            static_graph=config.static_graph,
        )
        if config.fp16_allreduce:
            wrapped.register_comm_hook(None, fp16_compress_hook)
        return wrapped

    def fit(self) -> dict[str, Any]:
        """Train until the epochs are over or nothing gets better; return what `training_results.json` holds."""
        if self.config.resume:
            self.load()
        began = time.perf_counter()
        while self.epoch < self.config.epochs and not self._stale():
            at = time.perf_counter()
            loss = self.train_epoch()
            values = {"epoch": self.epoch, "loss": loss, **self.validate()}
            values["columns_per_second"] = len(self.train) / (time.perf_counter() - at)
            self.history.append(values)
            self.epoch += 1
            self.report(progress=self.epoch / self.config.epochs, loss=loss, validation=values["validation"])
            if self.epoch % self.config.checkpoint_every == 0 or self.epoch == self.config.epochs:
                self.save()
        return self._results(time.perf_counter() - began)

    def _stale(self) -> bool:
        """Whether the validation loss has not become better for as long as patience lasts."""
        losses = [values["validation"] for values in self.history]
        if self.config.patience is None or len(losses) <= self.config.patience:
            return False
        before = min(losses[: -self.config.patience])
        return min(losses[-self.config.patience :]) > before - self.config.min_delta

    def train_epoch(self) -> float:
        """Go over the training columns once; return the mean loss of a column."""
        self.wrapped.train()
        steps = self.config.gradient_accumulation_steps
        counts, parts = self.deal.counts(), list(self.deal.batches(self.epoch))
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for start in range(0, len(parts), steps):
            together = parts[start : start + steps]
            total += self._step(together, sum(counts[start : start + steps]))
        if self.shares:
            _reduce(total)
        return float(total[0] / total[1])

    def _step(self, together: list[Batch], count: int) -> Tensor:
        """Change the weights once, by the gradients of some batches with `count` columns; return (sum, count)."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.rate(self.world) * self._warm()
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(together):
            last = number == len(together) - 1
            with self._unsynced() if not last else contextlib.nullcontext():
                losses = self._losses(batch)
                # DistributedDataParallel takes the mean over ranks, whatever they have: so that every column counts
                # once, each rank weighs its sum by world / count.
                loss = losses.sum() * ((self.world if self.shares else 1) / count)
                torch.autograd.backward(self.scaler.scale(loss))
            total[0] += losses.detach().double().sum()
            total[1] += float(batch.weight.sum())
        self.scaler.unscale_(self.optimiser)
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.steps += 1
        return total

    def _warm(self) -> float:
        return min(1.0, (self.steps + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0

    @contextlib.contextmanager
    def _unsynced(self) -> Iterator[None]:
        """Keep gradients to this rank; not in the first step with a static graph, which torch learns there."""
        wrapped = self.wrapped
        if isinstance(wrapped, DistributedDataParallel) and (self.steps or not self.config.static_graph):
            with wrapped.no_sync():
                yield
        else:
            yield

    def _losses(self, batch: Batch) -> Tensor:
        """Return the weighted losses [b] of a batch."""
        inputs, wanted = self.columns.of(batch.index.to(self.device))
        kind = torch.bfloat16 if self.config.amp_dtype == "bf16" else torch.float16
        with torch.autocast(self.device.partition(":")[0], kind, enabled=self.config.use_amp):
            found = self.wrapped(inputs)
        return loss_of(found, wanted, self.config.loss_weights) * batch.weight.to(self.device)

    def validate(self) -> dict[str, float]:
        """Return ``validation``, the mean loss of a held-out column, and of outputs mse and rmse, over all ranks."""
        self.model.eval()
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for batch in self.validation.batches(0):
                inputs, wanted = self.columns.of(batch.index.to(self.device))
                found = self.model(inputs)
                weight = batch.weight.to(self.device)
                parts = [
                    (getattr(found, name) - getattr(wanted, name)).square().flatten(1).mean(1) * weight
                    for name in ("scalar", "vector", "matrix")
                ]
                losses = sum(w * part for w, part in zip(self.config.loss_weights, parts, strict=True))
                sums += torch.stack([torch.as_tensor(x).sum() for x in (losses, *parts, weight)]).double()
        _reduce(sums)
        loss, *errors = (sums[:4] / sums[4]).tolist()
        values = {"validation": loss}
        for name, error in zip(("scalar", "vector", "matrix"), errors, strict=True):
            values |= {f"{name}_mse": error, f"{name}_rmse": error**0.5}
        return values

    def baseline(self) -> float:
        """Return the validation loss of the mean of the training columns."""
        names, train, held_out = (
            ("scalar", "vector", "matrix"),
            *map(torch.from_numpy, (self.train, self.held_out)),
        )
        means = [self.columns.parts[name][train].mean(0) for name in names]
        held = [self.columns.parts[name][held_out] for name in names]
        errors = [float((part - mean).square().mean()) for part, mean in zip(held, means, strict=True)]
        return float(np.dot(self.config.loss_weights, errors))

    def save(self) -> None:
        """Write the checkpoint: all that a resumed training needs to go on as if nothing had been."""
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "steps": self.steps,
            "history": self.history,
            "random": torch.get_rng_state(),
            "config": {name: getattr(self.config, name) for name in MADE_FOR},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{CHECKPOINT}.part"
        torch.save(state, part)
        os.replace(part, self.folder / CHECKPOINT)

    def load(self) -> None:
        """Go on from the checkpoint, where there is one.

        Raises
        ------
        ValueError
            Where it is of another model or other data: says in what they differ.
        """
        file = self.folder / CHECKPOINT
        if not file.exists():
            return
        state = torch.load(file, map_location=self.device, weights_only=True)
        differ = [
            f"{name}={state['config'].get(name)!r} there, {getattr(self.config, name)!r} here"
            for name in MADE_FOR
            if state["config"].get(name) != getattr(self.config, name)
        ]
        if differ:
            raise ValueError(f"{file} is of another training: {'; '.join(differ)}")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.steps, self.history = state["epoch"], state["steps"], state["history"]
        torch.set_rng_state(state["random"].cpu())

    def _results(self, seconds: float) -> dict[str, Any]:
        best = min(self.history, key=lambda values: values["validation"])
        return {
            "config": asdict(self.config),
            "world_size": self.world,
            "batch_per_rank": self.config.per_rank(self.world),
            "batch_global": self.config.per_rank(self.world) * self.world,
            "batch_effective": self.config.effective(self.world),
            "learning_rate": self.config.rate(self.world),
            "epochs": self.epoch,
            "steps": self.steps,
            "best_epoch": best["epoch"],
            "best_validation": best["validation"],
            "baseline": self.baseline(),
            "history": json.loads(json.dumps(self.history)),
            "seconds": seconds,
        }


def _reduce(values: Tensor) -> None:
    """Add up over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
