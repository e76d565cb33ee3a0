"""Types of the fixtures of the suite on a GPU."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from mgpu_nb import GPUPool
    from mgpu_nb.workloads.training.report import Report

Isolation = Literal["task", "worker"]
Used = Callable[[], int]
ComputePool = Callable[[int], "GPUPool"]
Trainings = Callable[[str], "Report"]


class Figures(Protocol):
    """Keeps figures, by name."""

    def __call__(self, **values: object) -> None: ...


class Settles(Protocol):
    """Waits until no more bytes are in use than before; returns the seconds it took."""

    def __call__(self, before: int, seconds: float = ..., slack: int = ...) -> float: ...
