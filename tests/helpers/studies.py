"""Studies made of numbers."""

from mgpu_nb import Study
from mgpu_nb.studies.study import Measurement


def study(
    walls: dict[int, list[float]], seconds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0), *, gang: bool = False
) -> Study:
    """Study with these walls, by number of slots; of a gang each rank takes the wall."""
    return Study(
        [
            Measurement(n, i, w, (w,) * n if gang else seconds)
            for n, ws in walls.items()
            for i, w in enumerate(ws)
        ],
        gang=gang,
    )
