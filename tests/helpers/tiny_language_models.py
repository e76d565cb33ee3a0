"""Language models of a few thousand weights in folders of their own, as transformers and tokenizers save them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

Family = Literal["gpt2", "llama", "gemma", "phi"]
FAMILIES: tuple[Family, ...] = ("gpt2", "llama", "gemma", "phi")
FAMILY_PARAMS = ["gpt2", *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES[1:])]
"""All families, for a fixture; the first stands for all where tests are to be fast."""

CHARACTERS = "0123456789+=<>"
PAD, END = "[PAD]", "[END]"


def char_tokenizer(folder: Path, characters: Sequence[str] = CHARACTERS) -> tuple[int, int, int]:
    """Write ``tokenizer.json``, a token a character, and what names its special ones.

    Returns
    -------
    tuple of int
        Numbers of the pad token and of the end token, size of the vocabulary.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = [*characters, PAD, END]
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}))
    tokenizer.add_special_tokens([PAD, END])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return tokens.index(PAD), tokens.index(END), len(tokens)


def tiny_model(
    family: Family,
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 16,
    layers: int = 2,
    context: int = 64,
    characters: Sequence[str] = CHARACTERS,
    spread: float = 1.0,
) -> str:
    """Path of the folder of a random model of a family, with the tokenizer of `characters`.

    Its weights are spread so widely that its next token depends on all tokens before it, and it ends now and then.
    """
    import transformers

    pad, end, size = char_tokenizer(folder, characters)
    common: dict[str, Any] = {
        "vocab_size": size,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": pad,
        "initializer_range": spread,
    }
    wide: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": context,
    }
    config: Any
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=hidden, n_layer=layers, n_head=2, n_positions=context, **common
        )
    elif family == "llama":
        config = transformers.LlamaConfig(num_key_value_heads=1, **wide, **common)
    elif family == "gemma":
        config = transformers.GemmaConfig(num_key_value_heads=1, head_dim=hidden // 2, **wide, **common)
    else:
        config = transformers.PhiConfig(partial_rotary_factor=0.5, **wide, **common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return str(folder)
