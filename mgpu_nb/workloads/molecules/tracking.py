"""An evaluation in Weights & Biases: one run of theirs, written by the process that has the run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...listeners import Listener
from ...tasks import Record
from .config import Config

__all__ = ["Tracker", "listeners"]

EVERY, PATIENCE = 5.0, 9.0
"""Least seconds from one look at all samples to the next, and how many times as long as the look they are."""
OFFLINE = ("offline", "dryrun", "disabled")


def listeners(config: Config, folder: Path) -> Sequence[Listener]:
    """Who hears of a run: a `Tracker` if it is asked for.

    Raises
    ------
    ValueError
        If nobody is logged in to Weights & Biases, and it is not offline.
    """
    if not config.use_wandb:
        return ()
    if os.environ.get("WANDB_MODE") not in OFFLINE:
        _log_in()
    return (Tracker(config, folder),)


def _log_in() -> None:
    """Log in here, where a user can be asked for a key, and not in the thread that writes."""
    import wandb

    try:
        there = wandb.login()
    except wandb.errors.Error as error:
        raise ValueError(_NO_KEY.format(error)) from error
    if not there:
        raise ValueError(_NO_KEY.format("no key was given"))


_NO_KEY = (
    "use_wandb: not logged in ({}); run `wandb login`, set WANDB_API_KEY, or keep the files here by "
    "WANDB_MODE=offline"
)


class Tracker(Listener):
    """Logs the metrics of the samples that there are, every few seconds, and those of the whole run at its end.

    A look at all samples takes longer the more there are: after one of 2 s there is none for 18 s.

    Names are ``baseline/molecule_stability``, ``guided_scale_0.0005/molecule_stability`` and so on for each set and
    metric, with ``_low`` and ``_high`` for the ends of the intervals, and at the end ``best_guided_stability``,
    ``best_guidance_scale`` and ``stability_improvement``.

    Parameters
    ----------
    config
        Options of the evaluation.
    folder
        Folder of the run, for the files of Weights & Biases.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.records: list[Record] = []
        self._run: Any = None
        self._next = -math.inf

    def ended(self, record: Record) -> None:
        """Log what is known so far, unless that was done a moment ago."""
        self.records.append(record)
        began = time.monotonic()
        if record.ok and began >= self._next:
            with contextlib.suppress(
                ValueError
            ):  # there are only chains as yet, or only failures: the end tells
                self._log()
            ended = time.monotonic()
            self._next = ended + max(EVERY, PATIENCE * (ended - began))

    def close(self) -> None:
        """Log the whole, and finish."""
        code = 0
        try:
            self._log()
            report = self._report()
            known = {name: value for name, value in report.headline.items() if value is not None}
            self._begun().log(known)
            self._begun().summary.update({**known, "missing_samples": sum(map(len, report.missing.values()))})
        except ValueError as error:
            self._begun().summary.update({"error": str(error)})
            code = 1
        self._begun().finish(exit_code=code)

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks that have ended."""
        return [record.name for record in self.records]

    def _begun(self) -> Any:
        if self._run is None:
            import wandb

            self.folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=self.config.wandb_project,
                name=self.folder.name,
                config=dataclasses.asdict(self.config),
                dir=str(self.folder),
                reinit="create_new",
                settings=wandb.Settings(console="off"),
            )
        return self._run

    def _report(self) -> Any:
        from .report import collect

        return collect(self, self.config)

    def _log(self) -> None:
        values: dict[str, float] = {}
        for name, row in self._report().frame().iterrows():
            values |= {
                f"{name}/{metric}": float(value) for metric, value in row.items() if math.isfinite(value)
            }
        self._begun().log(values)
