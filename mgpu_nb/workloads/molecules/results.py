"""The files of an evaluation. Only the process that has the run writes them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from .config import BASELINE, RELAXED, Config
from .files import write_chain, write_metrics, write_molecules, write_summary
from .gather import Gathered
from .metrics import METRICS
from .molecule import Molecule

__all__ = ["set_rows", "write_results"]

TIMES = ("seconds_per_molecule",)  # metrics that differ from run to run: they have a file of their own
_OPTIONS = (
    "n_samples", "n_nodes", "sampler", "steps", "seed", "mlff_model", "judge", "guidance_scales",
    "guidance_iterations", "noise_threshold", "force_clip",
)  # fmt: skip


def set_rows(sets: Mapping[str, Gathered], metrics: Iterable[str]) -> list[dict[str, Any]]:
    """Row of each set: name, scale, scale times steps, numbers of samples there and missing, and these metrics."""
    return [
        {
            "set": name,
            "scale": of.scale,
            "scale_times_steps": of.strength,
            "n": len(of.molecules),
            "missing": len(of.missing),
            **{metric: of.metrics[metric] for metric in metrics},
        }
        for name, of in sets.items()
    ]


def write_results(
    place: Path,
    sets: Mapping[str, Gathered],
    chains: Mapping[str, list[Molecule]],
    config: Config,
    baseline: Gathered | None,
    headline: Mapping[str, float | None],
) -> list[Path]:
    """Write all files of an evaluation; return their paths.

    Nothing in them depends on where or how fast the samples were drawn, but for ``times.json``. Files of sets and
    chains that an earlier evaluation with other options has left are removed.

    Parameters
    ----------
    place
        Folder for them.
    sets, chains
        Samples by the name of their set, frames by the name of the chain.
    config
        The options.
    baseline
        Samples that the others are compared with.
    headline
        Figures of the whole evaluation.
    """
    remove_others(place, {*sets, *chains})
    paths: list[Path] = []
    for name, of in sets.items():
        kind = name if name in (BASELINE, RELAXED) else "guided"
        energies = of.rows["energy"].tolist()
        paths += write_molecules(place / name, of.molecules, kind, of.indices.tolist(), energies)
    for name, frames in chains.items():
        paths.append(write_chain(place / name / f"{name}.xyz", frames, 0))
    metrics = {
        "options": {name: getattr(config, name) for name in _OPTIONS},
        **headline,
        "sets": {name: _metrics(of, baseline) for name, of in sets.items()},
    }
    stable = [name for name in METRICS if name not in TIMES]
    times = {
        name: {
            **{key: of.metrics[key] for key in TIMES},
            "seconds": of.totals["seconds"],
            "halved": of.halved,
        }
        for name, of in sets.items()
    }
    paths.append(write_metrics(place / "metrics.json", metrics))
    paths.append(write_summary(place / "summary.csv", set_rows(sets, stable)))
    paths.append(write_metrics(place / "times.json", times))
    return paths


def _is_ours(name: str) -> bool:
    """Whether a set or a chain may have this name."""
    return name in (BASELINE, RELAXED) or name.startswith(("guided_scale_", "chain_"))


def remove_others(place: Path, names: Collection[str]) -> None:
    """Remove the files of sets and chains that are not among `names`; files that are not ours stay."""
    for path in list(place.iterdir()) if place.is_dir() else []:
        name = path.name if path.is_dir() else path.name.removesuffix(".xyz")
        if name in names or not _is_ours(name):
            continue
        if path.is_dir():
            for file in [*path.glob("molecule_*.xyz"), path / f"{name}.xyz"]:
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in there
                path.rmdir()
        elif path.suffix == ".xyz":
            path.unlink()


def _metrics(of: Gathered, baseline: Gathered | None) -> dict[str, Any]:
    """What metrics.json says of a set."""
    found: dict[str, Any] = {
        "scale": of.scale,
        "scale_times_steps": of.strength,
        "steps": of.steps,
        "n": len(of.molecules),
        "missing": list(of.missing),
        "broken": of.broken,
        **{key: value for key, value in of.metrics.items() if key not in TIMES},
        **{key: value for key, value in of.totals.items() if key != "seconds"},
    }
    if baseline is not None and of is not baseline:
        found["difference"] = of.against(baseline)
    if of.trajectory is not None:
        low, middle, high = of.trajectory.quartiles().tolist()
        found["trajectory"] = {
            "step": of.trajectory.step.tolist(),
            "sigma": of.trajectory.sigma.tolist(),
            "force_rms_low": low,
            "force_rms_median": middle,
            "force_rms_high": high,
        }
    return found
