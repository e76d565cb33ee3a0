"""What a run reads: the files of its model, the model itself, and the checks of both at the door."""

from __future__ import annotations

import functools

from ..inputs import files_digest
from .checkpoint import check_n_nodes, load_model, model_place
from .config import Config
from .diffusion import Diffusion
from .published import FILES
from .solvers import number_of_steps

__all__ = ["checked_model", "model_digest"]


def model_digest(path: str | None) -> str:
    """Digest of the files of a model: its weights and, of one of the public EDM, its options.

    Raises
    ------
    ValueError
        If there is no such file.
    """
    place = model_place(path)
    folder = place if place.is_dir() else place.parent
    files = [] if place.is_dir() else [place]
    if place.is_dir() or place.suffix != ".safetensors":
        files += [folder / name for name in FILES if (folder / name).is_file() and folder / name != place]
    return files_digest(files)


def checked_model(config: Config) -> Diffusion:
    """Model of a config, on the CPU, which its options fit.

    Raises
    ------
    ValueError
        If it cannot be read, has no molecules of `n_nodes` atoms, or was trained with fewer steps than are asked for.
    """
    model = _loaded(config.model_path, config.trust, model_digest(config.model_path))
    number_of_steps(config.sampler, config.steps, model.schedule.steps)
    if config.n_nodes is not None:
        check_n_nodes(model, config.n_nodes)
    return model


@functools.lru_cache(1)
def _loaded(path: str | None, trust: bool, digest: str) -> Diffusion:
    return load_model(path, trust=trust)
