"""Training of a model by one rank of a gang, or by a process alone."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .average import Average
from .batches import Part, seed_all, seed_begin
from .checkpoint import check_data, read_checkpoint, write_checkpoint
from .config import Config
from .files import RESULTS, write_losses
from .identity import Identity, identity_of
from .measures import check_loss, check_outputs, in_full, sum_of
from .own import data_of, problem_of
from .predictions import arrays_of, in_order
from .problem import Problem, targets_of
from .schedule import rate_factor
from .sharding import gathered, load, load_optimizer, local, recompute, unsynced, wrap

__all__ = ["Trainer"]

log = logging.getLogger("mgpu_nb.training")


class Trainer:
    """Trains a model; every rank of a group makes one.

    Parameters
    ----------
    config
        What to train.
    folder
        Where rank 0 writes the checkpoint and the losses.
    device
        Of torch.
    report
        Called by every rank after each epoch with ``epoch`` (from 1), ``loss``, ``validation``, samples per second and
        ``progress``; of a training that goes on first for each epoch of before.

    Attributes
    ----------
    problem
        Model, data, loss and metrics.
    history
        Of each epoch ``epoch``, what `train_epoch` and `validate` return.
    best
        Weights of the epoch with the smallest validation loss, in shards where the model is.

    Raises
    ------
    ValueError, TypeError
        If the config, the model, the data, the world and the device do not go together.
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
        seed_begin(config.seed)
        self.problem: Problem = problem_of(config, device)
        self.shares = config.distributed_sampler
        self.data, self.validation = data_of(self.problem, size, self.rank, self.world)
        self._check_alike()
        seed_begin(config.seed)  # whatever the data drew
        self.model = self.problem.model().to(device)
        if not any(weight.requires_grad for weight in self.model.parameters()):
            raise ValueError("the model has no weights that require a gradient: there is nothing to train")
        if config.gradient_checkpointing:
            recompute(self.model)
        if config.sync_batch_norm:
            self.model = _synced(self.model)
        self.wrapped: nn.Module = wrap(self.model, config, device)
        self.optimiser = self.problem.optimizer(self.model, config.rate(self.world))
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        scaled = config.use_amp and config.amp_dtype == "fp16"
        self.scaler = torch.amp.GradScaler(device.partition(":")[0], enabled=scaled)
        self.average = Average(self.model, config.ema_decay)
        self.steps = 0
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.elapsed = 0.0  # seconds of `fit`, before a resume as well
        self.seconds, self.trained = 0.0, 0  # this rank spent in training, and samples of it in that time
        self._batch = 0  # where in the epoch
        # Of the samples of the epoch so far: sum of their losses, and their number.
        self._loss, self._count = torch.zeros((), dtype=torch.float64, device=device), self._zero()
        self._graph_unseen = isinstance(self.wrapped, DistributedDataParallel) and config.static_graph

    def _check_alike(self) -> None:
        """Check that all ranks have as much data: with less, one would not come to a collective of the others."""
        every = _all_gathered((self.data.samples, self.validation.samples), self.world)
        for what, counts in zip(("training", "validation"), zip(*every, strict=True), strict=True):
            other = next((rank for rank, count in enumerate(counts) if count != counts[0]), 0)
            if other:
                raise ValueError(
                    f"the {what} data have {counts[0]} {self.problem.unit} on rank 0 and {counts[other]} on rank "
                    f"{other}: data() must give every rank all of them, which the trainer deals over the ranks"
                )

    @property
    def _total_steps(self) -> int | None:
        """Optimizer steps of the whole training."""
        each = self.data.length
        return (
            None if each is None else self.config.epochs * -(-each // self.config.gradient_accumulation_steps)
        )

    @property
    def _speed(self) -> str:
        return f"{self.problem.unit}_per_second"

    def fit(self) -> list[dict[str, float]]:
        """Train from the checkpoint, if there is one, until the epochs are over or patience is; return the history."""
        self.load()
        if self.rank == 0:
            (self.folder / RESULTS).unlink(missing_ok=True)  # of before a resume: they are no longer true
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
                with self.average.applied():
                    self.best = self._state()
            self.history.append(values)
            self.epoch += 1
            self._tell(values)
            if self.rank == 0:
                log.info(
                    "epoch %d of %d: loss %.4f, validation %.4f, %.0f %s/s",
                    self.epoch, self.config.epochs, values["loss"], values["validation"], values[self._speed],
                    self.problem.unit,
                )  # fmt: skip
                write_losses(self.folder, self.history)
            self.elapsed = time.perf_counter() - began
            if self.epoch % self.config.checkpoint_every == 0 or self.epoch == self.config.epochs:
                self.save()
        return self.history

    def _tell(self, values: dict[str, float]) -> None:
        """Report an epoch."""
        epoch = int(values["epoch"]) + 1
        told = {name: values[name] for name in ("loss", "validation", self._speed)}
        self.report(epoch=epoch, **told, progress=epoch / self.config.epochs)

    def _stale(self) -> bool:
        """Whether the validation loss has not become better for as long as patience lasts."""
        losses = [values["validation"] for values in self.history]
        if self.config.patience is None or len(losses) <= self.config.patience:
            return False
        before = min(losses[: -self.config.patience])
        return min(losses[-self.config.patience :]) >= before - self.config.min_delta

    def train_epoch(self) -> dict[str, float]:
        """Go over the training data once, or over the rest of them after a resume.

        Returns
        -------
        dict
            ``loss``, the mean of all samples, ``learning_rate`` of the last step, ``samples_per_second`` of all ranks.
        """
        self.wrapped.train()
        every = self.config.checkpoint_steps
        spent, began, samples = self.seconds, time.perf_counter(), 0
        parts = self.data.parts(self.epoch, self._batch)
        for together, last in _grouped(parts, self.config.gradient_accumulation_steps):
            if self._graph_unseen:
                self._prime_static_graph(together[0])
                self._graph_unseen = False
            loss, count = self._step(together, sum(part.whole for part in together))
            self._loss += loss
            self._count += count
            samples += sum(part.whole for part in together)
            self.trained += sum(part.real for part in together)
            self._batch += len(together)
            if every and self.steps % every == 0 and not last:
                self.seconds = spent + time.perf_counter() - began
                self.save()
        total = self._whole_total()
        if not total[1]:
            raise ValueError(f"epoch {self.epoch} had no {self.problem.unit}: is the training dataset empty?")
        mean = float(total[0] / total[1])  # waits for the GPU
        self.seconds = spent + time.perf_counter() - began
        self._batch = 0
        self._loss.zero_()
        self._count = self._zero()
        rate = self.optimiser.param_groups[0]["lr"]
        return {"loss": mean, "learning_rate": rate, self._speed: samples / (self.seconds - spent)}

    def _step(self, together: list[Part], whole: int) -> tuple[Tensor, Tensor]:
        """Take an optimizer step by the gradients of some batches, of `whole` samples over all ranks.

        Nothing here waits for the GPU.

        Returns
        -------
        tuple of Tensor
            Sum of the losses of this rank, and their number.
        """
        began = time.perf_counter()
        losses = [values["validation"] for values in self.history]
        factor = rate_factor(self.config, self.steps, self._total_steps, losses)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        seed_all(
            self.config.seed, self.steps * self.world + self.rank, self.device
        )  # dropout is that of the step
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        counted = self._zero()
        own = False  # whether the loss has counts of its own
        for number, part in enumerate(together):
            last = number == len(together) - 1
            with contextlib.nullcontext() if last else unsynced(self.wrapped):
                loss, count = sum_of(self._measure(part, self.wrapped), part, "loss")
                check_loss(loss)
                own = own or isinstance(count, Tensor)
                # The mean over ranks is taken, whatever they have: so that every sample counts once, each rank weighs
                # its sum by world / count.
                weighed = loss.sum() * ((self.world if self.shares else 1) / whole)
                torch.autograd.backward(self.scaler.scale(weighed))
            total += loss.detach().double().sum()
            counted += count
        self.scaler.unscale_(self.optimiser)
        if own:
            self._weigh(counted, whole)
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.steps += 1
        self.average.update()
        if log.isEnabledFor(logging.DEBUG):
            spent = 1e3 * (time.perf_counter() - began)
            log.debug(
                "rank %d: step %d, loss %.4f, %.1f ms",
                self.rank,
                self.steps,
                total / counted,
                spent,
            )
        return total, counted

    def _weigh(self, counted: Tensor, whole: int) -> None:
        """Divide gradients by the number that the losses count, over all ranks, in place of the number of samples."""
        count = counted.clone()
        if self.shares:
            _reduce(count)
        factor = torch.where(count > 0, whole / count, 0.0).float()  # a sum of weights may be less than one
        for weight in self.model.parameters():
            if weight.grad is not None:
                local(weight.grad).mul_(factor)

    def _prime_static_graph(self, part: Part) -> None:
        """Check what DistributedDataParallel will see and let it see the static graph, in a step that changes nothing.

        It learns it in a process's first step, and fails an assertion of its own where that step is not synchronised.
        """
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with torch.no_grad():
            check_outputs(self.problem.forward(self.model, self.data.load(part)))
        if self.config.gradient_accumulation_steps > 1:
            loss, _ = sum_of(self._measure(part, self.wrapped), part, "loss")
            torch.autograd.backward(0.0 * loss.sum())
            self.optimiser.zero_grad(set_to_none=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(before[name])

    def _measure(self, part: Part, model: nn.Module) -> Any:
        """Loss of a batch."""
        batch = self.data.load(part)
        kind = torch.bfloat16 if self.config.amp_dtype == "bf16" else torch.float16
        with torch.autocast(self.device.partition(":")[0], kind, enabled=self.config.use_amp):
            return self.problem.loss(self.problem.forward(model, batch), targets_of(batch))

    def validate(self) -> dict[str, float]:
        """``validation``, the mean loss of the held-out samples, and their metrics, over all ranks.

        The model is that of rank 0, whose buffers are saved; where weights are averaged, the average.
        """
        sums: dict[str, Tensor] = {}
        for part, outputs, targets in self._held_out():
            metrics = self.problem.metrics(outputs, targets)
            self._check_names(metrics)
            if not sums and not self.history:
                # To hear now, not after the last epoch, what is wrong with it.
                arrays_of(self.problem.predict(outputs, targets), part, self.problem.unit)
            for name, measure in {"validation": self.problem.loss(outputs, targets), **metrics}.items():
                value, count = sum_of(in_full(measure), part, name)
                pair = torch.stack(
                    [
                        value.sum().double().to(self.device),
                        torch.as_tensor(count, device=self.device).double(),
                    ]
                )
                sums[name] = sums[name] + pair if name in sums else pair
        if not sums:
            raise ValueError("the validation dataset is empty")
        # A metric may be there of some batches only, of a class that is seldom say, so not on every rank.
        names = list(dict.fromkeys(name for names in _all_gathered(list(sums), self.world) for name in names))
        table = torch.stack([sums.get(name, torch.zeros_like(sums["validation"])) for name in names])
        _reduce(table)
        values: dict[str, float] = {}
        for name, mean in zip(names, (table[:, 0] / table[:, 1]).tolist(), strict=True):
            values[name] = mean
            if name.endswith("_mse"):
                values[f"{name.removesuffix('_mse')}_rmse"] = mean**0.5
        return values

    def _check_names(self, metrics: Mapping[str, Any]) -> None:
        """Check that no metric is called as something that the trainer tells itself."""
        roots = {f"{name.removesuffix('_mse')}_rmse" for name in metrics if name.endswith("_mse")}
        taken = {"epoch", "loss", "validation", "learning_rate", self._speed, *roots}
        if odd := sorted(taken & set(metrics)):
            raise ValueError(
                f"metrics: {', '.join(odd)} is a column of the trainer's own: give it another name"
            )

    def _held_out(self, averaged: bool = True) -> Iterator[tuple[Part, Any, Any]]:
        """Parts of this rank of the held-out data, with outputs and targets."""
        self.model.eval()
        weights = self.average.applied() if averaged else contextlib.nullcontext()
        with torch.no_grad(), self._buffers_of_rank_0(), weights:
            for part in self.validation.parts(0):
                batch = self.validation.load(part)
                yield part, self.problem.forward(self.model, batch), targets_of(batch)

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

    def predictions(self) -> dict[str, np.ndarray]:
        """What `Problem.predict` gives of the held-out samples by the best weights, in order; called by all ranks.

        Returns
        -------
        dict
            On rank 0 arrays by name, and ``index``, the numbers of the samples; on the others nothing.
        """
        now = self._state()
        self.model.load_state_dict(self.best)
        mine: list[dict[str, np.ndarray]] = []
        for part, outputs, targets in self._held_out(averaged=False):  # the best weights are averages already
            found = arrays_of(self.problem.predict(outputs, targets), part, self.problem.unit)
            if part.real and found:
                mine.append({"index": part.numbers.cpu().numpy(), **found})
        self.model.load_state_dict(now)
        return in_order(_gather(mine, self.rank, self.world))

    def _whole_total(self) -> Tensor:
        """(sum, count) of the losses of the epoch so far, over all ranks."""
        total = self._total()
        if self.shares:
            _reduce(total)
        return total

    def _total(self) -> Tensor:
        """(sum, count) of the losses of the epoch so far, of this rank."""
        return torch.stack([self._loss, self._count])

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.device)

    def _state(self) -> dict[str, Tensor]:
        """Copy of the weights and buffers of now, in shards where the model is."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def held_bytes(self) -> int:
        """Bytes of weights, gradients and optimizer states that this rank holds."""
        held: list[Tensor] = list(self.model.parameters())
        held += [weight.grad for weight in held if weight.grad is not None]
        held += [
            value
            for values in self.optimiser.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
        return sum(local(each).nbytes for each in held)

    def save(self) -> None:
        """Write the checkpoint; called by all ranks, rank 0 writes."""
        total = self._whole_total() if self._batch else self._total()
        keep = self.rank == 0
        shards = {
            "model": gathered(self.model.state_dict(), keep),
            "optimiser": gathered(self.optimiser.state_dict(), keep),
            "best": gathered(self.best, keep),
            "average": self.average.state(keep),
        }
        if not keep:
            return
        state = {
            **shards,
            "data": self._identity(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "seen": self._batch * self.data.size * self.data.world,
            "total": total,
            "steps": self.steps,
            "history": self.history,
            "elapsed": self.elapsed,
            "speed": {"world": self.world, "seconds": self.seconds, "trained": self.trained},
        }
        write_checkpoint(self.folder, self.config, state)

    def _identity(self) -> Identity:
        return identity_of(
            (self.data.samples, self.data.content), (self.validation.samples, self.validation.content)
        )

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
        if "data" in state:  # former versions did not write them
            check_data(self.folder, self.config, state["data"], self._identity(), self.problem.unit)
        batch, rest = divmod(state["seen"], self.data.size * self.data.world)
        if rest:
            raise ValueError(
                f"the checkpoint stands after {state['seen']} {self.problem.unit} of an epoch, no multiple of a batch "
                f"of {self.data.size * self.data.world}: resume with the batch over all ranks that it was made with"
            )
        try:
            self.average.load(state["model"], state.get("average"))
            load(self.model, state["best"] or state["model"])
            self.best = self._state()
            load(self.model, state["model"])
            load_optimizer(self.optimiser, state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"the checkpoint in {self.folder} is of another model or optimizer: {error}. Give another output_dir"
            ) from error
        if not state["best"]:
            self.best = {}
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.steps, self.history = state["epoch"], state["steps"], state["history"]
        self._batch = batch
        self.elapsed = state["elapsed"]
        if state["speed"]["world"] == self.world:
            self.seconds, self.trained = state["speed"]["seconds"], state["speed"]["trained"]
        if self.rank == 0 or not self.shares:
            self._loss.copy_(state["total"][0])
            self._count.copy_(state["total"][1])


def _synced(model: nn.Module) -> nn.Module:
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ValueError("sync_batch_norm: the model has no batch norm; leave it out")
    synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return synced


def _grouped(parts: Iterator[Part], count: int) -> Iterator[tuple[list[Part], bool]]:
    """Groups of so many parts, and whether it is the last."""
    group = list(islice(parts, count))
    while group:
        following = list(islice(parts, count))
        yield group, not following
        group = following


def _gather(mine: list[Any], rank: int, world: int) -> list[Any]:
    """Items of all ranks on rank 0, nothing on the others."""
    if not dist.is_initialized():
        return mine
    every: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(mine, every)
    return [] if every is None else [item for items in every for item in items]


def _all_gathered(mine: Any, world: int) -> list[Any]:
    """What each rank has, on all ranks."""
    if not dist.is_initialized():
        return [mine]
    every: list[Any] = [None] * world
    dist.all_gather_object(every, mine)
    return every


def _reduce(values: Tensor) -> None:
    """Add up over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
