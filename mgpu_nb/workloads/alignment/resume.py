"""A run that is resumed: its settings must be those that it was made with, its models must be there."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...store.files import atomic_write
from ...store.journal import Journal, read_journal
from .files import check_model
from .names import TaskName, read_name
from .rows import decoded
from .settings import SCHEMA, Settings

__all__ = ["SETTINGS", "check_resume", "read_settings", "write_settings"]

SETTINGS = "config.yaml"
"""File of all settings in the folder of a run; it can be given as ``config`` again."""
_READ = 2**26  # bytes of a file that is read at the door; the worker that needs it reads all

_DECIDE = ("generation", "training", "data_collection", "evaluation")
_GROUPS = ("models", "datasets", "algos")
_FREE = ("evaluation.etas",)  # each of them is a task of its own


def write_settings(folder: Path, settings: Settings) -> None:
    """Write all settings into the folder of a run, those of `SETTINGS` that leave something out included."""
    import yaml

    plain = _plain(settings.plain())
    for group in _GROUPS:
        left_out = {"enabled": False} if group == "algos" else None
        for name in SCHEMA.sections[group].sections:
            plain[group].setdefault(name, left_out)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    with atomic_write(folder / SETTINGS) as part:
        part.write_text(text, encoding="utf-8")


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Settings in the folder of a run, as plain values of what is enabled; None if it has none.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    import yaml

    file = folder / SETTINGS
    if not file.is_file():
        return None
    remedy = "put it back as it was, or start anew in another folder"
    try:
        found: dict[str, Any] = yaml.safe_load(decoded(file.read_bytes(), file))
        groups = {group: found.get(group) or {} for group in _GROUPS}
        enabled = {
            group: {name: entry for name, entry in of.items() if entry and entry.get("enabled", True)}
            for group, of in groups.items()
        }
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}; {remedy}") from error
    except AttributeError as error:  # of what is no mapping
        raise ValueError(f"{file} does not hold the settings of a run: {remedy}") from error
    return found | enabled


def check_resume(output: str, settings: Settings, seed: int, tasks: Collection[str]) -> None:
    """Check that the run of a folder, if it holds one, can go on with these settings.

    More rounds, algorithms, models and data sets, other etas and all that ``system`` says may have changed.

    Parameters
    ----------
    output
        The folder.
    settings, seed
        Those of now, with absolute paths.
    tasks
        Names of all tasks.

    Raises
    ------
    ValueError
        If other settings decided its results; the message names them and what to do. If a model folder that a task
        needs is damaged.
    FileNotFoundError
        If such a folder is missing.
    """
    folder = Path(output).expanduser().absolute()
    journal = _journal(folder)
    if journal is None:
        return
    changed = _changed(read_settings(folder), _plain(settings.plain()))
    if (before := _seed(folder)) not in (None, seed):
        changed.append(f"seed was {before}, is {seed}")
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}. Give its settings again to resume it; or "
            "start a new run: --no_resume (start(config, resume=False)) in a new folder below it, or another "
            "experiment.name or output_dir in another"
        )
    _check_models(folder, journal, tasks)


def _journal(folder: Path) -> Journal | None:
    """Journal of a folder; None if there is none with a line."""
    file = folder / "journal.jsonl"
    if not file.is_file() or b"\n" not in file.read_bytes():
        return None
    return read_journal(folder)


def _changed(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """What has changed of the settings that decide results: ``"algos.PITA.eta was 3.0, is 8.0"``."""
    if before is None:
        return []
    one, other = _decisive(before), _decisive(now)
    for group in _GROUPS:  # what only one of the two has shares no task with the other
        for name in set(before.get(group) or {}) ^ set(now[group]):
            for flat in (one, other):
                for key in [key for key in flat if key.startswith(f"{group}.{name}.")]:
                    del flat[key]
    keys = [*one, *(key for key in other if key not in one)]
    return [
        f"{key} was {one.get(key)!r}, is {other.get(key)!r}" for key in keys if one.get(key) != other.get(key)
    ]


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section in _DECIDE:
        for key, value in (settings.get(section) or {}).items():
            flat[f"{section}.{key}"] = value
    for group in _GROUPS:
        for name, entry in (settings.get(group) or {}).items():
            flat |= {f"{group}.{name}.{key}": value for key, value in entry.items() if key != "enabled"}
    return {key: value for key, value in flat.items() if key not in _FREE}


def _seed(folder: Path) -> int | None:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = content["config"]["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def _check_models(folder: Path, journal: Journal, tasks: Collection[str]) -> None:
    """Check the model folders of which a task that is still to run needs one."""
    left = [name for task in tasks if _good(journal, task) is None and (name := read_name(task)) is not None]
    needed = {_read_by(name) for name in left}
    for task in tasks:
        name, record = read_name(task), _good(journal, task)
        if name is None or name.kind != "train" or name.job not in needed or record is None:
            continue
        value = record.get("value")
        if isinstance(value, dict) and isinstance(value.get("files"), dict):
            check_model(folder / str(value.get("folder")), value["files"], task, _READ)


def _good(journal: Journal, task: str) -> dict[str, Any] | None:
    record = journal.records.get(task)
    return record if record is not None and record.get("status") == "ok" else None


def _read_by(task: TaskName) -> str:
    """Job whose model folder a task reads: an evaluation its own, data and training that of the round before."""
    return task.job if task.kind == "evaluate" else task.job_before


def _plain(value: Any) -> Any:
    """Value as YAML has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
