"""What a model folder holds, checked one by one: the kind of its model, the files of its weights."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tokenizer import read_json

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "check_finite",
    "check_kind",
    "check_weights",
    "import_transformers",
    "not_finite",
    "weight_files",
]

_WEIGHTS, _SHARDS = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")

# These take no positions, and padding would change what they write.
_RECURRENT = ("falcon_mamba", "mamba", "mamba2", "recurrent_gemma", "rwkv", "xlstm")


def check_kind(kind: str, config: Path) -> None:
    """Check that transformers knows a kind of causal language model.

    Parameters
    ----------
    kind
        The ``model_type`` of a configuration.
    config
        Its file, for the message.

    Raises
    ------
    ImportError
        If transformers is not installed.
    ValueError
        If it does not know the kind, where the message names the nearest, or the kind has no attention.
    """
    if kind in _RECURRENT:
        raise ValueError(
            f"{config} is of model_type={kind!r}, a recurrent model, which batches of unequal prompts do not fit; take "
            "a model with attention, such as llama, gemma, gpt2 or phi"
        )
    import_transformers()
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in known:
        near = difflib.get_close_matches(kind, known, 1)
        raise ValueError(
            f"{config} is of model_type={kind!r}, which is no causal language model that the installed transformers "
            f"knows{f'; the nearest is {near[0]!r}' if near else ''}: give another model, or upgrade transformers"
        )


def check_weights(folder: Path, kind: str = "AutoModelForCausalLM") -> None:
    """Check that a model folder has its weights as safetensors; their headers are read.

    Parameters
    ----------
    folder
        The folder.
    kind
        Class of transformers that loads it, for the message.

    Raises
    ------
    ValueError
        If it has not; the message says how to get them.
    """
    from safetensors import SafetensorError, safe_open

    files, index = weight_files(folder), folder / _SHARDS
    if not files:
        pickled = [name for name in _PICKLED if (folder / name).exists()]
        raise ValueError(
            f"{folder} has its weights only as {pickled[0]}, a pickle, which can run any code and is not read. If you "
            f"trust it, convert it once: {kind}.from_pretrained({str(folder)!r})"
            f".save_pretrained({str(folder)!r})"
            if pickled
            else f"{folder} has no weights ({_WEIGHTS}); save the model with model.save_pretrained({str(folder)!r})"
        )
    for file in files:
        if file.parent != folder:
            raise ValueError(f"{index} names a file outside of the folder, {file.name}; copy the folder anew")
        if not file.is_file():
            raise ValueError(f"{folder} lacks {file.name}, which {_SHARDS} names; copy the whole folder")
        try:
            with safe_open(str(file), framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} holds no weights ({error}); it is cut off, or a pointer that `git lfs pull` replaces"
            ) from error


def weight_files(folder: Path) -> list[Path]:
    """Files of the weights of a model folder, whether or not they are there; none if it has no safetensors.

    Raises
    ------
    ValueError
        If the index of several files names none.
    """
    index = folder / _SHARDS
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not index.is_file():
        return []
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{index} has no weight_map that names the files of the weights; copy it anew")
    return [folder / name for name in sorted(set(map(str, named.values())))]


def check_finite(model: nn.Module, folder: Path) -> None:
    """Check that no weight of a model that was loaded is NaN or infinite.

    Raises
    ------
    ValueError
        If one is; the message names the folder and the weight.
    """
    import torch

    weights = {
        name: each for name, each in model.named_parameters() if each.dtype.itemsize > 1 and each.numel()
    }
    if not weights:
        return
    # The largest and the smallest tell of any, without a copy of the weights.
    ends = torch.stack([torch.stack(torch.aminmax(each.detach())).float() for each in weights.values()])
    bad = [name for name, good in zip(weights, ends.isfinite().all(1).tolist(), strict=True) if not good]
    if bad:
        raise ValueError(not_finite(folder, bad, len(weights)))


def not_finite(folder: Path, bad: Sequence[str], count: int) -> str:
    """What is said of a folder with tensors of weights that are not finite, `bad` of `count`."""
    return (
        f"{folder}: {len(bad)} of its {count} tensors of weights have NaN or infinity in them, among them {bad[0]!r}: "
        "its training has diverged or its conversion failed; take an earlier checkpoint"
    )


def import_transformers() -> Any:
    """Module transformers.

    Raises
    ------
    ImportError
        If it is not installed; the message says how to get it.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError('transformers is not installed: pip install "mgpu-nb[alignment]"') from error
    return transformers
