"""Triples by number: of a factory of PyKEEN, which is known by what it has, of arrays, or of names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .rows import short

__all__ = ["labels_of", "numbered"]


def labels_of(triples: Any) -> tuple[dict[int, str], dict[int, str]]:
    """Names of entities and of relations by number; none of triples that have no names."""
    entities, relations = (getattr(triples, f"{kind}_id_to_label", {}) for kind in ("entity", "relation"))
    return entities, relations


def numbered(name: str, triples: Any, entities: dict[int, str], relations: dict[int, str]) -> Tensor:
    """Triples [n, 3] by number.

    Parameters
    ----------
    name
        What they are, for messages.
    triples
        A factory of PyKEEN, numbers [n, 3], or triples of names.
    entities, relations
        Names by number, of the training triples.

    Raises
    ------
    TypeError, ValueError
        If they are something else, have unknown names, or numbers for other names.
    """
    if hasattr(triples, "mapped_triples"):
        for kind, ours, theirs in zip(
            ("entities", "relations"), (entities, relations), labels_of(triples), strict=True
        ):
            if ours and theirs and any(ours.get(n) != label for n, label in theirs.items()):
                raise ValueError(
                    f"{name}: its {kind} have other numbers than those of the training triples: give "
                    "TriplesFactory the entity_to_id and relation_to_id of those"
                )
        found: Tensor = triples.mapped_triples
        return found.long()
    if isinstance(triples, (str, Path)):
        raise TypeError(
            f"{name}={str(triples)!r}: give triples, not a file: TriplesFactory.from_path of PyKEEN reads it, or "
            "analyse files by Config(train=...)"
        )
    try:
        array = triples if isinstance(triples, Tensor) else np.asarray(triples)
    except ValueError:
        number, odd = next((n, row) for n, row in enumerate(triples) if np.shape(row) != (3,))
        raise ValueError(
            f"{name}[{number}]: a triple is head, relation and tail, got {short(repr(odd))}"
        ) from None
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"{name}: triples have the shape [n, 3], got {list(array.shape)}")
    if isinstance(array, np.ndarray) and array.dtype.kind in "UO":
        return _by_name(name, array.tolist(), entities, relations)
    whole = array if isinstance(array, Tensor) else torch.tensor(array)
    if whole.is_floating_point() or whole.is_complex() or whole.dtype == torch.bool:
        raise TypeError(f"{name}: give whole numbers or names, not {str(whole.dtype).removeprefix('torch.')}")
    return whole.long()


def _by_name(
    name: str, triples: Sequence[Sequence[str]], entities: dict[int, str], relations: dict[int, str]
) -> Tensor:
    if not entities:
        raise ValueError(
            f"{name}: the training triples have no names: give numbers, or train as a TriplesFactory"
        )
    places = [{label: number for number, label in names.items()} for names in (entities, relations, entities)]
    for number, triple in enumerate(triples):
        for kind, label, known in zip(("entity", "relation", "entity"), triple, places, strict=True):
            if label not in known:
                raise ValueError(
                    f"{name}[{number}]: {kind} {label!r} is not one of the training triples': correct it or leave the "
                    "triple out"
                )
    return torch.tensor(
        [[known[label] for known, label in zip(places, triple, strict=True)] for triple in triples]
    )
