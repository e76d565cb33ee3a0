"""A line of progress where there is no panel."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..run import Run

__all__ = ["bar"]


@contextlib.contextmanager
def bar(run: Run, wanted: bool) -> Iterator[Callable[[], None] | None]:
    """Show a progress bar while the block runs; give what updates it, None where none is wanted."""
    if not wanted:
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
