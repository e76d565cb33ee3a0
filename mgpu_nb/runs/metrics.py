"""Metrics of a run over time, as a table and as lines to draw."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..interrupts import uninterruptible
from ..store.metrics import History, SeriesKey
from ..views.curves import Curve
from ..views.metrics import MOST_CHARTS, MOST_TRACES, Chart, Trace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

__all__ = ["charts_of", "curves_of", "last_values", "metrics_frame"]

FRAME = 2**17  # bytes that are read for a frame of a panel, more if it is far behind
_NO_CHART = ("progress", "epoch", "step")


@uninterruptible
def metrics_frame(
    history: History, tasks: Sequence[str], names: str | Sequence[str] | None = None
) -> pd.DataFrame:
    """Points of a run's metrics as a table, see `Run.metrics`.

    Parameters
    ----------
    history
        What the tasks reported.
    tasks
        Names of the tasks, in order of submission.
    names
        Names of the metrics; all by default.

    Raises
    ------
    ValueError
        If something was reported, but nothing of one of the names.
    """
    import pandas as pd

    history.refresh()
    known = history.names
    wanted = known if names is None else [names] if isinstance(names, str) else list(names)
    if known:
        _check(wanted, known)
    places = {task: place for place, task in enumerate(tasks)}
    keys = [key for name in dict.fromkeys(wanted) for key in history.keys(name)]
    keys.sort(
        key=lambda key: (places.get(key.task, len(places)), key.task, key.attempt, wanted.index(key.name))
    )
    series = [history.series(key) for key in keys]
    sizes = [len(points) for points in series]

    def repeated(values: Sequence[Any]) -> list[Any]:
        return [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]

    return pd.DataFrame(
        {
            "task": pd.Series(repeated([key.task for key in keys]), dtype=object),
            "attempt": pd.Series(repeated([key.attempt for key in keys]), dtype="int64"),
            "step": _joined([points.steps for points in series]),
            "time": _joined([points.times for points in series]).astype(float),
            "name": pd.Series(repeated([key.name for key in keys]), dtype=object),
            "value": _joined([points.values for points in series]),
        }
    )


@uninterruptible
def curves_of(history: History, tasks: Sequence[str], name: str, x: str) -> list[Curve]:
    """Lines of a metric, one for the last attempt of each task that has reported it.

    Parameters
    ----------
    history
        What the tasks reported.
    tasks
        Names of the tasks, in order of submission.
    name
        The metric.
    x
        ``"step"`` or ``"time"``.

    Raises
    ------
    ValueError
        If nothing, or nothing of this name, was reported.
    """
    import numpy as np

    history.refresh()
    known = history.names
    if not known:
        raise ValueError(
            "the tasks have reported no numbers (yet): mgpu_nb.worker().report(loss=...) within a task does"
        )
    _check([name], known)
    last = _last_attempts(history, name)
    found = []
    for task in tasks:
        if task in last:
            points = history.series(last[task])
            places = np.asarray(points.steps if x == "step" else points.times, dtype=float)
            found.append(Curve(task, places, np.asarray(points.values, dtype=float)))
    return found


@uninterruptible
def charts_of(
    history: History, places: Mapping[str, int], running: Mapping[str, int], *, ended: bool
) -> tuple[list[Chart], list[str]]:
    """Charts of a panel, and the names of the metrics that have none.

    Parameters
    ----------
    history
        What the tasks reported.
    places
        Place of each task in the run.
    running
        Attempt of each task that runs now. These are drawn first, then those that reported last.
    ended
        Whether it is the last time: all is read, and the last values of all tasks are told.
    """
    history.refresh(-1 if ended else max(FRAME, history.behind // 8))
    names = [name for name in history.names if name not in _NO_CHART]
    charts = []
    for name in names[:MOST_CHARTS]:
        chosen: dict[str, SeriesKey] = {}
        for task, attempt in running.items():
            if len(chosen) < MOST_TRACES and history.last(key := SeriesKey(name, task, attempt)) is not None:
                chosen[task] = key
        for key in history.latest(name, 2 * MOST_TRACES):
            if len(chosen) < MOST_TRACES:
                chosen.setdefault(key.task, key)
        traces = []
        for task, key in chosen.items():
            points = history.series(key)
            runs = task in running or not running
            traces.append(Trace(task, places.get(task, 0), runs, points.steps, points.values))
        last = _last_attempts(history, name) if ended else {}
        ends = tuple((history.last(key) or 0.0, task) for task, key in last.items())
        charts.append(Chart(name, len(ends) or history.count(name), tuple(traces), ends))
    return charts, names[MOST_CHARTS:]


@uninterruptible
def last_values(history: History, tasks: Collection[str]) -> dict[str, dict[str, float]]:
    """Last value of each metric that these tasks have reported, of their last attempts, by task."""
    history.refresh()
    found: dict[str, dict[str, float]] = {}
    for name in history.names:
        for task, key in _last_attempts(history, name).items():
            if task in tasks and (last := history.last(key)) is not None:
                found.setdefault(task, {})[name] = last
    return found


def _last_attempts(history: History, name: str) -> dict[str, SeriesKey]:
    """Key of the last attempt of each task that has reported a metric, by task."""
    return {key.task: key for key in sorted(history.keys(name), key=lambda key: key.attempt)}


def _check(names: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"no numbers named {unknown[0]!r} were reported; there are {', '.join(sorted(known))}"
        )


def _joined(parts: Sequence[Sequence[float]]) -> npt.NDArray[Any]:
    """Numbers one after the other: integers if all are, else doubles; objects where those are not exact."""
    import numpy as np

    found: list[np.ndarray[Any, Any]] = [
        np.asarray(part, dtype=object if isinstance(part, list) else None) for part in parts
    ]
    return np.concatenate(found) if found else np.array([], dtype=float)
