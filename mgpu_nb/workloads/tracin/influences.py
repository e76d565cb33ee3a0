"""Influences by training example: proponents, opponents, self-influences, as labelled tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...tables import Document, Table
from ...views.table import frame_table
from .files import Influence
from .ranking import Top, order

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["TRIPLE", "Influences", "Ranked"]

TRIPLE = ("head", "relation", "tail")
MOST_TESTS = 3  # test examples whose influences are displayed
FORMS = {"train": "{}"}  # a number of an example, no amount


class Ranked(Document):
    """Influences of training examples on test examples, and on themselves.

    Attributes
    ----------
    self_influence
        Of each training example [n]: what its own gradient does to its loss.
    tests
        Numbers of the test examples [m].
    """

    self_influence: npt.NDArray[Any]
    tests: npt.NDArray[np.int64]

    @abstractmethod
    def _kept(self, n: int) -> Influence:
        """What is known of the influences on the `n`-th test example, the largest by absolute value first."""

    @abstractmethod
    def _train_names(self, numbers: npt.NDArray[np.int64]) -> pd.DataFrame:
        """Columns that say what the training examples of these numbers are, a row for each."""

    @abstractmethod
    def _test_names(self, n: int) -> dict[str, str]:
        """What the `n`-th test example is, as the columns of `_train_names`."""

    def influence(self, test: int = 0) -> pd.DataFrame:
        """Influences on a test example that were kept, the largest by absolute value first.

        Returns
        -------
        DataFrame
            By number of the training example, ``train``: head, relation and tail of a triple; ``influence``, of its
            gradient on the loss of the test example; ``self_influence``.
        """
        return self._table(self._kept(test))

    def _table(self, found: Influence) -> pd.DataFrame:
        frame = self._train_names(found.index)
        frame["influence"] = found.values
        frame["self_influence"] = self.self_influence[found.index]
        return frame

    def proponents(self, test: int = 0, k: int = 5) -> pd.DataFrame:
        """The `k` training examples that made the model believe a test example most, of those that were kept."""
        frame = self._table(self._kept(test))
        return frame[frame["influence"] > 0].nlargest(k, "influence", keep="first")

    def opponents(self, test: int = 0, k: int = 5) -> pd.DataFrame:
        """The `k` training examples that spoke against a test example most, of those that were kept."""
        frame = self._table(self._kept(test))
        return frame[frame["influence"] < 0].nsmallest(k, "influence", keep="first")

    def most_self_influential(self, k: int | None = None) -> pd.DataFrame:
        """Training examples by self-influence, the largest first: where to look for errors."""
        first = order(self.self_influence, np.arange(len(self.self_influence)))[:k]
        frame = self._train_names(first)
        frame["self_influence"] = self.self_influence[first]
        return frame

    def frame(self) -> pd.DataFrame:
        """Row per test and training example; without test examples a row per training example."""
        import pandas as pd

        if not len(self.tests):
            return self.most_self_influential()
        frames = []
        for n, test in enumerate(self.tests):
            frame = self.influence(n).reset_index()
            names = self._test_names(n)
            frame = frame.rename(columns={part: f"train_{part}" for part in names})
            for at, (part, name) in enumerate({"test": test, **names}.items()):
                frame.insert(at, part if part == "test" else f"test_{part}", name)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def plot(
        self, ax: Axes | None = None, errors: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> Axes:
        """Draw the self-influences, the largest first; where errors are known, how many of them come first.

        Parameters
        ----------
        ax
            Where to draw; a new figure by default.
        errors
            Numbers of the training examples that are known to be wrong.
        """
        from .views import self_influence_curve

        return self_influence_curve(
            self.self_influence, np.asarray(() if errors is None else errors, np.int64), ax
        )

    def plot_neighbourhood(self, test: int = 0, k: int = 8, ax: Axes | None = None) -> Axes:
        """Draw a test triple with its proponents and opponents as a graph; see `views.neighbourhood`.

        Raises
        ------
        TypeError
            If the examples are no triples.
        """
        from .views import neighbourhood

        names = self._test_names(test)
        if tuple(names) != TRIPLE:
            raise TypeError("plot_neighbourhood draws triples, and these examples are none")
        head, relation, tail = names.values()
        return neighbourhood((head, relation, tail), self.proponents(test, k), self.opponents(test, k), ax)

    def _content(self) -> Iterator[str | Table]:
        if not len(self.tests):
            found, name = self.most_self_influential(10).reset_index(), "largest self-influences"
            yield frame_table(found, name, [name], FORMS)
        for n in range(min(MOST_TESTS, len(self.tests))):
            example = " ".join(self._test_names(n).values())
            found = self.influence(n).head(5).reset_index()
            what = f"test triple {self.tests[n]}: {example}" if example else f"test example {self.tests[n]}"
            told = f"{what}; the strongest influences on it"
            yield frame_table(found, f"influences on {what.partition(':')[0]}", [told], FORMS)
        if len(self.tests) > MOST_TESTS:
            what = "triples" if self._test_names(0) else "examples"
            yield f"{len(self.tests) - MOST_TESTS:,} more test {what}: frame() has all"


class Influences(Ranked):
    """What `tracin.influence` found.

    Attributes
    ----------
    engine
        How gradients were multiplied.
    """

    def __init__(
        self,
        selves: npt.NDArray[Any],
        found: Top | npt.NDArray[Any],
        names: tuple[pd.DataFrame, pd.DataFrame],
        engine: str,
    ) -> None:
        self.self_influence, self.tests = selves, np.arange(len(names[1]))
        self.engine = engine
        self._found = found
        self._train, self._test = names

    @property
    def values(self) -> npt.NDArray[Any]:
        """All influences [m, n], of every training example on every test example.

        Raises
        ------
        ValueError
            If only the largest were kept.
        """
        if isinstance(self._found, Top):
            raise ValueError(  # noqa: TRY004
                f"only {self._found.k} proponents and opponents were kept: ask for k=None"
            )
        return self._found

    def _kept(self, n: int) -> Influence:
        if not 0 <= n < len(self.tests):
            raise IndexError(f"test={n}: {len(self.tests)} test examples were asked for, from 0")
        if isinstance(self._found, Top):
            return Influence(n, self._found.index[n], self._found.values[n])
        first = order(self._found[n], np.arange(len(self.self_influence)))
        return Influence(n, first, self._found[n, first])

    def _train_names(self, numbers: npt.NDArray[np.int64]) -> pd.DataFrame:
        return self._train.iloc[numbers].copy()

    def _test_names(self, n: int) -> dict[str, str]:
        row = self._test.iloc[n]
        return dict(zip(map(str, row.index), map(str, row), strict=True))

    def _content(self) -> Iterator[str | Table]:
        yield f"{len(self.self_influence):,} training examples, {len(self.tests):,} test examples; engine {self.engine}"
        yield from super()._content()
