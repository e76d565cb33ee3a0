"""What a workload is given: GPUs, options of a preset, paths and the content of the files that they name."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from ..options import NonEmpty, NonNegativeInt, check_choice

__all__ = [
    "GpuIds",
    "LogLevel",
    "absolute_path",
    "absolute_python",
    "check_file",
    "check_imports",
    "check_one_gpu",
    "check_output",
    "files_digest",
    "one_slot",
    "with_preset",
]

C = TypeVar("C")

GpuIds = Annotated[tuple[NonNegativeInt, ...], NonEmpty()] | Literal["cpu"] | None
"""GPUs by their ids, ``"cpu"`` for virtual CPU devices, None for all that there are."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


def check_one_gpu(gpu_ids: GpuIds) -> None:
    """Check the devices of work that takes one.

    Raises
    ------
    ValueError
        If they are several.
    """
    if isinstance(gpu_ids, tuple) and len(gpu_ids) > 1:
        raise ValueError(f"gpu_ids={gpu_ids!r}: a training runs on one GPU; give one id")


def one_slot(config: Any) -> dict[str, Any]:
    """Options of the pool of such work, for its ``gpu_ids``: an id of a GPU is a slot."""
    return {} if isinstance(config.gpu_ids, tuple) else {"slots": 1}


def with_preset(
    config: type[C], presets: Mapping[str, Mapping[str, Any]], name: str, changes: Mapping[str, Any]
) -> C:
    """Config of a preset, with `changes` on top; GPUs that these name replace the preset's number of slots.

    Raises
    ------
    ValueError
        If there is no such preset; the message names the nearest.
    """
    options = dict(presets[check_choice(name, presets, "preset")])
    if changes.get("gpu_ids") is not None:
        options.pop("slots", None)
    return config(**{**options, **changes})


def absolute_path(path: str | Path | None) -> str | None:
    """Absolute path of a file or folder that an option names; None for an option that names none."""
    return None if path is None else str(Path(path).expanduser().resolve())


def absolute_python(python: str | Path | None) -> str | None:
    """Absolute path of an interpreter that an option names, by its path or as one on PATH.

    A link stays one: by it a virtual environment is known.
    """
    if python is None:
        return None
    if isinstance(python, str) and os.sep not in python and (found := shutil.which(python)) is not None:
        python = found
    return os.path.abspath(Path(python).expanduser())  # noqa: PTH100


def check_imports(python: str | None, modules: Sequence[str], option: str, remedy: str) -> None:
    """Check that the interpreter of the workers imports what they will be asked to, by a process of it that tries.

    Parameters
    ----------
    python
        The interpreter; by default this process's own.
    modules
        What is to be imported.
    option
        What needs them, for the message.
    remedy
        What to do if one does not import.

    Raises
    ------
    ValueError
        If one does not import, or the interpreter cannot have workers; the message says why.
    """
    from ..pool import interpreter_of_workers  # here: workers import this module, too

    found = interpreter_of_workers(python, modules)
    if found.errors:
        versions = [f"{name} {version}" for name in ("torch", "numpy") if (version := found.packages[name])]
        failed = "; ".join(f"{name}: {why}" for name, why in found.errors.items())
        have = ", ".join([f"Python {found.version}", *versions])
        raise ValueError(f"{option} does not import in {found.path} ({have}): {failed}. {remedy}")


def check_file(option: str, path: str | Path) -> None:
    """Check that an option names a file that exists.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If it does not; the message has the nearest name in the folder.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise IsADirectoryError(f"{option}={str(path)!r} is a folder: name a file in it")
    if not file.is_file():
        there = os.listdir(file.parent) if file.parent.is_dir() else []  # noqa: PTH208 (names alone)
        near = difflib.get_close_matches(file.name, there, 1, 0.8)
        remedy = f"did you mean {near[0]!r}?" if near else "check the path"
        raise FileNotFoundError(f"{option}={str(path)!r}: there is no such file; {remedy}")


def check_output(option: str, path: str | Path | None) -> None:
    """Check that a file can be written where an option names it, before the work begins.

    Raises
    ------
    ValueError
        If it is a folder, or below a file.
    """
    if path is None:
        return
    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(f"{option}={str(path)!r} is a folder; give the path of a file in it")
    if files := [parent for parent in file.parents if parent.is_file()]:
        raise ValueError(f"{option}={str(path)!r}: {files[0]} is a file; name a folder, new or not")


def files_digest(files: Iterable[Path]) -> str:
    """Digest of names and contents of files; empty for no files.

    Raises
    ------
    FileNotFoundError
        If one of them does not exist.
    """
    digest, empty = hashlib.blake2b(digest_size=16), True
    for file in files:
        empty = False
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file")
        with file.open("rb") as opened:
            digest.update(f"{file.name}:{file.stat().st_size}:".encode())
            content = hashlib.blake2b()
            while part := opened.read(2**20):  # hashlib.file_digest is not in the Pythons of all workers
                content.update(part)
            digest.update(content.digest())
    return "" if empty else digest.hexdigest()
