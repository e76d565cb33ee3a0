"""Stages of alignment without a run: settings by overrides, models of a folder, rewards of the embedded task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.algorithms.base import Models, Stage, load_algorithm
from mgpu_nb.workloads.alignment.config import Config, Profiles
from mgpu_nb.workloads.alignment.job import EMBEDDED, Example, Job, Pair, Sample
from mgpu_nb.workloads.alignment.models import load_model, load_tokenizer
from mgpu_nb.workloads.alignment.rewards import Scorer
from mgpu_nb.workloads.alignment.settings import ALGOS, load_settings


def stage_of(
    algo: str,
    *overrides: str,
    profile: Profiles = (),
    round: int = 1,
    seed: int = 0,
    folder: str = EMBEDDED,
) -> Stage:
    """Stage of the default settings, profiles and overrides; those that begin with a dot are of the algorithm."""
    alone = [f"algos.{name}.enabled=false" for name in ALGOS if name != algo]
    own = [f"algos.{algo}{over}" if over[0] == "." else over for over in overrides]
    settings = load_settings(Config(overrides=(*alone, *own), profile=profile))
    return Stage(
        Job(algo, "gpt2", "sums", round),
        Pair("gpt2", folder, folder),
        settings.algos[algo],
        settings.datasets["sums"],
        settings.generation_for("sums"),
        settings.training,
        settings.data_collection,
        settings.system,
        seed,
    )


def models_of(stage: Stage, previous: Path | None = None, earlier: Sequence[Sample] = ()) -> Models:
    """Models of a stage on the CPU."""
    folder = stage.pair.reference
    reference = load_model(folder, device="cpu")
    return Models(load_tokenizer(folder), reference, torch.device("cpu"), previous, earlier)


def sum_rewards(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    """Rewards of the embedded task."""
    return [sums.reward(example.question, text) for example, text in zip(examples, texts, strict=True)]


def scorer_of(stage: Stage) -> Scorer:
    """Scorer of the embedded task."""
    return Scorer(sum_rewards, stage.data_collection.reward_batch_size)


def rounds_of(
    algo: str, stage: Stage, examples: Sequence[Example], folder: Path, rounds: int = 2
) -> list[Path]:
    """Model folders of the rounds of an algorithm, each of which goes on from the one before; chunks of 64 examples."""
    algorithm = load_algorithm(algo)
    folders: list[Path] = []
    earlier: list[Sample] = []
    for number in range(1, rounds + 1):
        now = replace(stage, job=replace(stage.job, round=number))
        models = models_of(now, folders[-1] if folders else None)
        samples: list[Sample] = []
        for at in range(0, len(examples) if algorithm.generates else 0, 64):
            samples += algorithm.collect(now, models, examples[at : at + 64], scorer_of(now))
        models.earlier = earlier if algorithm.aggregates else ()
        folders.append(folder / str(number))
        folders[-1].mkdir(parents=True)
        algorithm.train(now, models, samples, examples, scorer_of(now), folders[-1], lambda **figures: None)
        earlier = [*earlier, *samples]
    return folders
