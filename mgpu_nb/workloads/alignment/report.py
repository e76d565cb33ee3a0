"""What came back: reward and divergence of each job and eta, what it took, and what failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runs.run import Run
from ...store.files import atomic_write, escape_formula
from ...tables import Document, Table
from ...views.palette import save_picture
from .beside import Completions
from .config import Config
from .counts import read_counts
from .idle import Idle, idle_time, planned, timed
from .job import EMBEDDED, Job
from .names import REFERENCE
from .resume import SETTINGS, read_settings
from .settings import Settings, from_plain
from .states import JobResult, job_results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ...tasks import Record
    from ..base import Finished

__all__ = ["Report", "collect"]

SUMMARY = "summary.csv"
TIMES = "seconds"  # a column that differs from run to run, and so is not in the file


def collect(run: Finished, config: Config | None = None) -> Report:
    """Report of an alignment that has ended or was opened from its folder; what has not ended is named in it.

    Parameters
    ----------
    run
        The run.
    config
        Its options; by default the settings in its folder.

    Raises
    ------
    ValueError
        If nothing of it has ended well, or it is a run of something else.
    """
    settings = _settings(run, config)
    results = job_results(settings, run.tasks, run.records)
    if not any(record.ok for record in run.records if record.name in _tasks(results)):
        reasons = [f"{record.name}: {record.error}" for record in run.records if record.failed]
        raise ValueError(f"the run has no results ({reasons[0] if reasons else 'no task of it has ended'})")
    return Report(results, settings, run)


def _settings(run: Finished, config: Config | None) -> Settings:
    folder = None if config is not None else run.folder
    if folder is not None and (plain := read_settings(folder)) is not None:
        system = dict(plain.get("system") or {}) | {
            "attn_impl": "eager"
        }  # what ran it need not be installed here
        return from_plain({**plain, "system": system}, lambda key: f" (in {folder / SETTINGS})")
    from ..base import own_config
    from .inputs import resolved

    return resolved(own_config(run.folder, Config) if config is None else config)


def _tasks(results: dict[str, JobResult]) -> set[str]:
    return {task for result in results.values() for task in result.tasks.every}


class Report(Document):
    """Results of an alignment.

    Attributes
    ----------
    results
        Jobs by `Job.id`; the evaluations of the references have round 0.
    settings
        Settings of the run.
    folder
        Folder of the run, or None.
    """

    def __init__(self, results: dict[str, JobResult], settings: Settings, run: Finished) -> None:
        self.results, self.settings, self.folder = results, settings, run.folder
        self._run = run

    @property
    def failures(self) -> list[Record]:
        """Records of the tasks that failed."""
        return [record for result in self.results.values() for record in result.failures]

    def frame(self) -> pd.DataFrame:
        """Table with a row per job and eta; the references are round 0.

        Columns: algo, family, dataset, round, eta (NaN for a policy without one), state, the figures of the evaluation
        (avg_reward, avg_kl, pass@1, maj@k and their standard errors), steps and loss of the training, seconds of all
        tasks of the job.
        """
        import pandas as pd

        rows = []
        for result in self.results.values():
            job, trained = result.job, result.trained
            named = {"algo": job.algo, "family": job.family, "dataset": job.dataset, "round": job.round}
            known = {
                "steps": trained.get("trained_steps"),
                "loss": trained.get("loss"),
                TIMES: result.seconds or None,
            }
            evaluated: dict[float | None, dict[str, float]] = result.evaluated or {None: {}}
            for eta, figures in evaluated.items():
                rows.append({**named, "eta": eta, "state": result.state, **figures, **known})
        frame = pd.DataFrame(rows)
        numbers = [
            name for name in frame.columns if name not in ("algo", "family", "dataset", "round", "state")
        ]
        return frame.astype(dict.fromkeys(numbers, "float64"))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw average reward against KL divergence for each algorithm and round; returns the axes.

        The exact frontier is drawn where the embedded reference writes the embedded sums.
        """
        from .views import reward_against_kl

        return reward_against_kl(self.frame(), self._frontiers(), ax)

    def plot_rounds(self, ax: Axes | None = None) -> Axes:
        """Draw average reward by round, from the reference on, a line for each algorithm; returns the axes."""
        from .views import reward_by_round

        return reward_by_round(self.frame(), ax)

    def plot_timelines(self, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Draw when each slot worked, and below it the same with a barrier between rounds, or without if it had one.

        The other timeline is computed: it has the durations that were measured, and no pauses between tasks.

        Parameters
        ----------
        axes
            Two axes to draw on; new ones by default.

        Raises
        ------
        ValueError
            If no task has ended well.
        """
        from .views import timelines

        records, barred = timed(self._run), self.settings.system.by_round
        if not records:
            raise ValueError("no task has ended well: wait for the run, then draw its timelines")
        places, devices = planned(self._run, by_round=not barred), self._devices()
        moved = [
            replace(record, slot=place.slot, started=place.start, **devices.get(place.slot, {}))
            for record, place in ((record, places[name]) for name, record in records.items())
        ]
        words = ("without a barrier", "with a barrier between rounds")
        return timelines(
            {
                f"{words[barred]}, as it was": [*records.values()],
                f"{words[not barred]}, tasks of the same durations": moved,
            },
            axes,
        )

    def _devices(self) -> dict[int, dict[str, Any]]:
        """Device and host of each slot that had a task."""
        return {
            record.slot: {"device": record.device, "host": record.host}
            for record in self._run.records
            if record.slot is not None
        }

    def show(self, *algos: str, prompts: int = 3, draws: int = 4) -> Completions:
        """Completions of test examples by the reference and by algorithms, side by side; see `Completions`.

        Parameters
        ----------
        algos
            Algorithms; all by default.
        prompts, draws
            Number of prompts of each data set, and of completions of each prompt.

        Raises
        ------
        ValueError, TypeError
            As `Completions`.
        """
        return Completions(self.results, algos, prompts, draws)

    def _frontiers(self) -> dict[tuple[str, str], Sequence[tuple[float, float]]]:
        """Best reward at each KL divergence, by family and data set, where it is known."""
        from .exact import sums_frontier
        from .sums import NUMBERS

        asked = NUMBERS[: self.settings.evaluation.max_examples]
        curve = None
        found: dict[tuple[str, str], Sequence[tuple[float, float]]] = {}
        for family, pair in self.settings.models.items():
            for name, dataset in self.settings.datasets.items():
                if pair.reference == EMBEDDED and dataset.kind == "sums":
                    curve = sums_frontier(asked).curve() if curve is None else curve
                    found[family, name] = curve
        return found

    @property
    def idle(self) -> Idle | None:
        """Idle time of the slots, and what it would be with or without a barrier; None before a task has ended."""
        return idle_time(self._run)

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write the result of each job, a table of all, and the pictures; return their paths.

        Nothing in the results depends on where or how fast they were computed.

        Parameters
        ----------
        folder
            Folder for ``results`` and ``figures``; by default that of the run.

        Raises
        ------
        ValueError
            If there is neither.
        """
        place = self.folder if folder is None else Path(folder).expanduser()
        if place is None:
            raise ValueError("nowhere to save: the run has no folder, so give save(folder)")
        written = [result.write(place) for result in self.results.values() if result.evaluated]
        with atomic_write(place / "results" / SUMMARY) as part:
            frame = self.frame().drop(columns=TIMES)
            frame.map(escape_formula).to_csv(part, index=False)
        written.append(place / "results" / SUMMARY)
        return [*written, *self._save_figures(place / "figures")]

    def _save_figures(self, folder: Path) -> list[Path]:
        pictures: dict[str, Callable[[Axes], object]] = {
            "reward_against_kl": self.plot,
            "reward_by_round": self.plot_rounds,
        }
        if isinstance(self._run, Run):
            pictures |= {"timeline": self._run.plot_timeline, "graph": self._run.plot_graph}
        paths = []
        for name, draw in pictures.items():
            paths.append(folder / f"{name}.png")
            with atomic_write(paths[-1]) as part:
                save_picture(draw, part)
        return paths

    def _content(self) -> list[str | Table]:
        vote = f"maj@{self.settings.evaluation.samples_per_example}"
        shown = {
            "avg_reward": ("reward", "n"),
            "avg_kl": ("KL, nats", "n"),
            "pass@1": ("pass@1", "n"),
            vote: (vote, "n o"),
            "trained_steps": ("steps", "n o"),
            "loss": ("loss", "n m"),
        }  # heading and class
        named = [("algo", ""), ("models", "o"), ("data", ""), ("round", "n"), ("eta", "n")]
        rows = []
        for result in self.results.values():
            job = result.job
            for eta, figures in result.evaluated.items():
                cells = [_cell(result, figures, name) for name in shown]
                strength = "" if eta is None else f"{eta:g}"
                rows.append([job.algo, job.family, job.dataset, job.round, strength, *cells])
        return [Table([*named, *shown.values()], rows, "reward and divergence of each job"), *self._closing()]

    def _closing(self) -> list[str]:
        lines = [*self._reached(), *self._data()]
        calls, scored = map(sum, zip(*(result.counts() for result in self.results.values()), strict=True))
        lines.append(
            f"Rewards: {calls:,} calls for {scored:,} texts, {self.settings.data_collection.reward_batch_size} at most "
            "in one"
        )
        if (idle := self.idle) is not None:
            lines.append(idle.words(self.settings.system.by_round))
        for result in self.results.values():
            lines += [
                f"{result.job.id}: {record.name} ended {record.status}: {record.error}"
                for record in result.failures
            ]
        missing = [
            result.job.id
            for result in self.results.values()
            if result.state not in ("EVAL_COMPLETED", "FAILED")
        ]
        if missing:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            lines.append(f"Not done: {', '.join(missing[:8])}{more}")
        return lines

    def _data(self) -> Iterable[str]:
        """What was used of the data, and what was left out."""
        for name, of in ({} if self.folder is None else read_counts(self.folder)).items():
            if name in self.settings.datasets:
                yield f"Data of {name}: {'; '.join(counts.words(split) for split, counts in of.items())}"
        same = {
            job: int(count)
            for job, result in self.results.items()
            if (count := result.trained.get("metrics", {}).get("left_out"))
        }
        if same:
            each = ", ".join(f"{count:,} in {job}" for job, count in same.items())
            yield f"Pairs of twice the same text, from which nothing is learnt, were left out: {each}"

    def _reached(self) -> Iterable[str]:
        """What each algorithm has reached, round by round."""
        chains: dict[tuple[str, str, str], list[JobResult]] = {}
        for result in self.results.values():
            if result.job.algo != REFERENCE and result.figures:
                job = result.job
                chains.setdefault((job.algo, job.family, job.dataset), []).append(result)
        for (algo, family, dataset), chain in chains.items():
            reference = self.results.get(Job(REFERENCE, family, dataset, 0).id)
            steps = (
                []
                if reference is None or not reference.figures
                else [f"{_reward(reference)} of the reference"]
            )
            steps += [f"{_reward(result)} in round {result.job.round}" for result in chain]
            last = chain[-1]
            eta = "" if last.shown_eta is None else f" at eta {last.shown_eta:g}"
            where = f"{algo}, {family} on {dataset}"
            yield f"{where}: reward {', '.join(steps)}; {last.figures['avg_kl']:.2f} nats from the reference{eta}"


def _reward(result: JobResult) -> str:
    return f"{result.figures['avg_reward']:.3f}"


def _cell(result: JobResult, figures: dict[str, float], name: str) -> str:
    value = {**result.trained, **figures}.get(name)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
