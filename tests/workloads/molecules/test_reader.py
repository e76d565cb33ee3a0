"""Molecules out of .xyz files of others, and what is said of files that are wrong."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest

from mgpu_nb.workloads.molecules.reader import read_xyz

WATER = "3\nwater\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"
QM9 = (
    "2\ngdb 1\t157.7\t0.\nC\t-0.0126\t 1.0858\t 0.008\t-0.535\nH\t 2.1997*^-6\t-0.006\t 0.002\t 0.133\n"
    "1341.307\t1562.6731\nC\tC\nInChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4\n"
)


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "bad.xyz"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_plain_xyz_files_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "2\nwater's part\nO 0 0 0\nH 0.0 1e-1 -2.5 0.3 0.4\n1\n\n  F\t1 2 3\n\n\n")
    first, second = read_xyz(path)
    assert first.numbers.tolist() == [8, 1]
    assert first.positions.tolist() == [[0, 0, 0], [0, 0.1, -2.5]]
    assert (second.numbers.tolist(), second.positions.tolist()) == ([9], [[1, 2, 3]])


@pytest.mark.parametrize(
    "content",
    [
        WATER.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + WATER.encode(),
        WATER.replace("water", "Müller\u2028\x0b").encode("utf-8"),
        WATER.replace("water", "Müller").encode("latin-1"),
        gzip.compress(WATER.encode()),
    ],
    ids=["crlf", "mark of order", "separators", "latin-1", "gzip"],
)
def test_texts_of_any_editor_are_read(tmp_path: Path, content: bytes) -> None:
    (molecule,) = read_xyz(write(tmp_path, content))
    assert molecule.numbers.tolist() == [8, 1, 1]
    assert molecule.positions[1].tolist() == [0, 0.76, -0.48]


@pytest.mark.parametrize(
    ("properties", "row"),
    [
        ("species:S:1:forces:R:3:pos:R:3", "H 9 9 9 1 2 3"),
        ("id:I:1:species:S:1:pos:R:3", "7 H 1 2 3"),
        ("pos:R:3:species:S:1", "1 2 3 H"),
    ],
)
def test_properties_say_where_symbol_and_position_are(tmp_path: Path, properties: str, row: str) -> None:
    (molecule,) = read_xyz(write(tmp_path, f'1\nProperties={properties} pbc="F F F"\n{row}\n'))
    assert (molecule.numbers.tolist(), molecule.positions.tolist()) == ([1], [[1, 2, 3]])


def test_files_of_qm9_are_read_as_they_are(tmp_path: Path) -> None:
    first, second = read_xyz(write(tmp_path, QM9 + QM9))
    assert first.numbers.tolist() == second.numbers.tolist() == [6, 1]
    assert first.positions[1].tolist() == [2.1997e-6, -0.006, 0.002]


@pytest.mark.parametrize(
    ("content", "line", "reason", "remedy"),
    [
        ("water\n", 1, "expected a number of atoms, got 'water'", "obabel"),
        ("2.0\n\nH 0 0 0\nH 0 0 1\n", 1, "expected a number of atoms, got '2.0'", "obabel"),
        ("-1\n\n", 1, "expected a number of atoms, got '-1'", "obabel"),
        ("0\n\n", 1, "expected a number of atoms, got '0'", "obabel"),
        (WATER + "H 1 1 1\n", 6, "expected a number of atoms, got 'H 1 1 1'", "a line for each atom"),
        ("\x1b[31mX\n", 1, r"expected a number of atoms, got '\x1b[31mX'", "obabel"),
        ("3\n\nO 0 0 0\nH 0 0 1\n", 1, "3 atoms, but 2 lines follow", "copy it again"),
        ("99999999999\n", 1, "99999999999 atoms, but 0 lines follow", "copy it again"),
        ("1\n\nH 0 0 0\n2\n\nH 0 0 0\n \n", 4, "2 atoms, but 1 lines follow", "copy it again"),
        ("2\n\nH 0 0 0\nXx 0 0 1\n", 4, "no element 'Xx'; the elements are H, C, N, O, F", "skip_unknown=True"),
        ("1\n\nh 0 0 0\n", 3, "expected a symbol and three coordinates", "mend the line"),
        ("1\n\n6 0 0 0\n", 3, "expected a symbol and three coordinates", "mend the line"),
        ("1\n\nH 0 0\n", 3, "expected a symbol and three coordinates", "mend the line"),
        ("1\n\nH 0 0 z\n", 3, "expected a symbol and three coordinates", "mend the line"),
        ("2\n\nH 0 0 0\n\nH 1 1 1\n", 4, "expected a symbol and three coordinates, got ''", "mend the line"),
        ("1\n\nH 0 nan 0\n", 3, "coordinates must be finite numbers, got 'H 0 nan 0'", "take the frame out"),
        ("1\n\nH 0 1e999 0\n", 3, "coordinates must be finite numbers", "take the frame out"),
        ("1\nProperties=pos:R:3\n0 0 0\n", 2, "does not say where species and pos are", "leave it out"),
        ("1\nProperties=species:S:x\nH 0 0 0\n", 2, "does not say where species and pos are", "leave it out"),
        (WATER.encode("utf-16"), 1, "it holds a zero byte, so it is no text", "save it so"),
        (b"1\n\nH 0 0 0\n\0", 4, "it holds a zero byte, so it is no text", "save it so"),
    ],
)  # fmt: skip
def test_damaged_files_are_told_by_their_line(
    tmp_path: Path, content: str | bytes, line: int | None, reason: str, remedy: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"bad\.xyz") as raised:
        read_xyz(path)
    said = str(raised.value)
    assert said.startswith(f"{path}, line {line}: " if line else f"{path} ")
    assert reason in said
    assert remedy in said.replace("Copy", "copy")
    assert said.isprintable()


def test_a_packed_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bad\.xyz: its gzip data are broken or cut off .*: copy it again"):
        read_xyz(write(tmp_path, gzip.compress(WATER.encode())[:-9]))


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.xyz: there is no such file; give the path"):
        read_xyz(tmp_path / "none.xyz")
    with pytest.raises(IsADirectoryError, match=r"is a folder: give one \.xyz file"):
        read_xyz(tmp_path)


def test_other_elements_are_left_out_and_counted_if_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    salt, silane = "2\n\nNa 0 0 0\nCl 0 0 2\n", "2\n\nSi 0 0 0\nCl 0 0 2\n"
    path = write(tmp_path, salt + WATER + silane + QM9)
    with pytest.raises(ValueError, match="line 3: no element 'Na'"):
        read_xyz(path)
    caplog.clear()
    assert [len(molecule.numbers) for molecule in read_xyz(path, skip_unknown=True)] == [3, 2]
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 of 4 molecules left out, of unknown elements: Cl in 2, " in said


def test_what_was_read_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mgpu_nb.molecules")
    path = write(tmp_path, WATER + QM9)
    read_xyz(path)
    assert caplog.messages == [f"{path}: 2 molecules of 2 to 3 atoms of H, C, O"]
    caplog.clear()
    read_xyz(write(tmp_path, WATER + "2\n\nH 0 0 0\nH 0 0 0\n"))
    assert "1 of 2 molecules have two atoms at one place" in caplog.messages[1]
    assert "the first begins in line 6" in caplog.messages[1]
    caplog.clear()
    assert read_xyz(write(tmp_path, "\n \n")) == []
    assert caplog.messages == [f"{path}: no molecules"]
