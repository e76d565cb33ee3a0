"""The samples of a run, put together again: each set in the order of its indices, with what is missing told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .checkpoint import known_smiles
from .config import BASELINE, Config, SampleSet, guided
from .forces.base import FieldNotLoaded
from .guidance import check_calls
from .intervals import Estimate
from .metrics import compare, summarise, totals
from .molecule import Molecule
from .rows import Rows, join
from .sampler import check_broken
from .trajectory import Trajectory

if TYPE_CHECKING:
    from ..base import Finished

__all__ = ["Gathered", "chains_of", "samples_of"]

FEWEST_CALLS = 10  # of a judge, from which on it is broken if each fails


@dataclass(frozen=True)
class Gathered:
    """The samples of a set that there are.

    Attributes
    ----------
    name
        The set: ``baseline``, ``guided_scale_X`` or ``relaxed``.
    scale
        Guidance scale; None for a set that is not guided.
    molecules
        Molecules in the order of `rows`.
    rows
        Figures of each, sorted by the index of the sample.
    missing
        Indices of the samples that were asked for and are not there.
    reasons
        Why, by task.
    steps
        Steps from noise to data; 0 if unknown.
    broken
        Number of samples whose numbers became infinite or NaN.
    trajectory
        Force RMS along the way.
    halved
        How often memory ran out and a batch was halved.
    known
        SMILES of the molecules that the model was trained on, None if unknown: others are novel.
    """

    name: str
    scale: float | None
    molecules: list[Molecule]
    rows: Rows
    missing: tuple[int, ...]
    reasons: Mapping[str, str]
    steps: int
    broken: int
    trajectory: Trajectory | None
    halved: int
    known: frozenset[str] | None = None

    @property
    def indices(self) -> NDArray[np.int64]:
        """Indices of the samples."""
        return self.rows["index"]

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """Metrics with intervals, see `summarise`."""
        return summarise(self.rows, self.known)

    @cached_property
    def totals(self) -> dict[str, float | int | None]:
        """Sums over the samples, see `metrics.totals`."""
        return totals(self.rows)

    @property
    def strength(self) -> float | None:
        """Scale times steps, by which guidance at different numbers of steps is compared; None if not guided."""
        return None if self.scale is None else self.scale * self.steps

    def against(self, baseline: Gathered) -> dict[str, Estimate]:
        """Metrics less those of the baseline, pair by pair, see `compare`."""
        return compare(self.rows, baseline.rows)


def samples_of(run: Finished, config: Config) -> dict[str, Gathered]:
    """Sets of a run by name, in the order of tables; that of scale 0 is the baseline under its own name.

    Raises
    ------
    ValueError
        If the force field of a set did not load, or failed on each call; if the judge failed on each of ten and more
        calls; or if no sample of the baseline has finite numbers.
    """
    known = known_smiles(config.model_path)
    computed = {of.name: _gathered(run, config, of, known) for of in config.sets()}
    _check_judge(config, list(computed.values()))
    found = {}
    for name, source in config.shown().items():
        of = computed[source]
        scale = next((scale for scale in config.guidance_scales if guided(scale) == name), None)
        found[name] = replace(of, name=name, scale=scale)
    return found


def _check_judge(config: Config, sets: Sequence[Gathered]) -> None:
    """Refuse a judge that failed on each call: a few molecules may all be hopeless, many are not."""
    calls, failed = (sum(int(of.rows[name].sum()) for of in sets) for name in ("judge_calls", "judge_failed"))
    if failed == calls >= FEWEST_CALLS:
        raise ValueError(
            f"judge={config.judge!r} failed on each of {calls} calls, so that no force or energy is known; choose "
            "another judge, or None for metrics without them, or look at it with a molecule that it must know"
        )


def chains_of(run: Finished, config: Config) -> dict[str, list[Molecule]]:
    """Frames of each chain by its name, of those that there are."""
    found = {}
    for record in run.records:
        if record.ok and record.name in config.chains() and isinstance(record.value, dict):
            value = record.value
            found[record.name] = [
                Molecule(*of) for of in zip(value["numbers"], value["positions"], strict=True)
            ]
    return {name: found[name] for name in config.chains() if name in found}


def _gathered(run: Finished, config: Config, of: SampleSet, known: frozenset[str] | None) -> Gathered:
    """The samples of one computed set, exactly those that there are, in the order of their indices."""
    records = {record.name: record for record in run.records}
    values: list[dict[str, Any]] = []
    reasons: dict[str, str] = {}
    for name in run.tasks:
        if name.rpartition("-")[0] != of.name:
            continue
        record = records.get(name)
        if record is not None and record.ok and isinstance(record.value, dict) and "rows" in record.value:
            values.append(record.value)
        elif record is None:
            reasons[name] = "it has not ended"
        else:
            reasons[name] = record.error or "; ".join(record.notes) or record.status
    rows = join([cast(Rows, value["rows"]) for value in values])
    if of.scale or of.relaxed:
        unloaded = [reason for reason in reasons.values() if reason.startswith(FieldNotLoaded.__name__)]
        if unloaded and not values:
            raise ValueError(f"{of.name} has no samples: {unloaded[0].partition(': ')[2]}")
        error = next((value["error"] for value in values if value["error"]), None)
        check_calls(config.mlff_model, rows["force_calls"], rows["failed_calls"], error)
    there = [index for value in values for index in value["rows"]["index"].tolist()]
    order = np.argsort(there)  # chunks are of molecules of one size, so their indices interlace
    broken = np.concatenate([value["broken"] for value in values] or [np.zeros(0, dtype=bool)])
    if of.name == BASELINE:
        check_broken(broken)
    molecules = [molecule for value in values for molecule in _molecules(value)]
    ways = [Trajectory(**value["trajectory"]) for value in values if value["trajectory"] is not None]
    return Gathered(
        name=of.name,
        scale=of.scale or None,
        molecules=[molecules[place] for place in order],
        rows=rows,
        missing=tuple(sorted(set(range(config.n_samples)) - set(there))),
        reasons=reasons,
        steps=values[0]["steps"] if values else 0,
        broken=int(broken.sum()),
        trajectory=_in_order(Trajectory.join(ways), order) if ways else None,
        halved=sum(value["halved"] for value in values),
        known=known,
    )


def _in_order(way: Trajectory, order: NDArray[np.int64]) -> Trajectory:
    return Trajectory(way.step, way.sigma, way.force_rms[order])


def _molecules(value: Mapping[str, Any]) -> Sequence[Molecule]:
    """Molecules of a chunk, whose atoms stand one after the other."""
    ends = np.cumsum(value["sizes"])[:-1]
    parts = zip(np.split(value["numbers"], ends), np.split(value["positions"], ends), strict=True)
    return [Molecule(numbers, positions) for numbers, positions in parts]
