"""Laws of a value: what the guide predicts of a token, what it is trained on, and the offset of logits that follows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...options import check_choice

__all__ = ["BernoulliLaw", "CategoricalLaw", "Law", "PreferenceLaw", "law_named"]


class Law(ABC):
    """A family of distributions of the reward that follows a token.

    Attributes
    ----------
    name
        Name in settings and files.
    atoms
        Numbers that the guide predicts per token, A.
    """

    name: str
    atoms: int = 1

    @abstractmethod
    def offset(self, values: Tensor, eta: float) -> Tensor:
        """What is added to the logits of the reference [...], of values [..., A], in their precision."""

    @abstractmethod
    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Loss per token [N], of values [N, A] and targets [N]."""

    @abstractmethod
    def check_targets(self, targets: Sequence[float]) -> None:
        """Check what rewards are.

        Raises
        ------
        ValueError
            If the law does not hold of one; the message says which rewards it takes.
        """


class BernoulliLaw(Law):
    """Success or failure: the value is the logit l of success (Zhou et al., 2025, Q#, binary rewards).

    ``log E[exp(eta r)] = softplus(l + eta) - softplus(l)``, in [0, eta]. That holds of rewards 0 and 1 alone, so no
    others are taken.
    """

    name = "bernoulli"

    def offset(self, values: Tensor, eta: float) -> Tensor:
        """Offset of logits, ``softplus(l + eta) - softplus(l)``."""
        logit = values[..., 0]
        return functional.softplus(logit + eta) - functional.softplus(logit)

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy per token [N]."""
        return functional.binary_cross_entropy_with_logits(values[:, 0], targets, reduction="none")

    def check_targets(self, targets: Sequence[float]) -> None:
        """Check that rewards are 0 or 1."""
        for target in targets:
            if target not in (0, 1):
                raise ValueError(
                    f"law=bernoulli takes rewards of 0 and 1, got {target!r}; "
                    "for rewards between 0 and 1 take algos.QSharp.law=categorical"
                )


class CategoricalLaw(Law):
    """A distribution over evenly spaced rewards from 0 to 1: values are logits of the atoms (Q#, other rewards).

    ``log E[exp(eta r)] = logsumexp(log p + eta * atoms)``. A reward between two atoms is shared by them so that its
    mean is kept.

    Parameters
    ----------
    atoms
        Number of rewards, at least 2.
    """

    name = "categorical"

    def __init__(self, atoms: int) -> None:
        if atoms < 2:
            raise ValueError(f"atoms must be >= 2, got {atoms}; the first is reward 0, the last reward 1")
        self.atoms = atoms

    def offset(self, values: Tensor, eta: float) -> Tensor:
        """Offset of logits, ``logsumexp(log p + eta * atoms)``."""
        rewards = torch.linspace(0, 1, self.atoms, dtype=values.dtype, device=values.device)
        return torch.logsumexp(values + eta * rewards, -1) - torch.logsumexp(values, -1)

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy per token [N]."""
        place = targets * (self.atoms - 1)
        low = place.floor().clamp(0, self.atoms - 2)
        share = (place - low).to(values.dtype)
        logs = functional.log_softmax(values, -1)
        index = low.long()[:, None]
        return -((1 - share) * logs.gather(1, index)[:, 0] + share * logs.gather(1, index + 1)[:, 0])

    def check_targets(self, targets: Sequence[float]) -> None:
        """Check that rewards are in [0, 1]."""
        for target in targets:
            if not 0 <= target <= 1:
                raise ValueError(
                    f"law=categorical takes rewards in [0, 1], got {target!r}; scale the rewards of the data set"
                )


class PreferenceLaw(Law):
    """A preference: the value is the logit l that a completion with the token is the chosen one (PITA).

    The offset is ``eta * l``. Targets are 1 for tokens of the chosen completion and 0 for those of the rejected one;
    of the rewards behind them only differences count, so any finite ones will do.
    """

    name = "preference"

    def offset(self, values: Tensor, eta: float) -> Tensor:
        """Offset of logits, ``eta * l``."""
        return eta * values[..., 0]

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy per token [N]."""
        return functional.binary_cross_entropy_with_logits(values[:, 0], targets, reduction="none")

    def check_targets(self, targets: Sequence[float]) -> None:
        """Check that rewards are finite."""
        for target in targets:
            if not math.isfinite(target):
                raise ValueError(
                    f"a reward must be a finite number, got {target!r}; mend the reward function"
                )


def law_named(name: str, atoms: int) -> Law:
    """Law by its name; `atoms` counts for the categorical one alone.

    Raises
    ------
    ValueError
        If there is none of the name, or it has too few atoms.
    """
    known = (BernoulliLaw.name, CategoricalLaw.name, PreferenceLaw.name)
    check_choice(name, known, "law")
    if name == CategoricalLaw.name:
        return CategoricalLaw(atoms)
    return BernoulliLaw() if name == BernoulliLaw.name else PreferenceLaw()
