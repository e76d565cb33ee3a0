"""What a workload is given: GPUs, options of a preset, paths and the content of the files that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from ..options import NonEmpty, NonNegativeInt, check_choice

__all__ = ["GpuIds", "absolute_path", "files_digest", "with_preset"]

C = TypeVar("C")

GpuIds = Annotated[tuple[NonNegativeInt, ...], NonEmpty()] | Literal["cpu"] | None
"""GPUs by their ids, ``"cpu"`` for virtual CPU devices, None for all that there are."""


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
            digest.update(hashlib.file_digest(opened, "blake2b").digest())
    return "" if empty else digest.hexdigest()
