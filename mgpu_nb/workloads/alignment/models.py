"""Language models in local folders: loaded, and checked before a run without reading their weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...options import check_choice
from ...output import one_line
from .folders import check_finite, check_kind, check_weights, import_transformers
from .job import EMBEDDED, Example, Pair
from .stored import check_stored
from .tokenizer import Tokenizer, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "ATTENTION",
    "check_attention",
    "check_lengths",
    "check_model_folder",
    "check_pair",
    "checkpoint_activations",
    "context_length",
    "load_model",
    "load_tokenizer",
    "model_folder",
]

ATTENTION = ("eager", "sdpa", "flash_attention_2")
"""Implementations of attention that `load_model` takes."""
SHOWN = 5  # prompts that are too long and named


def model_folder(path: str) -> Path:
    """Folder of a model; of `EMBEDDED` the one that is shipped."""
    return Path(__file__).with_name("reference") if path == EMBEDDED else Path(path).expanduser()


def load_tokenizer(path: str) -> Tokenizer:
    """Load the tokenizer of a model folder, or of `EMBEDDED`.

    Raises
    ------
    ImportError
        If tokenizers is not installed.
    ValueError
        If the folder has no tokenizer, none that can be read, or it names no end token.
    """
    return Tokenizer(model_folder(path))


def load_model(
    path: str, *, device: str | torch.device, attn_impl: str = "eager", train: bool = False
) -> PreTrainedModel:
    """Load a causal language model from a local folder.

    Nothing is downloaded, nothing is unpickled, no code of the folder is run.

    Parameters
    ----------
    path
        The folder, or `EMBEDDED`.
    device
        Where to put it. On a CPU its weights are float32, else of the type in which they are stored.
    attn_impl
        One of `ATTENTION`.
    train
        Whether it is to be trained: in training mode, its weights with gradient, dropout off, so that
        log-probabilities are those of the policy. Else it is ready to evaluate and frozen.

    Raises
    ------
    ImportError
        If transformers is not installed.
    ValueError
        If the folder holds no whole model of a known kind, a weight is NaN or infinite, or `attn_impl` cannot be had.
    """
    transformers = import_transformers()
    folder = check_model_folder(path)
    device = torch.device(device)
    check_attention(attn_impl, device.type)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        _no_dropout(config)
        with _no_progress_bar(transformers.utils.logging):
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation=attn_impl,
                dtype=torch.float32 if device.type == "cpu" else "auto",
                output_loading_info=True,
            )
    except MemoryError:
        raise
    except Exception as error:  # any, of a value in config.json that is not expected say
        raise ValueError(
            f"the model in {folder} does not load: {one_line(f'{type(error).__name__}: {error}')}; save all of it "
            "with save_pretrained, and try AutoModelForCausalLM.from_pretrained on it"
        ) from error
    if attn_impl == "flash_attention_2" and model.dtype == torch.float32:
        raise ValueError(
            f"attn_impl='flash_attention_2' computes in bfloat16 or float16, and {folder} is stored as float32: "
            "store it in bfloat16 (model.to(torch.bfloat16).save_pretrained), or set system.attn_impl=sdpa"
        )
    lacking = [*found["missing_keys"], *(str(entry[0]) for entry in found["mismatched_keys"])]
    if lacking:
        raise ValueError(
            f"{folder}: its weights are not those of its config.json; {len(lacking)} are missing or of another shape, "
            f"among them {sorted(lacking)[0]!r}: save the whole model with save_pretrained"
        )
    model = model.to(device)
    check_finite(model, folder)
    return model.train().requires_grad_(True) if train else model.eval().requires_grad_(False)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Have a model that is trained compute activations again in the backward pass, in place of keeping them."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # from transformers 5.2x on
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


@contextmanager
def _no_progress_bar(logging: Any) -> Iterator[None]:
    """Without the bar that transformers draws for every load."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _no_dropout(config: Any) -> None:
    for part in (config, config.get_text_config(decoder=True)):
        for name, value in part.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)


def check_model_folder(path: str) -> Path:
    """Folder of a model that has all that it needs; of its weights the headers are read.

    Raises
    ------
    ImportError
        If transformers or tokenizers is not installed.
    ValueError
        If the folder does not exist, has no config.json of a causal language model, no weights as safetensors, or no
        tokenizer; the message says how to get them.
    """
    folder = model_folder(path)
    if not folder.is_dir():
        raise ValueError(
            f"{str(folder)!r} is not a folder; give one with a model that transformers' save_pretrained has written "
            "(models are never downloaded; `hf download OWNER/NAME --local-dir FOLDER` fetches one)"
        )
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(
            f"{folder} has no config.json; save the model with model.save_pretrained({str(folder)!r})"
        )
    kind = read_json(config).get("model_type")
    if not kind:
        raise ValueError(f"{config} does not state model_type; save the model again with save_pretrained")
    if path != EMBEDDED:
        check_kind(str(kind), config)
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} is an adapter of another model; merge the two once (peft: model.merge_and_unload()) and save "
            "the result with save_pretrained"
        )
    check_weights(folder)
    tokenizer, vocabulary = Tokenizer(folder), _number(folder, "vocab_size")
    if vocabulary is not None and tokenizer.size > vocabulary:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.size} tokens, the model {vocabulary} (vocab_size of config.json); "
            "take the tokenizer that the model was trained with"
        )
    return folder


def check_pair(pair: Pair) -> None:
    """Check that reference and guide of a pair can be loaded, and share a vocabulary.

    Raises
    ------
    ValueError
        If one of them cannot be loaded, its weights are no finite numbers, or their vocabularies differ.
    """
    reference, guide = (_folder_of(pair, role) for role in ("reference", "guide"))
    if reference == guide:
        return
    one, other = Tokenizer(reference), Tokenizer(guide)
    remedy = f"models of a pair share tokens; take two of one family ({pair.family}: {pair.reference}, {pair.guide})"
    if one.vocabulary() != other.vocabulary():
        differing = sorted(set(one.vocabulary().items()) ^ set(other.vocabulary().items()))
        raise ValueError(
            f"reference and guide have different vocabularies: {one.size} and {other.size} tokens, of which "
            f"{differing[0][0]!r} is not in both with one number; {remedy}"
        )
    if one.end_id != other.end_id:
        raise ValueError(
            f"reference and guide have different end tokens, {one.end_id} and {other.end_id}; {remedy}"
        )
    sizes = [_number(folder, "vocab_size") for folder in (reference, guide)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"reference and guide give logits of {sizes[0]} and {sizes[1]} tokens (vocab_size of config.json); {remedy}"
        )


def _folder_of(pair: Pair, role: str) -> Path:
    """Folder of one of the models of a pair, which is checked and named as the settings name it."""
    try:
        folder = check_model_folder(getattr(pair, role))
        check_stored(folder)
        return folder
    except ValueError as error:
        raise ValueError(f"models.{pair.family}.{role}: {error}") from error


def context_length(path: str) -> int | None:
    """Largest number of tokens of a model, as its config.json states it; None if it states none."""
    folder = model_folder(path)
    found = _number(folder, "max_position_embeddings")
    return _number(folder, "n_positions") if found is None else found


def _number(folder: Path, name: str) -> int | None:
    """Whole number that config.json states, for the language model if it has several parts."""
    config = read_json(folder / "config.json")
    part = config.get("text_config")
    found = (part if isinstance(part, dict) and name in part else config).get(name)
    return found if isinstance(found, int) else None


def check_lengths(
    path: str,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    max_new_tokens: int,
    place: Callable[[Example], str] = lambda example: f"example {example.index}",
) -> None:
    """Check that each prompt and its completion fit the context of a model.

    Parameters
    ----------
    path
        Folder of the model, or `EMBEDDED`; only its config.json is read.
    tokenizer
        Its tokenizer.
    examples
        The examples.
    max_new_tokens
        Largest number of tokens of a completion.
    place
        Place of an example in its file, for the message.

    Raises
    ------
    ValueError
        If a prompt has no tokens, too many, or a character that no token stands for; the message names the places, the
        lengths and how many there are.
    """
    context, long = context_length(path), dict[int, int]()
    for number, example in enumerate(examples):
        try:
            length = len(tokenizer.encode(example.prompt))
        except ValueError as error:
            raise ValueError(f"{place(example)}: {error}") from error
        if not length:
            raise ValueError(
                f"{place(example)} has an empty prompt: a model needs at least one token; fill it in, or take it out"
            )
        if context is not None and length + max_new_tokens > context:
            long[number] = length
    if long:
        shown = "; ".join(f"{place(examples[n])}: {long[n]} tokens" for n in list(long)[:SHOWN])
        more = f"; and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
        raise ValueError(
            f"{len(long)} of {len(examples)} prompts are too long: with max_new_tokens={max_new_tokens} they are more "
            f"than the context of {model_folder(path)}, {context} ({shown}{more}): shorten them, take them out, or "
            "lower max_new_tokens of generation or of the data set"
        )


def check_attention(attn_impl: str, device_type: str) -> None:
    """Check that an implementation of attention can be had on ``"cpu"`` or ``"cuda"`` devices.

    Raises
    ------
    ValueError
        If it is not known, not installed, or not for such a device; the message says what to do.
    """
    check_choice(attn_impl, ATTENTION, "attn_impl")
    if attn_impl != "flash_attention_2":
        return
    remedy = "set system.attn_impl=sdpa, which is exact too, or eager"
    if device_type != "cuda":
        raise ValueError(
            f"attn_impl='flash_attention_2' needs an NVIDIA GPU, and this is a {device_type}; {remedy}"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise ValueError(
            f"attn_impl='flash_attention_2' needs the package flash-attn: pip install flash-attn; or {remedy}"
        )
