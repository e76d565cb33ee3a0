"""A notebook's ``__main__`` in this process: cells that are run there, with their sources, as IPython has them."""

import itertools
import linecache
import sys
import textwrap
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_numbers = itertools.count(1)


class Cells:
    """Runs cells in a module ``__main__``, whose names are its attributes."""

    def __init__(self) -> None:
        self.main = types.ModuleType("__main__")

    def run(self, source: str) -> None:
        lines = textwrap.dedent(source).lstrip("\n").splitlines(keepends=True)
        name = f"/tmp/ipykernel_0/{next(_numbers)}.py"
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
        exec(compile("".join(lines), name, "exec"), vars(self.main))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.main, name)


@contextmanager
def notebook() -> Iterator[Cells]:
    """Cells of an empty notebook, which is ``__main__`` within the block."""
    cells, before = Cells(), sys.modules["__main__"]
    sys.modules["__main__"] = cells.main
    try:
        yield cells
    finally:
        sys.modules["__main__"] = before
