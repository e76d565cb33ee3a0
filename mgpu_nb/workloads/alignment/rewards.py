"""Rewards of completions: by a rule, by a classifier in a local folder, or by a function of one's own."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...options import check_choice
from ...output import one_line, safe
from ...signature import refusal
from ...tasks import import_path
from . import sums
from .answers import same_answer
from .folders import check_finite, check_weights, import_transformers
from .job import Example
from .settings import DATASETS, DatasetSettings, ImdbData, TableData
from .stored import check_stored
from .tokenizer import read_json, read_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["Reward", "Scorer", "check_reward", "reward_of"]

log = logging.getLogger("mgpu_nb.alignment")

Reward = Callable[[Sequence[Example], Sequence[str]], Sequence[float]]
"""Rewards of texts, a finite number each, in order; gets the examples whose prompts the texts complete."""


class Scorer:
    """Rewards in batches of one size.

    Parameters
    ----------
    reward
        The reward.
    batch_size
        Largest number of texts of a call.

    Attributes
    ----------
    calls
        Number of calls of the reward so far.
    """

    def __init__(self, reward: Reward, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.reward, self.batch_size = reward, batch_size
        self.calls = 0

    def score(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """Rewards of texts: of n texts by n / batch_size calls, rounded up.

        Parameters
        ----------
        examples
            Example of each text.
        texts
            Completions without their prompts.

        Raises
        ------
        ValueError
            If there is not an example for each text, or the reward gives no finite number for each.
        """
        if len(examples) != len(texts):
            raise ValueError(f"there are {len(examples)} examples and {len(texts)} texts: give one for each")
        scores: list[float] = []
        for at in range(0, len(texts), self.batch_size):
            some = slice(at, at + self.batch_size)
            self.calls += 1
            scores += _checked(self.reward, self.reward(examples[some], texts[some]), texts[some])
        return scores


def _checked(reward: Reward, given: Any, texts: Sequence[str]) -> list[float]:
    """Rewards as numbers."""
    name = getattr(reward, "__qualname__", type(reward).__qualname__)
    values = given.tolist() if hasattr(given, "tolist") else given
    try:
        scores = [_number(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name} must give a number for each text, got {given!r:.200}") from error
    if len(scores) != len(texts):
        raise ValueError(f"reward {name} gave {len(scores)} numbers for {len(texts)} texts")
    for score, text in zip(scores, texts, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"reward {name} gave {score} for the text {text!r:.200}: it must be finite")
    return scores


def _number(value: Any) -> float:
    if isinstance(value, (str, bytes)):  # float() would read it
        raise TypeError(f"a number is no {type(value).__name__}")
    return float(value)


def reward_of(dataset: DatasetSettings, device: str | torch.device = "cpu") -> Reward:
    """Reward of a data set.

    Parameters
    ----------
    dataset
        Of ``sums`` and ``gsm8k`` the reward is 1.0 for the right answer, else 0.0; of ``imdb`` the probability that a
        review is positive; of ``table`` the user's function.
    device
        Where a classifier is loaded.

    Raises
    ------
    ValueError, OSError, ImportError
        If a classifier or a function cannot be loaded.
    """
    match dataset:
        case ImdbData():
            return _Classifier(dataset.reward_model, device)
        case TableData():
            return _own(dataset)
    return _RULES[check_choice(dataset.kind, DATASETS, "kind")]


def check_reward(dataset: DatasetSettings) -> None:
    """Check that the reward of a data set can be had; of a classifier no weights are read.

    Raises
    ------
    ValueError
        If it cannot; the message says what to do.
    """
    match dataset:
        case ImdbData():
            folder = _classifier_folder(dataset.reward_model)
            _positive_class(folder)
            check_stored(folder)
        case TableData():
            _own(dataset)


def _sum(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    return [sums.reward(example.question, text) for example, text in zip(examples, texts, strict=True)]


def _problem(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    return [float(same_answer(example.answer, text)) for example, text in zip(examples, texts, strict=True)]


_RULES: dict[str, Reward] = {"sums": _sum, "gsm8k": _problem}


def _own(dataset: TableData) -> Reward:
    try:
        found = import_path(dataset.reward)
    except ValueError as error:
        raise ValueError(f"reward: {error}") from error
    if not callable(found):
        raise ValueError(f"reward {dataset.reward!r} must be a function, got a {type(found).__qualname__}")  # noqa: TRY004
    if reason := refusal(found, "examples", "texts"):
        raise ValueError(f"reward {dataset.reward!r} cannot be called as reward(examples, texts): {reason}")
    own: Reward = found
    return own


class _Classifier:
    """Probability that a text, its prompt before it, is of the positive class."""

    def __init__(self, path: str, device: str | torch.device) -> None:
        import torch

        transformers = import_transformers()
        folder = _classifier_folder(path)
        self.positive = _positive_class(folder)
        self.device = torch.device(device)
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, padding_side="right"
            )
            model, found = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except MemoryError:
            raise
        except Exception as error:  # as of `load_model`
            raise ValueError(
                f"the classifier in {folder} does not load: {one_line(f'{type(error).__name__}: {error}')}; "
                "save model and tokenizer with save_pretrained"
            ) from error
        if lacking := [*found["missing_keys"], *found["mismatched_keys"]]:
            raise ValueError(
                f"{folder} has no weights for {lacking[0]!r}: it must be a trained sequence classifier, all of it"
            )
        check_finite(model, folder)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        if self.tokenizer.pad_token is None:
            raise ValueError(
                f"{folder} names no token that fills batches up: state pad_token in tokenizer_config.json"
            )
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.tokenizer.pad_token_id
        places = getattr(model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self.longest = min(places, self.tokenizer.model_max_length)
        self.model = model.eval().requires_grad_(False).to(self.device)

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        import torch

        whole = [example.prompt + text for example, text in zip(examples, texts, strict=True)]
        lengths = [len(ids) for ids in self.tokenizer(whole, verbose=False)["input_ids"]]
        if cut := sum(length > self.longest for length in lengths):
            log.info(
                "%d of %d texts are longer than %d tokens: the classifier reads that much of them",
                cut,
                len(whole),
                self.longest,
            )
        batch = self.tokenizer(
            whole, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self.model(**batch.to(self.device)).logits.float()
        one = logits.shape[-1] == 1
        chances = torch.sigmoid(logits[:, 0]) if one else torch.softmax(logits, -1)[:, self.positive]
        return [float(chance) for chance in chances.cpu()]


def _classifier_folder(path: str) -> Path:
    """Folder of a classifier with config, weights and tokenizer."""
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is not a folder"
        raise ValueError(
            f"reward_model: {str(folder)!r} {what}; give one with a sequence classifier that transformers' "
            "save_pretrained has written (models are never downloaded)"
        )
    check_weights(folder, "AutoModelForSequenceClassification")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "tokenizer.model")):
        raise ValueError(f"reward_model: {folder} has no tokenizer; save it with tokenizer.save_pretrained")
    if (folder / "tokenizer.json").is_file():
        read_tokenizer(folder / "tokenizer.json")
    return folder


def _positive_class(folder: Path) -> int:
    """Number of the positive class: that whose label says so, else the second of two; 0 if there is only one output."""
    config = read_json(folder / "config.json")
    kinds = config.get("architectures") or "nothing"
    named = safe(", ".join(map(str, kinds)) if isinstance(kinds, list) else str(kinds))
    if "SequenceClassification" not in named:
        raise ValueError(
            f"reward_model: {folder} must be a sequence classifier, and architectures of its config.json names {named}"
        )
    try:
        labels = {int(number): str(label) for number, label in (config.get("id2label") or {}).items()}
        count = len(labels) or int(config.get("num_labels") or 2)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"reward_model: {folder / 'config.json'} has no valid id2label or num_labels ({error}): give "
            '{"0": "negative", "1": "positive"} as id2label'
        ) from error
    named_positive = [number for number, label in labels.items() if label.casefold().startswith("pos")]
    if len(named_positive) == 1:
        return named_positive[0]
    if count > 2:
        raise ValueError(
            f"reward_model: {folder} has the classes {safe(', '.join(labels.values()))}: name one of them positive "
            "in id2label of its config.json"
        )
    return count - 1
