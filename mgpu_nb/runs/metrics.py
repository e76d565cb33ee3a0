"""Metrics of a run over time, as a table and as lines to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..store.metrics import History, SeriesKey
from ..views.curves import Curve

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

__all__ = ["curves_of", "metrics_frame"]


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
    if known and (unknown := [name for name in wanted if name not in known]):
        raise ValueError(
            f"no numbers named {unknown[0]!r} were reported; there are {', '.join(sorted(known))}"
        )
    places = {task: place for place, task in enumerate(tasks)}
    keys = [key for key in history.keys if key.name in wanted]
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
    last: dict[str, SeriesKey] = {}
    for key in history.keys:
        if key.name == name and (key.task not in last or key.attempt > last[key.task].attempt):
            last[key.task] = key
    found = []
    for task in tasks:
        if task in last:
            points = history.series(last[task])
            places = np.asarray(points.steps if x == "step" else points.times, dtype=float)
            found.append(Curve(task, places, np.asarray(points.values, dtype=float)))
    return found


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
