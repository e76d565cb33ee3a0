"""The score of a sample, and which of two is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .config import Config
from .flow import NM_PER_ANGSTROM
from .frames import backbone, positions, rotations
from .functions import load_function, wants_backbone
from .geometry import geometric_score, mean_l2, rmsd
from .tm_score import nearest_tm_score

__all__ = ["Scorer", "call_with_atoms", "check_backbone", "check_score"]

_DISTANCES = {"rmsd": rmsd, "mean_l2": mean_l2}
_WANTED = "a function of positions [B, L, 3] that returns [B] scores, of which higher is better"
_C_ALPHA_ONLY = ("mixture", "ca_net", "foldflow2")


class Scorer:
    """Scores states in nm; here, and only here, they become angstrom.

    ``tm_score``, ``rmsd`` and ``mean_l2`` compare with the nearest reference fold. This stands in for
    refolding (designing a sequence by ProteinMPNN and folding it by ESMFold), which needs models that are
    not embedded.

    A score of the user's, a function or its path, is called as ``score(positions)``, or as
    ``score(positions, backbone=backbone)`` if it has a parameter of that name. It returns B numbers, of which
    higher is better.

    ========= ============== ============================================================
    positions [B, L, 3]      C-alpha atoms, angstrom, float64, on the worker's device
    backbone  [B, L, 4, 3]   N, CA, C and O atoms, of models with frames (see `frames`)
    ========= ============== ============================================================

    Parameters
    ----------
    score
        ``tm_score`` or ``geometric`` (higher is better), ``rmsd`` or ``mean_l2`` (angstrom, lower is better), or one
        of the user's.
    references
        [K, L, 3] reference folds in angstrom.
    """

    def __init__(self, score: str | Callable[..., Any], references: Tensor) -> None:
        self.score, self.references = score, references.double()
        own = not isinstance(score, str) or ":" in score
        self.own = load_function(score, "scoring_function", _WANTED) if own else None
        self.higher_is_better = own or score in {"tm_score", "geometric"}

    def __call__(self, x: Tensor) -> Tensor:
        """Scores [...] (float64) of states [..., L, 3] or, with frames, [..., L, 12] in nm."""
        if self.own is not None:
            return self._own(self.own, x)
        traces = positions(x).double() / NM_PER_ANGSTROM
        if self.score == "geometric":
            return geometric_score(traces)
        if self.score == "tm_score":
            return nearest_tm_score(traces, self.references)
        return _DISTANCES[str(self.score)](traces[..., None, :, :], self.references).amin(dim=-1)

    def _own(self, score: Callable[..., Any], x: Tensor) -> Tensor:
        flat = x.reshape(-1, *x.shape[-2:])
        if not len(flat):
            return x.new_zeros(x.shape[:-2], dtype=torch.float64)
        given = call_with_atoms(score, flat, "scoring_function")
        return _checked(given, len(flat)).to(x.device).reshape(x.shape[:-2])

    def gain(self, scores: Tensor) -> Tensor:
        """`scores` turned so that the higher is the better one, and no number is worst of all."""
        return torch.nan_to_num(scores if self.higher_is_better else -scores, nan=-torch.inf)


def call_with_atoms(
    function: Callable[..., Any], x: Tensor, option: str, *others: Any, each: bool = False
) -> Any:
    """Call a function of the user's with atoms of states [B, L, 3 or 12], in angstrom, and what else it is given.

    With `each` it is given those of the first state alone, without the dimension of the batch.

    Raises
    ------
    ValueError
        If it asks for backbone atoms and the states are C-alpha atoms; `option` is who asks.
    """
    traces = positions(x).double() / NM_PER_ANGSTROM
    if not wants_backbone(function):
        return function(traces[0] if each else traces, *others)
    if x.shape[-1] == 3:
        raise ValueError(_no_backbone(option, "the model"))
    atoms = backbone(traces, rotations(x).double())
    return function(traces[0] if each else traces, *others, backbone=atoms[0] if each else atoms)


def check_backbone(function: Callable[..., Any], option: str, config: Config) -> None:
    """Check that the model of a run has what a function asks for, as far as can be known before it is built.

    Raises
    ------
    ValueError
        If it wants backbone atoms of a model that has none.
    """
    if wants_backbone(function) and config.model in _C_ALPHA_ONLY:
        raise ValueError(_no_backbone(option, f"model={config.model!r}"))


def check_score(config: Config) -> None:
    """Try a score of the user's on two extended chains, here, before a worker starts.

    Raises
    ------
    TypeError, ValueError
        If it does not import, fails, or does not return a finite number for each chain; the message says what to do.
    """
    score = config.scoring_function
    if isinstance(score, str) and ":" not in score:
        return
    function = load_function(score, "scoring_function", _WANTED)
    check_backbone(function, "scoring_function", config)
    x = torch.zeros(2, config.sample_length, 12, dtype=torch.float64)
    x[..., 0] = 0.38 * torch.arange(config.sample_length)
    x[1] *= 0.9
    x[..., 3::4] = 1.0  # the rotations are identities
    try:
        given = call_with_atoms(function, x, "scoring_function")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"scoring_function fails for positions [2, {config.sample_length}, 3] ({reason}): it must be {_WANTED}"
        ) from error
    scores = _checked(given, 2)
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(
            f"scoring_function gives {scores.tolist()} for two extended chains: return finite numbers for any chain; "
            "what cannot be scored gets a low one"
        )


def _checked(given: object, count: int) -> Tensor:
    """Scores [B], float64, as a function of the user's has returned them."""
    try:
        scores = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"scoring_function returned a {type(given).__name__}: it must be {_WANTED}"
        ) from error
    if scores.shape != (count,) or scores.is_complex() or scores.dtype == torch.bool:
        shape = f"{list(scores.shape)} of {str(scores.dtype).removeprefix('torch.')}"
        raise ValueError(
            f"scoring_function returned {shape} for {count} samples, not [{count}] of float: it must be {_WANTED}"
        )
    return scores.double()


def _no_backbone(option: str, model: str) -> str:
    return (
        f"{option} asks for backbone atoms, and {model} has C-alpha atoms only: take a model with frames, or a "
        "function of positions alone"
    )
