"""What came back: influences, self-influences, tables, files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...tables import Table
from ..base import own_config, results_folder
from ..fit import FitReport, fit_value
from .config import Config, TrainConfig, canonical
from .files import Influence, Named, write_csv, write_json, write_parquet, write_self, write_self_json
from .graph import Graph
from .influences import TRIPLE, Ranked
from .plan import sharding
from .ranking import Top, order
from .rows import told
from .source import chosen_tests, files_read, inputs_digest, load_graph

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ...tasks import Record
    from ..base import Finished

__all__ = ["Report", "collect", "collect_training"]


def collect(run: Finished, config: Config | None = None) -> Report:
    """Report of an analysis, merged from its shards.

    Parameters
    ----------
    run
        Run of ``tasks(config)``, just ended or read back from its folder.
    config
        What was asked for; by default what config.json in the run's folder says.

    Raises
    ------
    ValueError
        If a shard failed or is missing: an analysis is whole or not at all. Run the same tasks into the same
        folder, and only what is missing is done again.
    FileNotFoundError
        If there is neither a config nor a config.json.
    """
    if config is None:
        config = own_config(run.folder, Config)
    missing = sorted(
        (record for record in run.records if not record.ok), key=lambda record: not record.failed
    )
    if missing:
        count = f"{sum(record.failed for record in missing)} failed" if missing[0].failed else "none failed"
        raise ValueError(
            f"{len(missing)} of {len(run.records)} tasks are not done ({count}), first {missing[0].name!r}: "
            f"{missing[0].error}. Run the same tasks into {run.folder} again: what is done is kept"
        )
    shards = [record for record in run.records if isinstance(record.value, dict) and "rows" in record.value]
    options = canonical(config)
    graph = load_graph(options, inputs_digest(options))
    tests = chosen_tests(options, len(graph.test))
    covered = np.zeros((len(graph.train), max(1, len(tests))), bool)
    place = {int(test): n for n, test in enumerate(tests)}
    for record in shards:
        columns = [place[int(test)] for test in record.value["tests"] if int(test) in place] or [0]
        covered[np.ix_(record.value["rows"], columns)] = True
    if not covered.all():
        raise ValueError(
            "the run does not hold all shards of this config: run tasks(config) into its folder, then collect"
        )
    return Report(config, graph, tests, shards, run.folder)


def collect_training(run: Finished, config: TrainConfig | None = None) -> FitReport:
    """Report of the training of a ConvE.

    Raises
    ------
    ValueError
        If it failed, or the run is of something else.
    """
    value = fit_value(run)
    ranks = f", filtered MRR {value['mrr']:.3f}, Hits@10 {value['hits_at_10']:.3f}" if "mrr" in value else ""
    losses = dict(enumerate(value["loss"], 1))
    text = f"loss {value['loss'][-1]:.4f} after {len(losses)} epochs in {value['seconds']:.1f} s{ranks}"
    text = "\n".join([text, *value.get("left_out", ())])  # a run of an earlier version has none
    files = [(run.folder or Path()) / file for file in value["checkpoints"]]
    return FitReport(run.folder, losses, "epoch", files, text, "loss, binary cross-entropy")


class Report(Ranked):
    """Influence of training triples.

    Attributes
    ----------
    graph
        The triples and their names.
    tests
        Numbers of the test triples [m].
    self_influence
        Of each training triple [n]: what its own gradient does to its loss.
    rank_agreement
        Mean rank correlation of bfloat16 with fp32, where mixed precision was used; else None.
    num_gpus_used
        How many GPUs took part.
    peak_memory
        Bytes, the largest of a shard; None where not known.
    sharding
        Which triples were split, and why.
    files
        What was read of each file of text, and what was left out.
    """

    def __init__(
        self,
        config: Config,
        graph: Graph,
        tests: npt.NDArray[np.int64],
        shards: Sequence[Record],
        folder: Path | None,
    ) -> None:
        self.config, self.graph, self.tests, self.folder = config, graph, tests, folder
        self.files = files_read(config, graph)
        values = [record.value for record in shards]
        dtype = "float64" if config.precision == "fp64" else "float32"
        self.self_influence = np.full(len(graph.train), np.nan, dtype)
        for value in values:
            if value["self_influence"] is not None:
                self.self_influence[value["rows"]] = value["self_influence"]
        agreements = [value["rank_agreement"] for value in values if "rank_agreement" in value]
        self.rank_agreement: float | None = agreements[0] if agreements else None
        self.num_gpus_used = len(
            {(record.host, record.uuid) for record in shards if record.gpu_id is not None}
        )
        peaks = [record.peak_memory for record in shards if record.peak_memory is not None]
        self.peak_memory = max(peaks, default=None)
        self.sharding = sharding(config, len(graph.train), len(tests), len(shards)).reason
        self._parts: list[tuple[dict[int, int], npt.NDArray[np.int64], Any]] = []
        self._top: Top | None = None
        if len(tests):
            self._merge(values, dtype)

    def _merge(self, values: list[dict[str, Any]], dtype: str) -> None:
        place = {int(test): n for n, test in enumerate(self.tests)}
        if self.config.top_k is None:
            for value in values:
                columns = {place[int(test)]: n for n, test in enumerate(value["tests"])}
                file = (self.folder or Path()) / value["file"]
                self._parts.append((columns, value["rows"], np.load(file, mmap_mode="r", allow_pickle=False)))
            return
        self._top = Top(len(self.tests), self.config.top_k, dtype)
        if all(len(value["tests"]) == len(self.tests) for value in values):
            for value in values:
                self._top.add(value["values"], value["index"])
        else:  # every shard has test triples of its own
            whole = [value for value in values if len(value["tests"])]
            self._top.values = np.concatenate([value["values"] for value in whole])
            self._top.index = np.concatenate([value["index"] for value in whole])

    def influences(self) -> Iterator[Influence]:
        """Yield the influences on one test triple after the other, the largest by absolute value first."""
        for n in range(len(self.tests)):
            yield self.of(n)

    def of(self, n: int) -> Influence:
        """Influences on the `n`-th of the test triples that were asked for.

        Raises
        ------
        IndexError
            If there are not so many.
        """
        kept, most = self._kept(n), self.config.top_k
        return Influence(kept.test, kept.index[:most], kept.values[:most])

    def _kept(self, n: int) -> Influence:
        """What is known of the influences on the `n`-th test triple: with `top_k`, so many of either sign."""
        if not 0 <= n < len(self.tests):
            raise IndexError(f"test={n}: {len(self.tests)} test triples were asked for, from 0")
        test = int(self.tests[n])
        if self._top is not None:
            return Influence(test, self._top.index[n], self._top.values[n])
        values = np.zeros(len(self.graph.train), self.self_influence.dtype)
        for columns, rows, part in self._parts:
            if n in columns:
                values[rows] = part[columns[n]]
        first = order(values, np.arange(len(values)))
        return Influence(test, first, values[first])

    def influence(self, test: int = 0) -> pd.DataFrame:
        """Influences on a test triple, `top_k` of them, the largest by absolute value first: see `Ranked.influence`."""
        return self._table(self.of(test))

    def _train_names(self, numbers: npt.NDArray[np.int64]) -> pd.DataFrame:
        import pandas as pd

        names = [self.graph.named(self.graph.train[n]) for n in numbers]
        return pd.DataFrame(names, columns=list(TRIPLE), index=pd.Index(numbers, name="train"))

    def _test_names(self, n: int) -> dict[str, str]:
        names = self.graph.named(self.graph.test[self.tests[n]])
        return dict(zip(TRIPLE, names, strict=True))

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write the files that the config names; return their paths.

        Parameters
        ----------
        folder
            For results.json if the config names no output; by default ``results`` below the run's folder.

        Raises
        ------
        ValueError
            If there is no folder to write to.
        OSError
            If the disk refuses.
        """
        config = self.config
        if config.output:
            paths = [Path(config.output).expanduser()]
        else:
            paths = [results_folder(self.folder, folder) / "results.json"]
        about: dict[str, Any] = {
            "num_test_triples": len(self.tests),
            "num_training_triples": len(self.graph.train),
            "top_k": config.top_k,
            "learning_rate": config.stated_rate,
            "num_gpus_used": self.num_gpus_used,
        }
        if self.config.drop_unseen:
            about["unseen"] = dict(zip(("train", "test"), self.graph.unseen, strict=True))
        if self.rank_agreement is not None:
            about["rank_agreement"] = self.rank_agreement
        if not len(self.tests):
            first = order(self.self_influence, np.arange(len(self.self_influence)))
            write_self_json(paths[0], self.graph, self.self_influence, first, about)
        else:
            write_json(paths[0], self.graph, self.influences(), about)
        if config.csv_output:
            paths.append(Path(config.csv_output).expanduser())
            if len(self.tests):
                write_csv(paths[-1], Named(self.graph, config), self.influences(), self.self_influence)
            else:
                write_self(paths[-1], Named(self.graph, config), self.self_influence, first)
        if config.parquet_output and len(self.tests):
            paths.append(Path(config.parquet_output).expanduser())
            write_parquet(paths[-1], self.graph, self.influences(), self.self_influence)
        elif config.parquet_output:
            paths.append(Path(config.parquet_output).expanduser())
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            self.most_self_influential().reset_index().to_parquet(paths[-1])
        return paths

    def plot(
        self, ax: Axes | None = None, errors: Sequence[int] | npt.NDArray[np.int64] | None = None
    ) -> Axes:
        """Draw the self-influences, the largest first, with errors marked, by default those that were planted."""
        return super().plot(ax, self.graph.corrupted if errors is None else errors)

    def _content(self) -> Iterator[str | Table]:
        yield f"{len(self.graph.train):,} training triples, {len(self.tests):,} test triples; {self.sharding}"
        yield from told(self.files)
        if self.rank_agreement is not None:
            yield f"rank agreement of bfloat16 with fp32: {self.rank_agreement:.4f}"
        if self.peak_memory is not None:
            yield f"peak memory of a shard: {self.peak_memory / 2**30:.2f} GiB"
        yield from super()._content()
