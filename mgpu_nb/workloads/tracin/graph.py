"""Knowledge graphs: triples and their names, read from files or generated."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["Graph", "community_graph", "read_graph", "read_ids", "read_labels", "read_triples", "write_graph"]

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
    """

    train: Triples
    test: Triples
    entities: tuple[str, ...]
    relations: tuple[str, ...]
    corrupted: npt.NDArray[np.int64]
    duplicates: npt.NDArray[np.int64]
    unseen: tuple[int, int] = (0, 0)

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


def read_ids(path: str | Path) -> dict[str, int]:
    """Read a file of names and their numbers; return the numbers by name.

    Lines are ``name TAB number``, or ``number TAB name`` as of LibKGE; as of PyKEEN under a heading, by gzip; as of
    OpenKE below a line with their count.

    Raises
    ------
    ValueError
        For a line that is not such, a name or a number that comes twice, or numbers with a gap; the message names
        file and line.
    FileNotFoundError
        If the file is missing.
    """
    ids: dict[str, int] = {}
    lines: dict[int, int] = {}
    pairs, number_first = _pairs(_lines(path))
    for line, parts in pairs:
        given = parts[0 if number_first else -1].strip()
        if len(parts) != 2 or not given.isdecimal():
            wanted = "a number, a tab and a name" if number_first else "a name, a tab and a number"
            raise ValueError(f"{path}, line {line}: wanted {wanted}, found {_shown(parts)}")
        name, number = parts[1 if number_first else 0], int(given)
        if name in ids:
            raise ValueError(f"{path}, line {line}: {name!r} comes twice")
        if number in lines:
            raise ValueError(
                f"{path}, line {line}: number {number} was given in line {lines[number]} already"
            )
        ids[name], lines[number] = number, line
    if not ids:
        raise ValueError(f"{path} is empty: wanted lines of a name, a tab and a number")
    if max(lines) >= len(lines):
        gap = next(number for number in range(len(lines)) if number not in lines)
        raise ValueError(f"{path}: no name has number {gap}, and numbers go up to {max(lines)}")
    return ids


_NUMBERS = ("id", "index", "number", "idx")  # headings of a column of numbers


def _pairs(lines: list[tuple[int, list[str]]]) -> tuple[list[tuple[int, list[str]]], bool]:
    """Lines of a map of names without its heading, and whether the number comes first."""
    if lines and len(lines[0][1]) == 1 and lines[0][1][0].strip() == str(len(lines) - 1):
        lines = lines[1:]  # their count
    if lines and len(first := lines[0][1]) == 2 and not any(part.strip().isdecimal() for part in first):
        headings = [part.strip().lower() for part in first]
        numbered = [heading in _NUMBERS or heading.endswith("_id") for heading in headings]
        if any(numbered):
            return lines[1:], numbered[0] and not numbered[1]
    whole = [parts for _, parts in lines if len(parts) == 2]
    by_column = [sum(parts[column].strip().isdecimal() for parts in whole) for column in (0, 1)]
    return lines, by_column[0] > by_column[1]


def read_triples(path: str | Path, entities: dict[str, int], relations: dict[str, int]) -> Triples:
    """Read a file of lines ``head TAB relation TAB tail``; return the triples [n, 3] by number.

    It may be packed by gzip and have a heading. Names that are in neither map and are numbers throughout are these
    numbers, as of PyKEEN's ``numeric_triples.tsv.gz``. Below a line with their count they are
    as of OpenKE: numbers of head, tail and relation.

    Raises
    ------
    ValueError
        For a line that is not such, or a name that the maps do not have; the message names file and line.
    FileNotFoundError
        If the file is missing.
    """
    return _known_triples(path, entities, relations, drop_unseen=False)[0]


def _known_triples(
    path: str | Path, entities: dict[str, int], relations: dict[str, int], *, drop_unseen: bool
) -> tuple[Triples, int]:
    """Triples of a file, and how many were left out because the maps do not have a name of theirs."""
    triples, unseen = [], 0
    lines = _triple_lines(path, entities, relations)
    entities, relations = _numeric(lines, entities, relations) or (entities, relations)
    for line, parts in lines:
        if len(parts) != 3:
            raise ValueError(
                f"{path}, line {line}: wanted head, relation and tail with tabs, found {_shown(parts)}"
            )
        kinds = (("entity", entities), ("relation", relations), ("entity", entities))
        missing = [(kind, name) for name, (kind, ids) in zip(parts, kinds, strict=True) if name not in ids]
        if missing and not drop_unseen:
            kind, name = missing[0]
            raise ValueError(
                f"{path}, line {line}: {kind} {name!r} is not in the map of {kind} names; drop_unseen=True leaves such "
                "triples out"
            )
        if missing:
            unseen += 1
        else:
            triples.append([ids[name] for name, (_, ids) in zip(parts, kinds, strict=True)])
    if not triples:
        why = f": the maps of names have none of the {unseen} in it" if unseen else ""
        raise ValueError(f"{path} holds no triples{why}")
    return np.array(triples, dtype=np.int64), unseen


def _triple_lines(
    path: str | Path, entities: dict[str, int], relations: dict[str, int]
) -> list[tuple[int, list[str]]]:
    """Lines of a file of triples as head, relation and tail, without its heading."""
    lines = _lines(path)
    if lines and lines[0][1] == [str(len(lines) - 1)]:  # OpenKE
        split = [(line, "\t".join(parts).split()) for line, parts in lines[1:]]
        return [(line, [p[0], p[2], p[1]] if len(p) == 3 else p) for line, p in split]
    if lines and tuple(part.strip().lower() for part in lines[0][1]) in _TRIPLE_HEADINGS:
        head, relation, tail = lines[0][1]
        if not (head in entities and relation in relations and tail in entities):
            return lines[1:]
    return lines


_TRIPLE_HEADINGS = (("head", "relation", "tail"), ("h", "r", "t"), ("subject", "predicate", "object"))


def _numeric(
    lines: list[tuple[int, list[str]]], entities: dict[str, int], relations: dict[str, int]
) -> tuple[dict[str, int], dict[str, int]] | None:
    """Maps of the numbers themselves, if triples are given by them; None if they are given by name."""
    whole = [parts for _, parts in lines if len(parts) == 3]
    if not whole or not all(part.strip().isdecimal() for parts in whole for part in parts):
        return None
    if all(parts[0] in entities and parts[1] in relations and parts[2] in entities for parts in whole):
        return None  # names that happen to be numbers
    return {str(n): n for n in entities.values()}, {str(n): n for n in relations.values()}


def read_graph(
    train: str, test: str | None, entity_to_id: str, relation_to_id: str, *, drop_unseen: bool = False
) -> Graph:
    """Read a graph from its files, without test triples where no file is named.

    With `drop_unseen` triples of entities or relations that the maps do not have are left out, and counted.

    Raises
    ------
    ValueError
        If a file is malformed; the message names file and line.
    FileNotFoundError
        If one is missing.
    """
    entities, relations = read_ids(entity_to_id), read_ids(relation_to_id)
    names = [tuple(sorted(ids, key=ids.__getitem__)) for ids in (entities, relations)]
    none = np.zeros(0, np.int64)
    known, left_out = _known_triples(train, entities, relations, drop_unseen=drop_unseen)
    tests, tests_left_out = none.reshape(0, 3), 0
    if test is not None:
        tests, tests_left_out = _known_triples(test, entities, relations, drop_unseen=drop_unseen)
    unseen = left_out, tests_left_out
    return Graph(known, tests, names[0], names[1], none, none.reshape(0, 2), unseen)


def read_labels(path: str | Path | None, names: Sequence[str]) -> list[str]:
    """Read a file of lines ``name TAB label``; return the label of each name, the name itself where it has none.

    Raises
    ------
    ValueError
        For a line that is not such; the message names file and line.
    FileNotFoundError
        If the file is missing.
    """
    labels: dict[str, str] = {}
    for line, parts in [] if path is None else _lines(path):
        if len(parts) != 2:
            raise ValueError(f"{path}, line {line}: wanted a name, a tab and a label, found {_shown(parts)}")
        labels[parts[0]] = parts[1]
    return [labels.get(name, name) for name in names]


def write_graph(graph: Graph, folder: Path) -> None:
    """Write a graph as train.tsv, test.tsv, entity_to_id.tsv and relation_to_id.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, names in (("entity", graph.entities), ("relation", graph.relations)):
        text = "".join(f"{name}\t{number}\n" for number, name in enumerate(names))
        (folder / f"{kind}_to_id.tsv").write_text(text, encoding="utf-8")
    for part, triples in (("train", graph.train), ("test", graph.test)):
        lines = ("\t".join(graph.named(triple)) + "\n" for triple in triples)
        (folder / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")


def _lines(path: str | Path) -> list[tuple[int, list[str]]]:
    content = Path(path).expanduser().read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path}: its gzip data are broken or cut off ({error}): copy it again"
            ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [(n, line.split("\t")) for n, line in enumerate(lines, 1) if line.strip()]


def _shown(parts: Sequence[str]) -> str:
    return repr("\t".join(parts)[:80])
