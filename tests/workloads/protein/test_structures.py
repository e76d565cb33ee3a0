from __future__ import annotations

import gzip
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import biotite.structure as struc
import numpy as np
import pytest
import tmtools
from biotite.structure.io import pdb, pdbx

from mgpu_nb.tasks import Record
from mgpu_nb.workloads.protein import collect, run_experiment
from mgpu_nb.workloads.protein.config import Config
from mgpu_nb.workloads.protein.folds import Coordinates, generate_folds
from mgpu_nb.workloads.protein.plan import tasks
from mgpu_nb.workloads.protein.structures import read_folds, reference_folds, write_pdb


def chain(
    positions: Coordinates | list[list[float]],
    chain_id: str = "A",
    first: int = 1,
    name: str = "CA",
    element: str = "C",
    residue: str = "ALA",
) -> Any:
    atoms = struc.AtomArray(len(positions))
    atoms.coord = np.asarray(positions, dtype=np.float32)
    atoms.chain_id[:], atoms.atom_name[:], atoms.element[:], atoms.res_name[:] = (
        chain_id,
        name,
        element,
        residue,
    )
    atoms.res_id = np.arange(first, first + len(positions))
    return atoms


def write(path: Path, atoms: Any) -> None:
    if path.suffix == ".pdb":
        file = pdb.PDBFile()
        file.set_structure(atoms)
    else:
        file = pdbx.CIFFile()
        pdbx.set_structure(file, atoms)
    file.write(str(path))


@pytest.fixture
def long() -> Coordinates:
    """A chain of 60 residues, angstrom, rounded as files round."""
    positions: Coordinates = generate_folds(60, 1)[0].round(3) + 10
    return positions


def centred(x: Coordinates) -> Coordinates:
    moved: Coordinates = x - x.mean(axis=0)
    return moved


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_a_chain_of_the_length_is_taken_whole(tmp_path: Path, long: Coordinates, suffix: str) -> None:
    write(tmp_path / f"one{suffix}", chain(long))
    folds = read_folds(tmp_path, 60)
    np.testing.assert_allclose(folds.positions, centred(long)[None], atol=2e-3)
    assert folds.names == (f"one{suffix} A1",)


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_only_the_c_alpha_atoms_count(tmp_path: Path, long: Coordinates, suffix: str) -> None:
    backbone = struc.concatenate(
        [chain(long + 1.4, name="N", element="N"), chain(long), chain(long - 1.4, name="CB")]
    )
    calcium = chain([[0.0, 0, 0]], first=99, element="CA", residue="CA")
    calcium.hetero[:] = True
    write(tmp_path / f"full{suffix}", struc.concatenate([backbone, calcium]))
    np.testing.assert_allclose(read_folds(tmp_path, 60).positions, centred(long)[None], atol=2e-3)


def test_of_a_longer_chain_the_most_compact_window_is_taken(tmp_path: Path) -> None:
    stretched = np.arange(1, 21)[:, None] * np.array([3.8, 0, 0])
    fold = generate_folds(30, 1)[0]
    whole = np.concatenate([fold[0] - stretched[::-1], fold, fold[-1] + stretched])
    write(tmp_path / "long.pdb", chain(whole, first=101))
    radii = [whole[start : start + 30].var(axis=0).sum() for start in range(41)]
    start = int(np.argmin(radii))
    assert 15 < start < 25  # the fold begins at 20
    folds = read_folds(tmp_path, 30)
    np.testing.assert_allclose(folds.positions[0], centred(whole[start : start + 30]), atol=2e-3)
    assert folds.names == (f"long.pdb A{101 + start}",)


def test_chains_and_files_are_folds_of_their_own_in_order(tmp_path: Path) -> None:
    a, b, c = generate_folds(20, 3)
    write(tmp_path / "2.cif", struc.concatenate([chain(a, "A"), chain(b + 50, "B", first=7)]))
    write(tmp_path / "1.pdb", chain(c, "X"))
    (tmp_path / "notes.txt").write_text("no structure")
    folds = read_folds(tmp_path, 20)
    assert folds.names == ("1.pdb X1", "2.cif A1", "2.cif B7")
    np.testing.assert_allclose(folds.positions, np.stack([c, a, b]), atol=2e-3)
    assert read_folds(tmp_path, 20, 2).names == ("1.pdb X1", "2.cif A1")


def test_a_gap_ends_a_segment(tmp_path: Path, long: Coordinates) -> None:
    write(tmp_path / "gap.pdb", struc.concatenate([chain(long[:25]), chain(long[30:], first=31)]))
    assert read_folds(tmp_path, 25).names == ("gap.pdb A1", "gap.pdb A31")
    with pytest.raises(ValueError, match="longest unbroken one has 30"):
        read_folds(tmp_path, 31)


def test_of_alternative_locations_the_first_is_taken(tmp_path: Path) -> None:
    fold = generate_folds(10, 1)[0].round(3)
    file = tmp_path / "alt.pdb"
    write(file, chain(fold))
    lines = []
    for line in file.read_text().splitlines():
        if line.startswith("ATOM") and int(line[22:26]) == 5:
            lines.append(line[:16] + "A" + line[17:])
            lines.append(line[:16] + "B" + line[17:30] + f"{99:8.3f}{99:8.3f}{99:8.3f}" + line[54:])
        else:
            lines.append(line)
    file.write_text("\n".join(lines) + "\n")
    np.testing.assert_allclose(read_folds(tmp_path, 10).positions[0], fold, atol=2e-3)


def test_of_several_models_the_first_is_taken(tmp_path: Path) -> None:
    a, b = generate_folds(12, 2)
    write(tmp_path / "nmr.pdb", struc.stack([chain(a), chain(b)]))
    np.testing.assert_allclose(read_folds(tmp_path, 12).positions, a[None], atol=2e-3)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("junk.cif", "not a structure", r"junk\.cif cannot be read"),
        ("short.pdb", "ATOM      1  CA  ALA A   1      xx.xxx\n", r"short\.pdb cannot be read"),
        ("binary.pdb", "\x00\x01\x02", "cannot be read|does not give a fold"),
        ("empty.pdb", "", "cannot be read|does not give a fold"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_folds(tmp_path, 10)


def test_what_a_folder_cannot_give_is_said(tmp_path: Path, long: Coordinates) -> None:
    with pytest.raises(ValueError, match="is no folder: give one that holds"):
        read_folds(tmp_path / "missing", 10)
    with pytest.raises(ValueError, match=r"holds no \.pdb or \.cif file"):
        read_folds(tmp_path, 10)
    write(tmp_path / "nitrogen.pdb", chain(long, name="N", element="N"))
    with pytest.raises(ValueError, match="longest unbroken one has 0"):
        read_folds(tmp_path, 10)
    write(tmp_path / "one.pdb", chain(long))
    with pytest.raises(
        ValueError, match=r"does not give a fold of 61 residues.*give a smaller sample_length"
    ):
        read_folds(tmp_path, 61)
    with pytest.raises(ValueError, match="does not give 2 folds of 60 residues: 1 of its chains"):
        read_folds(tmp_path, 60, 2)


def test_write_pdb_is_read_by_biotite(tmp_path: Path, long: Coordinates) -> None:
    write_pdb(tmp_path / "new" / "trace.pdb", long)
    atoms = pdb.PDBFile.read(str(tmp_path / "new" / "trace.pdb")).get_structure(model=1)
    np.testing.assert_allclose(atoms.coord, long, atol=1e-3)
    assert (atoms.atom_name == "CA").all()
    assert atoms.res_id.tolist() == list(range(1, 61))


def test_the_folds_of_a_config() -> None:
    folds = reference_folds(Config(sample_length=20, num_folds=3))
    assert folds.names == ("generated 1", "generated 2", "generated 3")
    np.testing.assert_array_equal(folds.positions, generate_folds(20, 3))
    assert len(reference_folds(Config(sample_length=20)).names) == 8


def test_a_changed_file_makes_another_task_and_stops_the_old_one(tmp_path: Path) -> None:
    for n, trace in enumerate(generate_folds(30, 2)):
        write_pdb(tmp_path / "in" / f"{n}.pdb", trace)
    config = Config(references=str(tmp_path / "in"), sample_length=30, num_folds=2, steps=2, num_samples=1)
    before = tasks(config)[0]
    assert callable(before.fn)
    assert tasks(config)[0].args == before.args
    write_pdb(tmp_path / "in" / "1.pdb", generate_folds(30, 3)[2])
    assert tasks(config)[0].args != before.args
    with pytest.raises(ValueError, match="have changed since"):
        before.fn(*before.args)


# Folders as they are.


def text_of(fold: Coordinates) -> str:
    return "".join(
        f"ATOM  {n:5d}  CA  ALA A{n:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C  \n"
        for n, (x, y, z) in enumerate(fold, 1)
    )


def cif_of(path: Path, fold: Coordinates, name: str = "1ABC") -> str:
    write(path, chain(fold))
    text = path.read_text()
    path.unlink()
    return text.replace("data_structure", f"data_{name}")


def test_hidden_files_and_other_kinds_are_left_out_and_told(
    tmp_path: Path, long: Coordinates, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.pdb", "pdb1abc.ent", "B.PDB"):
        (tmp_path / name).write_text(text_of(long))
    (tmp_path / "b.pdb.gz").write_bytes(gzip.compress(text_of(long).encode()))
    (tmp_path / "._a.pdb").write_bytes(b"\0\5\x16\7\xff\xfe")
    (tmp_path / "notes.txt").write_text("no structure")
    (tmp_path / "folder.pdb").mkdir()
    folds = read_folds(tmp_path, 60)
    assert folds.names == ("B.PDB A1", "a.pdb A1", "b.pdb.gz A1", "pdb1abc.ent A1")
    assert folds.left_out == "2 of 6 files left out: 1 hidden (._a.pdb), 1 of other kinds (notes.txt)"
    tasks(Config(sample_length=60, references=str(tmp_path)))
    assert folds.left_out in caplog.text
    for file in tmp_path.glob("*[!r]"):
        if file.suffix != ".txt" and file.is_file():
            file.unlink()
    (tmp_path / ".hidden.pdb").write_text(text_of(long))
    with pytest.raises(
        ValueError, match=r"holds no \.pdb or \.cif file, .*left out: 1 hidden \(\.hidden\.pdb\)"
    ):
        read_folds(tmp_path, 60)


def test_files_without_a_chain_that_is_long_enough_are_told(tmp_path: Path, long: Coordinates) -> None:
    (tmp_path / "a.pdb").write_text(text_of(long))
    for name in ("b.pdb", "c.pdb"):
        (tmp_path / name).write_text(text_of(long[:30]))
    said = "2 of 3 structure files have no unbroken chain of 60 residues: b.pdb, c.pdb"
    assert read_folds(tmp_path, 60).left_out == said
    (tmp_path / "page.pdb").write_text("<html>no such entry</html>")
    with pytest.raises(ValueError, match=r"page\.pdb cannot be read .*none of its lines is of an atom"):
        read_folds(tmp_path, 60)
    assert read_folds(tmp_path, 60, skip_unreadable=True).left_out.endswith(said.replace("of 3", "of 4"))


@pytest.mark.parametrize("name", ["a.cif", "a.mmcif", "a.cif.gz", "a.bcif", "a.bcif.gz"])
def test_formats_of_the_pdb(tmp_path: Path, long: Coordinates, name: str) -> None:
    if "bcif" in name:
        file, buffer = pdbx.BinaryCIFFile(), io.BytesIO()
        pdbx.set_structure(file, chain(long))
        file.write(buffer)
        content = buffer.getvalue()
    else:
        content = cif_of(tmp_path / "text.cif", long).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    folds = read_folds(tmp_path, 60)
    assert folds.names == (f"{name} A1",)
    np.testing.assert_allclose(folds.positions, centred(long)[None], atol=2e-3)


def test_blocks_with_atoms_are_structures_of_their_own(tmp_path: Path, long: Coordinates) -> None:
    first, second = (cif_of(tmp_path / "text.cif", long + n, name) for n, name in enumerate(("1ABC", "2ABC")))
    (tmp_path / "two.cif").write_text(f"data_empty\n#\n{first}\n{second}")
    assert read_folds(tmp_path, 60).names == ("two.cif A1", "two.cif[2ABC] A1")
    (tmp_path / "two.cif").write_text("data_empty\n_entry.id empty\n")
    with pytest.raises(ValueError, match=r"two\.cif cannot be read .*none of its blocks has atoms"):
        read_folds(tmp_path, 60)


@pytest.mark.parametrize(
    "columns",
    [
        (
            "group_PDB",
            "label_atom_id",
            "label_comp_id",
            "label_asym_id",
            "label_seq_id",
            "Cartn_x",
            "Cartn_y",
            "Cartn_z",
        ),
        ("auth_atom_id", "auth_comp_id", "auth_asym_id", "auth_seq_id", "Cartn_x", "Cartn_y", "Cartn_z"),
        (
            "label_atom_id",
            "label_asym_id",
            "label_seq_id",
            "Cartn_x",
            "Cartn_y",
            "Cartn_z",
            "pdbx_PDB_model_num",
        ),
    ],
    ids=["no model numbers", "names of the authors", "numbers of models unknown"],
)
def test_columns_that_programs_leave_out(tmp_path: Path, long: Coordinates, columns: tuple[str, ...]) -> None:
    given = {"group_PDB": "ATOM", "pdbx_PDB_model_num": "?", "label_asym_id": "A", "auth_asym_id": "A"}
    given |= dict.fromkeys(("label_atom_id", "auth_atom_id"), "CA")
    given |= dict.fromkeys(("label_comp_id", "auth_comp_id"), "ALA")
    lines = []
    for n, position in enumerate(long, 1):
        row = given | dict(
            zip(("Cartn_x", "Cartn_y", "Cartn_z"), map("{:.3f}".format, position), strict=True)
        )
        row |= dict.fromkeys(("label_seq_id", "auth_seq_id"), str(n))
        lines.append(" ".join(row[column] for column in columns))
    heads = "\n".join(f"_atom_site.{column}" for column in columns)
    (tmp_path / "a.cif").write_text(f"data_a\nloop_\n{heads}\n" + "\n".join(lines) + "\n#\n")
    folds = read_folds(tmp_path, 60)
    assert folds.names == ("a.cif A1",)
    np.testing.assert_allclose(folds.positions, centred(long)[None], atol=2e-3)


@pytest.mark.parametrize("end", [54, 60, 66])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_without_their_last_columns(tmp_path: Path, long: Coordinates, end: int, newline: str) -> None:
    lines = [line[:end] for line in text_of(long).splitlines()]
    (tmp_path / "short.pdb").write_bytes(
        newline.join(["REMARK \xe9", *lines, "TER", "END"]).encode("latin-1")
    )
    np.testing.assert_allclose(read_folds(tmp_path, 60).positions, centred(long)[None], atol=2e-3)


def test_a_broken_line_and_a_cut_off_file_are_named(tmp_path: Path, long: Coordinates) -> None:
    lines = text_of(long).splitlines()
    lines[6] = lines[6][:40]
    (tmp_path / "a.pdb").write_text("\n".join(["HEADER", *lines]))
    with pytest.raises(ValueError, match=r"a\.pdb cannot be read \(line 8: .*mend it or take it out"):
        read_folds(tmp_path, 60)
    (tmp_path / "a.pdb").unlink()
    (tmp_path / "b.pdb.gz").write_bytes(gzip.compress(text_of(long).encode())[:-20])
    with pytest.raises(ValueError, match=r"b\.pdb\.gz cannot be read .*gzip data are broken or cut off"):
        read_folds(tmp_path, 60)


def odd_chain(fold: Coordinates, marked: bool = True) -> str:
    """A .pdb file with what the PDB's have: two kinds of residue at one place, an insertion code, MSE, CA of others."""

    def line(
        record: str, residue: str, number: int, place: Coordinates, alt: str = " ", code: str = " "
    ) -> str:
        name, element = ("CA  ", "CA") if residue == " CA" else (" CA ", " C")
        x, y, z = place
        head = f"{record:<6}{number:>5} {name}{alt}{residue} A{number:>4}{code}"
        return f"{head}   {x:8.3f}{y:8.3f}{z:8.3f}  0.50  0.00          {element}"

    lines = []
    for n, place in enumerate(fold):
        if n == 4:
            lines += [
                line("ATOM", residue, n, place + 0.3 * (alt == "B"), alt if marked else " ")
                for alt, residue in (("A", "PRO"), ("B", "SER"))
            ]
        elif n == 5:
            lines.append(line("ATOM", "GLY", n - 1, place, code="A"))
        else:
            lines.append(line("HETATM" if n == 7 else "ATOM", "MSE" if n == 7 else "ALA", n, place))
    lines += [line("HETATM", " CA", 201, fold[0] + 30), line("HETATM", "LIG", 202, fold[0] + 40)]
    return "\n".join([*lines, "END", ""])


@pytest.mark.parametrize("marked", [True, False])
def test_residues_as_the_pdb_has_them(tmp_path: Path, marked: bool) -> None:
    fold = generate_folds(12, 1)[0].round(3)
    (tmp_path / "ODD.ENT").write_text(odd_chain(fold, marked))
    np.testing.assert_allclose(read_folds(tmp_path, 12).positions[0], centred(fold), atol=2e-3)


@pytest.mark.slow
def test_real_files_give_the_same_folds_in_every_format(tmp_path: Path) -> None:
    """A nanobody-bound spike's chain by biotite's own writers, upper and lower case, packed and not."""
    atoms = pdb.PDBFile.read(str(Path(tmtools.__file__).parent / "data" / "7ok9.pdb")).get_structure(model=1)
    atoms = atoms[atoms.chain_id == "A"]
    folds = []
    for n, name in enumerate(
        ("a.pdb", "A.ENT", "a.cif", "a.BCIF", "a.pdb.gz", "a.ent.gz", "a.cif.gz", "a.bcif.gz")
    ):
        folder = tmp_path / str(n)
        folder.mkdir()
        kind = name.lower().split(".")[1]
        if kind in ("pdb", "ent"):
            file = pdb.PDBFile()
            file.set_structure(atoms)
            text = io.StringIO()
            file.write(text)
            data = text.getvalue().encode()
        else:
            whole = pdbx.BinaryCIFFile() if kind == "bcif" else pdbx.CIFFile()
            pdbx.set_structure(whole, atoms)
            written: Any = io.BytesIO() if kind == "bcif" else io.StringIO()
            whole.write(written)
            data = written.getvalue() if kind == "bcif" else written.getvalue().encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        folds.append(read_folds(folder, 60).positions)
    for each in folds[1:]:
        np.testing.assert_allclose(each, folds[0], atol=2e-3)
    assert len(folds[0]) >= 2  # unbroken segments of the chain


def test_an_unreadable_file_stops_a_run_unless_it_may_go_on_without(tmp_path: Path) -> None:
    fold = generate_folds(12, 1)[0].round(3)
    write(tmp_path / "good.pdb", chain(fold))
    for name in ("a.cif", "b.bcif", "c.cif.gz", "d.cif"):
        (tmp_path / name).write_text("not a structure")
    (tmp_path / "notes.txt").touch()
    options: dict[str, Any] = {"references": str(tmp_path), "sample_length": 12, "steps": 2, "num_samples": 1}
    with pytest.raises(
        ValueError, match=r"a\.cif cannot be read .*or go on without it by skip_unreadable=True"
    ):
        tasks(Config(**options))
    config = Config(**options, skip_unreadable=True)
    assert len(tasks(config)) > 1
    said = reference_folds(config).left_out
    assert said.startswith(
        "1 of 6 files left out: 1 of other kinds (notes.txt); 4 of 5 structure files left out: a.cif cannot"
    )
    assert said.endswith(" and 1 more")
    assert "b.bcif" in said
    assert str(tmp_path) not in said
    result = run_experiment("standard", 1, config)
    record = Record(name="standard-b1", index=0, kind="k", status="ok", value=result)
    assert f"References: {said}" in str(collect(SimpleNamespace(records=[record], folder=None)))
    (tmp_path / "good.pdb").unlink()
    with pytest.raises(
        ValueError, match=r"does not give a fold of 12 residues.*4 of 4 structure files left out"
    ):
        tasks(config)
