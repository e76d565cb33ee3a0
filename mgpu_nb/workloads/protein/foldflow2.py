"""FoldFlow-2, a full SE(3) model (Huguet et al., 2024), behind the interface of a C-alpha velocity.

Neither its code nor its weights come with this package: `check` says what is missing and where it is found.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FoldFlow2", "check", "foldflow2"]

_SOURCE = "https://github.com/DreamFold/FoldFlow"
_PACKAGES = {
    "foldflow": f"pip install git+{_SOURCE}",
    "openfold": "comes with foldflow",
    "esm": "pip install fair-esm",
    "omegaconf": "pip install omegaconf",
    "einops": "pip install einops",
    "tree": "pip install dm-tree",
    "ot": "pip install pot",
}
_WEIGHTS, _CONFIG = "FOLDFLOW2_WEIGHTS", "FOLDFLOW2_CONFIG"


def check(checkpoint: str | None = None) -> None:
    """Check that packages and files are there.

    Parameters
    ----------
    checkpoint
        The weights; by default the file that FOLDFLOW2_WEIGHTS names.

    Raises
    ------
    ValueError
        If some are not: names each, and how to get it.
    """
    missing = [
        f"package {name} ({how})" for name, how in _PACKAGES.items() if importlib.util.find_spec(name) is None
    ]
    files = {
        f"the weights of its release, give checkpoint= or set {_WEIGHTS}": checkpoint
        or os.environ.get(_WEIGHTS),
        f"its configuration, a yaml with the sections model and flow_matcher, set {_CONFIG}": os.environ.get(
            _CONFIG
        ),
    }
    for what, path in files.items():
        if not path or not Path(path).expanduser().is_file():
            missing.append(what + (f" ({path!r} is no file)" if path else ""))
    if missing:
        raise ValueError(f"model='foldflow2' needs {'; '.join(missing)}. See {_SOURCE}")


def foldflow2(checkpoint: str | None = None) -> FoldFlow2:
    """Load FoldFlow-2: weights as in `check`, configuration from the file that FOLDFLOW2_CONFIG names.

    Raises
    ------
    ValueError
        If packages or files are missing, see `check`.
    """
    check(checkpoint)
    flow_model = importlib.import_module("foldflow.models.ff2flow.flow_model")
    dependencies = importlib.import_module("foldflow.models.ff2flow.ff2_dependencies")
    config = importlib.import_module("omegaconf").OmegaConf.load(os.environ[_CONFIG])
    file = Path(checkpoint or os.environ[_WEIGHTS]).expanduser()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return FoldFlow2(flow_model.FF2Model.from_ckpt(weights, dependencies.FF2Dependencies(config)))


class FoldFlow2(nn.Module):
    """C-alpha velocity of a FoldFlow-2 network.

    FoldFlow counts time from data (0) to noise (1) and gives ``(x_t - x_0) / t`` for positions in
    nm; the velocity here is its negative at ``1 - t``. Its residues also have orientations. A C-alpha trace
    has none of its own, so each residue gets the frame of its two bonds: an approximation to the model's
    own flow of rotations, best late on the path.

    Parameters
    ----------
    network
        An ``FF2Model``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity [B, L, 3] at x [B, L, 3] in nm and times t [B]."""
        batch, length = x.shape[:2]
        ones = torch.ones(batch, length, device=x.device)
        places = torch.arange(1, length + 1, device=x.device).expand(batch, -1)
        feed: dict[str, Any] = {
            "rigids_t": torch.cat([_quaternions(_frames(x)), x * 10.0], dim=-1),  # positions in angstrom
            "t": 1 - t,
            "res_mask": ones,
            "fixed_mask": torch.zeros_like(ones),
            "seq_idx": places,
            "chain_idx": torch.ones_like(places),
            "aatype": torch.zeros_like(places),
            "sc_ca_t": torch.zeros_like(x),
        }
        field: Tensor = self.network(feed)["trans_vectorfield"]
        return -(field - field.mean(dim=-2, keepdim=True))


def _frames(x: Tensor) -> Tensor:
    """Right-handed frames [B, L, 3, 3] of the two bonds of each residue; the ends take their neighbours'."""
    back, ahead = x[:, :-2] - x[:, 1:-1], x[:, 2:] - x[:, 1:-1]
    first = nn.functional.normalize(ahead, dim=-1)
    third = nn.functional.normalize(torch.linalg.cross(first, back, dim=-1), dim=-1)
    frames = torch.stack([first, torch.linalg.cross(third, first, dim=-1), third], dim=-1)
    return torch.cat([frames[:, :1], frames, frames[:, -1:]], dim=1)


def _quaternions(rotation: Tensor) -> Tensor:
    """Turn rotations [..., 3, 3] into unit quaternions [..., 4], by the largest of four equal formulas."""
    r = [[rotation[..., i, j] for j in range(3)] for i in range(3)]
    (a, b, c), (d, e, f), (g, h, k) = r
    rows = [
        1 + a + e + k, h - f, c - g, d - b,
        h - f, 1 + a - e - k, b + d, c + g,
        c - g, b + d, 1 - a + e - k, f + h,
        d - b, c + g, f + h, 1 - a - e + k,
    ]  # fmt: skip
    candidates = torch.stack(rows, dim=-1).reshape(*rotation.shape[:-2], 4, 4)
    best = (
        candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*rotation.shape[:-2], 1, 4)
    )
    return nn.functional.normalize(candidates.gather(-2, best)[..., 0, :], dim=-1)
