"""Which training triples are near a test triple in the graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .graph import Triples

__all__ = ["Neighbourhood", "Proximity"]

FAR = np.iinfo(np.int64).max // 4
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Proximity:
    """What counts as near.

    Attributes
    ----------
    n_hops
        A breadth-first search from head and tail, edges taken as undirected, goes as far.
    min_degree
        An edge that touches neither head nor tail stays if one of its ends has as many of the edges found.
    strict_hop_constraint
        Both ends of an edge are within `n_hops` of the head and of the tail, not of one of them alone.
    max_total_path_length
        An edge stays if it is part of a walk from head to tail of at most so many edges; None for no such limit.
    """

    n_hops: int = 2
    min_degree: int = 2
    strict_hop_constraint: bool = False
    max_total_path_length: int | None = None


class Neighbourhood:
    """Distances and edges of a graph [n, 3], for many questions."""

    def __init__(self, triples: Triples, entities: int) -> None:
        self.heads, self.tails = triples[:, 0], triples[:, 2]
        self.entities = entities
        both = np.concatenate([self.heads, self.tails])
        order = np.argsort(both, kind="stable")
        self._others = np.concatenate([self.tails, self.heads])[order]
        self._starts = np.searchsorted(both[order], np.arange(entities + 1))

    def distances(self, entity: int, most: int) -> Numbers:
        """Number of edges [entities] from an entity to all others, `FAR` beyond `most`."""
        found = np.full(self.entities, FAR, np.int64)
        found[entity] = 0
        frontier = np.array([entity])
        for distance in range(1, most + 1):
            pieces = [self._others[self._starts[n] : self._starts[n + 1]] for n in frontier.tolist()]
            reached = np.unique(np.concatenate(pieces)) if pieces else frontier[:0]
            frontier = reached[found[reached] == FAR]
            if not len(frontier):
                break
            found[frontier] = distance
        return found

    def near(self, head: int, tail: int, proximity: Proximity) -> Numbers:
        """Numbers of the triples near a pair of entities, in order."""
        hops, most = proximity.n_hops, proximity.max_total_path_length
        reach = max(hops, most or 0)
        from_head, from_tail = self.distances(head, reach), self.distances(tail, reach)
        # Found is an edge that the search goes along: from an end that is nearer than the last hop.
        nearest = np.minimum(from_head, from_tail)
        stays = np.minimum(nearest[self.heads], nearest[self.tails]) < hops
        if proximity.strict_hop_constraint:
            farthest = np.maximum(from_head, from_tail)
            stays &= np.maximum(farthest[self.heads], farthest[self.tails]) <= hops
        if most is not None:
            there = from_head[self.heads] + 1 + from_tail[self.tails]
            back = from_head[self.tails] + 1 + from_tail[self.heads]
            stays &= np.minimum(there, back) <= most
        degree = np.bincount(self.heads[stays], minlength=self.entities)
        degree += np.bincount(self.tails[stays], minlength=self.entities)
        ends = np.array([head, tail])
        touches = np.isin(self.heads, ends) | np.isin(self.tails, ends)
        connected = np.maximum(degree[self.heads], degree[self.tails]) >= proximity.min_degree
        numbers: Numbers = np.flatnonzero(stays & (touches | connected))
        return numbers
