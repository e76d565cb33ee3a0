"""A line of progress where there is no panel."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runs.run import Run

__all__ = ["bar"]


@contextlib.contextmanager
def bar(run: Run, wanted: bool | None) -> Iterator[Callable[[], None] | None]:
    """Show a progress bar while the block runs; give what updates it, None where none is wanted.

    With `wanted` None it is shown where the output is a terminal: a notebook has panels, and a file wants no bar.
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
