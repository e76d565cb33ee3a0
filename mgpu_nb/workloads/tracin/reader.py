"""Triples, names and labels from tables of text: as PyKEEN, OpenKE and LibKGE write them, with tabs or commas."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .rows import FileRead, Rows, TableFile, counted, short

__all__ = ["read_ids", "read_labels", "read_triples"]

Ids = Mapping[str, int]


def read_ids(path: str | Path) -> tuple[dict[str, int], FileRead]:
    """Read a file of names and their numbers; return the numbers by name.

    Lines are ``name TAB number``, or ``number TAB name`` as of LibKGE; as of PyKEEN under a heading, by gzip; as of
    OpenKE below a line with their count. Commas may take the place of the tabs.

    Raises
    ------
    ValueError
        For a line that is not such, a name or a number that comes twice, or numbers with a gap; the message names
        file and line.
    OSError
        If the file cannot be read.
    """
    ids: dict[str, int] = {}
    lines: dict[int, int] = {}
    table, number_first = _without_heading(TableFile.of(path, columns=2).without_count())
    wanted = "a number, a tab and a name" if number_first else "a name, a tab and a number"
    for line, cells in table.rows:
        given = cells[0 if number_first else -1].strip()
        if len(cells) != 2 or not given.isdecimal():
            raise ValueError(
                f"{path}, line {line}: wanted {wanted}, a whole one from 0 on, found {table.shown(cells)}: correct the "
                "line or remove it"
            )
        name, number = cells[1 if number_first else 0], int(given)
        if not name.strip():
            raise ValueError(f"{path}, line {line}: the name of number {number} is empty: give it one")
        if name in ids:
            raise ValueError(
                f"{path}, line {line}: {short(name)} comes twice, first in line {lines[ids[name]]}: give each name one "
                "number"
            )
        if number in lines:
            raise ValueError(
                f"{path}, line {line}: number {number} was given in line {lines[number]} already: give each name a "
                "number of its own"
            )
        ids[name], lines[number] = number, line
    if not ids:
        raise ValueError(f"{path} is empty: wanted lines of {wanted}")
    if max(lines) >= len(lines):
        gap = next(number for number in range(len(lines)) if number not in lines)
        raise ValueError(
            f"{path}: no name has number {gap}, and numbers go up to {max(lines)}: number the names from 0 on without "
            "a gap"
        )
    return ids, table.read(f"{len(ids):,} names", "number, name" if number_first else "name, number")


def read_triples(
    path: str | Path, entities: Ids, relations: Ids, *, drop_unseen: bool = False
) -> tuple[npt.NDArray[np.int64], FileRead]:
    """Read a file of lines ``head TAB relation TAB tail``; return the triples [n, 3] by number.

    Commas may take the place of the tabs, gzip may pack it, and a heading may say another order. Names of which no
    triple is in the maps and most are numbers are these numbers, as of PyKEEN's ``numeric_triples.tsv.gz``. Below a
    line with their count they are as of OpenKE: numbers of head, tail and relation.

    Parameters
    ----------
    path
        The file.
    entities, relations
        Numbers by name.
    drop_unseen
        Leave out triples of names that the maps do not have, and count them.

    Raises
    ------
    ValueError
        For a line that is not such, or a name that the maps do not have; the message names file and line.
    OSError
        If the file cannot be read.
    """
    table, order = _in_order(TableFile.of(path, columns=3), entities, relations)
    numeric = _numeric(table.rows, entities, relations)
    if numeric:
        entities, relations = (
            {str(number): number for number in ids.values()} for ids in (entities, relations)
        )
    triples: list[list[int]] = []
    unseen: list[int] = []  # lines
    kinds = (("entity", entities), ("relation", relations), ("entity", entities))
    for line, cells in table.rows:
        if len(cells) != 3:
            raise ValueError(
                f"{path}, line {line}: wanted head, relation and tail with tabs or commas between, found "
                f"{table.shown(cells)}: correct the line or remove it"
            )
        names = [cell.strip() for cell in cells] if numeric else cells
        missing = [(kind, name) for name, (kind, ids) in zip(names, kinds, strict=True) if name not in ids]
        if missing and not drop_unseen:
            kind, name = missing[0]
            why = f", whose numbers go from 0 to {len(dict(kinds)[kind]) - 1}" if numeric else ""
            if not numeric and names[0] in entities and names[1] in entities and names[2] in relations:
                why = (
                    "; as head, tail and relation all are: put a first line above that has these three words"
                )
            if not why and line == table.rows[0][0] and len(missing) == 3:
                why = "; if it is a heading, call its columns head, relation and tail"
            raise ValueError(
                f"{path}, line {line}: {kind} {short(name)} is not in the map of {kind} names{why}; drop_unseen=True "
                "leaves such triples out"
            )
        if missing:
            unseen.append(line)
        else:
            triples.append([ids[name] for name, (_, ids) in zip(names, kinds, strict=True)])
    if not triples:
        why = f"the maps of names have none of the {len(unseen)} in it; are they those of these triples?"
        raise ValueError(
            f"{path} holds no triples: {why if unseen else 'wanted lines of head, relation and tail'}"
        )
    found = np.array(triples, dtype=np.int64)
    keys = (found[:, 0] * len(relations) + found[:, 1]) * len(entities) + found[:, 2]
    again = len(keys) - len(np.unique(keys))
    what = (
        f"{counted(len(found), 'triple')}, {again:,} of them repeated"
        if again
        else counted(len(found), "triple")
    )
    notes = [
        f"{counted(len(unseen), 'triple')} of names that the maps do not have, first in line {n}"
        for n in unseen[:1]
    ]
    order = f"{order}, by {'number' if numeric else 'name'}"
    return found, table.read(what, order, *notes, unseen=len(unseen))


def read_labels(path: str | Path, names: Sequence[str]) -> tuple[list[str], FileRead]:
    """Read a file of lines ``name TAB label``; return the label of each name, the name itself where it has none.

    Of several labels of a name the last one counts.

    Raises
    ------
    ValueError
        For a line that is not such; the message names file and line.
    OSError
        If the file cannot be read.
    """
    labels: dict[str, str] = {}
    table = TableFile.of(path, columns=2)
    for line, cells in table.rows:
        if len(cells) != 2:
            raise ValueError(
                f"{path}, line {line}: wanted a name, a tab and a label, found {table.shown(cells)}: correct the line "
                "or remove it"
            )
        labels[cells[0]] = cells[1]
    known = sum(name in labels for name in names)
    others, again = len(labels) - known, len(table.rows) - len(labels)
    notes = [f"{counted(others, 'label')} of other names"] * bool(others)
    notes += [f"{counted(again, 'label')} before another of the same name"] * bool(again)
    what = f"labels of {known:,} of {len(names):,} names"
    return [labels.get(name, name) for name in names], table.read(what, "name, label", *notes)


def _without_heading(table: TableFile) -> tuple[TableFile, bool]:
    """Rows of a map of names without their heading, and whether the number comes first."""
    if table.rows and len(first := table.rows[0][1]) == 2 and not any(c.strip().isdecimal() for c in first):
        numbered = [name in _NUMBERS or name.endswith("_id") for name in map(_heading, first)]
        if any(numbered):
            return table.without("below a heading"), numbered[0] and not numbered[1]
    whole = [cells for _, cells in table.rows if len(cells) == 2]
    by_column = [sum(cells[column].strip().isdecimal() for cells in whole) for column in (0, 1)]
    return table, by_column[0] > by_column[1]


def _in_order(table: TableFile, entities: Ids, relations: Ids) -> tuple[TableFile, str]:
    """Rows of head, relation and tail without heading or count, and the order that they had."""
    places = [0, 1, 2]
    if (below := table.without_count()) is not table:
        rows = [(line, "\t".join(cells).split()) for line, cells in below.rows]
        table, places = replace(below, rows=rows), [0, 2, 1]
    elif table.rows and len(first := table.rows[0][1]) == 3:
        headings = [_heading(cell) for cell in first]
        found = [[n for n, name in enumerate(headings) if name in names] for names in _HEADINGS]
        known = first[0] in entities and first[1] in relations and first[2] in entities
        if all(len(each) == 1 for each in found) and not known:
            table, places = table.without("below a heading"), [n for (n,) in found]
    if places != [0, 1, 2]:
        rows = [
            (line, [cells[n] for n in places] if len(cells) == 3 else cells) for line, cells in table.rows
        ]
        table = replace(table, rows=rows)
    return table, ", ".join(("head", "relation", "tail")[places.index(n)] for n in range(3))


_NUMBERS = ("id", "index", "number", "idx")  # headings of a column of numbers
_HEADINGS = (
    ("head", "h", "subject", "source"),
    ("relation", "r", "predicate", "rel"),
    ("tail", "t", "object", "target"),
)


def _heading(cell: str) -> str:
    return cell.strip("# ").lower()


def _numeric(rows: Rows, entities: Ids, relations: Ids) -> bool:
    """Whether triples are given by number; not if one of them is one by name."""
    whole = [cells for _, cells in rows if len(cells) == 3]
    if any(cells[0] in entities and cells[1] in relations and cells[2] in entities for cells in whole):
        return False
    return 2 * sum(all(_NUMBER.fullmatch(cell) for cell in cells) for cells in whole) > len(whole)


_NUMBER = re.compile(r"\s*-?\d+(\.\d+)?\s*")  # valid or not
