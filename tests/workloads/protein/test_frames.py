"""States with frames: rotations, backbone atoms, and a model that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tmtools
import torch
from biotite.structure.io import pdb
from torch import Tensor, nn

from mgpu_nb.workloads.protein import Config, run_experiment
from mgpu_nb.workloads.protein.config import METHODS
from mgpu_nb.workloads.protein.flow import Flow, centre
from mgpu_nb.workloads.protein.folds import generate_folds
from mgpu_nb.workloads.protein.frames import (
    ATOMS,
    backbone,
    normal_to_rotations,
    rotate,
    rotations,
    with_rotations,
)
from mgpu_nb.workloads.protein.search import Noise


def turned(count: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return normal_to_rotations(torch.randn(count, 4, generator=draws, dtype=torch.float64))


def test_rotations_turn_in_their_own_frames() -> None:
    omega = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    omega[0] = 0
    start = turned(50)
    cross = torch.linalg.cross(
        omega[:, None].expand(-1, 3, -1), torch.eye(3, dtype=torch.float64).expand(50, -1, -1)
    )
    expected = start @ torch.linalg.matrix_exp(cross.mT)
    torch.testing.assert_close(rotate(start, omega), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(start @ start.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    assert torch.linalg.det(start).min() > 0.999
    many = turned(4000, 2)
    assert many.mean(0).abs().max() < 0.04  # uniform: no preferred direction


def test_backbone_atoms_have_the_bonds_and_angles_of_proteins() -> None:
    ca = torch.from_numpy(generate_folds(20, 1)[0])
    atoms = backbone(ca, turned(20))
    assert atoms.shape == (20, 4, 3)
    n, alpha, c, o = atoms.unbind(1)
    torch.testing.assert_close(alpha, ca)
    for bond, length in ((n - alpha, 1.461), (c - alpha, 1.526), (o - c, 1.231)):
        assert bond.norm(dim=-1).numpy() == pytest.approx(length, abs=0.002)
    cosine = ((n - alpha) * (c - alpha)).sum(-1) / (1.461 * 1.526)
    assert np.degrees(np.arccos(cosine.numpy())) == pytest.approx(111.0, abs=0.3)


@pytest.mark.slow
def test_backbone_atoms_of_a_real_chain_come_back_from_its_frames() -> None:
    path = Path(tmtools.__file__).parent / "data" / "7ok9.pdb"
    atoms = pdb.PDBFile.read(str(path)).get_structure(model=1)
    atoms = atoms[atoms.chain_id == atoms.chain_id[0]]
    places = [atoms.coord[atoms.atom_name == name][:80] for name in ATOMS]
    n, ca, c, o = (torch.from_numpy(np.asarray(place, float)) for place in places)
    first = nn.functional.normalize(c - ca, dim=-1)
    third = nn.functional.normalize(torch.linalg.cross(first, n - ca, dim=-1), dim=-1)
    turns = torch.stack([first, torch.linalg.cross(third, first, dim=-1), third], dim=-1)
    back = backbone(ca, turns)
    for atom, expected in zip(back.unbind(1), (n, ca, c, o), strict=True):
        assert (atom - expected).norm(dim=-1)[:-1].quantile(0.9) < 0.25  # angstrom


class Twist(nn.Module):
    """Pulls positions onto a line and turns every residue about its first axis by one radian in all."""

    frames = True

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        line = torch.zeros_like(x[..., :3])
        line[..., 0] = 0.38 * torch.arange(x.shape[1])
        v = (line - line.mean(1, keepdim=True) - x[..., :3]) / (1 - t[:, None, None])
        return torch.cat([v, torch.ones_like(v) * torch.tensor([1.0, 0, 0])], dim=-1)


class Still(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


def reach(positions: Tensor, backbone: Tensor) -> Tensor:
    """Mean of how far N and O lie above the chain: depends on the rotations."""
    assert backbone.shape == (*positions.shape[:2], 4, 3)
    return (backbone[:, :, 0, 2] - backbone[:, :, 3, 1]).mean(-1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_frames(method: str, in_folder: Path) -> None:
    options = {
        "num_samples": 2,
        "sample_length": 8,
        "steps": 10,
        "num_folds": 1,
        "branch_interval": 0.4,
        "model": f"{__name__}:Twist",
    }
    config = Config(**options, scoring_function=reach)  # type: ignore[arg-type]
    result = run_experiment(method, 3, config)
    assert result["mean_score"] >= run_experiment("standard", 1, config)["mean_score"]
    bonds = np.linalg.norm(np.diff(result["positions"], axis=0), axis=-1)
    np.testing.assert_allclose(bonds, 3.8, atol=0.01)
    atoms = pdb.PDBFile.read(str(in_folder / result["structures"][0])).get_structure(model=1)
    assert list(atoms.atom_name) == list(ATOMS) * 8
    np.testing.assert_allclose(
        np.linalg.norm(atoms.coord[0::4] - atoms.coord[1::4], axis=-1), 1.461, atol=0.005
    )


def test_rotations_are_the_starts_turned_by_the_model() -> None:
    flow = Flow(Twist(), 10)
    x = Noise(0, 2, "cpu").starts(3, 5, frames=True)
    assert x.shape == (2, 3, 5, 12)
    torch.testing.assert_close(x[..., :3], Noise(0, 2, "cpu").starts(3, 5))
    end = rotations(flow.complete(x, 0))
    about = rotate(torch.eye(3).expand(2, 3, 5, 3, 3), torch.tensor([1.0, 0, 0]).expand(2, 3, 5, 3))
    torch.testing.assert_close(end, rotations(x) @ about, atol=1e-5, rtol=0)
    flow.model = lambda x, t: x
    with pytest.raises(
        ValueError, match=r"returned \[6, 5, 12\] for x \[6, 5, 12\]: it must return \[6, 5, 6\]"
    ):
        flow.complete(x, 9)
    state = with_rotations(torch.zeros(2, 3), turned(2))
    torch.testing.assert_close(rotations(state), turned(2))
    torch.testing.assert_close(centre(state + 1)[..., :3], torch.zeros(2, 3, dtype=torch.float64))


def test_a_model_without_frames_has_no_backbone() -> None:
    few: dict[str, Any] = {"num_samples": 1, "sample_length": 8, "steps": 2, "num_folds": 1}
    config = Config(**few, scoring_function=reach, model=f"{__name__}:Still")
    with pytest.raises(ValueError, match="asks for backbone atoms, and the model has C-alpha atoms only"):
        run_experiment("standard", 1, config)
