"""What a run reads: its settings, models, data and rewards, found and checked before it starts."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

from ..inputs import absolute_path
from .algorithms.base import load_algorithm
from .config import Config
from .counts import count_split
from .datasets import place_of
from .identity import Data, examples_digest, pair_digest
from .job import EMBEDDED, Example, Pair
from .models import check_attention, check_lengths, check_pair, load_tokenizer
from .rewards import check_reward
from .settings import DatasetSettings, Settings, load_settings
from .sources import Split

__all__ = ["Inputs", "check_inputs", "check_packages", "pair_of", "resolved"]

log = logging.getLogger("mgpu_nb.alignment")

PACKAGES = ("transformers", "tokenizers", "safetensors")


class Inputs(NamedTuple):
    """What the settings of a run name outside of themselves, as it was found.

    Attributes
    ----------
    settings
        The settings, with absolute paths.
    train, test
        Examples by data set.
    sizes
        Number of training examples by data set.
    pairs
        `pair_digest` by family.
    """

    settings: Settings
    train: dict[str, Data]
    test: dict[str, Data]
    sizes: dict[str, int]
    pairs: dict[str, str]


def check_inputs(config: Config) -> Inputs:
    """Check what a config names: settings, packages, model folders, data sets, rewards, lengths of prompts.

    Raises
    ------
    ValueError, TypeError, OSError
        If a run could not succeed; the message says what to do.
    ImportError
        If a package of the extra ``alignment`` is not installed.
    """
    check_packages()
    settings = resolved(config)
    for algo in settings.algos:
        load_algorithm(algo)
    for kind in ("cpu",) if config.gpu_ids == "cpu" else ():
        check_attention(settings.system.attn_impl, kind)
    for family in settings.models:
        pair = pair_of(settings, family)
        check_pair(pair)
        log.info("models.%s: reference %s, guide %s", family, pair.reference, pair.guide)
    train_data, test_data, sizes = {}, {}, {}
    for name, dataset in settings.datasets.items():
        with _named(f"datasets.{name}"):
            check_reward(dataset)
            for split, limit in settings.limits.items():
                counts, examples = count_split(dataset, split, limit)
                log.info("datasets.%s: %s, %s", name, counts.words(split), counts.file or "embedded")
                for family in settings.models:
                    _check_lengths(settings, family, name, split, examples)
                data = Data(dataset, split, limit, examples_digest(examples))
                if split == "train":
                    train_data[name], sizes[name] = data, len(examples)
                else:
                    test_data[name] = data
    digests = {family: pair_digest(pair_of(settings, family)) for family in settings.models}
    return Inputs(settings, train_data, test_data, sizes, digests)


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Errors begin with the key of the settings that they are of."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise type(error)(f"{key}: {error}") from error


def check_packages() -> None:
    """Check that the packages of the extra ``alignment`` are installed, without importing them.

    Raises
    ------
    ImportError
        If one is not; the message says how to get it.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f'alignment needs {package}, which is not installed: pip install "mgpu-nb[alignment]"',
                name=package,
            )


def resolved(config: Config) -> Settings:
    """Settings of a config, whose paths do not depend on where the process is.

    Raises
    ------
    ValueError, TypeError, OSError, ImportError
        As `load_settings`.
    """
    settings = load_settings(config)
    models = {
        name: replace(pair, reference=_path(pair.reference), guide=_path(pair.guide))
        for name, pair in settings.models.items()
    }
    datasets = {name: _dataset(dataset) for name, dataset in settings.datasets.items()}
    return replace(settings, models=models, datasets=datasets)


def pair_of(settings: Settings, family: str) -> Pair:
    """Models of a family."""
    models = settings.models[family]
    return Pair(family, models.reference, models.guide)


def _dataset(dataset: DatasetSettings) -> DatasetSettings:
    own = {each.name for each in fields(dataset)}
    paths: dict[str, Any] = {
        name: absolute_path(getattr(dataset, name))
        for name in ("train", "test", "reward_model")
        if name in own
    }
    return replace(dataset, **paths)


def _path(path: str) -> str:
    return path if path == EMBEDDED else str(absolute_path(path))


def _check_lengths(
    settings: Settings, family: str, dataset: str, split: Split, examples: Sequence[Example]
) -> None:
    """Check that the prompts of a split of a data set fit the models of a pair."""
    pair, longest = pair_of(settings, family), settings.generation_for(dataset).max_new_tokens
    tokenizer, place = load_tokenizer(pair.reference), partial(place_of, settings.datasets[dataset], split)
    for path in dict.fromkeys((pair.reference, pair.guide)):
        with _named(f"models.{family}"):
            check_lengths(path, tokenizer, examples, longest, place)
