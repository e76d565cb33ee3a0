"""Stages of alignment without a run: settings by overrides, models of a folder, rewards of the embedded task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.algorithms.base import Models, Stage
from mgpu_nb.workloads.alignment.config import Config
from mgpu_nb.workloads.alignment.job import EMBEDDED, Example, Job, Pair, Sample
from mgpu_nb.workloads.alignment.models import load_model, load_tokenizer
from mgpu_nb.workloads.alignment.rewards import Scorer
from mgpu_nb.workloads.alignment.settings import ALGOS, load_settings


def stage_of(algo: str, *overrides: str, round: int = 1, seed: int = 0, folder: str = EMBEDDED) -> Stage:
    """Stage of the default settings and overrides; those that begin with a dot are of the algorithm."""
    alone = [f"algos.{name}.enabled=false" for name in ALGOS if name != algo]
    own = [f"algos.{algo}{over}" if over[0] == "." else over for over in overrides]
    settings = load_settings(Config(overrides=(*alone, *own)))
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
