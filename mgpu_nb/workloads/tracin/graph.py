"""Knowledge graphs: triples and their names, read from files or generated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..inputs import check_file
from .reader import read_ids, read_triples
from .rows import FileRead

__all__ = ["Graph", "community_graph", "read_graph", "write_graph"]

Triples = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Graph:
    """A knowledge graph.

    Attributes
    ----------
    train, test
        Triples [n, 3] and [m, 3]: head, relation, tail, by number.
    entities, relations
        Names, by number.
    corrupted
        Numbers of the training triples that are wrong on purpose; empty where nothing is planted.
    duplicates
        Pairs [k, 2] of test triples and the training triples that repeat them.
    unseen
        Triples of the files that were left out, for they name what the maps do not have: of training and of test.
    files
        What was read of each file, and what was left out.
    """

    train: Triples
    test: Triples
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    corrupted: npt.NDArray[np.int64]
    duplicates: npt.NDArray[np.int64]
    unseen: tuple[int, int] = (0, 0)
    files: tuple[FileRead, ...] = ()

    def named(self, triple: npt.NDArray[np.int64]) -> tuple[str, str, str]:
        """Triple [3] by name."""
        head, relation, tail = triple.tolist()
        return self.entities[head], self.relations[relation], self.entities[tail]


def community_graph(
    communities: int = 8,
    size: int = 15,
    relations: int = 4,
    tails: int = 5,
    *,
    test: int = 40,
    corrupted: float = 0.05,
    duplicates: int = 10,
    seed: int = 0,
) -> Graph:
    """Generated graph of communities that relations permute.

    Every entity has, by each relation, `tails` tails in the community that the relation leads to: 120 entities, 4
    relations and 2400 triples by default. A share of the training triples get a tail from another community; some test
    triples are repeated in the training set.

    Raises
    ------
    ValueError
        If the sizes are invalid.
    """
    if min(communities, size, relations, tails) < 1 or communities < 2:
        raise ValueError("give two communities or more, and one or more of all else")
    if tails > size:
        raise ValueError(f"tails={tails}: a community has {size} entities, so no more tails than that")
    if not 0 <= corrupted < 1:
        raise ValueError(f"corrupted={corrupted!r}: give a share from 0 up to 1")
    rng = np.random.default_rng(seed)
    leads_to = np.stack([rng.permutation(communities) for _ in range(relations)])
    triples = []
    for head in range(communities * size):
        for relation in range(relations):
            first = leads_to[relation, head // size] * size
            triples += [(head, relation, first + tail) for tail in rng.choice(size, tails, replace=False)]
    every = rng.permutation(np.array(triples, dtype=np.int64))
    if not duplicates <= test < len(every):
        raise ValueError(
            f"test={test}: give fewer than the {len(every)} triples there are, and no fewer than duplicates"
        )
    held_out, train = every[:test], every[test:].copy()
    chosen = rng.choice(len(train), round(corrupted * len(train)), replace=False)
    for index in chosen:
        right = train[index, 2] // size
        wrong = (right + rng.integers(1, communities)) % communities
        train[index, 2] = wrong * size + rng.integers(size)
    repeated = np.stack([np.arange(duplicates), len(train) + np.arange(duplicates)], 1)
    return Graph(
        np.concatenate([train, held_out[:duplicates]]),
        held_out,
        tuple(f"c{n // size}e{n % size}" for n in range(communities * size)),
        tuple(f"r{n}" for n in range(relations)),
        np.sort(chosen),
        repeated,
    )


def read_graph(
    train: str, test: str | None, entity_to_id: str, relation_to_id: str, *, drop_unseen: bool = False
) -> Graph:
    """Read a graph from its files, without test triples where no file is named.

    With `drop_unseen` triples of entities or relations that the maps do not have are left out, and counted.

    Raises
    ------
    ValueError
        If a file is malformed; the message names file and line.
    OSError
        If one is missing, or a folder.
    """
    options = {"train": train, "test": test, "entity_to_id": entity_to_id, "relation_to_id": relation_to_id}
    for option, path in options.items():
        if path is not None:
            check_file(option, path)
    (entities, *files), (relations, *others) = read_ids(entity_to_id), read_ids(relation_to_id)
    files += others
    known: dict[str, Triples] = {"test": np.zeros((0, 3), np.int64)}
    unseen = {"train": 0, "test": 0}
    for option in ("train", "test"):
        if (path := options[option]) is not None:
            known[option], found = read_triples(path, entities, relations, drop_unseen=drop_unseen)
            unseen[option] = found.unseen
            files.append(found)
    names = [tuple(sorted(ids, key=ids.__getitem__)) for ids in (entities, relations)]
    return Graph(
        known["train"], known["test"], names[0], names[1],
        corrupted=np.zeros(0, np.int64),
        duplicates=np.zeros((0, 2), np.int64),
        unseen=(unseen["train"], unseen["test"]),
        files=tuple(files),
    )  # fmt: skip


def write_graph(graph: Graph, folder: Path) -> None:
    """Write a graph as train.tsv, test.tsv, entity_to_id.tsv and relation_to_id.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, names in (("entity", graph.entities), ("relation", graph.relations)):
        text = "".join(f"{name}\t{number}\n" for number, name in enumerate(names))
        (folder / f"{kind}_to_id.tsv").write_text(text, encoding="utf-8")
    for part, triples in (("train", graph.train), ("test", graph.test)):
        lines = ("\t".join(graph.named(triple)) + "\n" for triple in triples)
        (folder / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")
