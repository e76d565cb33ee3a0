"""Test triple by test triple, each against the training triples near it in the graph."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...context import cached, worker
from ...store.files import safe_name
from ...tables import Document, Table
from ...tasks import Task
from ...views.table import frame_table
from ..base import own_config, results_folder
from .config import BatchConfig, canonical
from .files import Influence, Named, text_file, write_csv, write_json
from .graph import Graph
from .plan import RETRIES, read_inputs, training_first
from .proximity import Neighbourhood, Proximity
from .ranking import order
from .rows import FileRead, told
from .source import files_read, inputs_digest, load_graph, test_numbers
from .worker import agreement_of, influences_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ..base import Finished

__all__ = ["BatchReport", "batch_tasks", "chosen_triples", "collect_batch", "run_triple", "summarise"]

log = logging.getLogger("mgpu_nb.tracin")


def batch_tasks(config: BatchConfig, slots: int | None = None) -> list[Task]:
    """Tasks of a batch analysis, one per test triple; with `skip_existing` those of triples with files do nothing.

    Parameters
    ----------
    config
        What to do.
    slots
        Number of slots; the tasks are the same for any number.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or malformed, or weights, layers or test triples are not there: no task is started.
    """
    options = _canonical(config)
    inputs, graph = read_inputs(options)
    output = str(Path(config.output_dir).expanduser().resolve()) if config.output_dir else None
    there = existing(config) if config.skip_existing else set()
    chosen = {index: f"{_stem(index, graph)}.json" in there for index in chosen_triples(config)}
    first, after = training_first(options) if not all(chosen.values()) else ([], [])
    return first + [
        Task(
            run_triple,
            options,
            inputs,
            index,
            output,
            *((True,) if skip else ()),  # nothing, or the task would be another than without skip_existing
            name=f"triple-{index}",
            seed=config.seed,
            retries=RETRIES,
            after=after,
        )
        for index, skip in chosen.items()
    ]


def chosen_triples(config: BatchConfig) -> list[int]:
    """Numbers of the test triples that a batch is about.

    Raises
    ------
    ValueError
        For a number that is not there.
    """
    options = _canonical(config)
    graph = load_graph(options, inputs_digest(options))
    numbers = list(test_numbers(config, len(graph.test)))
    if config.start_index >= len(numbers):
        raise ValueError(f"start_index={config.start_index}: there are {len(numbers)} test triples, from 0")
    limits = [limit for limit in (config.max_triples, config.max_test_triples) if limit is not None]
    return numbers[config.start_index :][: min(limits, default=None)]


def existing(config: BatchConfig) -> set[str]:
    """Names of the results in `output_dir`.

    Raises
    ------
    ValueError
        If the config names no folder.
    """
    if config.output_dir is None:
        raise ValueError("skip_existing looks into output_dir: name it")
    return {file.name for file in Path(config.output_dir).expanduser().glob("triple_*_tracin.json")}


def _stem(index: int, graph: Graph) -> str:
    """Name of a test triple's files, less what comes after the dot."""
    head, _, tail = graph.named(graph.test[index])
    return f"triple_{index}_{safe_name(head)}_{safe_name(tail)}_tracin"


def _canonical(config: BatchConfig) -> BatchConfig:
    """Keep what decides the result of one triple: not which others are analysed beside it."""
    options = canonical(config)
    changes: dict[str, Any] = {"start_index": 0, "max_triples": None, "skip_existing": False}
    changes |= {"test_indices": None, "max_test_triples": None}
    return BatchConfig(**{field.name: getattr(options, field.name) for field in fields(options)} | changes)


@cached(1)
def _neighbourhood(options: BatchConfig, inputs: str) -> Neighbourhood:
    graph = load_graph(options, inputs)
    return Neighbourhood(graph.train, len(graph.entities))


@cached(1)
def _named(options: BatchConfig, inputs: str) -> Named:
    return Named(load_graph(options, inputs), options)


def run_triple(
    options: BatchConfig, inputs: str, index: int, output: str | None = None, skip: bool = False
) -> dict[str, Any]:
    """Analyse one test triple and write its files to `output`, or to the run's folder; runs in a worker.

    Returns
    -------
    dict
        ``index``; ``num_filtered``: how many training triples are near, none is a result as well; ``files``.
    """
    if skip:  # its files were there
        return {"index": index, "skipped": True}
    here, began = worker(), time.perf_counter()
    inside = here.need_folder() if here.folder_note and output is None else here.folder or Path()
    folder = inside if output is None else Path(output)
    graph = load_graph(options, inputs)
    triple = graph.test[index]
    head, _, tail = triple.tolist()
    proximity = Proximity(
        options.n_hops, options.min_degree, options.strict_hop_constraint, options.max_total_path_length
    )
    rows = _neighbourhood(options, inputs).near(head, tail, proximity)
    result: dict[str, Any] = {"index": index, "num_filtered": len(rows), "files": []}
    if not len(rows):
        return result
    values, selves = influences_of(options, inputs, rows, triple[None], here.folder, here.device)
    first = order(values[0], rows)[: options.top_k]
    found = Influence(index, rows[first], values[0][first])
    stem = _stem(index, graph)
    about: dict[str, Any] = {
        "num_test_triples": 1,
        "num_training_triples": len(rows),
        "top_k": options.top_k,
        "learning_rate": options.stated_rate,
        "num_gpus_used": int(here.gpu_id is not None),
    }
    if options.use_mixed_precision:
        about["rank_agreement"] = agreement_of(options, inputs, rows, triple[None], here.folder, here.device)
    own = np.full(len(graph.train), np.nan, selves.dtype)
    own[rows] = selves
    write_csv(folder / f"{stem}.csv", _named(options, inputs), iter([found]), own)
    write_json(folder / f"{stem}.json", graph, iter([found]), about)  # last: it says that all is there
    result["files"] = [f"{stem}.json", f"{stem}.csv"]
    log.debug(
        "test triple %d: %d training triples near it; %.2f s", index, len(rows), time.perf_counter() - began
    )
    return result


class BatchReport(Document):
    """What became of each test triple of a batch analysis.

    Attributes
    ----------
    summary
        ``total_triples``, ``successful``, ``failed_filtering`` (no training triple is near), ``failed_tracin``,
        ``skipped`` (their files were there), ``cancelled`` if some were, and ``results``: index, head, relation, tail,
        status, num_filtered, error and files of each.
    folder
        Folder of the run.
    output
        Folder of the files of each triple.
    files
        What was read of each file of text, and what was left out.
    """

    def __init__(
        self,
        summary: dict[str, Any],
        folder: Path | None,
        output: Path | None,
        files: Sequence[FileRead] = (),
    ) -> None:
        self.summary, self.folder, self.output, self.files = summary, folder, output, files

    def frame(self) -> pd.DataFrame:
        """Table of the test triples: index, head, relation, tail, status, num_filtered, files, error."""
        import pandas as pd

        return pd.DataFrame(self.summary["results"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Axes with the number of training triples near each test triple, coloured by what became of it."""
        from .views import filtered_triples

        return filtered_triples(self.summary["results"], ax)

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write batch_tracin_summary.json beside the files of the triples, or to `folder`; return its path.

        Raises
        ------
        ValueError
            If there is no folder to write to.
        """
        target = folder if folder is not None else self.output
        path = results_folder(self.folder, target) / "batch_tracin_summary.json"
        with text_file(path) as file:
            file.write(json.dumps(self.summary, indent=2, ensure_ascii=False) + "\n")
        return [path]

    def _content(self) -> Iterator[str | Table]:
        counts = [f"{v} {k.replace('_', ' ')}" for k, v in self.summary.items() if k != "results"]
        yield ", ".join(counts)
        yield from told(self.files)
        shown = self.frame().drop(columns="files").rename(columns={"num_filtered": "training triples near"})
        # A triple that failed or was skipped has no number, which makes floats of the others.
        shown["training triples near"] = shown["training triples near"].astype("Int64")
        if not shown["error"].any():
            del shown["error"]
        yield frame_table(shown, "test triples", forms={"index": "{}"})


def collect_batch(run: Finished | None, config: BatchConfig | None = None) -> BatchReport:
    """Report of a batch analysis.

    Parameters
    ----------
    run
        Run of ``batch_tasks(config)``.
    config
        What was asked for; by default what config.json in the run's folder says.

    Raises
    ------
    FileNotFoundError
        If there is neither a config nor a config.json.
    """
    folder = run.folder if run is not None else None
    if config is None:
        config = own_config(folder, BatchConfig)
    options = _canonical(config)
    graph = load_graph(options, inputs_digest(options))
    records = {record.name: record for record in run.records} if run is not None else {}
    results = []
    for index in chosen_triples(config):
        record = records.get(f"triple-{index}")
        value = record.value if record is not None and record.ok else {}
        if record is not None and record.status == "cancelled":
            status = "cancelled"
        elif record is None or record.status == "skipped" or "skipped" in value:
            status = "skipped"
        elif not record.ok:
            status = "failed_tracin"
        else:
            status = "successful" if value["num_filtered"] else "failed_filtering"
        names = dict(zip(("head", "relation", "tail"), graph.named(graph.test[index]), strict=True))
        entry: dict[str, Any] = {"index": index, **names, "status": status}
        entry |= {"num_filtered": value.get("num_filtered"), "files": value.get("files", [])}
        results.append(entry | {"error": "" if record is None else record.error})
    kinds = ("successful", "failed_filtering", "failed_tracin", "skipped")
    counts = {kind: sum(entry["status"] == kind for entry in results) for kind in kinds}
    if cancelled := sum(entry["status"] == "cancelled" for entry in results):
        counts["cancelled"] = cancelled
    output = Path(config.output_dir).expanduser() if config.output_dir is not None else folder
    summary = {"total_triples": len(results), **counts, "results": results}
    return BatchReport(summary, folder, output, files_read(options, graph))


def summarise(run: Finished | None, config: BatchConfig | None = None) -> dict[str, Any]:
    """Summary of a batch analysis, written to batch_tracin_summary.json; parameters and errors as `collect_batch`."""
    report = collect_batch(run, config)
    if report.output is not None:
        report.save()
    return report.summary
