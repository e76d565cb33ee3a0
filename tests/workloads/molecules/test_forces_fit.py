"""The fit of the potential: what it is fitted to, and that a seed makes it again."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mgpu_nb.workloads.molecules.forces.fit_potential import FitConfig, fit
from mgpu_nb.workloads.molecules.forces.frame_set import FrameSet
from mgpu_nb.workloads.molecules.forces.frames import Frame, displaced, labelled, random_molecules
from mgpu_nb.workloads.molecules.forces.potential import Potential
from mgpu_nb.workloads.molecules.molecule import Molecule


def test_options_are_checked() -> None:
    for wrong in ({"steps": 0}, {"molecules": 0}, {"ema": 1.0}, {"seed": -1}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FitConfig(**wrong)


def test_a_fit_by_hand_says_where_to_write() -> None:
    with pytest.raises(ValueError, match="give output="):
        fit(FitConfig(steps=1))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package, *_: None)
    with pytest.raises(ValueError, match=r'the fit needs .*pip install "mgpu-nb\[molecules\]"'):
        fit(FitConfig(steps=1, output=str(tmp_path / "p.safetensors")))


def test_copies_are_displaced_a_little_and_a_lot() -> None:
    molecule = Molecule(np.array([6, 8]), np.array([[0.0, 0, 5], [0, 0, 6.1]]))
    copies = list(displaced(molecule, 10, np.random.default_rng(0)))
    moved = [np.abs(copy.positions - [[0, 0, -0.55], [0, 0, 0.55]]).max() for copy in copies]
    assert len(copies) == 10
    assert moved[0] < 0.25
    assert max(moved) > 0.3
    assert all(np.abs(copy.positions.mean(0)).max() < 1e-12 for copy in copies[:9])
    assert 0.05 <= np.linalg.norm(np.diff(copies[9].positions, axis=0)) <= 0.5  # one in ten overlaps


def test_what_does_not_converge_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mgpu_nb.molecules")

    class Half:
        name = "half"

        def forces(self, numbers: object, positions: np.ndarray) -> tuple[float, np.ndarray]:
            if positions[0, 0] < 0:
                raise RuntimeError("not converged")
            return 1.0, positions

    molecules = [Molecule(np.array([1]), np.array([[x, 0.0, 0.0]])) for x in (1.0, -1.0, 2.0)]
    shares: list[float] = []
    frames = list(labelled(Half(), molecules, shares.append))
    assert [frame.positions[0, 0] for frame in frames] == [1.0, 2.0]
    assert shares == [0.0]
    assert caplog.messages == ["frame 1 of 1 atoms is left out: not converged"]


def test_followed_molecules_go_downhill() -> None:
    torch.manual_seed(0)
    net = Potential()._nets[torch.float32]
    draws = np.random.default_rng(0)
    frames = [
        Frame(np.array([8, 1, 1]), draws.normal(size=(3, 3)), 0.0, draws.normal(size=(3, 3)))
        for _ in range(8)
    ]
    found = list(FrameSet(frames).followed(net, 3, torch.Generator().manual_seed(0), steps=5))
    assert len(found) == 6
    assert all(molecule.numbers.tolist() == [8, 1, 1] for molecule in found)
    potential = Potential()
    for early, late in zip(found[::2], found[1::2], strict=True):
        assert potential.forces(*late)[0] <= potential.forces(*early)[0] + 1e-6


@pytest.mark.slow
def test_random_molecules_are_those_of_their_seed() -> None:
    few, again = random_molecules(300, 3), random_molecules(290, 3)
    assert len(few) == 300
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(few, again, strict=False))
    assert {n for molecule in few for n in molecule.numbers.tolist()} == {1, 6, 7, 8, 9}


@pytest.mark.slow
def test_the_same_seed_makes_the_same_parameters(tmp_path: Path) -> None:
    results = [
        fit(FitConfig(molecules=40, frames=2, steps=20, output=str(tmp_path / f"{n}.safetensors")))
        for n in range(2)
    ]
    assert results[0]["losses"] == results[1]["losses"]
    assert results[0]["loss"] < 3
    assert results[0]["frames"] == results[1]["frames"] > 80
    first, second = (load_file(tmp_path / f"{n}.safetensors") for n in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert np.isfinite(Potential(tmp_path / "0.safetensors").forces(np.array([8]), np.zeros((1, 3)))[0])
