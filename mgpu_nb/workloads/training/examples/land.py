"""The emulator of a land, which `Config` trains by default, as a problem of your own."""

from __future__ import annotations

from torch import Tensor, nn

from ..batches import split
from ..columns import Columns
from ..config import Config
from ..emulation import ColumnSet
from ..emulator import Emulator, Outputs, errors_of, loss_of
from ..land import generate


def data(config: Config, device: str) -> tuple[ColumnSet, ColumnSet]:
    """Columns for training and those held out; `config` and `device` are filled in where a function takes them."""
    land = generate(config.columns, config.seed)
    train, held_out = split(len(land), config.validation_share, config.seed, "columns")
    columns = Columns(land, train, device)
    return ColumnSet(columns, train), ColumnSet(columns, held_out)


def model(config: Config) -> nn.Module:
    """Emulator of the sizes that the config states."""
    return Emulator(config.width, config.layers, config.heads, config.batch_norm)


def loss(outputs: Outputs, targets: Outputs) -> Tensor:
    """Loss of each column [b]."""
    return loss_of(outputs, targets)


def metrics(outputs: Outputs, targets: Outputs) -> dict[str, Tensor]:
    """Squared errors of each column [b]; the trainer takes the means over all, and their roots."""
    scalar, vector, matrix = errors_of(outputs, targets)
    return {"scalar_mse": scalar, "vector_mse": vector, "matrix_mse": matrix}
