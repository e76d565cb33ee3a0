"""The problem that is trained by default: the emulator of a land."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import land
from .batches import split
from .columns import Columns
from .config import Config
from .emulator import Emulator, Inputs, Outputs, errors_of, loss_of
from .figures import figures_of
from .files import write_land_results
from .identity import Content, Identity, arrays_digest, identity_of
from .layout import OUTPUTS, TARGET
from .problem import Problem
from .reader import read_land
from .reading import reading_of

__all__ = ["ColumnSet", "Emulation", "load_data"]


class ColumnSet:
    """Dataset of some columns of a land, whose batches are made at once, on the device of its tensors.

    Parameters
    ----------
    columns
        Normalised columns.
    sample_numbers
        Numbers of those that are in it [n].
    content_digest
        Digest of the land, for a resume to compare; empty if options tell which land it is.
    """

    def __init__(self, columns: Columns, sample_numbers: np.ndarray, content_digest: str = "") -> None:
        self.columns, self.sample_numbers, self.content_digest = columns, sample_numbers, content_digest
        self.device = columns.parts["series"].device

    def __len__(self) -> int:
        return len(self.sample_numbers)

    def __getitem__(self, place: int) -> tuple[Inputs, Outputs]:
        """Inputs and outputs of one column, without a batch dimension."""
        inputs, outputs = self.batch(torch.tensor([self.sample_numbers[place]], device=self.device))
        return Inputs(*(part[0] for part in inputs)), Outputs(*(part[0] for part in outputs))

    def batch(self, index: Tensor) -> tuple[Inputs, Outputs]:
        """Inputs and outputs of the columns of these numbers [b]."""
        return self.columns.of(index)


class Emulation(Problem):
    """Emulator of a land, its columns, the weighted sum of its squared errors.

    Attributes
    ----------
    columns
        All columns, normalised.
    train, held_out
        Numbers of those for training and of those held out.
    land
        Those held out, as they were read.
    sizes
        Sizes of inputs and outputs, for which the emulator is built.
    """

    unit = "columns"

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__(config, device)
        self.columns: Columns
        self.land: land.Land
        self.sizes: land.Sizes
        self._emulator: Emulator
        self.train, self.held_out = np.empty(0, np.int64), np.empty(0, np.int64)

    def check(self, identify: bool = False) -> Identity | None:
        """Read the files of the land; a generated one has no identity. See `Problem.check`.

        Raises
        ------
        FileNotFoundError, ValueError
            If a file is missing or malformed, or there are too few columns.
        """
        if self.config.data is None:
            return None
        whole = load_data(self.config)
        if not identify:
            return None
        train, held_out = self._split(len(whole))
        content: Content = [self._digest(whole)]
        return identity_of((len(train), content), (len(held_out), content))

    def model(self) -> Emulator:
        """Emulator of the sizes that the config and the data state."""
        config = self.config
        self._emulator = Emulator(
            config.width, config.layers, config.heads, config.batch_norm, sizes=self.sizes
        )
        return self._emulator

    def data(self) -> tuple[ColumnSet, ColumnSet]:
        """Columns for training and those held out, in the same split for every world.

        Raises
        ------
        FileNotFoundError, ValueError
            If a file is missing or malformed, or there are too few columns.
        """
        whole = load_data(self.config)
        self.train, self.held_out = self._split(len(whole))
        self.columns, self.sizes = Columns(whole, self.train, self.device), whole.sizes()
        self.land = whole[self.held_out]
        digest = self._digest(whole)
        return ColumnSet(self.columns, self.train, digest), ColumnSet(self.columns, self.held_out, digest)

    def _split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        return split(count, self.config.validation_share, self.config.seed, self.unit)

    def _digest(self, whole: land.Land) -> str:
        """Digest of what was read, so that no file is read twice, and one that was written again is the same."""
        return "" if self.config.data is None else arrays_digest(whole.arrays().values())

    def loss(self, outputs: Outputs, targets: Outputs) -> Tensor:
        """Weighted sum of three squared errors of each column [b]."""
        return loss_of(outputs, targets, self.config.loss_weights)

    def metrics(self, outputs: Outputs, targets: Outputs) -> dict[str, Tensor]:
        """Squared errors of each column [b], in standard deviations: of scalars, vectors and matrices."""
        names = (f"{name}_mse" for name in Outputs._fields)
        return dict(zip(names, errors_of(outputs, targets), strict=True))

    def predict(self, outputs: Outputs, targets: Outputs) -> dict[str, Any]:
        """What is said of the columns and, with ``true_`` before it, what is true, in the units of the land."""
        true = self.columns.restored(targets)
        return {**self.columns.restored(outputs), **{f"true_{name}": part for name, part in true.items()}}

    def baseline(self) -> float:
        """Validation loss of the mean of the training columns."""
        return self.columns.baseline(self.train, self.held_out, self.config.loss_weights)

    def describe_data(self) -> str:
        """Table of what was done to which column of the data; nothing of a generated land."""
        return "" if self.config.data is None else str(self.land.layout.table(whole=True))

    def figures(self, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Errors of each output in its unit, R2, the carbon balance of the predictions, and the layout of the data."""
        found, true = ({name: predictions[f"{of}{name}"] for name in OUTPUTS} for of in ("", "true_"))
        figures = figures_of(self.land, found, true, self.columns.stds)
        return {"metrics": figures.pop("r2"), **figures, "data": self.land.layout.plain()}

    def metadata(self) -> dict[str, str]:
        """Sizes of the emulator."""
        return self._emulator.metadata()

    def write(self, folder: Path, predictions: Mapping[str, np.ndarray]) -> None:
        """Write normalisation.npz and predictions/scalar.csv."""
        normalisation = {f"{name}_mean": mean for name, mean in self.columns.means.items()}
        normalisation |= {f"{name}_std": std for name, std in self.columns.stds.items()}
        scalars = [name.removeprefix(TARGET) for name in self.land.layout.names("scalar")]
        write_land_results(folder, normalisation, predictions, scalars)


def load_data(config: Config) -> land.Land:
    """Land that a training is about.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or malformed.
    """
    if config.data is None:
        return land.generate(config.columns, config.seed)
    return read_land(str(config.data), trust=config.trust, reading=reading_of(config))
