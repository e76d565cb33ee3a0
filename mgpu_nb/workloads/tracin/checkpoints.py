"""Weights of a ConvE in files: our own, PyKEEN's and those of the authors' code, never through a pickle."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...output import one_line
from ...store.files import atomic_write
from .conve import ConvE, Shape
from .loss import check_link_predictor

__all__ = ["as_conve", "load_conve", "load_link_predictor", "read_state", "save_checkpoint"]

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


def read_checkpoint(path: str | Path, *, trust: bool = False) -> tuple[State | nn.Module, dict[str, Any]]:
    """Read a checkpoint; return its state dict, or the model itself, and what it says of the model's configuration.

    A checkpoint is a .safetensors file, or one that torch saved: ``{"model_state_dict": ..., "config": ...}``,
    ``{"state_dict": ...}`` or a state dict as it is. It is read with ``weights_only=True``; with `trust` as the pickle
    that it may be, for a whole model such as PyKEEN's trained_model.pkl.

    Raises
    ------
    FileNotFoundError
        If it is missing.
    ValueError
        If it is damaged, holds more than tensors and plain data and is not trusted, or no weights.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such checkpoint" + ", it is a folder" * file.is_dir())
    if file.suffix != ".safetensors":
        _check_saved(file)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust:
            raise ValueError(f"{file} is damaged, or no checkpoint: {error}") from error
        raise ValueError(
            f"{file} is no checkpoint that can be read without running code from it. A whole model, such as PyKEEN's "
            "trained_model.pkl, is read with trust=True (--trust): only if you made the file, or trust who did. "
            "Otherwise save model.state_dict() with torch.save, or as .safetensors"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{file} is no checkpoint, damaged or cut off ({type(error).__name__}: {one_line(str(error))}): copy it "
            "again, or save model.state_dict() with torch.save, or as .safetensors"
        ) from error
    if isinstance(content, nn.Module):
        return content, {}
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


def _check_saved(file: Path) -> None:
    """Raise for a file that begins as none of torch.save's does: a zip archive, or a pickle of before 1.6."""
    with file.open("rb") as opened:
        start = opened.read(16)
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        found = f"it begins with {start!r}" if start else "it is empty"
        raise ValueError(
            f"{file} is no checkpoint, {found}: copy it again, or save model.state_dict() with torch.save, or as "
            ".safetensors"
        )


def read_state(path: str | Path, *, trust: bool = False) -> tuple[State, dict[str, Any]]:
    """Read a checkpoint; return its state dict, that of a model too, and its configuration. See `read_checkpoint`."""
    content, config = read_checkpoint(path, trust=trust)
    return content.state_dict() if isinstance(content, nn.Module) else content, config


def load_link_predictor(
    path: str | Path, entities: int, relations: int, height: int | None = None, *, trust: bool = False
) -> nn.Module:
    """Read a ConvE in eval mode, its sizes taken from the shapes of its weights; or a model of PyKEEN, see `as_conve`.

    A PyKEEN model trained with inverse triples has two embeddings per relation; the first of each pair is taken.

    Parameters
    ----------
    path, trust
        See `read_checkpoint`.
    entities, relations
        How many the maps of names have.
    height
        Of the image of an embedding, where shapes do not tell it: see `Shape.of`. By default the ``config`` of the
        checkpoint is asked, or the model itself.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If the file, or a weight in it, is not as it should be; the message has both shapes.
    """
    content, config = read_checkpoint(path, trust=trust)
    if isinstance(content, nn.Module):
        check_link_predictor(content)
        theirs: Any = content
        sizes = theirs.num_entities, theirs.num_real_relations
        if sizes != (entities, relations):
            raise ValueError(
                f"{path}: the model has {sizes[0]} entities and {sizes[1]} relations, the maps of names have "
                f"{entities} and {relations}: give the maps that it was trained with"
            )
        try:
            check_weights(content.state_dict(), content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return as_conve(content).eval()
    state = renamed(content)
    rows = state.get("relations.weight")
    if rows is not None and _of_pykeen(content) and len(rows) == 2 * relations:  # it interleaves them
        state["relations.weight"] = rows[::2].clone()
    try:
        shape = Shape.of(state, height or config.get("embedding_height") or config.get("height"))
    except ValueError as error:
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
    try:
        return conve_of(state, shape)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_conve(path: str | Path, entities: int, relations: int, height: int | None = None) -> ConvE:
    """Read a ConvE in eval mode; parameters and errors as `load_link_predictor`."""
    return cast("ConvE", load_link_predictor(path, entities, relations, height))


def as_conve(model: nn.Module) -> nn.Module:
    """ConvE of PyKEEN as ours, whose influences cost least; any other model as it is.

    The image of its embeddings is that of its own configuration. It has all relations, those of inverse triples too:
    see `ConvE.use_inverse_triples`.
    """
    theirs: Any = model
    shape = getattr(getattr(model, "interaction", None), "shape_info", None)
    if shape is None or shape.input_channels != 1 or shape.kernel_height != shape.kernel_width:
        return model
    state = model.state_dict()
    own = {"norm_image.running_var", "norm_features.running_var", "norm_hidden.running_var"} <= renamed(
        state
    ).keys()
    if not own or not all(parameter.requires_grad for parameter in model.parameters()):
        return model
    for representation in (*theirs.entity_representations, *theirs.relation_representations):
        if type(representation).__name__ != "Embedding" or representation.normalizer is not None:
            return model
    made = conve_of(renamed(state), Shape.of(renamed(state), shape.image_height))
    made = made.to(next(model.parameters()).device)
    made.use_inverse_triples = bool(theirs.use_inverse_triples)
    return made.eval()


def conve_of(state: State, shape: Shape) -> ConvE:
    """ConvE with the weights of a state dict under our names, in eval mode; errors as `check_weights`."""
    check_weights(state, ConvE(shape))
    types = [value.dtype for value in state.values() if value.is_floating_point()]
    model = ConvE(shape).to(reduce(torch.promote_types, types))
    model.load_state_dict(state, strict=False)
    return model.eval()


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


def _of_pykeen(state: State) -> bool:
    return any(key.startswith("relation_representations.") for key in state)


def _in(key: str, names: dict[str, str]) -> bool:
    return key in names and names[key].endswith("entities.weight")


def check_weights(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise where a weight is missing, of another shape or type than the model's, or NaN or infinite.

    Raises
    ------
    ValueError
        Names the weight, and prints both shapes or types.
    """
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in state:
            raise ValueError(
                f"the checkpoint has no {name}, the model asks for {tuple(value.shape)}: save all of "
                "model.state_dict()"
            )
        given = state[name]
        if given.shape != value.shape:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, the model asks for {tuple(value.shape)}: give weights of "
                "this model"
            )
        if given.is_floating_point() != value.is_floating_point():
            types = [str(each.dtype).removeprefix("torch.") for each in (given, value)]
            raise ValueError(
                f"{name} is {types[0]}, the model asks for {types[1]}: give weights of this model"
            )
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        # A mask may hold infinity, and is a buffer.
        bad = int((~torch.isfinite(value) if name in parameters else torch.isnan(value)).sum())
        if bad:
            raise ValueError(
                f"{name} holds NaN or infinity ({bad:,} of {value.numel():,} numbers): the training diverged; give an "
                "earlier checkpoint, or train with a smaller learning_rate"
            )


def save_checkpoint(path: Path, state: State, shape: Shape, **about: Any) -> None:
    """Write weights as ``{"model_state_dict": ..., "config": ...}``; whole or not at all."""
    config = {"embedding_height": shape.height, "embedding_width": shape.width, **about}
    with atomic_write(path) as part:
        torch.save({"model_state_dict": state, "config": config}, part)
