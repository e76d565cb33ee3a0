"""The worker's part: a chunk of the samples of a set, from noise to figures; a chain."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ...context import Worker, cached, worker
from ..memory import in_memory
from ..threads import one_thread
from .checkpoint import load_model
from .config import Config, SampleSet
from .diffusion import Diffusion
from .forces.base import FieldNotLoaded, ForceField
from .forces.load import load_field, weights_digest
from .guidance import Guide
from .molecule import Molecule
from .relaxation import relax
from .rows import Rows, measure
from .sampler import Samples, sample
from .solvers import Levels, grid, number_of_steps
from .source import model_digest

__all__ = ["FRAMES", "OBSERVER", "guided_calls", "run_chain", "run_chunk", "used_fields"]

log = logging.getLogger("mgpu_nb.molecules")

FRAMES = 100
"""Frames of a chain."""
NONE: Mapping[str, str] = MappingProxyType({})
"""No force field with a file."""
OBSERVER = "potential"
"""Force field whose forces are recorded along the way of each set, so that their curves can be compared."""
_REPORT_EVERY = 0.25  # seconds
_DRAWN = 0.9  # share of a chunk that is done when its samples are drawn


def run_chunk(
    options: Config,
    inputs: str,
    of: SampleSet,
    indices: Sequence[int],
    weights: Mapping[str, str] = NONE,
) -> dict[str, Any]:
    """Draw some samples of a set and measure them; a task of a pool.

    On a CPU they come out the same to the last bit whatever other samples are in the chunk. If memory runs out, the
    chunk is drawn again in batches of half the size, down to single samples.

    Parameters
    ----------
    options
        As `canonical` leaves them.
    inputs
        Digest of the model's files when the run was made: with other weights it is another task.
    of
        The set.
    indices
        Indices of the samples, ascending.
    weights
        Digests of the files of the force fields, by their names, when the run was made.

    Returns
    -------
    dict
        ``numbers`` and ``positions`` of all atoms, one molecule after the other, and ``sizes``, their numbers of
        atoms; ``rows``, see `measure`; ``broken`` and ``steps``, see `Samples`; ``trajectory``, its arrays by name, or
        None; ``error``, words of the first force call that failed; ``halved``, how often memory ran out.

    Raises
    ------
    ValueError
        If the files of the model or of a force field have changed.
    torch.OutOfMemoryError, MemoryError
        If there is not enough memory for one sample.
    """
    here = worker()
    with one_thread(here.device):
        model = _model(options.model_path, options.trust, inputs, here.device)
        fields = {name: _field(name, weights.get(name, ""), here.device) for name in used_fields(options, of)}
        guide = _guide(options, of.scale, fields)
        watch = None if of.relaxed else fields[OBSERVER]
        began = time.perf_counter()
        samples, halved = _draw(options, model, indices, guide, watch=watch)
        drawn = time.perf_counter() - began
        molecules, calls, failed = samples.molecules, samples.force_calls, samples.failed_calls
        if of.relaxed:
            budget = guided_calls(options, model.schedule)
            relaxed = relax(molecules, fields[options.mlff_model], budget)
            molecules, calls, failed = relaxed.molecules, relaxed.force_calls, relaxed.failed.astype(np.int64)
        seconds = (time.perf_counter() - began) / len(indices)
        rows = measure(
            molecules,
            indices,
            judge=None if options.judge is None else fields[options.judge],
            relax_calls=options.relaxation_calls,
            seconds=seconds,
            force_calls=calls,
            failed_calls=failed,
        )
    error = None if samples.first_error is None else samples.first_error[1]
    log.debug(
        "%s: samples %s of %s atoms on %s; batches of %d at most, halved %d times; %s, %d steps of %.4f s; "
        "%d of %d calls of the guide and %d of %d of the judge failed%s; %d broken",
        of.name,
        list(indices),
        sorted({len(molecule.numbers) for molecule in molecules}),
        here.device,
        min(options.batch_size, len(indices)),
        halved,
        options.sampler,
        samples.steps,
        drawn / (samples.steps + 1),
        sum(rows["failed_calls"]),
        sum(rows["force_calls"]),
        sum(rows["judge_failed"]),
        sum(rows["judge_calls"]),
        f" ({error})" if error else "",
        sum(samples.broken),
    )
    here.report(step=indices[0], progress=1.0, **_live(of.name, rows))
    seen = samples.trajectory
    return {
        "numbers": np.concatenate([molecule.numbers for molecule in molecules]),
        "positions": np.concatenate([molecule.positions for molecule in molecules]),
        "sizes": np.array([len(molecule.numbers) for molecule in molecules], dtype=np.int64),
        "rows": dict(rows),
        "broken": samples.broken,
        "steps": samples.steps,
        "trajectory": None if seen is None else dict(vars(seen)),
        "error": error,
        "halved": halved,
    }


def run_chain(
    options: Config, inputs: str, scale: float, weights: Mapping[str, str] = NONE
) -> dict[str, Any]:
    """Draw sample 0 and keep `FRAMES` frames of its way; a task of a pool.

    Parameters
    ----------
    options, inputs, weights
        As `run_chunk` takes them.
    scale
        Guidance scale; 0 for no guide.

    Returns
    -------
    dict
        ``numbers``, shape [FRAMES, N], and ``positions``, shape [FRAMES, N, 3].
    """
    here = worker()
    with one_thread(here.device):
        model = _model(options.model_path, options.trust, inputs, here.device)
        name = options.mlff_model
        fields = {name: _field(name, weights.get(name, ""), here.device)} if scale else {}
        samples, _ = _draw(options, model, [0], _guide(options, scale, fields), frames=FRAMES)
    here.report(progress=1.0)
    chain: list[Molecule] = samples.chain or []
    return {
        "numbers": np.stack([frame.numbers for frame in chain]),
        "positions": np.stack([frame.positions for frame in chain]),
    }


def guided_calls(options: Config, schedule: Any) -> int:
    """Force calls that guidance makes for a sample: one for each iteration of each step with little enough noise.

    The last step, which decodes, is one of them.
    """
    steps = number_of_steps(options.sampler, options.steps, schedule.steps)
    sigma = Levels(schedule, grid(options.sampler, steps, schedule)).sigma
    return options.guidance_iterations * sum(noise <= options.noise_threshold for noise in sigma)


def _draw(
    options: Config,
    model: Diffusion,
    indices: Sequence[int],
    guide: Guide | None,
    frames: int = 0,
    watch: ForceField | None = None,
) -> tuple[Samples, int]:
    """Samples of these indices, and how often the batch was halved."""
    here = worker()
    report = _Progress(here)

    def draw(batch_size: int) -> Samples:
        return sample(
            model,
            indices,
            seed=options.seed,
            sampler=options.sampler,
            steps=options.steps,
            n_nodes=options.n_nodes,
            guide=guide,
            batch_size=batch_size,
            frames=frames,
            watch=watch,
            device=here.device,
            on_step=report,
        )

    return in_memory(draw, min(options.batch_size, len(indices)))


def used_fields(options: Config, of: SampleSet) -> list[str]:
    """Names of the force fields that a chunk of a set needs: of who watches, who guides or relaxes, who judges."""
    names = [] if of.relaxed else [OBSERVER]
    if of.scale or of.relaxed:
        names.append(options.mlff_model)
    return names if options.judge is None else [*names, options.judge]


def _guide(options: Config, scale: float, fields: Mapping[str, ForceField]) -> Guide | None:
    if not scale:
        return None
    return Guide(
        fields[options.mlff_model],
        scale,
        options.guidance_iterations,
        options.noise_threshold,
        options.force_clip,
    )


def _live(name: str, rows: Rows) -> dict[str, float]:
    """Figures of a chunk for `Worker.report`, by the names that they have in the report."""
    found = {f"{name}/molecule_stability": float(rows["whole"].mean())}
    known = rows["force_rms"][np.isfinite(rows["force_rms"])]
    return found | ({f"{name}/force_rms": float(np.median(known))} if len(known) else {})


@cached(1)
def _model(path: str | None, trust: bool, inputs: str, device: str) -> Diffusion:
    """Load the model once in a warm worker."""
    if inputs and model_digest(path) != inputs:
        raise ValueError(
            f"the files of model_path={path!r} have changed since the run was started: start it again, so that all its "
            "samples are of the same model"
        )
    return load_model(path, trust=trust, device=device)


@cached(4)
def _field(name: str, weights: str, device: str) -> ForceField:
    """Load a force field once in a warm worker."""
    if weights and weights_digest(name) != weights:
        raise ValueError(
            f"the weights of the force field {name!r} have changed since the run was started: start it again, so that "
            "all its samples are of the same"
        )
    try:
        return load_field(name, device)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever somebody else's constructor raises
        raise FieldNotLoaded(f"{name!r} does not load: {type(error).__name__}: {error}") from error


class _Progress:
    """Reports the progress of a chunk, a few times a second."""

    def __init__(self, here: Worker) -> None:
        self.here, self.sent = here, 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.sent >= _REPORT_EVERY:
            self.sent = now
            self.here.report(progress=_DRAWN * done / total)
