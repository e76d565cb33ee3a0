"""Rewards in batches: how often one is called, what it may give, and those of the data sets."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_language_models import char_tokenizer, tiny_model

from mgpu_nb.workloads.alignment.job import Example
from mgpu_nb.workloads.alignment.rewards import Scorer, check_reward, reward_of
from mgpu_nb.workloads.alignment.settings import Gsm8kData, ImdbData, SumsData, TableData

EXAMPLES = [Example(n, str(n), f"{n} #### {n}", f"{n}=") for n in range(10)]


def length(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    """Reward of tests."""
    return [float(len(text)) for text in texts]


@pytest.mark.parametrize(
    ("count", "size", "calls"), [(0, 4, 0), (1, 4, 1), (8, 4, 2), (9, 4, 3), (10, 99, 1)]
)
def test_calls_are_as_few_as_the_batch_size_allows(count: int, size: int, calls: int) -> None:
    seen: list[int] = []

    def reward(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        seen.append(len(texts))
        return length(examples, texts)

    scorer = Scorer(reward, size)
    texts = ["x" * n for n in range(count)]
    assert scorer.score(EXAMPLES[:count], texts) == [len(text) for text in texts]
    assert scorer.calls == len(seen) == calls == math.ceil(count / size)
    scorer.score(EXAMPLES[:count], texts)
    assert scorer.calls == 2 * calls


@pytest.mark.parametrize("given", [np.arange(2), torch.arange(2), (False, True), iter([0, 1.0])])
def test_rewards_may_be_any_numbers(given: Any) -> None:
    scores = Scorer(lambda examples, texts: given, 4).score(EXAMPLES[:2], ["a", "b"])
    assert scores == [0.0, 1.0]
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1.0], "gave 1 numbers for 2 texts"),
        ([1.0, 2.0, 3.0], "gave 3 numbers for 2 texts"),
        ([1.0, math.nan], "gave nan for the text 'b'"),
        ([math.inf, 1.0], "gave inf for the text 'a'"),
        (None, "must give a number for each text, got None"),
        (1.0, "must give a number for each text"),
        (["1", "2"], "must give a number for each text"),
        ("12", "must give a number for each text"),
        (["good", "bad"], "must give a number for each text"),
        ([[1.0], [2.0]], "must give a number for each text"),
    ],
)
def test_other_rewards_are_refused(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Scorer(lambda examples, texts: given, 4).score(EXAMPLES[:2], ["a", "b"])


def test_there_is_an_example_for_each_text() -> None:
    with pytest.raises(ValueError, match="2 examples and 1 texts"):
        Scorer(length, 4).score(EXAMPLES[:2], ["a"])
    with pytest.raises(ValueError, match="at least 1"):
        Scorer(length, 0)


def test_rules() -> None:
    assert reward_of(SumsData())(EXAMPLES[7:9], ["3+4", "3+4"]) == [1.0, 0.0]
    gsm8k = Gsm8kData(train="x", test="x")
    assert reward_of(gsm8k)(EXAMPLES[7:9], [r"it is $\boxed{7}$", "it is 7"]) == [1.0, 0.0]
    check_reward(SumsData())
    check_reward(gsm8k)


def table(reward: str) -> TableData:
    return TableData(train="x", test="x", reward=reward)


def test_a_function_of_ones_own() -> None:
    own = table("test_own_reward:length")
    with pytest.raises(ValueError, match="does not import"):
        check_reward(own)
    found = table("operator:mul")
    check_reward(found)
    assert getattr(reward_of(found), "__name__", "") == "mul"
    with pytest.raises(
        ValueError, match=r"reward 'math:fsum' cannot be called as reward\(examples, texts\): too many"
    ):
        check_reward(table("math:fsum"))
    with pytest.raises(ValueError, match="must be a function, got a float"):
        check_reward(table("math:pi"))
    with pytest.raises(ValueError, match=r"'package\.module:function' of a reward"):
        table("math.fsum")


def test_a_module_that_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_at_once.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=r"reward: 'raises_at_once:f' does not import \(ZeroDivisionError: .* line 1\): mend"
    ):
        check_reward(table("raises_at_once:f"))


def imdb(folder: Path) -> ImdbData:
    return ImdbData(train="x", test="x", reward_model=str(folder))


def classifier(folder: Path, labels: Sequence[str] = ("NEGATIVE", "POSITIVE")) -> Any:
    import transformers

    pad, end, size = char_tokenizer(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=size, n_embd=8, n_layer=1, n_head=1, n_positions=12, bos_token_id=end, eos_token_id=end,
        pad_token_id=pad, initializer_range=1.0, id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
    )  # fmt: skip
    model = transformers.GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
def test_a_classifier_gives_the_probability_of_its_positive_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier(tmp_path / "two", ("good", "pos"))
    data = imdb(tmp_path / "two")
    check_reward(data)
    reward = reward_of(data)
    texts = ["1", "2+3", "12345678901234567890"]  # longer than its context: cut off
    with caplog.at_level("INFO", "mgpu_nb.alignment"):
        together = reward(EXAMPLES[:3], texts)
    assert "1 of 3 texts are longer than 12 tokens: the classifier reads that much of them" in caplog.text
    alone = [reward([example], [text])[0] for example, text in zip(EXAMPLES, texts, strict=False)]
    assert together == pytest.approx(alone, abs=1e-6)
    tokenizer = json.loads((tmp_path / "two" / "tokenizer.json").read_text())["model"]["vocab"]
    ids = torch.tensor([[tokenizer[sign] for sign in "0=1"]])
    wanted = torch.softmax(model(ids).logits, -1)[0, 1].item()
    assert together[0] == pytest.approx(wanted, abs=1e-6)
    model = classifier(tmp_path / "other", ("Positive", "Negative"))
    wanted = torch.softmax(model(ids).logits, -1)[0, 0].item()
    assert reward_of(imdb(tmp_path / "other"))(EXAMPLES[:1], ["1"])[0] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.slow
def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    tiny_model("gpt2", tmp_path / "lm")
    with pytest.raises(ValueError, match=r"its config\.json names GPT2LMHead"):
        check_reward(imdb(tmp_path / "lm"))
    classifier(tmp_path / "three", ("a", "b", "c"))
    with pytest.raises(ValueError, match="has the classes a, b, c: name one of them positive"):
        check_reward(imdb(tmp_path / "three"))
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    config["architectures"] = ["GPT2ForSequenceClassification"]
    (tmp_path / "lm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has no weights for 'score\.weight'"):
        reward_of(imdb(tmp_path / "lm"))


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        check_reward(imdb(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"has no config\.json"):
        check_reward(imdb(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weights"):
        check_reward(imdb(tmp_path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    classifier(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id2label": {"x": "pos"}}, r"config.json has no valid id2label or num_labels \(.*'x'\): give"),
        ({"id2label": ["neg", "pos"]}, r"config.json has no valid id2label or num_labels"),
        ({"id2label": None, "num_labels": "two"}, r"config.json has no valid id2label or num_labels"),
        (
            {"architectures": 3},
            r"must be a sequence classifier, and architectures of its config.json names 3",
        ),
        ({"id2label": {"0": "\x1b[31ma", "1": "b", "2": "c"}}, r"has the classes a, b, c: name one"),
    ],
)
def test_a_config_of_a_classifier_that_is_damaged_is_refused(
    changes: dict[str, Any], words: str, whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        check_reward(imdb(folder))


def test_the_tokenizer_and_the_weights_of_a_classifier_are_checked(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json holds no tokenizer: .*; save it again"):
        check_reward(imdb(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"a pickle, .*: AutoModelForSequenceClassification.from_pretrained"):
        check_reward(imdb(folder))


def test_a_classifier_that_cannot_score_is_refused_when_it_is_loaded(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "nan"))
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"][0, 0] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"nan: 1 of its \d+ tensors .* 'score.weight'"):
        reward_of(imdb(folder))
    with pytest.raises(ValueError, match=r"nan: 1 of its \d+ tensors .* 'score.weight'"):
        check_reward(imdb(folder))  # before it is loaded
    folder = Path(shutil.copytree(whole, tmp_path / "pad"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ValueError, match=r"pad names no token that fills batches up: state pad_token"):
        reward_of(imdb(folder))
