"""What a set of molecules is worth: stability, validity, forces, cost.

`rows.measure` makes rows where the molecules are, and `rows.join` puts those of all chunks in order. `summarise` makes
of them the metrics of a set, with intervals, and `compare` those of a guided set less its baseline, pair by pair.

Definitions, with what each is divided by. Those of the first five are the public EDM's (Hoogeboom et al., 2022):

- molecule_stability: molecules all of whose atoms are stable (`bonds`), of all molecules;
- atom_stability: stable atoms, of all atoms of all molecules;
- validity: molecules that RDKit sanitises with the bonds of `bonds`, of all molecules. RDKit adds hydrogen where a
  valence is open, so that only an atom with too many bonds makes a molecule invalid; one in pieces is valid;
- uniqueness: different SMILES of the largest piece, of the valid molecules;
- novelty: different SMILES that are not among those known, of the different ones;
- force_rms: median over molecules of the root mean square over atoms of the length of the force on an atom, eV/A,
  by the judge; force_rms_mean: its mean, in which a few clashing atoms weigh a lot;
- force_max: median over molecules of the largest force on an atom, eV/A;
- energy_per_atom: median over molecules of the judge's energy over the number of atoms, eV;
- relaxation_gap: median over molecules of `relaxation.relaxation_gap`, eV per atom;
- judge_failures: calls of the judge that failed, of all its calls;
- guide_failures: calls of the guide that failed, of all its calls;
- force_calls_per_molecule, seconds_per_molecule: means, of the guide's calls and of the time of sampling.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import (
    NOTHING,
    Estimate,
    change,
    difference,
    distinct,
    fraction,
    mean,
    median,
    share,
    share_difference,
)
from .rows import Rows, join

__all__ = ["METRICS", "compare", "summarise", "totals"]

METRICS = (
    "molecule_stability", "atom_stability", "validity", "uniqueness", "novelty", "force_rms", "force_rms_mean",
    "force_max", "energy_per_atom", "relaxation_gap", "judge_failures", "guide_failures",
    "force_calls_per_molecule", "seconds_per_molecule",
)  # fmt: skip
"""Names of the metrics of a set, in the order of tables."""


def totals(rows: Rows) -> dict[str, float | int | None]:
    """Seconds, None if unknown; calls of the guide and of the judge, and those that failed: sums over a set."""
    seconds = float(rows["seconds"].sum())
    return {
        "seconds": seconds if np.isfinite(seconds) else None,
        "force_calls": int(rows["force_calls"].sum()),
        "failed_calls": int(rows["failed_calls"].sum()),
        "judge_calls": int(rows["judge_calls"].sum()),
        "judge_failed": int(rows["judge_failed"].sum()),
    }


def summarise(rows: Rows, known: Collection[str] | None = None, seed: int = 0) -> dict[str, Estimate]:
    """Metrics of a set, see `METRICS` and the top of this module; `NOTHING` where there is nothing to divide by.

    Parameters
    ----------
    rows
        Rows of the set, in any order.
    known
        SMILES by `canonical_smiles` that are not novel; None: novelty is left unknown.
    seed
        Seed of the resamples of the intervals.
    """
    rows = join([rows])
    valid = [one for one in rows["smiles"] if one is not None]
    unique = sorted(set(valid))
    novel = None if known is None else [one not in known for one in unique]
    return {
        "molecule_stability": fraction(rows["whole"], seed),
        "atom_stability": share(rows["stable"], rows["atoms"], seed),
        "validity": fraction([one is not None for one in rows["smiles"]], seed),
        "uniqueness": distinct(valid),
        "novelty": NOTHING if novel is None else fraction(novel, seed),
        "force_rms": median(rows["force_rms"], seed),
        "force_rms_mean": mean(rows["force_rms"], seed),
        "force_max": median(rows["force_max"], seed),
        "energy_per_atom": median(rows["energy"] / rows["atoms"], seed),
        "relaxation_gap": median(rows["gap"], seed),
        "judge_failures": share(rows["judge_failed"], rows["judge_calls"], seed),
        "guide_failures": share(rows["failed_calls"], rows["force_calls"], seed),
        "force_calls_per_molecule": mean(rows["force_calls"], seed),
        "seconds_per_molecule": mean(rows["seconds"], seed),
    }


def compare(guided: Rows, baseline: Rows, seed: int = 0) -> dict[str, Estimate]:
    """Metrics of the guided set less those of the baseline, over the samples that both have.

    A sample of either set starts from the same noise, so the two are a pair, and much of what differs between samples
    cancels. Of the metrics by the judge the pairs are those of which both calls succeeded.

    Returns
    -------
    dict
        By names of `METRICS`, and ``"force_rms_change"``: -0.25 if the median is a quarter lower.

    Raises
    ------
    ValueError
        If a pair has not the same number of atoms: the two sets are not of the same noise.
    """
    guided, baseline = join([guided]), join([baseline])
    _, ours, theirs = np.intersect1d(guided["index"], baseline["index"], return_indices=True)
    if (guided["atoms"][ours] != baseline["atoms"][theirs]).any():
        raise ValueError(
            "samples of the same index have other numbers of atoms in the two sets, so they are not of the same noise; "
            "compare sets of one seed, model and n_nodes"
        )
    one, other, n = _columns(guided, ours), _columns(baseline, theirs), len(ours)
    # The same molecules, as at scale 0, and not only as many that are stable: then nothing is uncertain.
    same = bool(np.isfinite(one["energy"]).any()) and all(
        np.array_equal(one[name], other[name], equal_nan=True) for name in one
    )
    shares = (
        dict.fromkeys(("whole", "valid", "stable"), Estimate(0.0, 0.0, 0.0, n))
        if same
        else {
            "whole": difference(one["whole"], other["whole"], "fraction", seed),
            "valid": difference(one["valid"], other["valid"], "fraction", seed),
            "stable": share_difference(one["stable"], other["stable"], one["atoms"], seed),
        }
    )
    return {
        "molecule_stability": shares["whole"],
        "atom_stability": shares["stable"],
        "validity": shares["valid"],
        "force_rms": difference(one["force_rms"], other["force_rms"], "median", seed),
        "force_rms_change": change(one["force_rms"], other["force_rms"], seed),
        "force_rms_mean": difference(one["force_rms"], other["force_rms"], "mean", seed),
        "force_max": difference(one["force_max"], other["force_max"], "median", seed),
        "relaxation_gap": difference(one["gap"], other["gap"], "median", seed),
    }


def _columns(rows: Rows, at: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """What is compared of some of the rows."""
    valid = np.array([one is not None for one in rows["smiles"]])
    columns: dict[str, Any] = {**rows, "valid": valid}
    names = ("atoms", "stable", "whole", "valid", "energy", "force_rms", "force_max", "gap")
    return {name: columns[name].astype(np.float64)[at] for name in names}
