"""Designability: whether some sequence folds into a sample, by functions of the user's.

The protocol of the field (Trippe et al., 2023; Watson et al., 2023), for each sample after its search has ended:

1. Sequences for a backbone: ``design_sequences(positions, count, seed)``, with ``backbone=`` if it has a parameter of
   that name. ``positions`` is a tensor [L, 3] of C-alpha atoms, ``backbone`` [L, 4, 3] of N, CA, C and O atoms,
   float64, in angstrom, on the worker's device; ``seed`` belongs to the sample, whichever worker has it. It returns
   `count` texts of L letters. ProteinMPNN goes here.
2. Structures for sequences: ``fold_sequences(sequences)`` returns C-alpha positions [count, L, 3] in angstrom, a tensor
   or array. ESMFold goes here.
3. Self-consistency: each structure is compared with the sample. ``sc_tm`` is the highest TM-score, ``sc_rmsd`` the
   lowest RMSD after superposition, in angstrom; a sample is designable where ``sc_rmsd`` is below 2.

A model that such a function needs is best kept by ``mgpu_nb.context.cached``, so that a worker loads it once. ::

    def design(positions, count, seed, backbone):
        model = cached("mpnn", load_mpnn)
        return [decode(model.sample(backbone, seed + n)) for n in range(count)]

    def fold(sequences):
        return [cached("esmfold", load_esmfold).infer(each).ca for each in sequences]

    protein.Config(design_sequences=design, fold_sequences=fold, num_sequences=8)

``"stand_in"`` for both runs anywhere and knows nothing of amino acids: 20 letters stand for 20 pairs of bond angle and
torsion (a discrete-state model, Park & Levitt, 1995), the first function fits a chain of such states and ideal bonds to
the sample, the second builds the chain. It so tells whether a sample is a chain, and tries a pipeline without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...tasks import derive_seed
from .config import Config
from .flow import NM_PER_ANGSTROM
from .folds import CA_DISTANCE, extend, helix_angles
from .frames import positions
from .functions import load_function
from .geometry import rmsd
from .scores import call_with_atoms, check_backbone
from .tm_score import tm_score

__all__ = ["DESIGNABLE", "Designability", "check_designability", "stand_in_sequences", "stand_in_structures"]

DESIGNABLE = 2.0
"""RMSD to the sample, in angstrom, below which a structure confirms it."""

_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_OTHERS = [(math.radians(angle), math.radians(turn)) for angle in (95, 120) for turn in range(-160, 161, 40)]
_STATES = np.array([helix_angles(), *_OTHERS, (math.radians(107), math.radians(50))])  # [20, 2]
_SECOND = 0.1  # share of residues that get the second nearest state, but for the first sequence


class Designability:
    """Self-consistency of samples.

    Parameters
    ----------
    config
        The options: design_sequences, fold_sequences, num_sequences, seed.
    """

    def __init__(self, config: Config) -> None:
        self.count, self.seed = config.num_sequences, config.seed
        self.design, self.fold = _steps(config)

    def __call__(self, x: Tensor) -> dict[str, Any]:
        """Results of samples [S, L, 3 or 12] in nm, as plain values.

        Returns
        -------
        dict
            ``sc_tm`` and ``sc_rmsd`` of each sample, their means ``mean_sc_tm`` and ``mean_sc_rmsd``, and
            ``designable``, the share of samples.

        Raises
        ------
        TypeError, ValueError
            If a function does not return what it must.
        """
        best = [self._sample(sample[None], number) for number, sample in enumerate(x)]
        tm, rms = (list(each) for each in zip(*best, strict=True))
        share = sum(each < DESIGNABLE for each in rms) / len(rms)
        means = {"mean_sc_tm": float(np.mean(tm)), "mean_sc_rmsd": float(np.mean(rms))}
        return {"sc_tm": tm, "sc_rmsd": rms, **means, "designable": share}

    def _sample(self, x: Tensor, number: int) -> tuple[float, float]:
        seed = derive_seed(self.seed, number)
        length = x.shape[1]

        given = call_with_atoms(self.design, x, "design_sequences", self.count, seed, each=True)
        sequences = _sequences(given, self.count, length)
        structures = _structures(self.fold(sequences), self.count, length).to(x.device)
        trace = positions(x).double() / NM_PER_ANGSTROM
        return float(tm_score(trace, structures).max()), float(rmsd(structures, trace).min())


def check_designability(config: Config) -> None:
    """Check that the functions of a config can be had, before a worker starts; they are not called.

    Raises
    ------
    TypeError, ValueError
        If one of the two is missing, does not import, or wants atoms that the model has not.
    """
    if config.design_sequences is not None:
        check_backbone(_steps(config)[0], "design_sequences", config)


def stand_in_sequences(trace: Tensor, count: int, seed: int) -> list[str]:
    """Sequences of states for a C-alpha trace [L, 3] in angstrom: each residue gets the state that leads nearest to it.

    The first takes the nearest state everywhere, the others now and then the second nearest.
    """
    target = trace.detach().cpu().double().numpy()
    draws = np.random.default_rng(seed).random((len(target), count))
    draws[:, 0] = 1.0
    step = np.diff(target[:3], axis=0)
    step *= CA_DISTANCE / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-6)
    start = target[0] + np.concatenate([np.zeros((1, 3)), np.cumsum(step, axis=0)])
    bend = math.pi - math.acos(float(np.clip(step[0] @ step[1] / CA_DISTANCE**2, -1, 1)))
    third = int(np.abs(_STATES[:, 0] - bend).argmin())
    chains = np.repeat(start[None], count, axis=0)
    states = np.full((count, len(target)), third)
    each = np.arange(count)
    for i in range(3, len(target)):
        angles, torsions = np.tile(_STATES, (count, 1)).T
        tried = extend(np.repeat(chains, len(_STATES), axis=0), angles[:, None], torsions[:, None])
        tried = tried.reshape(count, len(_STATES), i + 1, 3)
        nearest = np.linalg.norm(tried[:, :, i] - target[i], axis=-1).argsort(axis=1, kind="stable")
        states[:, i] = np.where(draws[i] < _SECOND, nearest[:, 1], nearest[:, 0])
        chains = tried[each, states[:, i]]
    return ["".join(_LETTERS[state] for state in row) for row in states]


def stand_in_structures(sequences: Sequence[str]) -> Tensor:
    """Chains [N, L, 3] in angstrom of sequences of states."""
    states = _STATES[[[_LETTERS.index(letter) for letter in sequence] for sequence in sequences]]
    return torch.from_numpy(extend(np.empty((len(sequences), 0, 3)), states[..., 0], states[..., 1]))


_STAND_INS: dict[str, Callable[..., Any]] = {
    "design_sequences": stand_in_sequences,
    "fold_sequences": stand_in_structures,
}


def _steps(config: Config) -> list[Callable[..., Any]]:
    """The two functions of a config."""
    found: list[Callable[..., Any]] = []
    for option, stand_in in _STAND_INS.items():
        value = getattr(config, option)
        wanted = "a function, see mgpu_nb.workloads.protein.designability"
        found.append(stand_in if value == "stand_in" else load_function(value, option, wanted))
    return found


def _sequences(given: object, count: int, length: int) -> list[str]:
    wanted = f"design_sequences must return {count} texts of {length} letters"
    if (
        isinstance(given, str)
        or not isinstance(given, Sequence)
        or not all(isinstance(each, str) for each in given)
    ):
        raise TypeError(f"{wanted}, got {type(given).__name__}")
    lengths = sorted({len(each) for each in given})
    if len(given) != count or lengths != [length]:
        raise ValueError(f"{wanted}, got {len(given)} of {' or '.join(map(str, lengths)) or 'no'} letters")
    return list(given)


def _structures(given: object, count: int, length: int) -> Tensor:
    wanted = f"fold_sequences must return finite positions [{count}, {length}, 3] in angstrom"
    try:
        if isinstance(given, (list, tuple)):
            given = torch.stack([torch.as_tensor(each) for each in given])
        found = torch.as_tensor(given).detach().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{wanted}, got {type(given).__name__} ({error})") from error
    if list(found.shape) != [count, length, 3] or not bool(torch.isfinite(found).all()):
        finite = "" if bool(torch.isfinite(found).all()) else " that are not finite"
        raise ValueError(f"{wanted}, got {list(found.shape)}{finite}")
    return found
