"""What is novel: a model's file says which molecules it was trained on."""

from pathlib import Path

import pytest
from drawn_molecules import g2, shaken

from mgpu_nb.workloads.molecules.checkpoint import SMILES, known_smiles, load_model, save_model
from mgpu_nb.workloads.molecules.dataset import training_molecules
from mgpu_nb.workloads.molecules.diffusion import Diffusion
from mgpu_nb.workloads.molecules.egnn import EGNN
from mgpu_nb.workloads.molecules.metrics import summarise
from mgpu_nb.workloads.molecules.noise import Schedule
from mgpu_nb.workloads.molecules.rows import canonical_smiles, measure
from mgpu_nb.workloads.molecules.train import TrainConfig, train

pytest.importorskip("rdkit")
pytest.importorskip("ase")


@pytest.mark.slow
def test_a_training_writes_what_it_was_of(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    train(TrainConfig(steps=1, hidden=32, layers=1, heavy_atoms=1, conformers=1, output=str(path)))
    known = known_smiles(path)
    assert known is not None
    assert set(known) == {canonical_smiles(molecule) for molecule in training_molecules(1, 1, 0)}
    assert {"[H]C([H])([H])[H]", "[H]O[H]"} <= known
    load_model(path)

    rows = measure([g2("CH4"), g2("H2O"), shaken("CH4", 0, 0.01), g2("HCN")], range(4))
    found = summarise(rows, known - {"[H]O[H]"})["novelty"]
    assert (found.value, found.n) == ((1 + ("[H]C#N" not in known)) / 3, 3)


def test_a_file_that_does_not_say(tmp_path: Path) -> None:
    model = Diffusion(EGNN(6, 32, 1), histogram={3: 1}, schedule=Schedule(10))
    for name, metadata in (("none", {}), ("other", {SMILES: "{}"}), ("broken", {SMILES: "["})):
        path = tmp_path / f"{name}.safetensors"
        save_model(model, path, metadata)
        assert known_smiles(path) is None
    (tmp_path / "damaged.safetensors").write_bytes(b"no model")
    for path in (tmp_path / "damaged.safetensors", tmp_path / "gone.safetensors", tmp_path):
        assert known_smiles(path) is None
    assert summarise(measure([g2("CH4")], [0]), None)["novelty"].value is None
