"""Runs and pools of this process as sequences that show themselves as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

from ..tables import Table
from ..views.lists import runs_table
from .ledger import Ledger, registry
from .run import Run

__all__ = ["Listing", "runs_of"]

T = TypeVar("T")


class Listing(Sequence[T], Generic[T]):
    """A sequence that is displayed as a table.

    Parameters
    ----------
    items
        Its items.
    table
        Makes the table.
    """

    def __init__(self, items: Iterable[T], table: Callable[[], Table]) -> None:
        self._items = tuple(items)
        self._table = table

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __str__(self) -> str:
        return str(self._table())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._table().to_html()


def runs_of(pool: int) -> Listing[Run]:
    """Runs of a pool: those under way as they began, then ended ones that somebody still has, the last first."""
    ledgers: list[Ledger] = registry.of_pool(pool)
    return Listing([Run._of(ledger) for ledger in ledgers], lambda: runs_table(ledgers))
