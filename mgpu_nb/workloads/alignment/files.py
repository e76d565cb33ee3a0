"""The files of a run: data sets of samples, model folders, results; each is there whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ...output import safe
from ...store.files import atomic_write, strict_json
from .job import Job, Sample
from .rows import csv_rows, decoded

__all__ = [
    "COLUMNS",
    "Row",
    "check_model",
    "dataset_file",
    "digests",
    "model_folder",
    "new_model",
    "pack",
    "read_rows",
    "result_file",
    "unpack",
    "write_result",
    "write_samples",
]

COLUMNS = (
    "question", "answer", "prompt", "t", "context", "y_a", "y_b", "score_a", "score_b", "preferred",
)  # fmt: skip
_TEXTS = ("question", "answer", "prompt", "context", "y_a", "y_b")
_TOKENS = ("prompt_ids", "context_ids", "a_ids", "b_ids")
_WHOLE = ("index", "draw", "t", "preferred")
_SCORES = ("score_a", "score_b")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # the apostrophe, too: what begins with one has been escaped


class Row(NamedTuple):
    """A line of a data set of samples; see `Sample`."""

    question: str
    answer: str
    prompt: str
    t: int
    context: str
    y_a: str
    y_b: str
    score_a: float
    score_b: float
    preferred: int


def dataset_file(job: Job) -> PurePosixPath:
    """Data set of a job's samples, below the folder of the run."""
    return PurePosixPath("datasets", job.algo, f"{job.stem}.csv")


def model_folder(job: Job) -> PurePosixPath:
    """Model folder that a job writes, below the folder of the run."""
    return PurePosixPath("models", job.algo, job.stem)


def result_file(job: Job) -> PurePosixPath:
    """Results of a job, below the folder of the run."""
    return PurePosixPath("results", job.algo, job.family, job.dataset, f"r{job.round}", "result.json")


def pack(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Samples as arrays, for a value on disk: numbers as they are, texts and tokens end to end with their lengths."""
    found: dict[str, np.ndarray] = {}
    for name in _WHOLE:
        found[name] = np.array([getattr(sample, name) for sample in samples], dtype=np.int64)
    for name in _SCORES:
        found[name] = np.array([getattr(sample, name) for sample in samples], dtype=np.float64)
    for name in _TEXTS:
        texts = [getattr(sample, name).encode(errors="surrogatepass") for sample in samples]
        found[name] = np.frombuffer(b"".join(texts), dtype=np.uint8)
        found[f"{name}_length"] = np.array([len(text) for text in texts], dtype=np.int64)
    for name in _TOKENS:
        tokens = [getattr(sample, name) for sample in samples]
        found[name] = np.array([token for some in tokens for token in some], dtype=np.int64)
        found[f"{name}_length"] = np.array([len(some) for some in tokens], dtype=np.int64)
    return found


def unpack(packed: Mapping[str, np.ndarray]) -> list[Sample]:
    """Samples of `pack`."""
    columns: dict[str, list[Any]] = {name: packed[name].tolist() for name in (*_WHOLE, *_SCORES)}
    for name in _TEXTS:
        data = packed[name].tobytes()
        columns[name] = [
            data[a:b].decode(errors="surrogatepass") for a, b in _spans(packed[f"{name}_length"])
        ]
    for name in _TOKENS:
        tokens = packed[name].tolist()
        columns[name] = [tuple(tokens[a:b]) for a, b in _spans(packed[f"{name}_length"])]
    rows = zip(*(columns[name] for name in Sample._fields), strict=True)
    return [Sample(*row) for row in rows]


def _spans(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    return pairwise([0, *np.cumsum(lengths).tolist()])


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write the data set of samples of a job, `COLUMNS`.

    A text that begins with a character which begins a formula, or with an apostrophe, has an apostrophe more at its
    front, and none other has; a score that is unknown is empty. `read_rows` undoes both.
    """
    table = io.StringIO(newline="")
    # All texts are quoted: csv would leave a carriage return bare, which ends a row for those who read it.
    writer = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(COLUMNS)
    for sample in samples:
        writer.writerow([_cell(getattr(sample, name)) for name in COLUMNS])
    with atomic_write(path) as part:
        part.write_bytes(table.getvalue().encode(errors="surrogatepass"))


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return "" if isinstance(value, float) and math.isnan(value) else value


def read_rows(path: Path) -> list[Row]:
    """Rows of a data set of samples, as they were before they were escaped.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no CSV, its columns are others, or a number is none; the message names the file and the line.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file; give one of those below datasets/ of a run's folder"
        )
    lines = csv_rows(decoded(path.read_bytes(), path, errors="surrogatepass"), path)
    head = lines[0][1] if lines else []
    if tuple(head) != COLUMNS:
        raise ValueError(
            f"{path}, line 1: expected the columns {', '.join(COLUMNS)}, got {safe(', '.join(head)) or 'none'}: give a "
            "file that a run has written below datasets/"
        )
    return [_row(path, *line) for line in lines[1:]]


def _row(path: Path, where: str, cells: list[str]) -> Row:
    remedy = "copy the file anew, or run its training again"
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{path}, {where}: {len(cells)} cells, expected {len(COLUMNS)}: {remedy}")
    plain = dict(zip(COLUMNS, cells, strict=True))
    values: dict[str, Any] = {name: plain[name].removeprefix("'") for name in _TEXTS}
    for kind, names in ((int, ("t", "preferred")), (float, _SCORES)):
        for name in names:
            try:
                values[name] = kind(plain[name] or "nan")
            except ValueError as error:
                raise ValueError(
                    f"{path}, {where}: {name} must be a number, got {plain[name]!r:.100}: {remedy}"
                ) from error
    return Row(**values)


@contextmanager
def new_model(folder: Path) -> Iterator[Path]:
    """Empty folder that becomes `folder` when the block ends, in place of one that is there.

    If the block raises, or its process ends in it, `folder` is as before.
    """
    part = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    for left in (part, old):  # of a worker that was killed
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _flush(file)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digests(folder: Path) -> dict[str, str]:
    """Size and digest of each file below a folder, ``"1234:5f..."`` by its path in it."""
    found = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        found[file.relative_to(folder).as_posix()] = f"{file.stat().st_size}:{_digest(file)}"
    return found


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_model(folder: Path, files: Mapping[str, str], wrote: str, most: int | None = None) -> None:
    """Check that a model folder is as a training has left it.

    Parameters
    ----------
    folder
        The folder.
    files
        What `digests` said of it then.
    wrote
        Name of the task that wrote it.
    most
        Bytes of files whose content is read; of larger ones the size alone is compared. None for all.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the content of one is another.
    """
    remedy = (
        "put it back as it was, or start anew in a new folder: --no_resume, start(config, resume=False), or "
        "another experiment.name"
    )
    for name, known in files.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing, which task {wrote!r} wrote and a later one needs: {remedy}"
            )
        size, _, content = known.partition(":")
        same = file.stat().st_size == int(size)
        if same and (most is None or int(size) <= most):
            same = _digest(file) == content
        if not same:
            raise ValueError(
                f"{file} is damaged, it is not what task {wrote!r} wrote and a later one needs: {remedy}"
            )


def write_result(folder: Path, job: Job, content: Mapping[str, Any]) -> Path:
    """Write the results of a job below the folder of a run; return the path."""
    path = folder / result_file(job)
    text = strict_json(dict(content))
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8")
    return path
