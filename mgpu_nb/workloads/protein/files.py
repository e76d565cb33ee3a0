"""Results as plain data and as files that the seed's users know."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...store.files import atomic_write, escape_formula, strict_json
from .config import METHODS

if TYPE_CHECKING:
    from ...tasks import Record

__all__ = ["SUMMARY_COLUMNS", "design_columns", "detailed_result", "write_results"]

SUMMARY_COLUMNS = (
    "method", "num_branches", "mean_score", "std_score", "max_score", "min_score", "total_time",
    "time_per_sample", "num_samples", "scoring_function", "gpu_id", "nfe", "status",
)  # fmt: skip
DESIGN_COLUMNS = ("mean_sc_tm", "mean_sc_rmsd", "designable")
"""Further columns of runs that ask for designability."""
_NUMBERS = ("mean_score", "std_score", "max_score", "min_score", "total_time", "time_per_sample")


def detailed_result(record: Record) -> dict[str, Any]:
    """Make the detailed result of one record; a failed one is known by its task's name, method-bN."""
    value = record.value if record.ok and isinstance(record.value, dict) else {}
    method, _, options = record.name.rpartition("-b")
    branches = options.partition(".")[0]
    named = method in METHODS and branches.isdecimal()
    result: dict[str, Any] = {
        "name": record.name,
        "method": method if named else record.name,
        "num_branches": int(branches) if named else None,
        "config": None,
        "num_samples": None,
        **dict.fromkeys(_NUMBERS),
        "scores": [],
        "scoring_function": None,
        "nfe": None,
    }
    result.update(value)
    status, error = record.status, record.error
    if record.ok and "scores" not in value:
        status, error = (
            "error",
            "; ".join(record.notes) or "the task did not return the result of an experiment",
        )
    return {
        **result,
        "gpu_id": record.gpu_id,
        "device": record.device,
        "host": record.host,
        "status": status,
        "error": error,
        "peak_memory_bytes": record.peak_memory,
        "pid": record.pid,
        "attempt": record.attempt,
    }


def design_columns(results: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Columns of designability, if some result has it."""
    return DESIGN_COLUMNS if any("designable" in result for result in results) else ()


def write_results(results: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write detailed_results.json and summary_results.csv into `folder`; see `Report.save`."""
    table = io.StringIO()
    writer = csv.writer(table)
    columns = [*SUMMARY_COLUMNS, *design_columns(results)]
    writer.writerow(columns)
    writer.writerows([escape_formula(result.get(name)) for name in columns] for result in results)
    contents = {"detailed_results.json": strict_json(results), "summary_results.csv": table.getvalue()}
    paths = []
    for name, content in contents.items():
        path = folder / name
        with atomic_write(path) as part:
            part.write_text(content, encoding="utf-8", newline="")
        paths.append(path)
    return paths
