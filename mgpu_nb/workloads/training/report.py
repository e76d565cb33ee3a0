"""What came of a training: curves, settings, metrics, predictions, ranks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...distributed.check import ITERATIONS, format_check
from ...hardware.slots import devices
from ...places import device_names
from ...store.files import atomic_write, escape_formula
from ...tables import Document, Table
from ...tasks import import_path
from ...views.table import frame_table
from ..base import results_folder
from .config import CheckConfig, Config
from .files import CHECKPOINT, HELD_OUT, LOSSES, MODEL, NORMALISATION, RESULTS, SCALAR_TABLE
from .layout import Layout

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from torch import nn

    from ..base import Finished

__all__ = ["CheckReport", "Report", "collect", "collect_check", "speedup_table"]

MOST_EPOCHS = 8  # that are displayed


def collect(run: Finished, config: Config | None = None) -> Report:
    """Report of a training that has ended.

    Parameters
    ----------
    run
        Run of its ranks, or one without tasks in the folder of a training that torchrun or srun started.
    config
        What was asked for; not needed, as the results state it.

    Raises
    ------
    ValueError
        If a rank failed: the message names it and the reason.
    """
    failed = [record for record in run.records if not record.ok]
    # Others were ended for the one that failed first: it has the reason.
    failed.sort(key=lambda record: not record.failed)
    if failed:
        first = failed[0]
        how = (
            f"{first.name} ended {first.status}: {first.error}"
            if first.failed
            else "the training was cancelled"
        )
        if run.folder is not None and (run.folder / CHECKPOINT).is_file():
            again = "goes on from the last checkpoint"
        else:
            again = "begins anew, for it had no checkpoint yet"
        raise ValueError(f"{how}. Started again with the same output_dir, it {again}")
    if len(run.records) < len(run.tasks):
        raise ValueError(f"{len(run.records)} of {len(run.tasks)} ranks have ended: wait for the run first")
    if run.folder is None or not (run.folder / RESULTS).is_file():
        raise ValueError(
            f"the run in {run.folder} is no training's, or its {RESULTS} was deleted: mgpu-nb report reads a run of "
            "any workload"
        )
    return Report.open(run.folder)


class CheckReport(Document):
    """A check of the set-up.

    Attributes
    ----------
    found
        What each rank measured, see `check_rank`.
    gpus
        Number of GPUs of this machine.
    folder
        Folder of the run; it is removed unless ``output_dir`` named one.
    """

    def __init__(self, found: list[dict[str, Any]], gpus: int, folder: Path | None) -> None:
        self.found, self.gpus, self.folder = found, gpus, folder

    def frame(self) -> pd.DataFrame:
        """Table of the ranks: device, host, backend, own_seconds and seconds (of the slowest rank), weights."""
        import pandas as pd

        return pd.DataFrame(self.found).drop(columns="data", errors="ignore").rename_axis("rank")

    def data(self) -> pd.DataFrame | None:
        """What was done to the data: column, kind, shape, size, unit, done, cells; None without data."""
        return None if self._layout is None else self._layout.frame()

    @property
    def _layout(self) -> Layout | None:
        plain = self.found[0].get("data")
        return None if plain is None else Layout.of_plain(plain)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Axes with the time per iteration of each rank."""
        from .views import time_per_iteration

        return time_per_iteration([rank["own_seconds"] / ITERATIONS for rank in self.found], ax)

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write check.csv and, of data, data.csv, if a folder is given or was kept; return the paths.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        if folder is None and (self.folder is None or not self.folder.is_dir()):
            return []
        place = results_folder(self.folder, folder)
        tables = {"check.csv": self.frame()}
        if (data := self.data()) is not None:
            cells = data.set_index("column").map(escape_formula)
            tables["data.csv"] = cells.rename(index=escape_formula, columns=escape_formula)
        for name, frame in tables.items():
            with atomic_write(place / name) as part:
                frame.to_csv(part)
        return [place / name for name in tables]

    def __str__(self) -> str:
        lines = format_check(self.found, self.gpus)
        return lines if self._layout is None else f"{lines}\n\n{self._layout.table(whole=True)}"

    def _content(self) -> list[str | Table]:
        first = self.found[0]
        names = device_names([(rank["device"], rank.get("host", "")) for rank in self.found])
        rows = [
            (n, name, rank["backend"], f"{1e3 * rank['own_seconds'] / ITERATIONS:.2f}")
            for n, (rank, name) in enumerate(zip(self.found, names, strict=True))
        ]
        head = [("rank", "n"), ("device", ""), ("backend", ""), ("own time per iteration, ms", "n")]
        return [
            f"{len(self.found)} ranks add up to one sum and hold the same gradients",
            f"{ITERATIONS} iterations of {first['weights']:,} weights in {first['seconds']:.4f} s",
            Table(head, rows, "ranks of the check"),
            *([] if self._layout is None else [self._layout.table(whole=True)]),
        ]


def collect_check(run: Finished, config: CheckConfig | None = None) -> CheckReport:
    """Report of a check that has ended.

    Raises
    ------
    ValueError
        If a rank failed: the message names it and the reason.
    """
    failed = [record for record in run.records if not record.ok]
    failed.sort(key=lambda record: not record.failed)
    if failed or len(run.records) < len(run.tasks) or not run.records:
        problem = (
            f"{failed[0].name} ended {failed[0].status}: {failed[0].error}" if failed else "it has not ended"
        )
        raise ValueError(f"the check found a problem: {problem}")
    gpus = sum(device.kind == "cuda" for device in devices())
    return CheckReport([record.value for record in run.records], gpus, run.folder)


class Report(Document):
    """A training.

    Attributes
    ----------
    folder
        Where its files are.
    results
        What training_results.json holds.
    """

    def __init__(self, folder: Path, results: dict[str, Any]) -> None:
        self.folder, self.results = folder, results

    @classmethod
    def open(cls, folder: str | Path) -> Report:
        """Read a folder that a training wrote: from a notebook, the command line, torchrun or SLURM.

        Raises
        ------
        FileNotFoundError
            If there are no results.
        ValueError
            If they are no training's.
        """
        path = Path(folder).expanduser().absolute()
        file = path / RESULTS
        if not file.is_file():
            raise FileNotFoundError(f"{path} holds no {RESULTS}: has the training ended?")
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            results["history"], results["ranks"], results["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is not of a training ({error!r}): copy it anew, or train again with the same output_dir"
            ) from error
        return cls(path, results)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best epoch; NaN where there was nothing to measure.

        Of the emulator errors (mse, rmse) of scalars, vectors and matrices, in standard deviations, and ``_r2``, the
        mean of the outputs of a kind without those that do not vary.
        """
        return {name: math.nan if value is None else value for name, value in self.results["metrics"].items()}

    @property
    def unit(self) -> str:
        """What samples are called: columns of the emulator, samples of any other model."""
        return str(self.results.get("unit", "columns"))

    @property
    def files(self) -> list[Path]:
        """Files of the training that are there."""
        names = (MODEL, NORMALISATION, RESULTS, LOSSES, HELD_OUT, SCALAR_TABLE)
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def frame(self) -> pd.DataFrame:
        """Row per epoch: loss, validation, metrics, learning rate, columns or samples per second."""
        import pandas as pd

        return pd.DataFrame(self.results["history"]).set_index("epoch").astype(float)

    def outputs(self) -> pd.DataFrame:
        """Errors of each output: part, unit, rmse and bias in the unit, rmse_std in standard deviations, r2.

        R2 is NaN of an output that does not vary in the held-out columns.

        Raises
        ------
        ValueError
            If the training was of a model of your own, which has no such table; so of `carbon` and `data`.
        """
        import pandas as pd

        return pd.DataFrame(self._of_emulator("outputs")).set_index("output").astype({"r2": float})

    def carbon(self) -> pd.DataFrame:
        """Carbon of the predictions: of each relation between outputs what is left over, of each stock how much it is.

        Columns are unit, predicted, true and share, see `figures.carbon_of`; there is no row where outputs allow none.
        """
        import pandas as pd

        names = ["what", "unit", "predicted", "true", "share"]
        return pd.DataFrame(self._of_emulator("carbon"), columns=names).set_index("what")

    def data(self) -> pd.DataFrame:
        """What was done to the data: column, kind, shape, size, unit, done, cells."""
        return Layout.of_plain(self._of_emulator("data")).frame()

    def settings(self) -> pd.DataFrame:
        """All settings with what they were, and what followed from them."""
        import pandas as pd

        followed = ("world_size", "backend", "batch_per_rank", "batch_global", "batch_effective")
        rows = self.results["config"] | {name: self.results[name] for name in followed}
        rows["learning_rate_scaled"] = self.results["learning_rate"]
        return pd.DataFrame({"value": pd.Series(rows, dtype=object)}).rename_axis("setting")

    def ranks(self) -> pd.DataFrame:
        """Columns or samples per second while it trained, and memory in bytes, by rank.

        ``peak_memory`` is that of the process or GPU, ``model_memory`` what weights, gradients and optimizer take.
        NaN per second are of ranks that had nothing left to train.
        """
        import pandas as pd

        frame = pd.DataFrame(self.results["ranks"]).set_index("rank")
        return frame.astype({f"{self.unit}_per_second": float})

    def predictions(self) -> dict[str, npt.NDArray[np.float64]]:
        """Predictions for the held-out samples: the arrays that ``predict`` gave, and their numbers as ``sample`` [n].

        Of the emulator ``column`` [n], ``scalar`` [n, k], ``vector`` [n, v, p], ``matrix`` [n, m, r, c] and the same
        with ``true_`` before it, in the units of the land.

        Raises
        ------
        FileNotFoundError
            If there are none: the training had no ``predict``.
        """
        if not (self.folder / HELD_OUT).is_file():
            raise FileNotFoundError(f"{self.folder} holds no {HELD_OUT}: train with predict=")
        with np.load(self.folder / HELD_OUT, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}

    def model(self, make: Callable[[], nn.Module] | None = None) -> nn.Module:
        """Model with the best weights, on the CPU, not training.

        Parameters
        ----------
        make
            Function that makes the model; by default the one that the training was given, if it can be imported. It is
            called without a config.

        Raises
        ------
        ValueError
            If that function cannot be imported, as one of a notebook: give it.
        """
        from safetensors import safe_open
        from safetensors.torch import load_file

        with safe_open(self.folder / MODEL, "pt") as file:
            stated = file.metadata()
        if make is not None:
            model = make()
        elif "model" in stated:
            try:
                model = import_path(stated["model"])()
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{error}. Give the function that makes the model: report.model(make)"
                ) from error
        else:
            from .emulator import Emulator

            model = Emulator.of(stated)
        model.load_state_dict(load_file(self.folder / MODEL))
        return model.eval()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw loss and validation over epochs; see `views.training.curves`."""
        from .views import curves

        quantity = "loss, squared std. deviations" if self.unit == "columns" else "loss"
        return curves({"": self.frame()}, self.results["baseline"], ax, quantity=quantity)

    def plot_predictions(self, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Draw predicted against true outputs of the held-out columns; see `views.predicted_against_true`.

        They are the matrices; of a land without them the lists, or the numbers.

        Raises
        ------
        ValueError
            If the training was of a model of your own.
        """
        from .layout import OUTPUTS
        from .views import predicted_against_true

        layout = Layout.of_plain(self._of_emulator("data"))
        part = next(part for part in reversed(OUTPUTS) if layout.of(part))
        return predicted_against_true(self.predictions(), axes, part, layout.of(part))

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Paths of the files that rank 0 wrote, or of copies in another folder.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        if folder is None:
            return self.files
        place = Path(folder).expanduser()
        copies = []
        for file in self.files:
            copies.append(place / file.relative_to(self.folder))
            copies[-1].parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copies[-1])
        return copies

    def _content(self) -> list[str | Table]:
        r = self.results
        ranks = f"{r['world_size']} rank{'s' * (r['world_size'] > 1)}"
        backend = f" ({r['backend']})" if r["backend"] else ""
        per_second = f"{self.unit}_per_second"
        speed = sum(rank[per_second] or 0 for rank in r["ranks"])
        against = (
            "" if r["baseline"] is None else f"; the mean of the training columns gives {r['baseline']:.4f}"
        )
        history = self.frame()
        step = -(-len(history) // MOST_EPOCHS)
        shown = history.iloc[::-1].iloc[::step].iloc[::-1].reset_index()  # the last epoch is always there
        shown["epoch"] += 1
        return [
            f"{ranks}{backend} x {r['batch_per_rank']} {self.unit}: batch of {r['batch_global']}, "
            f"{r['batch_effective']} per optimizer step",
            f"{r['epochs']} epochs, {r['steps']} steps in {r['seconds']:.1f} s, {speed:,.0f} {self.unit} per second",
            f"validation {r['best_validation']:.4f} in epoch {r['best_epoch'] + 1}{against}",
            *self._errors(),
            frame_table(shown[["epoch", "loss", "validation", per_second]], "losses by epoch"),
            *self._figures(),
        ]

    def _errors(self) -> list[str]:
        """Metrics of the best epoch in words."""
        if self.unit != "columns":
            each = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
            return [f"metrics of that epoch: {each}"] if each else []
        roots = {name: value for name, value in self.metrics.items() if name.endswith("_rmse")}
        each = ", ".join(f"{name.removesuffix('_rmse')} {value:.4f}" for name, value in roots.items())
        return [f"root mean square errors, in standard deviations: {each}"]

    def _of_emulator(self, name: str) -> Any:
        """Results that only the emulator has."""
        if name not in self.results:
            raise ValueError(
                f"the training in {self.folder} has no table of {name}: that is of the emulator of a land, and not of "
                "one that a former version trained"
            )
        return self.results[name]

    def _figures(self) -> list[str | Table]:
        """Tables of outputs, carbon and data; nothing of other models, and of results of before there were any."""
        if "outputs" not in self.results:
            return []
        rows = [
            (row["output"], row["unit"], _short(row["rmse"]), _short(row["rmse_std"]), _short(row["r2"]))
            for row in self.results["outputs"]
        ]
        head = [("output", ""), ("unit", ""), ("rmse", "n"), ("in std. deviations", "n"), ("R²", "n")]
        parts: list[str | Table] = [Table(head, rows, "errors by output")]
        if self.results["carbon"]:
            rows = [
                (
                    row["what"],
                    row["unit"],
                    _short(row["predicted"]),
                    _short(row["true"]),
                    _percent(row["share"]),
                )
                for row in self.results["carbon"]
            ]
            head = [("carbon", ""), ("unit", ""), ("predicted", "n"), ("true", "n"), ("left over", "n")]
            parts.append(Table(head, rows, "carbon of the predictions"))
        layout = Layout.of_plain(self.results["data"])
        if layout.notes:  # the data are no generated ones
            parts.append(layout.table())
        return parts


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2g} %"


def speedup_table(reports: Sequence[Report]) -> pd.DataFrame:
    """Row per report: ranks, samples per second, speed-up over the first, efficiency, peak memory per rank.

    Raises
    ------
    ValueError
        Without reports, and for one of a training that had nothing left to train.
    """
    import pandas as pd

    if not reports:
        raise ValueError("no reports: give at least one")
    rows = []
    for report in reports:
        ranks = report.ranks()
        per_second = f"{report.unit}_per_second"
        if ranks[per_second].isna().any():
            raise ValueError(
                f"the training in {report.folder} had nothing left to train: its speed is not known"
            )
        rows.append(
            {
                "ranks": report.results["world_size"],
                per_second: ranks[per_second].sum(),
                "peak_memory_per_rank": ranks["peak_memory"].max(),
            }
        )
    frame = pd.DataFrame(rows).set_index("ranks")
    speedup = frame[per_second] / frame[per_second].iloc[0]
    frame.insert(1, "speedup", speedup)
    frame.insert(2, "efficiency", speedup / (frame.index.to_numpy() / frame.index[0]))
    return frame
