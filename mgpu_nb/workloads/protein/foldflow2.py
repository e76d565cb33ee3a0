"""FoldFlow-2, a full SE(3) model (Huguet et al., 2024), behind the interface of a C-alpha velocity.

Neither its code nor its weights come with this package, and its code is older than the Python and the torch that most
have: ``Config(model="foldflow2", python=...)`` runs the experiments in an environment of its own. `check` tries there
what will be imported, and says what is missing and how that environment is made.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs import check_imports
from .config import WORKER_IMPORTS

__all__ = ["FoldFlow2", "check", "foldflow2", "load_config"]

_SOURCE = "https://github.com/DreamFold/FoldFlow"
_FLOW_MODEL = "foldflow.models.ff2flow.flow_model"
_DEPENDENCIES = "foldflow.models.ff2flow.ff2_dependencies"
_IMPORTS = (*WORKER_IMPORTS, "omegaconf", _DEPENDENCIES, _FLOW_MODEL)
_PACKAGES = (
    "'torch>=2.0,<2.4' 'numpy<2' 'biotite>=1.0' scipy einops fair-esm dm-tree pot pydantic ipdb biopython omegaconf "
    "safetensors cloudpickle lazy-loader git+https://github.com/joeybose/geomstats.git"
)
_REMEDY = f"""\
FoldFlow-2 works in Python 3.10 with torch before 2.4 and numpy before 2: from Python 3.11 on fair-esm and its own
structure_network raise at import, for defaults of their dataclasses are mutable. Make an environment for it,
    git clone {_SOURCE}
    python3.10 -m venv foldflow-env
    foldflow-env/bin/pip install {_PACKAGES}
    echo "$PWD/FoldFlow" > foldflow-env/lib/python3.10/site-packages/foldflow.pth
(pip install git+{_SOURCE} leaves out most of its packages), and give python='foldflow-env/bin/python'"""
_WEIGHTS, _CONFIG = "FOLDFLOW2_WEIGHTS", "FOLDFLOW2_CONFIG"
_SECTIONS = {"model": "model/ff2.yaml", "flow_matcher": "flow_matcher/default.yaml"}
_INFERENCE = "inference.yaml"


def check(checkpoint: str | None = None, python: str | None = None) -> None:
    """Check that its files are there, and that the interpreter of the workers imports what they will.

    Parameters
    ----------
    checkpoint
        The weights; by default the file that FOLDFLOW2_WEIGHTS names.
    python
        That interpreter; by default this process's own.

    Raises
    ------
    ValueError
        If a file is missing, or something does not import: says which and why, and how to make an environment where it
        does.
    """
    missing = []
    if (problem := _no_file(checkpoint or os.environ.get(_WEIGHTS))) is not None:
        missing.append(f"the weights of its release, give checkpoint= or set {_WEIGHTS}{problem}")
    config = os.environ.get(_CONFIG)
    if (
        not (config and _is_config_folder(Path(config).expanduser()))
        and (problem := _no_file(config)) is not None
    ):
        missing.append(
            f"its configuration, set {_CONFIG} to the folder runner/config of its repository, or to the "
            f"inference_conf.yaml that a run of it has written{problem}"
        )
    if missing:
        raise ValueError(f"model='foldflow2' needs {'; '.join(missing)}. See {_SOURCE}")
    check_imports(python, _IMPORTS, "model='foldflow2'", _REMEDY)


def _no_file(path: str | None) -> str | None:
    """What is wrong with the path of a file; None if it is one."""
    if not path:
        return ""
    return None if Path(path).expanduser().is_file() else f" ({path!r} is no file)"


def _is_config_folder(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _SECTIONS.values())


def foldflow2(checkpoint: str | None = None) -> FoldFlow2:
    """Load FoldFlow-2: weights as in `check`, configuration from what FOLDFLOW2_CONFIG names.

    Raises
    ------
    ImportError, ValueError
        If packages or files are missing, see `check`; or the configuration lacks a section.
    """
    flow_model = importlib.import_module(_FLOW_MODEL)
    dependencies = importlib.import_module(_DEPENDENCIES)
    config = load_config(Path(os.environ[_CONFIG]).expanduser())
    file = Path(checkpoint or os.environ[_WEIGHTS]).expanduser()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return FoldFlow2(flow_model.FF2Model.from_ckpt(weights, dependencies.FF2Dependencies(config)))


def load_config(path: Path) -> Any:
    """Configuration of FoldFlow-2, an omegaconf ``DictConfig`` with the sections ``model`` and ``flow_matcher``.

    Its repository has none in one file: hydra composes it of those in ``runner/config``. That folder is composed here
    as ``runner/inference.py model=ff2`` does it; a file is what that script has written.

    Raises
    ------
    ValueError
        If a section is missing.
    """
    omega = importlib.import_module("omegaconf").OmegaConf
    if path.is_dir():
        config = omega.create({name: omega.load(path / file) for name, file in _SECTIONS.items()})
        if (path / _INFERENCE).is_file():
            changed = omega.load(path / _INFERENCE).get("flow_matcher") or {}
            config = omega.merge(config, omega.create({"flow_matcher": changed}))
    else:
        config = omega.load(path)
    if absent := [name for name in _SECTIONS if name not in config]:
        raise ValueError(
            f"{path} has no section {' and no section '.join(absent)}: set {_CONFIG} to the folder runner/config of "
            f"{_SOURCE}, whose parts hydra composes"
        )
    return config


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
