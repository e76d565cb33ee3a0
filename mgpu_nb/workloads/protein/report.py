"""What came back: detailed results, a summary, tables, pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...places import device_names
from ...tables import Table, block, line
from ..base import results_folder
from ..fit import FitReport, fit_value, step_report
from .comparison import SURE, AtEqualWork, at_equal_work, described, direction, paired_difference
from .config import METHODS, SCORES, Config
from .files import SUMMARY_COLUMNS, design_columns, detailed_result, write_results
from .train_ca_net import TrainConfig

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ..base import Finished

__all__ = ["Report", "best_structure", "collect", "collect_training"]

Trace = npt.NDArray[np.float64]

RIVALS = 3  # that are named
_HEADINGS = ("branches", "mean score", "improvement", "NFE", "time", "GPU")


def collect(run: Finished, config: Config | None = None) -> Report:
    """Report of a run of protein experiments, just finished or opened from its folder.

    Parameters
    ----------
    run
        The run. Experiments that failed are in the report too, with their error.
    config
        What was asked for; not needed, as every experiment states its own options.

    Raises
    ------
    ValueError
        If none of the records is of a protein experiment.
    """
    results = [detailed_result(record) for record in run.records]
    if not any(result["method"] in METHODS for result in results):
        raise ValueError(
            "the run holds no protein experiment; collect what ran the tasks of protein.tasks(config)"
        )
    return Report(results, run.folder)


class Report:
    """Results of the experiments of a run.

    Attributes
    ----------
    results
        A dict per experiment, in the order of the run: what `run_experiment` returned, and ``gpu_id``,
        ``device``, ``status``, ``error``, ``peak_memory_bytes``, ``pid``, ``attempt``.
    folder
        The run's folder, or None.
    """

    def __init__(self, results: list[dict[str, Any]], folder: Path | None = None) -> None:
        self.results, self.folder = results, folder

    @property
    def succeeded(self) -> list[dict[str, Any]]:
        """The results of the experiments that ended ok."""
        return [result for result in self.results if result["status"] == "ok"]

    @property
    def baseline(self) -> dict[str, Any] | None:
        """The result of the method standard; None where it did not run or failed."""
        return next((result for result in self.succeeded if result["method"] == "standard"), None)

    @property
    def best(self) -> dict[str, Any] | None:
        """The result with the best mean score; None where no experiment has a score."""
        scored = [result for result in self.succeeded if _is_finite(result["mean_score"])]
        return max(scored, key=lambda result: direction(result) * result["mean_score"], default=None)

    def rivals(self) -> list[dict[str, Any]]:
        """Results that the best one is not better than beyond the error, the nearest first.

        The samples of an experiment begin at the same noise as those of any other, so differences are taken sample by
        sample: the best is better where their mean is above `SURE` standard errors. Of one sample no error is known.
        """
        best = self.best
        if best is None:
            return []
        found = []
        for result in self.succeeded:
            if result is not best and _is_finite(result["mean_score"]):
                lead, error = paired_difference(best["scores"], result["scores"], direction(best))
                if lead <= SURE * error:
                    found.append((lead, result))
        return [result for _, result in sorted(found, key=lambda pair: pair[0])]

    def at_equal_work(self) -> list[AtEqualWork]:
        """Each search beside best_of_n with as many network calls: what the methods are to be judged by.

        Empty if best_of_n is not among the methods, or did not end well.
        """
        return at_equal_work(self.succeeded)

    def improvement(self, result: dict[str, Any]) -> float | None:
        """How much better than the baseline a result's mean score is; below zero where it is worse.

        In the unit of the score, and turned so that the better is the higher for scores in angstrom too.
        None without a baseline or a score.
        """
        base = self.baseline
        if base is None or not _is_finite(result["mean_score"]) or not _is_finite(base["mean_score"]):
            return None
        return float(direction(result) * (result["mean_score"] - base["mean_score"]))

    def frame(self) -> pd.DataFrame:
        """Summary, a row per experiment.

        The seed's columns, then ``nfe``, ``status``, ``improvement`` (over the baseline, more is better), and of a
        search ``best_of_n`` (its mean score at equal work), ``difference`` (to it, sample by sample, more is better),
        ``difference_error`` (standard error, empty for a single sample) and ``verdict``. Before it, with designability,
        ``mean_sc_tm``, ``mean_sc_rmsd`` (angstrom) and ``designable`` (share of the samples).
        """
        import pandas as pd

        frame = pd.DataFrame(
            [[result[name] for name in SUMMARY_COLUMNS] for result in self.results],
            columns=list(SUMMARY_COLUMNS),
        )
        frame["improvement"] = pd.Series([self.improvement(r) for r in self.results], dtype="float64")
        equal = {id(each.result): each for each in self.at_equal_work()}
        beside = [equal.get(id(result)) for result in self.results]
        for name, attribute in (
            ("best_of_n", "mean"),
            ("difference", "difference"),
            ("difference_error", "error"),
        ):
            values = [None if each is None else getattr(each, attribute) for each in beside]
            frame[name] = pd.Series(values, dtype="float64").replace(math.inf, math.nan)
        for name in design_columns(self.results):
            frame[name] = pd.Series([result.get(name) for result in self.results], dtype="float64")
        frame["verdict"] = ["" if each is None else each.verdict for each in beside]
        for name in (
            "num_branches",
            "num_samples",
            "gpu_id",
            "nfe",
        ):  # whole numbers, missing for what failed
            if all(value is None or float(value).is_integer() for value in frame[name].astype(object)):
                frame[name] = frame[name].astype("Int64")
        return frame

    def table(self) -> str:
        """Write a table per method: branches, mean score, improvement over the baseline, NFE, time, GPU."""
        parts = []
        for method, rows in self._rows().items():
            shown = [self._headings, *rows]
            widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
            lines = [
                "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in shown
            ]
            parts.append("\n".join([method, *("  " + text for text in lines)]))
        return "\n\n".join(parts)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw mean score against network calls, with best_of_n at any number of them; returns the axes."""
        from .views import plot_scores

        return plot_scores(self.succeeded, ax)

    def plot_equal_work(self, ax: Axes | None = None) -> Axes:
        """Draw the difference of each search to best_of_n at equal work, with two standard errors; returns the axes."""
        from .views import plot_equal_work

        return plot_equal_work(self.at_equal_work(), ax)

    def plot_methods(self, ax: Axes | None = None) -> Axes:
        """Draw the improvement over the baseline, a bar per experiment; returns the axes."""
        from .views import plot_methods

        better = [
            (result, self.improvement(result)) for result in self.succeeded if result is not self.baseline
        ]
        return plot_methods([(result, gain) for result, gain in better if gain is not None], ax)

    def plot_best(self, ax: Axes | None = None) -> Axes:
        """Draw the best sample of all as a C-alpha trace on its nearest reference fold; returns 3D axes.

        Raises
        ------
        ValueError
            If no experiment succeeded.
        """
        from .views import plot_structure

        return plot_structure(*best_structure(self), ax=ax)

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write detailed_results.json and summary_results.csv; return their paths.

        The JSON is strict: what is not a finite number is null. In the CSV a text that a spreadsheet would
        read as a formula gets an apostrophe before it.

        Parameters
        ----------
        folder
            Where to write; by default ``results`` below the run's folder, whose own tables of these names have a row
            per task.

        Raises
        ------
        ValueError
            If there is neither.
        """
        return write_results(self.results, results_folder(self.folder, folder))

    def __str__(self) -> str:
        equal = self._equal_table()
        leading = [*self._verdicts(), *(["", str(equal)] if equal.rows else [])]
        parts = ["\n".join(leading), self.table(), "\n".join(self._closing())]
        return "\n\n".join(part for part in parts if part)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = [("method", ""), *((heading, "n") for heading in self._headings)]
        rows = []
        for method, some in self._rows().items():
            rows += [(method if n == 0 else "", *row) for n, row in enumerate(some)]
        every = Table(head, rows, "results of the experiments", ("Every experiment:",))
        equal = self._equal_table()
        tables = [*map(line, self._verdicts()), *(equal.parts() if equal.rows else ()), *every.parts()]
        return block(*tables, *map(line, self._closing()))

    def _verdicts(self) -> list[str]:
        """Lines that say which search is better than best_of_n at equal work, and which is not."""
        equal = self.at_equal_work()
        if not equal:
            searched = [r for r in self.succeeded if r["method"] not in ("standard", "best_of_n")]
            ran = any(result["method"] == "best_of_n" for result in self.results)
            why = "too few starts of it ended well" if ran else "it was not run"
            lacking = f"Nothing is compared at equal network calls: that takes best_of_n, and {why}"
            return [lacking] if searched else []
        lines = ["At equal network calls, against best_of_n:"]
        for verdict in ("better", "worse", "not told apart"):
            found: dict[str, list[str]] = {}
            for each in equal:
                if each.verdict == verdict:
                    found.setdefault(each.result["method"], []).append(str(each.result["num_branches"]))
            shown = [f"{method} ({', '.join(branches)} branches)" for method, branches in found.items()]
            if shown or verdict == "better":
                lines.append(f"  {verdict}: {', '.join(shown) or 'none'}")
        return lines

    def _equal_table(self) -> Table:
        """Searches beside best_of_n at equal work."""
        rows = [
            (
                each.result["method"],
                each.result["num_branches"],
                *([_interval(each.result)] if self._intervals else []),
                f"{each.result['nfe']:,.0f}",
                f"{each.result['mean_score']:.4f}",
                f"{each.mean:.4f}",
                f"{each.nfe:,}",
                _gap(each),
                each.verdict,
            )
            for each in self.at_equal_work()
        ]
        interval = [("interval", "n")] if self._intervals else []
        head = [("method", ""), ("branches", "n"), *interval, ("NFE", "n"), ("mean score", "n"), ("best_of_n", "n"),
                ("its NFE", "n"), ("difference", "n"), ("", "")]  # fmt: skip
        return Table(head, rows, "searches beside best_of_n at equal work")

    @property
    def _intervals(self) -> bool:
        """Whether experiments branch at different intervals, as budgets may make them."""
        return len({_interval(result) for result in self.succeeded}) > 1

    @property
    def _headings(self) -> tuple[str, ...]:
        return _HEADINGS + (("scTM", "scRMSD", "designable") if design_columns(self.results) else ())

    def _rows(self) -> dict[str, list[tuple[str, ...]]]:
        """Cells of the tables by method, the methods in the order of the run."""
        tables: dict[str, list[tuple[str, ...]]] = {}
        devices = device_names(
            [
                (r["device"] if r["gpu_id"] is None else f"GPU {r['gpu_id']}", r.get("host", ""))
                for r in self.results
            ]
        )
        for result, device in zip(self.results, devices, strict=True):
            branches = "" if result["num_branches"] is None else str(result["num_branches"])
            if result["status"] == "ok":
                cells = (
                    f"{result['mean_score']:.4f}",
                    self._improvement_text(result),
                    f"{result['nfe']:.0f}",
                    f"{result['total_time']:.2f} s",
                )
            else:
                cells = (result["status"], "", "", "")
            designed: tuple[str, ...] = ("",) * len(design_columns(self.results))
            if "designable" in result:
                designed = (
                    f"{result['mean_sc_tm']:.3f}",
                    f"{result['mean_sc_rmsd']:.2f} Å",
                    f"{result['designable']:.0%}",
                )
            tables.setdefault(result["method"], []).append((branches, *cells, device, *designed))
        for rows in tables.values():
            rows.sort(key=lambda row: int(row[0] or 0))
        return tables

    def _improvement_text(self, result: dict[str, Any]) -> str:
        gained, base = self.improvement(result), self.baseline
        if base is None or gained is None or result is base:
            return "baseline" if result is base else ""
        return f"{gained:+.4f}" + (
            f" ({gained / abs(base['mean_score']):+.1%})" if base["mean_score"] else ""
        )

    def _closing(self) -> list[str]:
        lines = []
        best = self.best
        if best is not None:
            unit = " angstrom" if best["scoring_function"] in {"rmsd", "mean_l2"} else ""
            score = best["scoring_function"]
            to_folds = score in SCORES and score != "geometric"
            what = score.rpartition(":")[2] + (" to the nearest reference fold" if to_folds else "")
            told = f"{described(best)}, mean {what} {best['mean_score']:.4f}{unit} "
            told += f"at {best['nfe']:.0f} network evaluations per sample"
            rivals = self.rivals()
            if not rivals:
                lines.append(f"Best: {told}")
            else:
                shown = [f"{described(rival)} at {rival['nfe']:.0f}" for rival in rivals[:RIVALS]]
                more = f" and {len(rivals) - RIVALS} more" if len(rivals) > RIVALS else ""
                lines.append(f"Highest mean: {told}")
                lines.append(f"No clear best: within the error of it are {', '.join(shown)}{more}")
        lines += [
            f"References: {said}" for said in {result.get("left_out"): 0 for result in self.succeeded} if said
        ]
        left = [result for result in self.results if result["status"] in ("cancelled", "skipped")]
        failed = [result for result in self.results if result["status"] != "ok" and result not in left]
        if left:
            lines.append(f"{len(left)} of {len(self.results)} experiments were cancelled")
        if failed:
            lines.append(f"{len(failed)} of {len(self.results)} experiments failed:")
            lines += [f"  {result['name']}: {result['error'] or result['status']}" for result in failed]
        return lines


def collect_training(run: Finished, config: TrainConfig | None = None) -> FitReport:
    """Report of the training of `ca_net`.

    Raises
    ------
    ValueError
        If it failed, or the run is of something else.
    """
    unit = " nm² per coordinate"
    return step_report(run.folder, fit_value(run), f"loss,{unit}", unit=unit)


def best_structure(report: Report) -> tuple[Trace, Trace, str, dict[str, Any]]:
    """Lay the best sample of all experiments on the reference fold that it comes nearest to.

    Returns
    -------
    tuple
        The sample and the fold, [L, 3] each, in angstrom; the fold's name; the experiment's result.

    Raises
    ------
    ValueError
        If no experiment succeeded.
    """
    import torch

    from .structures import reference_folds
    from .tm_score import tm_superposition

    if not report.succeeded:
        raise ValueError("no experiment succeeded, so there is no structure; print(report) says what failed")
    result = max(
        report.succeeded, key=lambda result: direction(result) * result["scores"][result["best_sample"]]
    )
    folds = reference_folds(Config(**result["config"]))
    sample = torch.tensor(result["positions"], dtype=torch.float64)
    scores, rotations, shifts = tm_superposition(sample, torch.from_numpy(folds.positions))
    nearest = int(scores.argmax())
    laid = sample @ rotations[nearest].mT + shifts[nearest]
    return laid.numpy(), folds.positions[nearest], folds.names[nearest], result


def _gap(each: AtEqualWork) -> str:
    """Difference at equal work and its standard error."""
    return f"{each.difference:+.4f}" + (f" ± {each.error:.4f}" if math.isfinite(each.error) else "")


def _interval(result: dict[str, Any]) -> str:
    return f"{result['config'].get('branch_interval', Config.branch_interval):.2g}"


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
