"""Batches of a dataset: in one order for any number of ranks, from any place of an epoch on.

Batch `k` of an epoch has the same samples for every world, dealt over its ranks. Random numbers follow the sample: what
a dataset draws from torch, numpy or random for sample `i` of epoch `e` is the same on every rank, in every loader
process and after a resume.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from ...tasks import derive_seed
from .columns import Shard
from .identity import Content

__all__ = ["Batches", "Part", "batches_of", "is_stream", "seed_all", "seed_begin", "split"]

log = logging.getLogger("mgpu_nb.training")

EPOCHS = 2**40  # more samples than an epoch has: no two share a seed


class Part(NamedTuple):
    """A rank's part of a batch.

    Attributes
    ----------
    content
        The batch, on the CPU, or what `Batches.load` makes it of.
    numbers
        Numbers of its samples [b]; of a stream their places in it.
    real
        How many of them count: all, or none of the one that is there only because a rank cannot have none.
    whole
        How many count over all ranks.
    """

    content: Any
    numbers: Tensor
    real: int
    whole: int


class Batches:
    """A rank's part of the batches of a dataset.

    Attributes
    ----------
    size, world
        Samples per rank and batch; number of ranks that share a batch.
    length
        Number of batches of an epoch; None where only going through them tells.
    samples
        Number of samples that are dealt over ranks; None likewise.
    content
        What is known of the content of the dataset.
    """

    def __init__(self, size: int, rank: int, world: int, device: str) -> None:
        self.size, self.rank, self.world, self.device = size, rank, world, device
        self.length: int | None = None
        self.samples: int | None = None
        self.content: Content = []

    def parts(self, epoch: int, start: int = 0) -> Iterator[Part]:
        """Parts of this rank of the batches of an epoch, from batch `start` on."""
        raise NotImplementedError

    def load(self, part: Part) -> Any:
        """Batch of a part, on the device."""
        return _moved(part.content, self.device)


class _Dealt(Batches):
    """Batches of a dataset whose samples are numbered.

    Parameters
    ----------
    index
        Numbers of the samples [n].
    seed
        Seed of the order; None for ascending.
    """

    def __init__(
        self, index: np.ndarray, size: int, rank: int, world: int, seed: int | None, device: str
    ) -> None:
        super().__init__(size, rank, world, device)
        self._shard = Shard(index, size, rank, world, seed=seed)
        self._counts = self._shard.counts()
        self.length, self.samples = len(self._counts), len(index)


class _Arrays(_Dealt):
    """Batches of a dataset that makes a batch at once, by ``batch(index)``, of tensors on its ``device``.

    Its samples are numbered from 0, or as its ``sample_numbers`` say.
    """

    def __init__(self, dataset: Any, *dealt: Any) -> None:
        super().__init__(*dealt)
        self._dataset = dataset

    def parts(self, epoch: int, start: int = 0) -> Iterator[Part]:
        parts = self._shard.batches(epoch, str(self._dataset.device))
        for part, whole in zip(parts[start:], self._counts[start:], strict=True):
            yield Part(part.index, part.index, part.count, whole)

    def load(self, part: Part) -> Any:
        return _moved(self._dataset.batch(part.content), self.device)


class _Tensors:
    """A TensorDataset that makes a batch at once: its samples collated, without a Python object for each."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.device = tensors[0].device

    def batch(self, index: Tensor) -> list[Tensor]:
        return [tensor[index] for tensor in self.tensors]


class _Items(_Dealt):
    """Batches of a map-style dataset; through a DataLoader where processes of their own load them, or a GPU waits."""

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], Any], seed: int, workers: int, *dealt: Any
    ) -> None:
        super().__init__(*dealt)
        self._dataset, self._workers = dataset, workers
        self._collated = _Collated(dataset, collate, seed)

    def parts(self, epoch: int, start: int = 0) -> Iterator[Part]:
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        parts = self._shard.batches(epoch)[start:]
        keys = [(epoch, part.index.tolist()) for part in parts]
        pinned = self.device.startswith("cuda")
        batches: Iterable[Any] = map(self._collated.__getitem__, keys)
        if self._workers or pinned:
            batches = DataLoader(
                self._collated, batch_size=None, sampler=keys, num_workers=self._workers,
                collate_fn=_as_it_is, pin_memory=pinned,
            )  # fmt: skip
        for content, part, whole in zip(batches, parts, self._counts[start:], strict=True):
            yield Part(content, part.index, part.count, whole)


class _Collated(Dataset[Any]):
    """Batches of a dataset by epoch and numbers of their samples, each sample with random numbers of its own.

    Most datasets draw from torch, if at all: the other generators, which take most of the time, are seeded for the
    first sample of a batch alone until a batch has drawn from them. That one is made again. Of a dataset that fetches
    several samples at once this holds for all generators.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self._dataset, self._collate, self._seed = dataset, collate, seed
        self._draws = False
        self._at_once = _fetches_at_once(dataset)

    def __getitem__(self, key: tuple[int, list[int]]) -> Any:
        epoch, numbers = key
        first = epoch * EPOCHS
        if not self._draws:
            seed_all(self._seed, first + numbers[0])
            torchs, others = torch.get_rng_state(), _others()
            at_once = self._at_once
            batch = self._collate(
                self._dataset.__getitems__(numbers) if at_once else self._samples(first, numbers, _seed_torch)
            )
            drawn = at_once and not torch.equal(torch.get_rng_state(), torchs)
            if not drawn and _others() == others:
                return batch
            self._draws = True
        return self._collate(self._samples(first, numbers, seed_all))

    def _samples(self, first: int, numbers: list[int], seed: Callable[[int, int], object]) -> list[Any]:
        """Samples, one after the other, each after generators were seeded for it."""
        samples = []
        for number in numbers:
            seed(self._seed, first + number)
            samples.append(self._dataset[number])
        return samples


def _fetches_at_once(dataset: Any) -> bool:
    """Whether a dataset has a way of its own to fetch several samples; a Subset has it of what it is a part of."""
    while isinstance(dataset, Subset) and type(dataset).__getitems__ is Subset.__getitems__:
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__")


class _Stream(Batches):
    """Batches of an iterable dataset: every rank reads all of it and keeps each `world`-th sample."""

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], Any], seed: int, workers: int, *place: Any
    ) -> None:
        super().__init__(*place)
        self._dataset, self._collate, self._seed, self._workers = dataset, collate, seed, workers
        if hasattr(dataset, "__len__"):
            with contextlib.suppress(TypeError):  # so a sum of streams says that it does not know
                self.samples = len(dataset)
                self.length = -(-self.samples // (self.size * self.world))

    def parts(self, epoch: int, start: int = 0) -> Iterator[Part]:
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        read = _Read(
            self._dataset, self._collate, self._seed, epoch, start, (self.size, self.rank, self.world)
        )
        pinned = self.device.startswith("cuda")
        loader: DataLoader[Part] = DataLoader(
            read, batch_size=None, num_workers=self._workers, collate_fn=_as_it_is, pin_memory=pinned
        )
        count = start
        for part in loader:
            count += 1
            yield part
        if self.length not in (None, count) and self.rank == 0:
            log.warning(
                "the length of %s says %s batches and it gave %d: mend its __len__, by which schedule='cosine' goes",
                type(self._dataset).__name__, self.length, count,
            )  # fmt: skip


class _Read(IterableDataset[Part]):
    """Parts of a rank of an iterable dataset, which has random numbers of its own."""

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        seed: int,
        epoch: int,
        start: int,
        dealt: tuple[int, int, int],
    ) -> None:
        self._dataset, self._collate, self._seed = dataset, collate, seed
        self._epoch, self._start, self._dealt = epoch, start, dealt

    def __iter__(self) -> Iterator[Part]:
        size, rank, world = self._dealt
        seed_all(self._seed, self._epoch)
        samples, state = iter(self._dataset), _state()
        for number in itertools.count():
            _set(state)  # the training has drawn since
            group = list(itertools.islice(samples, size * world))
            if not group:
                return
            state = _state()
            if number < self._start:
                continue
            seed_all(self._seed, self._epoch * EPOCHS + number + 1)
            mine = group[rank::world]
            places = torch.arange(len(group))[rank::world] if mine else torch.zeros(1, dtype=torch.long)
            content = self._collate(mine or group[:1])
            yield Part(content, number * size * world + places, len(mine), len(group))


def batches_of(
    dataset: Any,
    index: np.ndarray | None,
    *,
    collate: Callable[[list[Any]], Any] | None,
    size: int,
    rank: int,
    world: int,
    seed: int,
    shuffle: bool,
    device: str,
    workers: int,
    what: str,
) -> Batches:
    """Batches of a dataset.

    Parameters
    ----------
    dataset
        A map-style dataset, an iterable one, or one with ``batch(index)`` and ``device``.
    index
        Numbers of the samples of a map-style dataset that are meant; None for all.
    collate
        Function that makes a batch of a list of samples; None for torch's.
    size, rank, world
        Samples per rank and batch, and which rank of how many.
    seed
        Seed of the order and of the samples' random numbers.
    shuffle
        Whether the order is random; that of an iterable dataset is its own.
    device
        Where batches go.
    workers
        Number of processes that load samples.
    what
        What the dataset is for, in messages.

    Raises
    ------
    TypeError
        If it is no dataset of single samples.
    ValueError
        If it is empty, can be read once only, or is iterable and `workers` are several.
    """
    if isinstance(dataset, DataLoader):
        raise TypeError(
            f"the {what} data are a DataLoader, which makes batches itself: give its dataset; batch_size, collate and "
            "loader_workers are options of the training"
        )
    if isinstance(dataset, Mapping):
        names = ", ".join(map(repr, list(dataset)[:5]))
        raise TypeError(
            f"the {what} data are a mapping, of {names}: give the datasets, as (data['train'], data['validation'])"
        )
    if hasattr(dataset, "iloc"):  # of pandas, where data[0] is a column
        raise TypeError(
            f"the {what} data are a {type(dataset).__name__} of pandas, which is no dataset: give its rows, as "
            "TensorDataset(torch.tensor(frame[inputs].values), torch.tensor(frame[target].values)) say"
        )
    if is_stream(dataset):
        if isinstance(dataset, Iterator):
            raise ValueError(
                f"the {what} data are an iterator, which can be read once: give an iterable dataset"
            )
        if workers > 1:
            raise ValueError(
                f"loader_workers={workers}: each would read the whole of the iterable {what} dataset; give 0 or 1"
            )
        return _Stream(dataset, collate or default_collate, seed, workers, size, rank, world, device)
    if not hasattr(dataset, "__len__") or not (hasattr(dataset, "__getitem__") or hasattr(dataset, "batch")):
        raise TypeError(f"the {what} data are a {type(dataset).__name__}, which is no dataset")
    if not len(dataset):
        raise ValueError(f"the {what} dataset is empty")
    makes_batches = callable(getattr(dataset, "batch", None)) and hasattr(dataset, "device")
    if index is None:
        own = getattr(dataset, "sample_numbers", None) if makes_batches else None
        index = np.arange(len(dataset)) if own is None else own
    dealt = (index, size, rank, world, seed if shuffle else None, device)
    if makes_batches:
        return _Arrays(dataset, *dealt)
    if type(dataset) is TensorDataset and collate is None:
        return _Arrays(_Tensors(dataset.tensors), *dealt)
    return _Items(dataset, collate or default_collate, seed, workers, *dealt)


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is iterable, not map-style."""
    if isinstance(dataset, IterableDataset):
        return True
    return isinstance(dataset, Iterable) and not hasattr(dataset, "__getitem__")


def split(count: int, share: float, seed: int, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the samples for training and of those held out, both in ascending order.

    Raises
    ------
    ValueError
        If there are too few.
    """
    order = np.random.default_rng(seed).permutation(count)
    kept = max(1, round(share * count))
    if kept >= count:
        raise ValueError(f"{count} {unit} cannot be split for validation: give more")
    return np.sort(order[kept:]), np.sort(order[:kept])


def seed_begin(seed: int) -> None:
    """Seed torch, numpy and random for what a user's functions draw at the beginning: the same in each process."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_all(seed: int, number: int, device: str = "cpu") -> None:
    """Seed torch, on a GPU as well, numpy and random."""
    own = _seed_torch(seed, number)
    if device.startswith("cuda"):
        torch.cuda.manual_seed(own)
    np.random.seed(own % 2**32)
    random.seed(own % 2**32)  # a third faster than with a longer one


def _seed_torch(seed: int, number: int) -> int:
    """Seed torch on the CPU; with what."""
    own = derive_seed(seed, number)
    torch.default_generator.manual_seed(own)  # torch.manual_seed asks for every kind of device, for 0.5 ms
    return own


def _others() -> tuple[Any, ...]:
    """What changes with every number that is drawn from numpy or random."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if isinstance(generator, np.random.MT19937):
        # Its words and the place among them, in a hundredth of the time that numpy takes to describe them.
        drawn: Any = ctypes.string_at(generator.ctypes.state_address, 625 * 4)
    else:
        drawn = repr(generator.state)
    return drawn, random.getstate()


def _state() -> tuple[Any, ...]:
    """State of the random numbers of torch on the CPU, of numpy and of random."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])


def _as_it_is(batch: Any) -> Any:
    return batch


def _moved(batch: Any, device: str) -> Any:
    """Batch with its tensors on a device: in tuples, lists, mappings, and what has a method ``to``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, PackedSequence):  # a named tuple, a part of which stays on the CPU
        return cast("Any", batch).to(device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(part, device) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_moved(part, device) for part in batch)
    if isinstance(batch, Mapping):
        return {name: _moved(part, device) for name, part in batch.items()}
    return batch.to(device) if hasattr(batch, "to") else batch
