"""Model folders: what is loaded, and what is refused before a run starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_language_models import CHARACTERS, FAMILIES, char_tokenizer, tiny_model

from mgpu_nb.workloads.alignment import stored
from mgpu_nb.workloads.alignment.job import EMBEDDED, Example, Pair
from mgpu_nb.workloads.alignment.models import (
    check_attention,
    check_lengths,
    check_model_folder,
    check_pair,
    context_length,
    load_model,
    load_tokenizer,
    model_folder,
)
from mgpu_nb.workloads.alignment.stored import check_stored


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model("llama", tmp_path_factory.mktemp("llama"), context=20)


@pytest.fixture
def folder(whole: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    found = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def renamed(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_loaded_frozen_or_to_be_trained(family: Any, tmp_path: Path) -> None:
    path = tiny_model(family, tmp_path)
    frozen, trained = load_model(path, device="cpu"), load_model(path, device="cpu", train=True)
    assert not frozen.training
    assert trained.training
    assert not any(weight.requires_grad for weight in frozen.parameters())
    assert all(weight.requires_grad for weight in trained.parameters())
    for one, other in zip(frozen.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == torch.float32


def test_weights_of_half_precision_are_float32_on_a_cpu(folder: Path) -> None:
    load_model(str(folder), device="cpu").to(torch.bfloat16).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(str(folder), device="cpu").dtype == torch.float32


def test_the_embedded_model_is_loaded_by_its_name() -> None:
    assert check_model_folder(EMBEDDED) == model_folder(EMBEDDED)
    tokenizer, model = load_tokenizer(EMBEDDED), load_model(EMBEDDED, device="cpu")
    assert tokenizer.size == model.config.vocab_size
    assert tokenizer.decode([*tokenizer.encode("3+4"), tokenizer.end_id, 5]) == "3+4"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "is not a folder; give one with a model that .* save_pretrained has written"),
        (renamed("config.json", "c.json"), r"has no config.json; save the model with model.save_pretrained"),
        (renamed("tokenizer.json", "t.json"), r"has no tokenizer.json; write one .* AutoTokenizer"),
        (renamed("model.safetensors", "m"), r"has no weights \(model.safetensors\)"),
        (
            renamed("model.safetensors", "pytorch_model.bin"),
            r"only as pytorch_model.bin, a pickle, .* convert it once: AutoModelForCausalLM.from_pretrained",
        ),
        (lambda f: (f / "model.safetensors").write_text("version https://git-lfs"), "git lfs pull"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "holds no tokenizer"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter of another model; merge"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json must hold a JSON object, not list"),
        (lambda f: edit(f / "config.json", model_type=None), "does not state model_type"),
        (lambda f: edit(f / "config.json", model_type="lama"), "model_type='lama', .* nearest is 'llama'"),
        (lambda f: edit(f / "config.json", model_type="mamba"), "'mamba', a recurrent model"),
        (lambda f: edit(f / "config.json", vocab_size=12), "the tokenizer has 16 tokens, the model 12"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    for check in (check_model_folder, lambda path: load_model(path, device="cpu")):
        with pytest.raises(ValueError, match=message):
            check(str(folder))


def test_a_folder_without_an_end_token_is_refused(folder: Path) -> None:
    edit(folder / "config.json", eos_token_id=None)
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ValueError, match="names no end token"):
        check_model_folder(str(folder))


def test_shards_are_checked_one_by_one(folder: Path) -> None:
    model = load_model(str(folder), device="cpu")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="3KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load_model(str(folder), device="cpu").num_parameters() == model.num_parameters()
    shards[-1].unlink()
    with pytest.raises(ValueError, match=rf"lacks {shards[-1].name}, .* copy the whole folder"):
        check_model_folder(str(folder))
    edit(folder / "model.safetensors.index.json", weight_map={"a": "../model/config.json"})
    with pytest.raises(ValueError, match="names a file outside of the folder"):
        check_model_folder(str(folder))
    edit(folder / "model.safetensors.index.json", weight_map=["a"])
    with pytest.raises(ValueError, match=r"index.json has no weight_map that names the files of the weights"):
        check_model_folder(str(folder))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"intermediate_size": 8}])
def test_weights_that_are_not_those_of_the_config_are_refused(folder: Path, change: dict[str, int]) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(ValueError, match=r"weights are not those of its config.json|does not load"):
        load_model(str(folder), device="cpu")


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[2] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"model: 1 of its \d+ tensors .* NaN .* '{name}': .* take an earlier"
    ):
        load_model(str(folder), device="cpu")
    with pytest.raises(ValueError, match=rf"models.tiny.guide: .*model: 1 of its \d+ tensors .* '{name}'"):
        check_pair(Pair("tiny", EMBEDDED, str(folder)))  # before a worker starts


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_are_told_from_others_as_they_are_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: torch.dtype, value: float
) -> None:
    largest = torch.finfo(kind).max
    tensors = {
        "a.weight": torch.tensor([0.0, largest, -largest, 1.5], dtype=kind),
        "mask": torch.full((3, 3), -torch.inf, dtype=kind),
        "count": torch.tensor([2**62]),
    }
    save_file(tensors, folder / "model.safetensors")
    check_stored(folder)
    tensors["b.weight"] = torch.tensor([[1.0, 0.0], [value, 2.0]], dtype=kind)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model: 1 of its 3 tensors of weights have NaN or .* 'b.weight'"):
        check_stored(folder)
    monkeypatch.setattr(stored, "_READ", 100)  # of a large folder the first numbers of each
    check_stored(folder)
    tensors["b.weight"][0, 0] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"'b.weight'"):
        check_stored(folder)


@pytest.mark.parametrize(
    "change", [{"hidden_size": "wide"}, {"quantization_config": {"quant_method": "gptq"}}]
)
def test_whatever_transformers_raises_names_the_folder(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(ValueError, match=rf"the model in {folder} does not load: \w+: .*save_pretrained"):
        load_model(str(folder), device="cpu")


def test_a_folder_runs_no_code_of_its_own(folder: Path, tmp_path: Path) -> None:
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import LlamaConfig as Own"
    )
    edit(folder / "config.json", auto_map={"AutoConfig": "own.Own"})
    load_model(str(folder), device="cpu")
    edit(folder / "config.json", model_type="own")
    with pytest.raises(ValueError, match="model_type='own', which is no causal language model"):
        load_model(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_models_of_a_pair_share_a_vocabulary(whole: str, tmp_path: Path) -> None:
    check_pair(Pair("tiny", whole, whole))
    check_pair(Pair("tiny", whole, tiny_model("gpt2", tmp_path / "same")))
    check_pair(Pair("sums", EMBEDDED, EMBEDDED))
    with pytest.raises(ValueError, match=r"^models.tiny.guide: '.*' is not a folder; .*hf download"):
        check_pair(Pair("tiny", whole, str(tmp_path / "none")))
    other = tiny_model("gpt2", tmp_path / "other", characters=CHARACTERS[:-1] + "-")
    with pytest.raises(
        ValueError, match=r"different vocabularies: 16 and 16 tokens, .* two of one family \(tiny"
    ):
        check_pair(Pair("tiny", whole, other))
    longer = Path(tiny_model("gpt2", tmp_path / "longer", characters=CHARACTERS + "-"))
    char_tokenizer(longer)
    with pytest.raises(ValueError, match="give logits of 16 and 17 tokens"):
        check_pair(Pair("tiny", whole, str(longer)))


def test_models_of_a_pair_share_an_end_token(whole: str, folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token="<")
    with pytest.raises(ValueError, match="different end tokens, 15 and 12"):
        check_pair(Pair("tiny", whole, str(folder)))


def test_a_prompt_that_does_not_fit_the_context_is_named(whole: str) -> None:
    tokenizer = load_tokenizer(whole)
    examples = [Example(n, "", "", "1" * n) for n in (1, 16, 17)]
    check_lengths(whole, tokenizer, examples[:2], 4)
    words = r"1 of 3 prompts are too long: with max_new_tokens=4 .* of .*, 20 \(example 17: 17 tokens\): shorten them"
    with pytest.raises(ValueError, match=words):
        check_lengths(whole, tokenizer, examples, 4)
    many = [Example(n, "", "", "1" * n) for n in range(1, 26)]
    with pytest.raises(ValueError, match=r"line 18: 17 tokens; .* line 22: 21 tokens; and 4 more\): shorten"):
        check_lengths(whole, tokenizer, many, 4, lambda example: f"a.csv, line {example.index + 1}")
    with pytest.raises(ValueError, match=r"example 7: the tokenizer in .* cannot read 'x'"):
        check_lengths(whole, tokenizer, [Example(7, "", "", "x")], 4)
    with pytest.raises(ValueError, match="example 0 has an empty prompt"):
        check_lengths(whole, tokenizer, [Example(0, "", "", "")], 4)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 7}, 7),
        ({"n_positions": 8}, 8),
        ({"text_config": {"max_position_embeddings": 9}, "max_position_embeddings": 3}, 9),
        ({}, None),
    ],
)
def test_context_of_a_config(config: dict[str, Any], length: int | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(str(tmp_path)) == length


def test_attention_that_cannot_be_had_is_refused(whole: str) -> None:
    check_attention("eager", "cpu")
    check_attention("sdpa", "cuda")
    with pytest.raises(
        ValueError, match=r"attn_impl='flash_attention_2' needs an NVIDIA GPU, .* system.attn_impl=sdpa"
    ):
        load_model(whole, device="cpu", attn_impl="flash_attention_2")
    with pytest.raises(ValueError, match=r"needs the package flash-attn: pip install flash-attn"):
        check_attention("flash_attention_2", "cuda")
    with pytest.raises(ValueError, match=r"attn_impl.*'flash_attention_2'"):
        check_attention("flash_attention2", "cuda")


def test_a_tokenizer_neither_cuts_nor_fills_nor_ends_texts(folder: Path) -> None:
    file = folder / "tokenizer.json"
    edit(
        file,
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 14,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[PAD]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[END]", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                name: {"id": name, "ids": [number], "tokens": [name]}
                for name, number in (("[PAD]", 14), ("[END]", 15))
            },
        },
    )
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.encode("1234") == [14, 1, 2, 3, 4]
    assert tokenizer.decode([14, 1, 2, 15, 3]) == "12"
    assert (tokenizer.end_id, tokenizer.pad_id, tokenizer.size) == (15, 14, 16)


def test_special_tokens_come_from_either_file(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token={"content": "=", "special": True}, pad_token=None)
    edit(folder / "config.json", pad_token_id=None)
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.end_id, tokenizer.pad_id) == (11, 11)
    edit(folder / "tokenizer_config.json", eos_token=None)
    edit(folder / "config.json", eos_token_id=[13, 15])
    assert load_tokenizer(str(folder)).end_id == 13
