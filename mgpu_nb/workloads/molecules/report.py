"""What came back: metrics of each set with intervals, tables, pictures, files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...options import PositiveInt, check_choice, check_value
from ...tables import Document, Table
from ..base import own_config
from ..fit import FitReport, fit_value, step_report
from .config import BASELINE, EVALUATION, Config
from .dataset import told
from .gather import Gathered, chains_of, samples_of
from .intervals import Estimate
from .metrics import METRICS
from .molecule import Molecule
from .results import set_rows, write_results
from .train import TRAINING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ..base import Finished
    from .forces.fit_potential import FitConfig
    from .train import TrainConfig
    from .turnable import ShownMolecules

__all__ = ["Report", "collect", "collect_fit", "collect_training"]

log = logging.getLogger("mgpu_nb.molecules")

_SHOWN = {
    "molecule_stability": ("molecules stable", ".2f"),
    "force_rms": ("force RMS, eV/Å", ".2f"),
    "validity": ("valid", ".2f"),
    "atom_stability": ("atoms stable", ".2f"),
    "uniqueness": ("unique", ".2f"),
    "force_calls_per_molecule": ("force calls", ".0f"),
    "seconds_per_molecule": ("s", ".2f"),
}  # of a molecule, in the table: heading and format; what matters most stands where a narrow page shows it
_ALONE = (
    "uniqueness",
    "force_calls_per_molecule",
    "seconds_per_molecule",
)  # no intervals: they widen the table


def collect(run: Finished, config: Config | None = None) -> Report:
    """Report of an evaluation that has ended or was opened from its folder.

    Parameters
    ----------
    run
        The run. Samples that it lacks, because their tasks failed or were cancelled, are named in the report.
    config
        Its options; by default those in its folder.

    Raises
    ------
    ValueError
        If it has no samples at all, each force call of a set failed, or no sample of the baseline has finite numbers.
    """
    config = own_config(run.folder, Config) if config is None else config
    sets = samples_of(run, config)
    if all(of.known is None for of in sets.values()):
        log.info(
            "novelty is not known: model_path=%r does not say which molecules its model has seen",
            config.model_path,
        )
    if not any(len(of.molecules) for of in sets.values()):
        reasons = [reason for of in sets.values() for reason in of.reasons.values()]
        raise ValueError(
            f"the run has no samples ({reasons[0] if reasons else 'it has no tasks of this workload'})"
        )
    return Report(sets, chains_of(run, config), config, run.folder)


class Report(Document):
    """Results of an evaluation of guided diffusion.

    Attributes
    ----------
    sets
        Samples by the name of their set: ``baseline``, ``guided_scale_X``, ``relaxed``.
    chains
        Frames of the ways of sample 0 from noise to molecule: ``chain_baseline``, and ``chain_guided`` at the largest
        scale.
    config
        The options.
    folder
        Folder of the run, or None.
    """

    def __init__(
        self,
        sets: Mapping[str, Gathered],
        chains: Mapping[str, list[Molecule]],
        config: Config,
        folder: Path | None = None,
    ) -> None:
        self.sets, self.chains, self.config, self.folder = dict(sets), dict(chains), config, folder

    def molecules(self, name: str = BASELINE) -> list[Molecule]:
        """Molecules of a set, by index.

        Raises
        ------
        ValueError
            If there is no such set; the message names the nearest.
        """
        return self.sets[check_choice(name, self.sets, "set")].molecules

    @property
    def baseline(self) -> Gathered | None:
        """Samples without guidance; None if they were left out."""
        return self.sets.get(BASELINE) or self.sets.get("guided_scale_0.0")

    @property
    def guided(self) -> list[Gathered]:
        """Sets with a scale above 0 that have samples, by scale."""
        found = [of for of in self.sets.values() if of.scale and of.molecules]
        return sorted(found, key=lambda of: of.scale or 0.0)

    @property
    def best(self) -> Gathered | None:
        """Guided set with the most stable molecules, of equals that with the most stable atoms; None without one."""
        return max(self.guided, key=_stability, default=None)

    @property
    def headline(self) -> dict[str, float | None]:
        """Stability of molecules at the best scale, that scale, and how much more it is than the baseline's."""
        best, baseline = self.best, self.baseline
        stable = None if best is None else best.metrics["molecule_stability"].value
        plain = None if baseline is None else baseline.metrics["molecule_stability"].value
        return {
            "best_guided_stability": stable,
            "best_guidance_scale": None if best is None else best.scale,
            "stability_improvement": None if stable is None or plain is None else stable - plain,
        }

    @property
    def missing(self) -> dict[str, tuple[int, ...]]:
        """Indices of the samples that were asked for and are not there, by set."""
        return {name: of.missing for name, of in self.sets.items() if of.missing}

    def frame(self) -> pd.DataFrame:
        """Table of the sets: scale, scale times steps, number of samples, metrics with the ends of their intervals."""
        import pandas as pd

        rows = []
        for row in set_rows(self.sets, METRICS):
            flat: dict[str, Any] = {}
            for column, value in row.items():
                if isinstance(value, Estimate):
                    flat |= {column: value.value, f"{column}_low": value.low, f"{column}_high": value.high}
                else:
                    flat[column] = value
            rows.append(flat)
        frame = pd.DataFrame(rows).set_index("set")
        numbers = [column for column in frame.columns if column not in ("n", "missing")]
        return frame.astype(dict.fromkeys(numbers, "float64"))

    def plot(self, ax: Axes | None = None, metric: str = "molecule_stability") -> Axes:
        """Draw a metric of the sets against the guidance scale, with intervals; returns the axes.

        Raises
        ------
        ValueError
            If there is no such metric; the message names the nearest.
        """
        from .views import metric_picture

        return metric_picture(check_choice(metric, METRICS, "metric"), *self._drawn(), ax)

    def plot_metrics(self, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Draw stability, validity and forces against the guidance scale; returns the four axes."""
        from .views import metrics_picture

        return metrics_picture(*self._drawn(), axes)

    def plot_trajectory(self, ax: Axes | None = None) -> Axes:
        """Draw the force RMS on the way from noise to molecules, by one force field for all sets; returns the axes."""
        from .views import trajectory_picture

        seen = {name: of.trajectory for name, of in self.sets.items() if of.trajectory is not None}
        return trajectory_picture(
            {name: (way.step.astype(np.float64), way.quartiles()) for name, way in seen.items()}, ax
        )

    def show(self, *names: str, count: int = 4) -> ShownMolecules:
        """First molecules of some sets, by default of the baseline and the best guided one, in 3D, to be turned.

        Raises
        ------
        ValueError
            If there is no such set; the message names the nearest.
        """
        from .turnable import show_molecules

        check_value("count", count, PositiveInt)
        chosen = names or tuple(of.name for of in (self.baseline, self.best) if of is not None)
        shown = [(name, m) for name in chosen for m in self.molecules(name)[:count]]
        return show_molecules([molecule for _, molecule in shown], count, [name for name, _ in shown])

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write the files of the evaluation; return their paths.

        Below ``eval/mlff_guided`` a folder per set with a file per sample, a file with all samples of each set, the
        chains, ``metrics.json``, ``summary.csv``, and ``times.json`` with what differs from run to run. Of samples that
        are missing there is no file, and the metrics say which they are.

        Parameters
        ----------
        folder
            Folder for ``eval/mlff_guided``; by default that of the run, which may be a folder of that name itself.

        Raises
        ------
        ValueError
            If there is neither.
        """
        place = self.folder if folder is None else Path(folder).expanduser()
        if place is None:
            raise ValueError("nowhere to save: the run has no folder, so give save(folder)")
        if folder is not None or place.parts[-2:] != EVALUATION.parts:
            place = place / EVALUATION
        return write_results(place, self.sets, self.chains, self.config, self.baseline, self.headline)

    def _drawn(self) -> tuple[dict[str, dict[str, Estimate]], dict[str, float], int | None]:
        """Metrics and scales by set, and the steps, as pictures take them."""
        scales = {name: of.scale for name, of in self.sets.items() if of.scale is not None}
        steps = max(of.steps for of in self.sets.values())
        return {name: of.metrics for name, of in self.sets.items()}, scales, steps or None

    def _content(self) -> list[str | Table]:
        head = [("set", ""), ("samples", "n"), *((heading, "n") for heading, _ in _SHOWN.values())]
        rows = []
        for name, of in self.sets.items():
            cells = [_cell(of.metrics[key], form, key in _ALONE) for key, (_, form) in _SHOWN.items()]
            rows.append([name, f"{len(of.molecules):,}", *cells])
        return [Table(head, rows, "metrics of the sets"), *self._closing()]

    def _closing(self) -> list[str]:
        lines = []
        best, baseline = self.best, self.baseline
        if best is not None:
            lines.append(
                f"Best: scale {best.scale:g} with {best.steps} steps (scale x steps {best.strength:.3g})"
            )
            if baseline is not None and baseline.molecules:
                apart = best.against(baseline)
                lines[-1] += f"; molecule stability {_signed(apart['molecule_stability'], '+.3f')}"
                if apart["force_rms_change"].value is not None:
                    lines[-1] += f", median force RMS {_signed(apart['force_rms_change'], '+.0%')}"
                lines[-1] += " against the baseline"
        for name, of in self.sets.items():
            for metric, who in (("guide_failures", "guide"), ("judge_failures", "judge")):
                share = of.metrics[metric].value
                if share:
                    lines.append(f"{name}: {share:.1%} of the calls of the {who} failed")
            if of.broken:
                lines.append(
                    f"{name}: the numbers of {of.broken} samples became infinite; they are its last finite states"
                )
            if of.missing:
                what = (
                    f"{len(of.missing)} of {self.config.n_samples} samples are missing: {_ranges(of.missing)}"
                )
                lines.append(f"{name}: {what}")
                lines += [f"  {task}: {reason}" for task, reason in list(of.reasons.items())[:3]]
        return lines


def _stability(of: Gathered) -> tuple[float, float]:
    return of.metrics["molecule_stability"].value or 0.0, of.metrics["atom_stability"].value or 0.0


def _cell(estimate: Estimate, form: str, alone: bool = False) -> str:
    """``.512 (.45 to .57)``: a figure with its interval, unless alone; empty if unknown."""
    if estimate.value is None:
        return ""
    if alone or estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return format(estimate.value, form)
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _signed(estimate: Estimate, form: str) -> str:
    """``+0.120 (+0.050 to +0.190)``; ``unknown``."""
    return "unknown" if estimate.value is None else _cell(estimate, form)


def _ranges(indices: Iterable[int]) -> str:
    """``0 to 9, 40``."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    shown = [str(low) if low == high else f"{low} to {high}" for low, high in spans]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more ranges" if len(shown) > 8 else "")


def collect_training(run: Finished, config: TrainConfig | None = None) -> FitReport:
    """Report of the training of the embedded model.

    Raises
    ------
    ValueError
        If it failed, or the run is of something else.
    """
    file = None if run.folder is None else run.folder / TRAINING
    if not run.records and file is not None and file.is_file():  # torchrun or srun started it
        value = _read_training(file)
    else:
        value = fit_value(run, "molecules")
    data = f" on {value['molecules']:,} molecules{told(value.get('left_out', {}))}"
    return step_report(run.folder, value, "squared error of the noise", data=data)


def _read_training(file: Path) -> dict[str, Any]:
    """What a training returned that torchrun or srun started."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON: {error}; start the training again") from error
    if not isinstance(value, dict) or not {"path", "losses", "molecules"} <= value.keys():
        raise ValueError(f"{file} does not say what a training came to; start the training again")
    return value


def collect_fit(run: Finished, config: FitConfig | None = None) -> FitReport:
    """Report of the fit of the potential.

    Raises
    ------
    ValueError
        If it failed, or the run is of something else.
    """
    value = fit_value(run, "frames")
    failed = {"on which GFN1-xTB did not converge": value.get("left_out", 0)}
    data = f" on {value['frames']:,} frames{told(failed)}"
    return step_report(run.folder, value, "loss of forces and energies", data=data, what="parameters")
