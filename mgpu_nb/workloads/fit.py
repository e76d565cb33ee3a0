"""What the training of a small model came to: its loss by step or epoch, and its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..context import Worker
from ..tables import Document, Table
from ..version import __version__

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from .base import Finished

__all__ = ["FitReport", "described", "fit_value", "output_file", "step_report"]

MOST_LOSSES = 8  # that are displayed


class FitReport(Document):
    """The training of a model.

    Parameters
    ----------
    folder
        Folder of the run.
    losses
        Loss by step or epoch.
    unit
        ``step`` or ``epoch``.
    files
        Files that the training wrote.
    text
        What came of it, in words.
    quantity
        What the loss is, with its unit.
    """

    def __init__(
        self,
        folder: Path | None,
        losses: Mapping[int, float],
        unit: str,
        files: Sequence[Path],
        text: str,
        quantity: str = "loss",
    ) -> None:
        self.folder, self.unit, self.text, self.quantity = folder, unit, text, quantity
        self.losses, self.files = dict(losses), list(files)

    def frame(self) -> pd.DataFrame:
        """Table of the loss, a row per step or epoch that was recorded."""
        import pandas as pd

        return pd.DataFrame({"loss": self.losses}).rename_axis(self.unit)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Axes with the loss over steps or epochs."""
        from ..views.losses import losses

        return losses(self.losses, self.unit, ax, quantity=self.quantity)

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Paths of the files that the training wrote, or of copies in another folder."""
        if folder is None:
            return self.files
        target = Path(folder).expanduser()
        target.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy2(file, target / file.name)) for file in self.files]

    def _content(self) -> list[str | Table]:
        places = list(self.losses)
        step = max(1, -(-len(places) // MOST_LOSSES))
        shown = places[::-1][::step][::-1]  # the last one is always there
        rows = [(f"{place:,}", f"{self.losses[place]:.4f}") for place in shown]
        return [self.text, Table([(self.unit, "n"), (self.quantity, "n")], rows, "loss of the training")]


def fit_value(run: Finished, *names: str) -> dict[str, Any]:
    """What the one task of a training returned.

    Parameters
    ----------
    run
        The run.
    *names
        What must be in it beside the loss, by which one training is told from another.

    Raises
    ------
    ValueError
        If the training failed, or the run is of something else.
    """
    record = run.records[0] if run.records else None
    if record is None or not record.ok:
        problem = "it has not ended"
        if record is not None:
            problem = f"{record.status}: {record.error}" if record.failed else record.error
        raise ValueError(f"the training in {run.folder} gave no model ({problem})")
    if not isinstance(record.value, dict) or not {"loss", *names} <= record.value.keys():
        raise ValueError(f"the run in {run.folder} is not the training of a model")
    return record.value


def step_report(
    folder: Path | None,
    value: Mapping[str, Any],
    quantity: str,
    *,
    unit: str = "",
    data: str = "",
    what: str = "weights",
) -> FitReport:
    """Report of a training by steps, from what it returned.

    Parameters
    ----------
    folder
        Folder of the run.
    value
        ``path``, ``loss``, ``losses``, ``steps``, ``parameters`` and ``bytes``.
    quantity
        What the loss is, with its unit.
    unit, data, what
        Words after the loss and after the number of steps; what the parameters are called.
    """
    text = (
        f"loss {value['loss']:.4f}{unit} over the last tenth of {value['steps']:,} steps{data}; "
        f"{value['parameters']:,} {what}, {value['bytes'] / 1e6:.2f} MB"
    )
    losses = {int(step): float(loss) for step, loss in value["losses"]}
    return FitReport(folder, losses, "step", [Path(value["path"])], text, quantity)


def output_file(output: str | None, here: Worker, name: str, what: str = "weights") -> Path:
    """File that a training writes: `output`, or `name` in the folder of its run.

    Raises
    ------
    ValueError
        If there is neither.
    FileNotFoundError
        If the run's folder is not on this machine.
    """
    if output is None and here.folder_note:
        here.need_folder()
    if output is None and here.folder is None:
        raise ValueError(
            f"nowhere to write the {what}: give output=, or run as a task of a run that has a folder"
        )
    return Path(output) if output else Path(str(here.folder)) / name


def described(config: Any, **versions: str) -> dict[str, str]:
    """What a file of weights says of how it was made: options, seed, versions, also of what is given.

    Where it was made, in which folder and on which device, it does not say.
    """
    import torch

    elsewhere = ("output", "output_dir", "gpu_ids")
    stated = {name: value for name, value in asdict(config).items() if name not in elsewhere}
    versions = {"mgpu_nb": __version__, "torch": torch.__version__, **versions}
    return {"config": json.dumps(stated), "seed": str(config.seed), "versions": json.dumps(versions)}
