"""Training of the emulator by one rank of a gang, or by a process alone."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from . import land
from .checkpoint import read_checkpoint, write_checkpoint
from .columns import Batch, Columns, Shard
from .config import Config
from .emulator import Emulator, Outputs, errors_of, loss_of
from .files import read_land, write_losses

__all__ = ["Trainer"]

log = logging.getLogger("mgpu_nb.training")

_TOLD = ("loss", "validation", "columns_per_second")  # of each epoch


class Trainer:
    """Trains the emulator; every rank of a group makes one.

    Parameters
    ----------
    config
        What to train.
    folder
        Where rank 0 writes the checkpoint and the losses.
    device
        Of torch.
    report
        Called by every rank after each epoch with ``epoch`` (from 1), ``loss``, ``validation``, ``columns_per_second``
        and ``progress``; of a training that goes on first for each epoch of before.

    Attributes
    ----------
    history
        Of each epoch ``epoch``, what `train_epoch` and `validate` return.
    best
        Weights of the epoch with the smallest validation loss.

    Raises
    ------
    ValueError
        If the config, the world and the device do not go together.
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
        config.check_device(device)
        size = config.per_rank(self.world)
        torch.manual_seed(config.seed)
        whole = load_data(config)
        order = np.random.default_rng(config.seed).permutation(len(whole))
        kept = max(1, round(config.validation_share * len(whole)))
        if kept >= len(whole):
            raise ValueError(f"{len(whole)} columns cannot be split for validation: give more")
        self.train, self.held_out = np.sort(order[kept:]), np.sort(order[:kept])
        self.columns = Columns(whole, self.train, device)
        mine = (self.rank, self.world) if config.distributed_sampler else (0, 1)
        self.shard = Shard(self.train, size, *mine, seed=config.seed)
        self.shares = config.distributed_sampler
        self.validation = Shard(self.held_out, size, self.rank, self.world)
        self.model = Emulator(
            config.width, config.layers, config.heads, config.batch_norm, config.gradient_checkpointing
        ).to(device)
        if config.sync_batch_norm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.wrapped: nn.Module = self._wrap()
        self.optimiser = self._optimiser()
        scaled = config.use_amp and config.amp_dtype == "fp16"
        self.scaler = torch.amp.GradScaler(device.partition(":")[0], enabled=scaled)
        self.steps = 0
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.elapsed = 0.0  # seconds of `fit`, before a resume as well
        self.seconds, self.trained = 0.0, 0  # this rank spent in training, and columns of it in that time
        self._batch = 0  # where in the epoch
        # Of the columns of the epoch so far: sum of their losses, and their number.
        self._loss, self._count = torch.zeros((), dtype=torch.float64, device=device), 0
        self._graph_unseen = (
            dist.is_initialized() and config.static_graph and config.gradient_accumulation_steps > 1
        )

    def _wrap(self) -> nn.Module:
        config = self.config
        if not dist.is_initialized():
            return self.model
        with warnings.catch_warnings():
            # broadcast_buffers has another name since torch 2.13; the old one works in all that we run with.
            warnings.simplefilter("ignore", FutureWarning)
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
        elif config.bf16_allreduce:
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped

    def _optimiser(self) -> torch.optim.Optimizer:
        weights, decay = self.model.parameters(), self.config.weight_decay
        rate = self.config.rate(self.world)
        if self.config.optimizer == "sgd":
            return torch.optim.SGD(weights, lr=rate, momentum=0.9, weight_decay=decay)
        kind = torch.optim.AdamW if self.config.optimizer == "adamw" else torch.optim.Adam
        return kind(weights, lr=rate, weight_decay=decay)

    def fit(self) -> list[dict[str, float]]:
        """Train from the checkpoint, if there is one, until the epochs are over or patience is; return the history."""
        self.load()
        for values in self.history:  # of before a resume
            self._tell(values)
        began = time.perf_counter() - self.elapsed
        while self.epoch < self.config.epochs and not self._stale():
            values = {"epoch": self.epoch, **self.train_epoch(), **self.validate()}
            if not np.isfinite([values["loss"], values["validation"]]).all():
                raise ValueError(
                    f"loss {values['loss']}, validation {values['validation']} in epoch {self.epoch}: give a smaller "
                    "learning_rate"
                )
            if values["validation"] < min((v["validation"] for v in self.history), default=np.inf):
                self.best = copy.deepcopy(self.model.state_dict())
            self.history.append(values)
            self.epoch += 1
            self._tell(values)
            if self.rank == 0:
                log.info(
                    "epoch %d of %d: loss %.4f, validation %.4f, %.0f columns/s",
                    self.epoch, self.config.epochs, *(values[name] for name in _TOLD),
                )  # fmt: skip
                write_losses(self.folder, self.history)
            self.elapsed = time.perf_counter() - began
            if self.epoch % self.config.checkpoint_every == 0 or self.epoch == self.config.epochs:
                self.save()
        return self.history

    def _tell(self, values: dict[str, float]) -> None:
        """Report an epoch."""
        epoch = int(values["epoch"]) + 1
        told = {name: values[name] for name in _TOLD}
        self.report(epoch=epoch, **told, progress=epoch / self.config.epochs)

    def _stale(self) -> bool:
        """Whether the validation loss has not become better for as long as patience lasts."""
        losses = [values["validation"] for values in self.history]
        if self.config.patience is None or len(losses) <= self.config.patience:
            return False
        before = min(losses[: -self.config.patience])
        return min(losses[-self.config.patience :]) >= before - self.config.min_delta

    def train_epoch(self) -> dict[str, float]:
        """Go over the training columns once, or over the rest of them after a resume.

        Returns
        -------
        dict
            ``loss``, the mean of all columns, ``learning_rate`` of the last step, ``columns_per_second`` of all ranks.
        """
        self.wrapped.train()
        steps, every = self.config.gradient_accumulation_steps, self.config.checkpoint_steps
        counts, parts = self.shard.counts(), self.shard.batches(self.epoch, self.device)
        if self._graph_unseen:
            self._prime_static_graph(parts[0])
            self._graph_unseen = False
        columns, spent, began = sum(counts[self._batch :]), self.seconds, time.perf_counter()
        while self._batch < len(parts):
            together = slice(self._batch, self._batch + steps)
            self._loss += self._step(parts[together], sum(counts[together]))
            mine = sum(batch.count for batch in parts[together])
            self._count += mine
            self.trained += mine
            self._batch += steps
            if every and self.steps % every == 0 and self._batch < len(parts):
                self.seconds = spent + time.perf_counter() - began
                self.save()
        total = self._whole_total()
        loss = float(total[0] / total[1])  # waits for the GPU
        self.seconds = spent + time.perf_counter() - began
        self._batch = 0
        self._loss.zero_()
        self._count = 0
        rate = self.optimiser.param_groups[0]["lr"]
        return {"loss": loss, "learning_rate": rate, "columns_per_second": columns / (self.seconds - spent)}

    def _step(self, together: list[Batch], count: int) -> Tensor:
        """Take an optimizer step by the gradients of some batches with `count` columns; return the sum of their losses.

        Nothing here waits for the GPU.
        """
        began = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.rate(self.world) * self._warm()
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, batch in enumerate(together):
            last = number == len(together) - 1
            with self._unsynced() if not last else contextlib.nullcontext():
                losses = self._losses(batch)
                # DistributedDataParallel takes the mean over ranks, whatever they have: so that every column counts
                # once, each rank weighs its sum by world / count.
                loss = losses.sum() * ((self.world if self.shares else 1) / count)
                torch.autograd.backward(self.scaler.scale(loss))
            total += losses.detach().double().sum()
        self.scaler.unscale_(self.optimiser)
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.steps += 1
        if log.isEnabledFor(logging.DEBUG):
            spent = 1e3 * (time.perf_counter() - began)
            log.debug(
                "rank %d: step %d, loss %.4f, %.1f ms",
                self.rank, self.steps, total / sum(batch.count for batch in together), spent,
            )  # fmt: skip
        return total

    def _warm(self) -> float:
        return min(1.0, (self.steps + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0

    def _unsynced(self) -> contextlib.AbstractContextManager[None]:
        """Keep gradients to this rank."""
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return contextlib.nullcontext()

    def _prime_static_graph(self, batch: Batch) -> None:
        """Let torch see the static graph in a step that changes nothing.

        It learns it in a process's first step, and fails an assertion of its own where that step is not synchronised.
        """
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        torch.autograd.backward(0.0 * self._losses(batch).sum())
        self.optimiser.zero_grad(set_to_none=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(before[name])

    def _losses(self, batch: Batch) -> Tensor:
        """Weighted losses [b] of a batch."""
        inputs, wanted = self.columns.of(batch.index)
        kind = torch.bfloat16 if self.config.amp_dtype == "bf16" else torch.float16
        with torch.autocast(self.device.partition(":")[0], kind, enabled=self.config.use_amp):
            found = self.wrapped(inputs)
        return loss_of(found, wanted, self.config.loss_weights) * batch.weight

    def validate(self) -> dict[str, float]:
        """``validation``, the mean loss of a held-out column, and of outputs mse and rmse, over all ranks.

        Errors are in standard deviations of the outputs. The model is that of rank 0, whose buffers are saved.
        """
        self.model.eval()
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        with torch.no_grad(), self._buffers_of_rank_0():
            for batch in self.validation.batches(0, self.device):
                inputs, wanted = self.columns.of(batch.index)
                found = self.model(inputs)
                losses = loss_of(found, wanted, self.config.loss_weights)
                each = [(part * batch.weight).sum() for part in (losses, *errors_of(found, wanted))]
                sums += torch.stack([*each, batch.weight.sum()]).double()
        _reduce(sums)
        loss, *errors = (sums[:4] / sums[4]).tolist()
        values = {"validation": loss}
        for name, error in zip(Outputs._fields, errors, strict=True):
            values |= {f"{name}_mse": error, f"{name}_rmse": error**0.5}
        return values

    @contextlib.contextmanager
    def _buffers_of_rank_0(self) -> Iterator[None]:
        """Have the model look the same on all ranks; ranks keep running statistics of their own."""
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        if dist.is_initialized():
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        try:
            yield
        finally:
            for name, buffer in self.model.named_buffers():
                buffer.copy_(before[name])

    def baseline(self) -> float:
        """Validation loss of the mean of the training columns."""
        train, held_out = torch.from_numpy(self.train), torch.from_numpy(self.held_out)
        parts = [self.columns.parts[name] for name in Outputs._fields]
        errors = [float((part[held_out] - part[train].mean(0)).square().mean()) for part in parts]
        return float(np.dot(self.config.loss_weights, errors))

    def predictions(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What the best weights say of the held-out columns, and what is true, in the units of the land."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.best)
        model.eval()
        found, wanted = [], []
        with torch.no_grad():
            for part in torch.split(torch.from_numpy(self.held_out), self.shard.size):
                inputs, true = self.columns.of(part.to(self.device))
                found.append(model(inputs))
                wanted.append(true)
        joined = [
            Outputs(*(torch.cat(part) for part in zip(*parts, strict=True))) for parts in (found, wanted)
        ]
        return self.columns.restored(joined[0]), self.columns.restored(joined[1])

    def _whole_total(self) -> Tensor:
        """(sum, count) of the losses of the epoch so far, over all ranks."""
        total = self._total()
        if self.shares:
            _reduce(total)
        return total

    def _total(self) -> Tensor:
        """(sum, count) of the losses of the epoch so far, of this rank."""
        return torch.stack([self._loss, self._loss.new_tensor(self._count)])

    def save(self) -> None:
        """Write the checkpoint; called by all ranks, rank 0 writes."""
        total = self._whole_total() if self._batch else self._total()
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "seen": self._batch * self.shard.size * self.shard.world,
            "total": total,
            "steps": self.steps,
            "history": self.history,
            "best": self.best,
            "elapsed": self.elapsed,
            "speed": {"world": self.world, "seconds": self.seconds, "trained": self.trained},
            "random": torch.get_rng_state(),
        }
        if self.device.startswith("cuda"):
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        write_checkpoint(self.folder, self.config, state)

    def load(self) -> None:
        """Go on from the checkpoint, where there is one.

        Raises
        ------
        ValueError
            If it is of another model or other data, or stands within an epoch between two batches of this world.
        """
        state = read_checkpoint(self.folder, self.config)
        if state is None:
            return
        batch, rest = divmod(state["seen"], self.shard.size * self.shard.world)
        if rest:
            raise ValueError(
                f"the checkpoint stands after {state['seen']} columns of an epoch, no multiple of a batch of "
                f"{self.shard.size * self.shard.world}: resume with the batch over all ranks that it was made with"
            )
        self.model.load_state_dict(state["model"])
        asked = [{n: v for n, v in g.items() if n != "params"} for g in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, options in zip(self.optimiser.param_groups, asked, strict=True):
            group.update(options)  # those of today, weight_decay say
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.steps, self.history = state["epoch"], state["steps"], state["history"]
        self.best, self._batch = state["best"], batch
        self.elapsed = state["elapsed"]
        if state["speed"]["world"] == self.world:
            self.seconds, self.trained = state["speed"]["seconds"], state["speed"]["trained"]
        if self.rank == 0 or not self.shares:
            self._loss.copy_(state["total"][0])
            self._count = int(state["total"][1])
        torch.set_rng_state(state["random"].cpu())
        if "random_cuda" in state and self.device.startswith("cuda"):
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.device)


def load_data(config: Config) -> land.Land:
    """Land that a training is about.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or malformed.
    """
    if config.data is None:
        return land.generate(config.columns, config.seed)
    return read_land(
        config.data, trust=config.trust, static=config.static_columns, scalars=config.scalar_columns
    )


def _reduce(values: Tensor) -> None:
    """Add up over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
