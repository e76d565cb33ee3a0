"""Files of a run: samples as arrays and as CSV, model folders."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb.workloads.alignment.files import (
    COLUMNS,
    Row,
    check_model,
    digests,
    new_model,
    pack,
    read_rows,
    unpack,
    write_samples,
)
from mgpu_nb.workloads.alignment.job import Sample

ODD = ["=1+1", "+a", "-3", "@x", "\ta", "\rb", "'=1", "''", "'", "", "a\nb", 'a"b', "a,b", "a\r\nb", "é漢\0"]
TEXTS = st.sampled_from(ODD) | st.text(max_size=5)
TOKENS = st.lists(st.integers(0, 200_000), max_size=4).map(tuple)
SCORES = st.floats(allow_nan=True, allow_infinity=False)


SAMPLES = st.lists(
    st.builds(
        Sample,
        index=st.integers(0, 9),
        draw=st.integers(0, 3),
        question=TEXTS,
        answer=TEXTS,
        prompt=TEXTS,
        t=st.integers(0, 9),
        context=TEXTS,
        y_a=TEXTS,
        y_b=TEXTS,
        score_a=SCORES,
        score_b=SCORES,
        preferred=st.integers(-1, 1),
        prompt_ids=TOKENS,
        context_ids=TOKENS,
        a_ids=TOKENS,
        b_ids=TOKENS,
    ),
    max_size=4,
)


def same(one: object, other: object) -> bool:
    return repr(one) == repr(other)  # nan is nan


@given(SAMPLES)
@settings(max_examples=40)
def test_samples_come_back_from_arrays(samples: list[Sample]) -> None:
    assert same(unpack(pack(samples)), samples)


@given(SAMPLES)
@settings(max_examples=40)
def test_samples_come_back_from_a_table_in_which_no_cell_is_a_formula(samples: list[Sample]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        write_samples(path, samples)
        rows = [Row(*(getattr(each, name) for name in COLUMNS)) for each in samples]
        assert same(read_rows(path), rows)
        with path.open(encoding="utf-8", errors="surrogatepass", newline="") as file:
            cells = [cell for row in list(csv.DictReader(file)) for name, cell in row.items() if name in TEXT]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


TEXT = ("question", "answer", "prompt", "context", "y_a", "y_b")


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("question,y_a\n1,2\n")
    with pytest.raises(
        ValueError, match=r"x.csv, line 1: expected the columns question, answer, .* got question, y_a"
    ):
        read_rows(path)
    with pytest.raises(
        FileNotFoundError, match=r"none.csv: there is no such file; give one of those below datasets/"
    ):
        read_rows(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1,2", r"x.csv, line 2: 2 cells, expected 10: copy the file anew"),
        ("q,a,p,one,c,y,z,1,0,1", r"x.csv, line 2: t must be a number, got 'one'"),
        ("q,a,p,1,c,y,z,x,0,1", r"x.csv, line 2: score_a must be a number, got 'x'"),
        ("q,a,p,1,c,y,z,1,0,", r"x.csv, line 2: preferred must be a number, got ''"),
        ('"q,a', r"x.csv, line 2: no valid CSV: unexpected end of data"),
        (b"\xff", r"x.csv, line 2: it is not text in UTF-8"),
    ],
)
def test_a_row_that_is_damaged_is_named(row: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(",".join(COLUMNS).encode() + b"\n" + (row if isinstance(row, bytes) else row.encode()))
    with pytest.raises(ValueError, match=words):
        read_rows(path)


def test_a_model_folder_appears_whole_and_takes_the_place_of_another(tmp_path: Path) -> None:
    place = tmp_path / "models" / "DPO" / "sums_gpt2_r1"
    for text in ("one", "two"):
        with new_model(place) as folder:
            (folder / "weights").write_text(text)
            assert not place.exists() or (place / "weights").read_text() == "one"
        assert (place / "weights").read_text() == text
    with pytest.raises(ZeroDivisionError), new_model(place) as folder:
        (folder / "weights").write_text(str(1 / 0))
    assert (place / "weights").read_text() == "two"
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_process_that_is_killed_in_the_middle_leaves_the_model_that_was_there(tmp_path: Path) -> None:
    place = tmp_path / "m"
    with new_model(place) as folder:
        (folder / "weights").write_text("one")
    program = f"""
        import os, signal
        from pathlib import Path
        from mgpu_nb.workloads.alignment.files import new_model
        with new_model(Path({str(place)!r})) as folder:
            (folder / "weights").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (place / "weights").read_text() == "one"
    with new_model(place) as folder:
        assert not list(folder.iterdir())
        (folder / "weights").write_text("two")
    assert list(tmp_path.iterdir()) == [place]


def test_a_model_that_is_missing_or_damaged_is_named_with_what_to_do(tmp_path: Path) -> None:
    with new_model(tmp_path / "m") as folder:
        (folder / "a").write_text("one")
        (folder / "b").write_text("two")
    files = digests(tmp_path / "m")
    check_model(tmp_path / "m", files, "X_r1_train")
    (tmp_path / "m" / "b").write_text("twq")
    check_model(tmp_path / "m", files, "X_r1_train", most=2)  # too large to be read here
    with pytest.raises(ValueError, match=r"m/b is damaged.*'X_r1_train'.*--no_resume"):
        check_model(tmp_path / "m", files, "X_r1_train")
    (tmp_path / "m" / "b").write_text("tw")
    with pytest.raises(ValueError, match="is damaged"):
        check_model(tmp_path / "m", files, "X_r1_train", most=0)
    (tmp_path / "m" / "b").unlink()
    with pytest.raises(FileNotFoundError, match=r"m/b is missing.*'X_r1_train'.*--no_resume"):
        check_model(tmp_path / "m", files, "X_r1_train")
