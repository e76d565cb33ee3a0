"""What DPO, GRPO and GRPO-HF share: a copy of the reference is trained, and is the policy."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...threads import one_thread
from ..generate import Policy
from ..job import Example, Sample
from ..models import checkpoint_activations, load_model, model_folder
from ..preferences import share_of_first
from .base import Algorithm, Models, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..rewards import Scorer
    from ..settings import Evaluation

__all__ = ["PostTraining", "save_policy"]

# Files of a model folder that make up its tokenizer, those that are there.
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
FIRST, SECOND, CHOICE = range(3)  # what random numbers of a pair are for


class PostTraining(Algorithm):
    """An algorithm whose policy is a language model of its own.

    It begins with the policy of the round before, in round 1 with the reference; the reference itself stays as it is.
    """

    def collect(
        self, stage: Stage, models: Models, examples: Sequence[Example], scorer: Scorer
    ) -> list[Sample]:
        """Pairs of completions of a chunk of the examples, by the policy of the round before; one is preferred."""
        with one_thread(str(models.device)):
            return self._pairs(stage, models, examples, scorer)

    def policy(self, stage: Stage, models: Models, folder: Path | None, eta: float | None) -> Policy:
        """Policy of a model folder that `train` wrote; of None the reference."""
        model = models.reference if folder is None else _load(stage, models, folder)
        return Policy(model, end_id=models.tokenizer.end_id, pad_id=models.tokenizer.pad_id)

    def etas(self, stage: Stage, evaluation: Evaluation) -> tuple[float | None, ...]:
        """None: how far the policy goes is decided when it is trained."""
        return (None,)

    def trainable(self, stage: Stage, models: Models) -> PreTrainedModel:
        """The model to train, in train mode without dropout, as the round before left it."""
        model = _load(stage, models, models.previous or stage.pair.reference, train=True)
        if stage.training.gradient_checkpointing:
            checkpoint_activations(model)
        return model

    def _pairs(
        self, stage: Stage, models: Models, examples: Sequence[Example], scorer: Scorer
    ) -> list[Sample]:
        drawn = [(e, draw) for e in examples for draw in range(stage.data_collection.samples_per_example)]
        prompts = [tuple(models.tokenizer.encode(example.prompt)) for example, _ in drawn]
        written = self.policy(stage, models, models.previous, None).generate(
            prompts * 2,
            [stage.seed_of(e.index, draw, purpose) for purpose in (FIRST, SECOND) for e, draw in drawn],
            max_new_tokens=stage.generation.max_new_tokens,
            temperature=stage.generation.temperature,
            top_p=stage.generation.top_p,
            batch_size=stage.generation.batch_size,
        )
        texts = [models.tokenizer.decode(tokens) for tokens in written]
        scores = scorer.score([example for example, _ in drawn] * 2, texts)
        samples = []
        for row, (example, draw) in enumerate(drawn):
            other = row + len(drawn)
            first = share_of_first(stage.data_collection, scores[row], scores[other])
            point = np.random.default_rng(stage.seed_of(example.index, draw, CHOICE)).random()
            samples.append(
                Sample(
                    index=example.index,
                    draw=draw,
                    question=example.question,
                    answer=example.answer,
                    prompt=example.prompt,
                    t=0,
                    context=example.prompt,
                    y_a=texts[row],
                    y_b=texts[other],
                    score_a=scores[row],
                    score_b=scores[other],
                    preferred=int(point >= first),
                    prompt_ids=prompts[row],
                    context_ids=prompts[row],
                    a_ids=written[row],
                    b_ids=written[other],
                )
            )
        return samples


def _load(stage: Stage, models: Models, path: str | Path, *, train: bool = False) -> PreTrainedModel:
    return load_model(str(path), device=models.device, attn_impl=stage.system.attn_impl, train=train)


def save_policy(model: PreTrainedModel, reference: str, folder: Path) -> None:
    """Write a model folder that `load_model` and transformers read, with the tokenizer of the reference."""
    model.save_pretrained(folder)
    source = model_folder(reference)
    for file in sorted({file for pattern in _TOKENIZER for file in source.glob(pattern) if file.is_file()}):
        shutil.copyfile(file, folder / file.name)
