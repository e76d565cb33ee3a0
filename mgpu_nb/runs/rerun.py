"""A cell executed again: what its earlier execution left under way is named, or cancelled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Literal

from ..errors import warn_user
from ..notebook import after_cell, cell, cell_number, has_widgets
from ..views.panel import displayed
from .ledger import Ledger, registry

__all__ = ["Rerun", "end_earlier", "rerun_as", "tell_of_earlier"]

Rerun = Literal["ask", "cancel", "keep"]
ENDS = 60.0  # seconds that a cancelled run may take to end


_choice: ContextVar[Rerun] = ContextVar("mgpu_nb-rerun", default="ask")


@contextlib.contextmanager
def rerun_as(choice: Rerun) -> Iterator[None]:
    """Runs that begin within the block, and have no choice of their own, do this with earlier runs of their cell."""
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def end_earlier(rerun: Rerun) -> list[Ledger]:
    """Runs that an earlier execution of the running cell left under way, and that the user should be told of.

    With ``"cancel"`` they are cancelled, and have ended when this returns: their folders and slots are free.

    Raises
    ------
    TimeoutError
        If one does not end.
    """
    choice = _choice.get() if rerun == "ask" else rerun
    earlier = registry.left_behind(*cell())
    if choice != "cancel":
        return earlier if choice == "ask" else []
    for run in earlier:
        run.cancel()
    for run in earlier:
        run.wait_for(lambda run=run: run.done, ENDS)  # type: ignore[misc]
        run.settle()
    return []


def tell_of_earlier(run: Ledger, earlier: Sequence[Ledger]) -> None:
    """Say what an earlier execution of the cell left: in the run's panel if the cell shows it, else by a warning."""
    if not earlier:
        return
    run.leave(earlier)
    number = cell_number()

    def say() -> None:
        if displayed(run) != "here" and (words := run.left_words):
            warn_user(
                f"{'; '.join(words)}. mgpu_nb.pools() lists it, .cancel() of it ends it; "
                'rerun="cancel" does so by itself, rerun="keep" says nothing',
                number if has_widgets() else None,
            )

    if has_widgets():  # the panel of the run has a button for each, if the cell shows it
        after_cell(say)
    else:
        say()
