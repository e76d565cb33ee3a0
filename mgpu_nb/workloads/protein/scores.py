"""The score of a sample, and which of two is better."""

from __future__ import annotations

import torch
from torch import Tensor

from .flow import NM_PER_ANGSTROM
from .geometry import geometric_score, mean_l2, rmsd
from .tm_score import nearest_tm_score

__all__ = ["Scorer"]

_DISTANCES = {"rmsd": rmsd, "mean_l2": mean_l2}


class Scorer:
    """Scores states in nm; here, and only here, they become angstrom.

    ``tm_score``, ``rmsd`` and ``mean_l2`` compare with the nearest reference fold. This stands in for
    refolding (designing a sequence by ProteinMPNN and folding it by ESMFold), which needs models that are
    not embedded.

    Parameters
    ----------
    name
        ``tm_score`` or ``geometric`` (higher is better), ``rmsd`` or ``mean_l2`` (angstrom, lower is better).
    references
        [K, L, 3] reference folds in angstrom.
    """

    def __init__(self, name: str, references: Tensor) -> None:
        self.name, self.references = name, references.double()
        self.higher_is_better = name in {"tm_score", "geometric"}

    def __call__(self, x: Tensor) -> Tensor:
        """Scores [...] (float64) of states [..., L, 3] in nm."""
        positions = x.double() / NM_PER_ANGSTROM
        if self.name == "geometric":
            return geometric_score(positions)
        if self.name == "tm_score":
            return nearest_tm_score(positions, self.references)
        return _DISTANCES[self.name](positions[..., None, :, :], self.references).amin(dim=-1)

    def gain(self, scores: Tensor) -> Tensor:
        """`scores` turned so that the higher is the better one, and no number is worst of all."""
        return torch.nan_to_num(scores if self.higher_is_better else -scores, nan=-torch.inf)
