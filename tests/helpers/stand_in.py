"""A stand-in for the algorithms of alignment: each round depends on all that came before, and takes milliseconds.

`register`, given to a pool as ``setup``, puts it in the place of all of them in its workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mgpu_nb.workloads.alignment.algorithms import base
from mgpu_nb.workloads.alignment.algorithms.base import Algorithm, Models, Stage, Trained
from mgpu_nb.workloads.alignment.generate import Policy
from mgpu_nb.workloads.alignment.job import Example, Sample
from mgpu_nb.workloads.alignment.rewards import Scorer

TABLE = {
    "PITA": "stand_in:Aggregating",
    "QSharp": "stand_in:Aggregating",
    "DPO": "stand_in:StandIn",
    "GRPO": "stand_in:Drawing",
    "GRPO-HF": "stand_in:StandIn",
}
ORDERS = "MGPU_TEST_ORDERS"
"""Variable with the path of a folder whose files say what happens to a worker at a stage of a job, by their names.

``kill-train-DPO_gpt2_sums_r1``: it ends, once; with ``fail`` an error; with ``wait`` a long sleep, after its number is
in the file.
"""


def register() -> None:
    """Put the stand-ins in the place of the algorithms, in this process."""
    base.ALGORITHMS = TABLE


def obey(stage: str, job: str) -> None:
    """Do what a test asks for here."""
    folder = Path(os.environ.get(ORDERS, "/nowhere"))
    with contextlib.suppress(FileNotFoundError):  # of the tasks of a job that find it at once one takes it
        (folder / f"kill-{stage}-{job}").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (folder / f"fail-{stage}-{job}").exists():
        raise RuntimeError(f"{stage} of {job} fails as it is told to")
    with contextlib.suppress(FileNotFoundError):
        # Not made again where the test has taken it away.
        with (folder / f"wait-{stage}-{job}").open("r+") as order:
            order.write(f"{os.getpid()}\n")
        time.sleep(600)


class StandIn(Algorithm):
    """Samples of the reference; the model is a number that mixes all of them, and moves those of the next round."""

    name = "StandIn"

    def collect(
        self, stage: Stage, models: Models, examples: Sequence[Example], scorer: Scorer
    ) -> list[Sample]:
        """Samples of a chunk, two completions each."""
        obey("generate", stage.job.id)
        moved = 0 if models.previous is None else _number(models.previous)
        policy = self.policy(stage, models, models.previous, None)
        wanted = [
            (each, draw) for each in examples for draw in range(stage.data_collection.samples_per_example)
        ]
        prompts = [models.tokenizer.encode(each.prompt) for each, _ in wanted]
        found = []
        for side in (0, 1):
            seeds = [(stage.seed, stage.job.round, moved, each.index, draw, side) for each, draw in wanted]
            found += policy.generate(
                prompts,
                seeds,
                max_new_tokens=stage.generation.max_new_tokens,
                batch_size=stage.generation.batch_size,
            )
        texts = [models.tokenizer.decode(ids) for ids in found]
        scores = scorer.score([each for each, _ in wanted] * 2, texts)
        half = len(wanted)
        return [
            Sample(
                each.index, draw, each.question, each.answer, each.prompt, 0, each.prompt,
                texts[n], texts[half + n], scores[n], scores[half + n], int(scores[half + n] > scores[n]),
                tuple(prompts[n]), tuple(prompts[n]), found[n], found[half + n],
            )
            for n, (each, draw) in enumerate(wanted)
        ]  # fmt: skip

    def train(
        self,
        stage: Stage,
        models: Models,
        samples: Sequence[Sample],
        examples: Sequence[Example],
        scorer: Scorer,
        folder: Path,
        report: Callable[..., None],
    ) -> Trained:
        """Write a number that depends on all samples, the round before, and torch's random numbers."""
        before = None if models.previous is None else _number(models.previous)
        words = repr((before, list(samples), list(models.earlier), torch.rand(1).item(), stage.algo))
        number = int(hashlib.blake2b(words.encode(), digest_size=4).hexdigest(), 16)
        (folder / "number.json").write_text(json.dumps(number))
        obey("train", stage.job.id)
        for step in range(3):
            report(step=step, loss=1 / (1 + step), reward=0.5, kl=0.1, progress=(1 + step) / 3)
        loss = sum(sample.score_a for sample in samples) / (1 + len(samples))
        return Trained(3, loss, (), {"earlier": float(len(models.earlier))})

    def policy(self, stage: Stage, models: Models, folder: Path | None, eta: float | None) -> Policy:
        """The reference, if the folder has a number."""
        if folder is not None:
            _number(folder)
            if folder.name == stage.job.stem:
                obey("evaluate", stage.job.id)
        return Policy(models.reference, end_id=models.tokenizer.end_id, pad_id=models.tokenizer.pad_id)

    def etas(self, stage: Stage, evaluation: Any) -> tuple[float | None, ...]:
        """One policy."""
        return (None,)


class Aggregating(StandIn):
    """Takes the samples of all rounds, and is evaluated at each eta."""

    aggregates = True

    def etas(self, stage: Stage, evaluation: Any) -> tuple[float | None, ...]:
        """Those of the settings."""
        return tuple(evaluation.etas)


class Drawing(StandIn):
    """Draws its own samples."""

    generates = False

    def train(
        self,
        stage: Stage,
        models: Models,
        samples: Sequence[Sample],
        examples: Sequence[Example],
        scorer: Scorer,
        folder: Path,
        report: Callable[..., None],
    ) -> Trained:
        """Draw, then train."""
        drawn = self.collect(stage, models, examples, scorer)
        return super().train(stage, models, drawn, examples, scorer, folder, report)._replace(samples=drawn)


def _number(folder: Path) -> int:
    found: int = json.loads((folder / "number.json").read_text())
    return found
