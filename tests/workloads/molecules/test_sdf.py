"""Molecules out of .sdf files, and what is said of those that are wrong."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import numpy as np
import pytest

from mgpu_nb.workloads.molecules import read_sdf

pytest.importorskip("rdkit")

from rdkit import Chem
from rdkit.Chem import rdDistGeom


def molecule(smiles: str, hydrogens: bool = True) -> Chem.Mol:
    made = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(made, randomSeed=1) == 0
    return made if hydrogens else Chem.RemoveHs(made)


def blocks(*smiles: str, v3000: bool = False, hydrogens: bool = True) -> str:
    made = [Chem.MolToMolBlock(molecule(each, hydrogens), forceV3000=v3000) for each in smiles]
    return "".join(f"{block}> <name>\nsome\n\n$$$$\n" for block in made)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "some.sdf"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("v3000", [False, True])
def test_molecules_are_those_that_rdkit_wrote(tmp_path: Path, v3000: bool) -> None:
    text = blocks("CCO", "N#CF", "c1ccoc1", v3000=v3000)
    for content in (text, text.replace("\n", "\r\n"), gzip.compress(text.encode())):
        found = read_sdf(written(tmp_path, content))
        for each, smiles in zip(found, ("CCO", "N#CF", "c1ccoc1"), strict=True):
            wanted = molecule(smiles)
            assert each.numbers.tolist() == [atom.GetAtomicNum() for atom in wanted.GetAtoms()]
            np.testing.assert_allclose(each.positions, wanted.GetConformer().GetPositions(), atol=1e-4)


def test_a_mol_file_and_a_flat_molecule_are_read(tmp_path: Path) -> None:
    rows = ["O", "     RDKit          3D", "", "  3  2  0  0  0  0  0  0  0  0999 V2000"]
    rows += [
        f"{x:10.4f}{y:10.4f}    0.0000 {s}   0" for s, x, y in (("O", 0, 0), ("H", 0.9, 0), ("H", 0, 0.9))
    ]
    rows += ["  1  2  1  0", "  1  3  1  0", "M  END"]
    (water,) = read_sdf(written(tmp_path, "\n".join(rows)))
    assert water.numbers.tolist() == [8, 1, 1]
    assert water.positions[1].tolist() == [0.9, 0, 0]
    with pytest.raises(
        ValueError, match=r"some\.sdf, line 1: the molecule is a drawing in the plane: .*--gen3d"
    ):
        read_sdf(written(tmp_path, "\n".join(rows).replace("3D", "2D")))
    with pytest.raises(ValueError, match=r"some\.sdf, line 1: .* mend it, or take it out|no finite numbers"):
        read_sdf(written(tmp_path, "\n".join(rows).replace("0.9000", "   nan", 1)))


def test_damaged_molecules_are_told_by_their_line(tmp_path: Path) -> None:
    good = blocks("CCO")
    lines = good.count("\n")
    with pytest.raises(
        ValueError, match=rf"some\.sdf, line {lines + 1}: no molecule .*: mend it, or take it out"
    ):
        read_sdf(written(tmp_path, good + "nonsense\n\n\nmore\n$$$$\n"))
    cut = "\n".join(good.split("\n")[:6])
    with pytest.raises(
        ValueError, match=rf"some\.sdf, line {lines + 1}: no molecule as \.sdf files have them"
    ):
        read_sdf(written(tmp_path, good + cut))
    with pytest.raises(ValueError, match=r"line 1: no molecule"):
        read_sdf(written(tmp_path, "CCO\nCCN\n"))


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, blocks("CCO", "CCl") + blocks("CC=O", hydrogens=False))
    with pytest.raises(
        ValueError, match=r"no element 'Cl'; the elements are H, C, N, O, F: .*skip_unknown=True"
    ):
        read_sdf(path)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mgpu_nb.molecules"):
        assert [len(each.numbers) for each in read_sdf(path, skip_unknown=True)] == [9, 3]
    assert "1 of 3 molecules left out, of unknown elements: Cl in 1" in caplog.text
    assert "1 molecules have hydrogens that are not written" in caplog.text
    assert read_sdf(written(tmp_path, "")) == []
