"""Results as files: JSON and a table as the seed's users know them, and parquet. Written triple by triple."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ...store.files import atomic_write, escape_formula
from .config import Config
from .graph import Graph
from .reader import read_labels

__all__ = [
    "CSV_COLUMNS",
    "SELF_COLUMNS",
    "Influence",
    "text_file",
    "write_csv",
    "write_json",
    "write_parquet",
    "write_self",
    "write_self_json",
]

CSV_COLUMNS = (
    "TestHead", "TestHead_label", "TestRel", "TestRel_label", "TestTail", "TestTail_label",
    "TrainHead", "TrainHead_label", "TrainRel", "TrainRel_label", "TrainTail", "TrainTail_label",
    "TracInScore", "SelfInfluence",
)  # fmt: skip
SELF_COLUMNS = (*CSV_COLUMNS[6:12], "SelfInfluence")
ROWS = 2**17  # of a row group


@dataclass(frozen=True, slots=True)
class Influence:
    """Influences on one test triple, the largest first.

    Attributes
    ----------
    test
        Number of the test triple.
    index, values
        Numbers of training triples and their influence, [k] each.
    """

    test: int
    index: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


class Named:
    """Triples of a graph as text, with labels."""

    def __init__(self, graph: Graph, config: Config) -> None:
        self.graph = graph
        self.entity_labels = _labels(config.entity_labels, graph.entities)
        self.relation_labels = _labels(config.relation_labels, graph.relations)

    def cells(self, triple: npt.NDArray[np.int64]) -> list[str]:
        """Names and labels of a triple [3], as six cells of a table."""
        head, relation, tail = triple.tolist()
        names = self.graph.named(triple)
        labels = (self.entity_labels[head], self.relation_labels[relation], self.entity_labels[tail])
        return [escape_formula(text) for pair in zip(names, labels, strict=True) for text in pair]


def _labels(path: str | None, names: Sequence[str]) -> Sequence[str]:
    return names if path is None else read_labels(path, names)[0]


@contextmanager
def text_file(path: Path) -> Iterator[IO[str]]:
    """Text file open for writing, in UTF-8 and with newlines as given; it is there when all of it is."""
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_json(path: Path, graph: Graph, influences: Iterator[Influence], about: dict[str, Any]) -> None:
    """Write ``{**about, "results": [...]}`` with memory for one test triple at a time."""

    @functools.cache  # of those that are written, which may be few of many
    def head(number: int) -> str:
        return _entry("train", graph.named(graph.train[number])) + ', "influence": '

    with text_file(path) as file:
        file.write(json.dumps(about, indent=2, ensure_ascii=False)[:-2] + ',\n  "results": [')
        separator = "\n"
        for found in influences:
            file.write(f"{separator}    {{{_entry('test', graph.named(graph.test[found.test]))}, ")
            entries = [
                f"\n      {{{head(n)}{v!r}}}"
                for n, v in zip(found.index.tolist(), _plain(found.values), strict=True)
            ]
            file.write(f'"top_influences": [{",".join(entries)}\n    ]}}')
            separator = ",\n"
        file.write("\n  ]\n}\n")


def _entry(kind: str, names: tuple[str, str, str]) -> str:
    parts = zip(("head", "relation", "tail"), names, strict=True)
    return ", ".join(f'"{kind}_{part}": {json.dumps(name, ensure_ascii=False)}' for part, name in parts)


def _plain(values: npt.NDArray[Any]) -> list[float]:
    """Numbers as Python's, float32 ones with no more digits than they have."""
    plain: list[float] = (values if values.dtype == np.float64 else values.astype(str).astype(float)).tolist()
    return plain


def write_csv(path: Path, named: Named, influences: Iterator[Influence], selves: npt.NDArray[Any]) -> None:
    """Write a row per test and training triple."""
    graph = named.graph

    @functools.cache
    def train(number: int) -> list[str]:
        return named.cells(graph.train[number])

    with text_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for found in influences:
            test = named.cells(graph.test[found.test])
            numbers, values, own = found.index.tolist(), _plain(found.values), _plain(selves[found.index])
            writer.writerows([*test, *train(n), v, o] for n, v, o in zip(numbers, values, own, strict=True))


def write_parquet(
    path: Path, graph: Graph, influences: Iterator[Influence], selves: npt.NDArray[Any]
) -> None:
    """Write columns test, train (numbers), test_head ... train_tail (names), influence, self_influence."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    entities, relations = pa.array(graph.entities), pa.array(graph.relations)
    kinds = (("head", entities), ("relation", relations), ("tail", entities))
    writer = None
    with atomic_write(path) as file:
        for group in _groups(influences):
            tests = np.concatenate([np.full(len(found.index), found.test) for found in group])
            train = np.concatenate([found.index for found in group])
            values = np.concatenate([found.values for found in group])
            columns: dict[str, Any] = {"test": tests.astype(np.int32), "train": train.astype(np.int32)}
            for side, triples in (("test", graph.test[tests]), ("train", graph.train[train])):
                for n, (part, names) in enumerate(kinds):
                    codes = pa.array(triples[:, n].astype(np.int32))
                    columns[f"{side}_{part}"] = pa.DictionaryArray.from_arrays(codes, names)
            columns["influence"] = values
            columns["self_influence"] = selves[train]
            table = pa.table(columns)
            if writer is None:
                writer = pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _groups(influences: Iterator[Influence]) -> Iterator[list[Influence]]:
    group: list[Influence] = []
    rows = 0
    for found in influences:
        group.append(found)
        rows += len(found.index)
        if rows >= ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def write_self(path: Path, named: Named, selves: npt.NDArray[Any], first: npt.NDArray[np.int64]) -> None:
    """Write the self-influences as a table, in the order of `first`."""
    values = _plain(selves)
    with text_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SELF_COLUMNS)
        for n in first.tolist():
            writer.writerow([*named.cells(named.graph.train[n]), values[n]])


def write_self_json(
    path: Path, graph: Graph, selves: npt.NDArray[Any], first: npt.NDArray[np.int64], about: dict[str, Any]
) -> None:
    """Write ``{**about, "results": [{train_head, train_relation, train_tail, self_influence}]}``."""
    values = _plain(selves)
    rows = [
        f'    {{{_entry("train", graph.named(graph.train[n]))}, "self_influence": {values[n]!r}}}'
        for n in first.tolist()
    ]
    with text_file(path) as file:
        file.write(json.dumps(about, indent=2, ensure_ascii=False)[:-2])
        file.write(',\n  "results": [\n' + ",\n".join(rows) + "\n  ]\n}\n")
