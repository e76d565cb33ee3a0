"""Weights of a ConvE in files: our own, PyKEEN's and those of the authors' code, never through a pickle."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...store.files import atomic_write
from .conve import ConvE, Shape

__all__ = ["load_conve", "read_state", "save_checkpoint"]

State = dict[str, Tensor]

# Names in PyKEEN 1.9 and later, and in the code of Dettmers et al. (2018), by ours.
_NAMES = (
    {
        "entity_representations.0._embeddings.weight": "entities.weight",
        "entity_representations.1._embeddings.weight": "bias.weight",
        "relation_representations.0._embeddings.weight": "relations.weight",
        "interaction.hr2d.0": "norm_image",
        "interaction.hr2d.2": "convolution",
        "interaction.hr2d.3": "norm_features",
        "interaction.hr1d.0": "linear",
        "interaction.hr1d.2": "norm_hidden",
    },
    {
        "emb_e.weight": "entities.weight",
        "b": "bias.weight",
        "emb_rel.weight": "relations.weight",
        "bn0": "norm_image",
        "conv1": "convolution",
        "bn1": "norm_features",
        "fc": "linear",
        "bn2": "norm_hidden",
    },
)


def read_state(path: str | Path) -> tuple[State, dict[str, Any]]:
    """Read a checkpoint; return its state dict and what it says of the model's configuration.

    A checkpoint is a .safetensors file, or one that torch saved: ``{"model_state_dict": ..., "config": ...}``,
    ``{"state_dict": ...}`` or a state dict as it is. It is read with ``weights_only=True``.

    Raises
    ------
    FileNotFoundError
        If it is missing.
    ValueError
        If it is damaged, holds more than tensors and plain data, or no state dict.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such checkpoint")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file} is no checkpoint that can be read without running code from it ({error}): save "
            "model.state_dict() with torch.save, or as .safetensors"
        ) from error
    config: dict[str, Any] = {}
    if isinstance(content, dict):
        config = content["config"] if isinstance(content.get("config"), dict) else {}
        content = next(
            (content[key] for key in ("model_state_dict", "state_dict") if key in content), content
        )
    tensors = isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values())
    if not tensors:
        raise ValueError(
            f"{file} holds no state dict: save model.state_dict(), or a dict that has it as 'state_dict'"
        )
    return content, config


def load_conve(path: str | Path, entities: int, relations: int, height: int | None = None) -> ConvE:
    """Read a ConvE in eval mode, its sizes taken from the shapes of its weights.

    A PyKEEN model trained with inverse triples has two embeddings per relation; the first of each pair is taken.

    Parameters
    ----------
    path
        See `read_state`.
    entities, relations
        How many the maps of names have.
    height
        Of the image of an embedding, where shapes do not tell it: see `Shape.of`. By default the ``config`` of the
        checkpoint is asked, and PyKEEN's own rule taken for its weights.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file, or a weight in it, is not as it should be; the message has both shapes.
    """
    state, config = read_state(path)
    of_pykeen = any(key.startswith("relation_representations.") for key in state)
    state = renamed(state)
    height = height or config.get("embedding_height") or config.get("height")
    try:
        rows = state["relations.weight"]
        if of_pykeen and len(rows) == 2 * relations:  # it interleaves them
            state["relations.weight"] = rows[::2].clone()
        try:
            shape = Shape.of(state, height)
        except ValueError:
            if height or not of_pykeen:
                raise
            shape = Shape.of(state, _height_by_pykeen(rows.shape[1]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    for what, have, wanted in (
        ("entities", shape.entities, entities),
        ("relations", shape.relations, relations),
    ):
        if have != wanted:
            weight = tuple(state[f"{what}.weight"].shape)
            raise ValueError(
                f"{path}: the embedding of {what} has shape {weight}, the map of names asks for "
                f"({wanted}, {weight[1]}): give the maps that the model was trained with"
            )
    model = ConvE(shape)
    check_shapes(path, state, model.state_dict())
    model.load_state_dict(state, strict=False)
    return model.eval()


def _height_by_pykeen(dimension: int) -> int:
    """Height that PyKEEN takes where it was not told: the largest divisor up to the square root."""
    return max(h for h in range(1, math.isqrt(dimension) + 1) if dimension % h == 0)


def renamed(state: State) -> State:
    """State dict under our names, without what a ConvE does not have."""
    own = ConvE(Shape(1, 1, 2, 3, 1)).state_dict()
    for names in _NAMES:
        if not any(_in(key, names) for key in state):
            continue
        found = {}
        for key, value in state.items():
            for theirs, ours in names.items():
                if key == theirs or key.startswith(f"{theirs}."):
                    found[ours + key[len(theirs) :]] = value
        state = found
        break
    state = {re.sub(r"^(module|model|_orig_mod)\.", "", key): value for key, value in state.items()}
    if "bias.weight" in state:
        state["bias.weight"] = state["bias.weight"].reshape(-1, 1)
    return {key: value for key, value in state.items() if key in own}


def _in(key: str, names: dict[str, str]) -> bool:
    return key in names and names[key].endswith("entities.weight")


def check_shapes(path: str | Path, state: State, wanted: State) -> None:
    """Raise where a weight is missing or has another shape than the model's.

    Raises
    ------
    ValueError
        Names the weight and prints both shapes.
    """
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in state:
            raise ValueError(f"{path}: the checkpoint has no {name}, the model asks for {tuple(value.shape)}")
        if state[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, the model asks for {tuple(value.shape)}"
            )


def save_checkpoint(path: Path, state: State, shape: Shape, **about: Any) -> None:
    """Write weights as ``{"model_state_dict": ..., "config": ...}``; whole or not at all."""
    config = {"embedding_height": shape.height, "embedding_width": shape.width, **about}
    with atomic_write(path) as part:
        torch.save({"model_state_dict": state, "config": config}, part)
