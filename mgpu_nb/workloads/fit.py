"""What the training of a small model came to: its loss by step or epoch, and its files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tables import Document, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from .base import Finished

__all__ = ["FitReport", "fit_value"]

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
        step = -(-len(places) // MOST_LOSSES)
        shown = places[::-1][::step][::-1]  # the last one is always there
        rows = [(f"{place:,}", f"{self.losses[place]:.4f}") for place in shown]
        return [self.text, Table([(self.unit, "n"), (self.quantity, "n")], rows, "loss of the training")]


def fit_value(run: Finished) -> dict[str, Any]:
    """What the one task of a training returned.

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
    if not isinstance(record.value, dict) or "loss" not in record.value:
        raise ValueError(f"the run in {run.folder} is not the training of a model")
    return record.value
