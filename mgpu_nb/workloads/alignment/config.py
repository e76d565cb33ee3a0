"""The options of an alignment beside its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ...options import PositiveInt, Seed, Unique, check_options
from ..arguments import Positional
from ..inputs import GpuIds
from .settings import check_override, load_settings

__all__ = ["Config", "default_output"]


Overrides = Annotated[tuple[str, ...], Positional("KEY=VALUE")]
Profiles = Annotated[tuple[Literal["40gb", "80gb", "2gpus", "8gpus", "embedded"], ...], Unique()]


@dataclass(frozen=True)
class Config:
    """Options of an alignment, and where its settings come from.

    Raises
    ------
    TypeError, ValueError
        If an option is invalid, or an override is of no key that there is; the message names it and what is accepted.
    """

    overrides: Overrides = ()
    """Settings as KEY=VALUE: experiment.name=x algos.DPO.enabled=false models.llama.reference=/folder."""
    config: str | None = None
    """YAML file of settings, over conf/config.yaml and the profiles."""
    profile: Profiles = ()
    """Settings for cards of 40 or 80 GB, for 2 or 8 GPUs, or for the embedded task; a later one over those before."""
    seed: Seed = 42
    """Seed of all random numbers."""
    gpu_ids: GpuIds = None
    """GPUs to use, or cpu for none; all by default. An id given twice means two slots on that GPU."""
    slots: PositiveInt | None = None
    """Number of slots; by default one per GPU (on a machine without one, virtual CPU devices). Settings with
    system.use_parallel_execution=false have one."""
    output_dir: str | None = None
    """Folder of the run; by default outputs/<experiment.name>/seed_<seed>."""

    def __post_init__(self) -> None:
        check_options(self)
        for override in self.overrides:
            check_override(override)


def default_output(config: Config) -> str:
    """Folder of a run that names none, ``outputs/<experiment.name>/seed_<seed>``."""
    return f"outputs/{load_settings(config).experiment.name}/seed_{config.seed}"
