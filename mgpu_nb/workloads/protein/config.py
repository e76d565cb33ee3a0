"""The options of a protein run, its presets, and the checks at the door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from ...options import (
    AtLeast,
    Between,
    NonEmpty,
    NonNegativeFloat,
    OneOf,
    PositiveInt,
    Seed,
    Unique,
    check_options,
)
from ..inputs import GpuIds, absolute_path, with_preset

__all__ = ["METHODS", "MODELS", "PRESETS", "SCORES", "Config", "preset"]

METHODS = (
    "standard",
    "best_of_n",
    "sde_path_exploration",
    "divergence_free_ode",
    "random_search_divfree",
    "noise_search",
)
SCORES = ("tm_score", "rmsd", "mean_l2", "geometric")
Step = Annotated[str, OneOf(("stand_in",), or_path="function")] | Callable[..., Any] | None
"""A step of designability."""
MODELS = ("mixture", "ca_net", "foldflow2")
WORKER_IMPORTS = ("mgpu_nb.workloads.protein.worker", "biotite.structure.io.pdb", "safetensors.torch")
"""Modules that a worker imports, whatever the model."""


@dataclass(frozen=True)
class Config:
    """Options of a protein run. Names and defaults are those of the scripts it replaces.

    Raises
    ------
    TypeError, ValueError
        If an option is invalid; the message names it and the accepted values.
    """

    gpu_ids: GpuIds = None
    """GPUs to use, or cpu for none; all by default. An id given twice means two slots on that GPU."""
    slots: PositiveInt | None = None
    """Number of slots; by default one per GPU (on a machine without one, virtual CPU devices)."""
    methods: Annotated[tuple[Annotated[str, OneOf(METHODS)], ...], NonEmpty(), Unique()] = METHODS
    """Methods to compare, each at every branch count; standard is the baseline and runs once."""
    num_samples: PositiveInt = 4
    """Samples per experiment."""
    sample_length: Annotated[int, AtLeast(4)] = 50
    """Residues per sample, 4 or more."""
    scoring_function: Annotated[str, OneOf(SCORES, or_path="function")] | Callable[..., Any] = "tm_score"
    """tm_score or geometric (higher is better), rmsd or mean_l2 (angstrom, lower is better). All but geometric
    compare with the nearest reference fold; this stands in for refolding. Or a function of your own, or its
    package.module:name, of which higher is better: positions [B, L, 3] of C-alpha atoms in angstrom to [B] scores."""
    design_sequences: Step = None
    """Sequences for a backbone, the first step of designability: a function, its package.module:name, or stand_in,
    which needs no model; none not to ask. Its protocol is that of mgpu_nb.workloads.protein.designability."""
    fold_sequences: Step = None
    """Structures for sequences, the second step; scTM, scRMSD and the share of designable samples are reported."""
    num_sequences: PositiveInt = 8
    """Sequences per sample that are folded."""
    noise_scale: NonNegativeFloat = 0.3
    """g of the SDE steps, in nm per sqrt(t)."""
    lambda_div: NonNegativeFloat = 0.6
    """Factor of the divergence-free field."""
    divergence_free: Literal["antisymmetric", "projection"] = "antisymmetric"
    """The field: antisymmetric (exact) or projection (orthogonal to the score only)."""
    branch_interval: Annotated[float, Between(0, 1, low_open=True)] = 0.1
    """Time between branchings, as a share of the path from noise to data."""
    branch_start_time: Annotated[float, Between(0, 1, high_open=True)] = 0.0
    """Time of the first branching; 0 is noise, 1 is data."""
    branch_counts: Annotated[tuple[PositiveInt, ...], NonEmpty(), Unique()] = (2, 4, 8)
    """Branch counts to test; the n of best_of_n, which also gets as many starts as the costliest other method has
    network calls for, to be compared with each at equal work."""
    budget: Annotated[tuple[PositiveInt, ...], NonEmpty(), Unique()] | None = None
    """Network calls per sample to compare the methods at, in place of branch_counts: each gets the branches, and if
    need be the longer branch_interval, with which it spends most of them and no more."""
    num_keep: PositiveInt = 1
    """States that go on after each selection."""
    steps: PositiveInt = 50
    """Euler steps from noise to data."""
    model: Annotated[str, OneOf(MODELS, or_path="factory")] = "mixture"
    """mixture (closed form: reference folds that bend like chains), ca_net (a small trained network whose samples are
    projected onto chains; further from the folds), foldflow2 (needs its packages and weights), or
    package.module:factory, a callable that returns an nn.Module with forward(x [B, L, 3], t [B])."""
    checkpoint: str | None = None
    """Weights for the model: .safetensors, or a file for torch.load(weights_only=True)."""
    references: str | None = None
    """Folder of structures (.pdb, .ent, .cif, .mmcif, .bcif, each also .gz) to use as folds of the mixture and as
    references of the score; generated helix-loop-helix folds by default."""
    skip_unreadable: bool = False
    """Go on without files of references that cannot be read; the report counts and names them."""
    num_folds: PositiveInt | None = None
    """Reference folds; by default 8 generated ones, or all that the folder has."""
    seed: Seed = 0
    """Seed of all noise. Sample i depends on it and on i, not on where or beside what it is made."""
    python: str | None = None
    """Interpreter of the workers, where the model needs an environment of its own: the path of its python. A model
    by package.module:factory is imported there."""
    output_dir: str | None = None
    """Folder for results and structures."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.model == "mixture" and self.checkpoint is not None:
            raise ValueError(
                "checkpoint: the mixture is a closed form without weights; choose another model, "
                "or leave it out"
            )
        if (self.design_sequences is None) != (self.fold_sequences is None):
            given, lacking = "design_sequences", "fold_sequences"
            if self.design_sequences is None:
                given, lacking = lacking, given
            raise ValueError(
                f"{given}: designability needs both steps; give {lacking}, too, 'stand_in' for one"
            )
        counts = {Config.branch_counts, *(options.get("branch_counts") for options in PRESETS.values())}
        if self.budget is not None and self.branch_counts not in counts:
            raise ValueError(
                f"branch_counts={self.branch_counts!r} and budget={self.budget!r} both say how many network calls a "
                "method gets: give one of the two"
            )

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is the better one."""
        return self.scoring_function not in {"rmsd", "mean_l2"}


PRESETS: dict[str, dict[str, Any]] = {
    "quick_test": {"slots": 2, "num_samples": 2, "branch_counts": (2, 4)},
    "comprehensive": {"slots": 3, "num_samples": 8, "sample_length": 100, "branch_counts": (2, 4, 8, 16)},
    "sde_focused": {"slots": 3, "noise_scale": 0.1, "lambda_div": 0.3},
    "ode_focused": {"slots": 3, "noise_scale": 0.2, "lambda_div": 0.8},
}
"""What each preset changes, in the order in which run-all runs them."""


def preset(name: str, **changes: Any) -> Config:
    """`Config` of a preset, with `changes` on top; GPUs that they name replace the preset's number of slots.

    Raises
    ------
    ValueError
        If there is no such preset; the message names the nearest.
    """
    return with_preset(Config, PRESETS, name, changes)


def canonical(config: Config) -> Config:
    """Config of what decides an experiment's results, with absolute paths.

    Where an experiment runs, and beside which others, is left out: two runs that differ in these share
    tasks, so that one resumes the other.
    """
    return replace(
        config,
        gpu_ids=None,
        slots=None,
        python=None,
        methods=METHODS,
        branch_counts=Config.branch_counts,
        budget=None,
        references=absolute_path(config.references),
        checkpoint=absolute_path(config.checkpoint),
        output_dir=None,
    )
