"""The options of an evaluation of guided diffusion, its presets, and the checks at the door."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ...options import (
    Between,
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Unique,
    check_options,
)
from ..inputs import GpuIds, absolute_path, with_preset

__all__ = ["BASELINE", "EVALUATION", "PRESETS", "RELAXED", "Config", "SampleSet", "guided", "preset"]

BASELINE, RELAXED = "baseline", "relaxed"
EVALUATION = Path("eval", "mlff_guided")
"""Folder of the results, below that of the run."""


def guided(scale: float) -> str:
    """Name of the set of a guidance scale, of its folder and of its metrics: ``guided_scale_0.0005``."""
    return f"guided_scale_{scale}"


@dataclass(frozen=True)
class SampleSet:
    """A set of samples that is computed.

    Attributes
    ----------
    name
        Name of its tasks.
    scale
        Guidance scale; 0 for no guide.
    relaxed
        Whether the samples are relaxed afterwards.
    """

    name: str
    scale: float = 0.0
    relaxed: bool = False


@dataclass(frozen=True)
class Config:
    """Options of an evaluation. Names are those of the script that it replaces, and its defaults but for mlff_model.

    Raises
    ------
    TypeError, ValueError
        If an option is invalid; the message names it and the accepted values.
    """

    model_path: str | None = None
    """Diffusion model: a .safetensors file of molecules train, or file or folder of a model of the public EDM; the
    embedded one by default."""
    trust: bool = False
    """Whether a pickled args file of the public EDM may be read: what it holds runs code."""
    n_samples: PositiveInt = 200
    """Samples per set."""
    n_nodes: PositiveInt | None = None
    """Atoms per sample; by default drawn from the sizes of the training molecules."""
    batch_size: PositiveInt = 50
    """Largest number of samples that go through the model at once."""
    mlff_model: str = "potential"
    """Force field that guides: potential (of this package), gfn2, gfn1, uma-s-1p1 (needs its package and weights), or
    package.module:name, an ASE calculator or force field."""
    judge: str | None = "gfn2"
    """Force field that judges energies and forces, named as mlff_model; None for metrics without them."""
    guidance_scales: Annotated[tuple[NonNegativeFloat, ...], NonEmpty(), Unique()] = (
        0.0,
        0.0005,
        0.0007,
        0.008,
    )
    """Guidance scales to compare, in angstrom per eV/angstrom; 0 is the baseline once more, bit for bit."""
    guidance_iterations: PositiveInt = 1
    """Force evaluations per guided step; they do not add strength."""
    noise_threshold: Annotated[float, Between(0, 1)] = 0.8
    """Guidance begins where sigma, the noise, is no larger than this."""
    force_clip: PositiveFloat | None = None
    """Largest force on an atom, in eV/angstrom; None for no limit."""
    sampler: Literal["ddpm", "dpm_solver++"] = "ddpm"
    """ddpm takes all steps of the training by default, dpm_solver++ 20."""
    steps: PositiveInt | None = None
    """Steps from noise to data."""
    relaxation_calls: NonNegativeInt = 0
    """Force calls of the judge for the relaxation gap of a sample, its energy above the nearest minimum; 0 for none."""
    relax: bool = False
    """Relax the baseline, too: BFGS with mlff_model, as many force calls as guidance takes."""
    skip_baseline: bool = False
    """Leave out the set without guidance, and its chain."""
    skip_chain: bool = False
    """Leave out the chains, the ways of a sample from noise to molecule."""
    gpu_ids: GpuIds = None
    """GPUs to use, or cpu for none; all by default. An id given twice means two slots on that GPU."""
    slots: PositiveInt | None = None
    """Number of slots; by default one per GPU (on a machine without one, virtual CPU devices)."""
    chunk_size: PositiveInt = 20
    """Largest number of samples per task, all of one size. The same samples come out for any number."""
    seed: Seed = 42
    """Seed of all noise. A sample depends on it and on its index, not on where or beside what it is made."""
    use_wandb: bool = False
    """Log metrics to Weights & Biases, from this process alone; WANDB_MODE=offline keeps them here."""
    wandb_project: str = "mlff-guided-diffusion"
    """Project of Weights & Biases."""
    output_dir: str | None = None
    """Folder of the run, results in eval/mlff_guided below it; by default eval/mlff_guided of the folder that
    model_path is, else a new one below runs."""

    def __post_init__(self) -> None:
        check_options(self)
        object.__setattr__(self, "guidance_scales", tuple(scale + 0.0 for scale in self.guidance_scales))
        if self.skip_baseline and self.relax:
            raise ValueError("relax=True relaxes the samples of the baseline: leave skip_baseline out")

    @property
    def strongest(self) -> float:
        """Largest guidance scale."""
        return max(self.guidance_scales)

    def sets(self) -> list[SampleSet]:
        """Sets that are computed: the baseline, unless nothing needs it, and one per scale above 0."""
        plain = [] if self.skip_baseline and 0 not in self.guidance_scales else [SampleSet(BASELINE)]
        scaled = [SampleSet(guided(scale), scale) for scale in self.guidance_scales if scale]
        return [*plain, *scaled, *[SampleSet(RELAXED, relaxed=True)] * self.relax]

    def shown(self) -> dict[str, str]:
        """Sets that a report has, by name, each with the computed set that it is."""
        scales = {guided(scale): guided(scale) if scale else BASELINE for scale in self.guidance_scales}
        return {
            **({} if self.skip_baseline else {BASELINE: BASELINE}),
            **scales,
            **({RELAXED: RELAXED} if self.relax else {}),
        }

    def chains(self) -> dict[str, float]:
        """Guidance scale of each chain by its name; that of the guided one is the largest."""
        if self.skip_chain:
            return {}
        plain = {} if self.skip_baseline else {"chain_baseline": 0.0}
        return plain | ({"chain_guided": self.strongest} if self.strongest else {})


PRESETS: dict[str, dict[str, Any]] = {
    "quick_test": {"n_samples": 16, "sampler": "dpm_solver++", "guidance_scales": (0.0, 0.005)},
    "comprehensive": {
        "n_samples": 500,
        "steps": 200,
        "guidance_scales": (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02),
    },
    "paper": {"n_samples": 1000, "steps": 1000},
}
"""What each preset changes, in the order in which run-all runs them."""


def preset(name: str, **changes: Any) -> Config:
    """`Config` of a preset, with `changes` on top.

    Raises
    ------
    ValueError
        If there is no such preset; the message names the nearest.
    """
    return with_preset(Config, PRESETS, name, changes)


def canonical(config: Config, scale: float = 0.0, relaxed: bool = False) -> Config:
    """Config of what decides the samples of a set, with absolute paths: the identity of its tasks.

    Where they run and which other sets there are is left out, and the guide where nothing is guided: runs that differ
    in these share tasks.
    """
    plain = Config()
    found = replace(
        config,
        model_path=absolute_path(config.model_path),
        n_samples=plain.n_samples,
        guidance_scales=plain.guidance_scales,
        relax=False,
        skip_baseline=False,
        skip_chain=False,
        gpu_ids=None,
        slots=None,
        chunk_size=plain.chunk_size,
        use_wandb=False,
        wandb_project=plain.wandb_project,
        output_dir=None,
    )
    if scale or relaxed:
        return found
    names = ("mlff_model", "guidance_iterations", "noise_threshold", "force_clip")
    return replace(found, **{name: getattr(plain, name) for name in names})


def default_output(config: Config) -> str | None:
    """Folder of a run that names none, as the script has it: ``{model_path}/eval/mlff_guided`` of a model's folder."""
    path = None if config.model_path is None else Path(config.model_path).expanduser()
    return str(path / EVALUATION) if path is not None and path.is_dir() else None
