"""The progress bar of a terminal, which has no panels."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a wait in a script needs a bar and no panel
    from .run import ObservedRun

__all__ = ["bar"]


@contextlib.contextmanager
def bar(run: ObservedRun, wanted: bool | None) -> Iterator[Callable[[], None] | None]:
    """Show a progress bar while the block runs; yields the function that updates it, or None without a bar.

    With `wanted` None it is shown if the output is a terminal: a notebook has panels, and a file needs no bar.
    """
    if not (sys.stdout.isatty() if wanted is None else wanted):
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=len(run.tasks), desc=run.name, file=sys.stdout, dynamic_ncols=True) as bar:

        def update() -> None:
            progress = run.progress
            bar.set_postfix_str(
                ", ".join(f"{n} {status}" for status, n in progress.counts.items()), refresh=False
            )
            bar.update(progress.done - bar.n)

        update()
        yield update
        update()
