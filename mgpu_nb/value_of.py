"""The value of a task as an argument of a later one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["ValueOf", "read_values_with"]


class ValueOf:
    """The value of a task of the same run, as an argument of a task that comes after it.

    The task waits for the other one, as if ``after`` named it. Its worker reads the value from the run's folder when
    it begins, so that no value waits in the memory of the parent process, and a run that is resumed finds it there. On
    a machine that has not the folder it asks the parent process, which reads it.
    It may stand anywhere in the arguments: in a list, in a dict, as an attribute.

    Parameters
    ----------
    *names
        Name of the task; of several names the argument is the list of their values.

    Examples
    --------
    >>> tasks = [
    ...     Task(generate, seed, name=f"generate-{seed}") for seed in range(4)
    ... ] + [Task(train, ValueOf(*(f"generate-{seed}" for seed in range(4))), name="train")]  # doctest: +SKIP
    """

    __slots__ = ("names",)

    def __init__(self, *names: str) -> None:
        for name in names:
            if not isinstance(name, str) or not name:
                raise TypeError(f"ValueOf takes names of tasks, got {name!r}")
        if not names:
            raise TypeError("ValueOf takes the name of a task, or several")
        self.names = names

    def __repr__(self) -> str:
        return f"ValueOf({', '.join(map(repr, self.names))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ValueOf) and self.names == other.names

    def __hash__(self) -> int:
        return hash((ValueOf, self.names))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        """Pickle as the values, which the worker that loads it reads."""
        return _values, self.names

    def __copy__(self) -> ValueOf:
        return self

    def __deepcopy__(self, memo: object) -> ValueOf:
        return self


_read: Callable[[str], Any] | None = None


def read_values_with(read: Callable[[str], Any] | None) -> None:
    """Have `ValueOf` in a pickle become what `read` gives for its name; with None it stays a `ValueOf`."""
    global _read
    _read = read


def _values(*names: str) -> Any:
    if _read is None:
        return ValueOf(*names)
    found = [_read(name) for name in names]
    return found if len(found) > 1 else found[0]
