"""Memory of devices: how much there is, who holds it, and the largest batches that fit, found by trying."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ...context import Worker, cached, worker
from ...hardware.host import memory as host_memory
from ...hardware.host import resident
from ...hardware.slots import devices
from ...pool import GPUPool
from ...studies.batch_size import largest_batch
from .batches import Tokens
from .config import Config
from .datasets import load_examples
from .generate import Policy
from .job import Pair
from .laws import law_named
from .models import checkpoint_activations, load_model, load_tokenizer
from .settings import Settings, ValueGuided, load_settings
from .value import Guided, ValueModel
from .value_rows import value_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "DeviceMemory",
    "Trial",
    "device_memory",
    "largest_batches",
    "largest_here",
    "memory_here",
    "memory_lines",
    "random_tokens",
    "trials",
]

T = TypeVar("T")
LARGEST = 256
"""Largest batch that is tried by default."""


class DeviceMemory(NamedTuple):
    """Memory of a device, as one process sees it.

    Attributes
    ----------
    device
        ``GPU 0``, or ``CPU 0`` for a virtual device; these share the RAM of the machine.
    allocated
        Bytes of tensors; on a CPU the resident bytes of the process.
    reserved
        Bytes that torch has taken from the driver; on a CPU as `allocated`.
    total
        Bytes of the device; on a CPU of the machine, or of its container.
    """

    device: str
    allocated: int
    reserved: int
    total: int


def memory_lines(found: Iterable[DeviceMemory]) -> list[str]:
    """Lines of a summary, in units of 2**30 bytes: ``GPU 0: 45.23 GB allocated, 48.50 GB reserved, 80.00 GB total``."""
    lines = ["GPU Memory Summary:"]
    for each in found:
        used = f"{each.allocated / 2**30:.2f} GB allocated, {each.reserved / 2**30:.2f} GB reserved"
        cpu = " (no GPU: the process, and the RAM that all slots share)" * (" CPU" in f" {each.device}")
        lines.append(f"  {each.device}: {used}, {each.total / 2**30:.2f} GB total{cpu}")
    return lines


def device_memory() -> list[DeviceMemory]:
    """Memory of all GPUs as this process uses it, or of the machine if there is none. CUDA is not initialised."""
    gpus = devices().gpus
    if not gpus:
        return [memory_here(Worker(slot=0, device="cpu", devices=("cpu",), gpu_id=None, uuid=""))]
    used = torch.cuda.is_initialized()  # else nothing is allocated
    return [
        DeviceMemory(
            f"GPU {gpu.index}",
            torch.cuda.memory_allocated(gpu.index) if used else 0,
            torch.cuda.memory_reserved(gpu.index) if used else 0,
            gpu.total or 0,
        )
        for gpu in gpus
    ]


def memory_here(here: Worker) -> DeviceMemory:
    """Memory of the device of a worker, in its process."""
    if here.device.startswith("cuda"):
        total = torch.cuda.get_device_properties(here.device).total_memory
        name = "GPU" if here.gpu_id is None else f"GPU {here.gpu_id}"
        return DeviceMemory(
            name, torch.cuda.memory_allocated(here.device), torch.cuda.memory_reserved(here.device), total
        )
    held = resident(os.getpid()) or 0
    name = here.uuid.upper().replace(":", " ") or "CPU"
    return DeviceMemory(name, held, held, host_memory()[0])


@dataclass(frozen=True)
class Trial:
    """What is tried with larger and larger batches.

    Attributes
    ----------
    what
        ``generation``: completions of random prompts by the reference, guided if `guided` says how.
        ``training``: a step of AdamW of a copy of the reference, whose log-probabilities are compared with the
        reference's, for two completions an example, as DPO has them.
        ``guide``: a step of AdamW of the value model, beside the reference.
    pair
        The models.
    prompt_tokens, new_tokens
        Longest prompt and longest completion of the data sets.
    attn_impl, gradient_checkpointing
        See the settings.
    guided
        Settings of the algorithm that has the largest value model; None if none has one.
    """

    what: str
    pair: Pair
    prompt_tokens: int
    new_tokens: int
    attn_impl: str
    gradient_checkpointing: bool
    guided: ValueGuided | None = None

    def __call__(self, size: int) -> None:
        """Try a batch of `size` in this process, on the device of its worker.

        Raises
        ------
        torch.OutOfMemoryError, MemoryError, RuntimeError
            If it does not fit.
        """
        here = worker()
        _free(here.device)
        try:
            reference = _model(self.pair.reference, here.device, self.attn_impl)
            if self.what == "generation":
                self._generate(size, reference)
            elif self.what == "guide":
                self._train_guide(size, reference)
            else:
                self._train(size, reference)
        finally:
            _free(here.device)

    def _generate(self, size: int, reference: PreTrainedModel) -> None:
        tokenizer = load_tokenizer(self.pair.reference)
        prompts = random_tokens(size, self.prompt_tokens, tokenizer.size).tolist()
        guidance = (
            None if self.guided is None else Guided(self._value_model(reference), 1.0, self.guided.top_k)
        )
        # Without an end no completion is shorter than it may be.
        policy = Policy(reference, end_id=-1, pad_id=tokenizer.pad_id, guidance=guidance, halve=False)
        seeds = [(n,) for n in range(size)]
        policy.generate(prompts, seeds, max_new_tokens=self.new_tokens, top_p=0.9, batch_size=size)

    def _train(self, size: int, reference: PreTrainedModel) -> None:
        model = self._loaded(self.pair.reference, reference)
        ids = self._rows(2 * size, reference)
        chosen = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), -1)
        with torch.no_grad():
            before = torch.log_softmax(reference(input_ids=ids, use_cache=False).logits.float(), -1)
        _step(model, (chosen - before).pow(2).mean())

    def _train_guide(self, size: int, reference: PreTrainedModel) -> None:
        model = self._value_model(reference)
        ids = self._rows(size, reference)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        tokens = Tokens(ids, torch.ones_like(ids), positions)
        chosen = ids[:, -self.new_tokens :]
        batch = {
            **tokens._asdict(),
            "chosen": chosen,
            "kept": torch.ones_like(chosen, dtype=torch.bool),
            "targets": torch.zeros(size, device=ids.device),
        }
        assert self.guided is not None  # noqa: S101 (`trials` looked)
        _step(
            model,
            value_loss(model, batch, reference, top_k=self.guided.top_k, penalty=self.guided.value_penalty),
        )

    def _value_model(self, reference: PreTrainedModel) -> ValueModel:
        assert self.guided is not None  # noqa: S101 (`trials` looked)
        law = law_named(self.guided.law, self.guided.atoms)
        guide = self._loaded(self.pair.guide, reference)
        return ValueModel(guide.base_model, reference.config.vocab_size, law)

    def _loaded(self, path: str, reference: PreTrainedModel) -> PreTrainedModel:
        model = load_model(path, device=reference.device, attn_impl=self.attn_impl, train=True)
        if self.gradient_checkpointing and self.what != "generation":
            checkpoint_activations(model)
        return model

    def _rows(self, rows: int, reference: PreTrainedModel) -> Tensor:
        vocabulary = load_tokenizer(self.pair.reference).size
        return random_tokens(rows, self.prompt_tokens + self.new_tokens, vocabulary).to(reference.device)


def _step(model: nn.Module, loss: Tensor) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0)
    torch.autograd.backward(loss)
    optimiser.step()


@cached(1)
def _model(path: str, device: str, attn_impl: str) -> PreTrainedModel:
    """Reference that all trials of a worker share."""
    return load_model(path, device=device, attn_impl=attn_impl)


def random_tokens(rows: int, columns: int, vocabulary: int) -> Tensor:
    """Random tokens: memory depends on their number alone."""
    return torch.randint(vocabulary, (rows, columns), generator=torch.Generator().manual_seed(0))


def _free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def trials(settings: Settings) -> list[Trial]:
    """What settings need to fit: of each pair of models generation, and the trainings of the algorithms.

    Raises
    ------
    ValueError, OSError
        If models or data cannot be read.
    """
    found = []
    guided = [algo for algo in settings.algos.values() if isinstance(algo, ValueGuided)]
    largest = max(
        guided,
        key=lambda algo: (algo.atoms if algo.law == "categorical" else 1, algo.value_penalty > 0),
        default=None,
    )
    for family, pair in settings.models.items():
        tokenizer = load_tokenizer(pair.reference)
        prompts, completions = [1], [1]
        for name, dataset in settings.datasets.items():
            examples = load_examples(dataset, "test", settings.evaluation.max_examples)
            prompts += [len(tokenizer.encode(example.prompt)) for example in examples]
            completions.append(settings.generation_for(name).max_new_tokens)
        whats = ["generation"] + ["training"] * (len(guided) < len(settings.algos)) + ["guide"] * bool(guided)
        found += [
            Trial(
                what,
                Pair(family, pair.reference, pair.guide),
                max(prompts),
                max(completions),
                settings.system.attn_impl,
                settings.training.gradient_checkpointing,
                largest,
            )
            for what in whats
        ]
    return found


def largest_batches(
    config: Config, pool: GPUPool, *, largest: int = LARGEST, progress: bool | None = None
) -> dict[tuple[str, str], int]:
    """Largest batches that fit on a device of a pool, by family and what is tried, see `Trial`.

    Parameters
    ----------
    config
        Options of an alignment: its models, data sets and settings.
    pool
        Where to try; one trial at a time.
    largest
        Largest batch to try. On a CPU what does not fit may be ended by the operating system, or take long.
    progress
        See `largest_batch`.
    """
    return {
        (trial.pair.family, trial.what): largest_batch(
            trial, pool, limit=largest, tolerance=0.1, progress=progress
        )
        for trial in trials(load_settings(config))
    }


def largest_here(trial: Trial, largest: int) -> int:
    """Largest batch that fits on the device of this worker."""
    return largest_batch(trial, _Here(), limit=largest, tolerance=0.1, progress=False)


class _Here(Executor):
    """Runs what it is given at once, in this process."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Future that has ended."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # the caller's, as of any executor
            future.set_exception(error.with_traceback(None))  # its frames hold tensors
        return future
