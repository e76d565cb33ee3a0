"""Q# and PITA: the reference stays as it is; a guide learns the value of its tokens and moves its logits."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from ...threads import one_thread
from ..descent import Rows, descend
from ..generate import Policy
from ..job import Example, Sample
from ..laws import Law, PreferenceLaw, law_named
from ..models import checkpoint_activations, load_model
from ..preferences import preferences, same_text, share_of_first
from ..value import Guided, ValueModel
from ..value_rows import Collate, ValueRow, value_loss
from .base import Algorithm, Models, Stage, Trained

if TYPE_CHECKING:
    from .. import settings
    from ..rewards import Scorer
    from ..settings import Evaluation

__all__ = ["PITA", "QSharp"]

ROLL_IN, CUT, FIRST, SECOND, CHOICE, ORDER = range(6)
"""What random numbers are for."""


class _Begun(NamedTuple):
    """A text that was rolled in and cut: what completions go on from."""

    example: Example
    draw: int
    prompt: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def context(self) -> tuple[int, ...]:
        return self.prompt + self.kept


class ValueGuided(Algorithm):
    """A value model of the reference, trained on completions that the reference wrote.

    The policy of the round before (the reference in round 1) rolls in, its text is cut at a token drawn evenly, and
    the reference completes what is left: behind the cut there are samples of the reference, wherever the policy went.
    A round trains on the data of all rounds so far, and starts from the guide of the round before.
    """

    aggregates = True

    @abstractmethod
    def law(self, stage: Stage) -> Law:
        """Law of the values."""

    @abstractmethod
    def rows(self, samples: Sequence[Sample]) -> list[ValueRow]:
        """What samples teach."""

    @abstractmethod
    def complete(self, stage: Stage, models: Models, begun: Sequence[_Begun], scorer: Scorer) -> list[Sample]:
        """Samples of what has begun, scored in one call."""

    def collect(
        self, stage: Stage, models: Models, examples: Sequence[Example], scorer: Scorer
    ) -> list[Sample]:
        """Samples of a chunk of the examples, by index and draw."""
        with one_thread(str(models.device)):
            return self.complete(stage, models, self._begin(stage, models, examples), scorer)

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
        """Train the guide on the completions of all rounds; the loss is the mean over their tokens."""
        every, algo = [*models.earlier, *samples], _settings(stage)
        rows = self.rows(every)
        with one_thread(str(models.device)):
            model = self._guide(stage, models).train()
            if stage.training.gradient_checkpointing:
                checkpoint_activations(model.backbone)
            done = descend(
                model,
                Rows(rows, Collate(models.tokenizer.pad_id)),
                lambda batch: value_loss(
                    model, batch, models.reference, top_k=algo.top_k, penalty=algo.value_penalty
                ),
                [len(row.completion) for row in rows],
                algo=stage.algo,
                training=stage.training,
                system=stage.system,
                seed=stage.seed_of(0, 0, ORDER),
                report=report,
            )
        model.save(folder)
        figures = {"completions": float(len(rows)), "left_out": float(same_text(every))}
        return Trained(done.steps, done.loss, metrics=figures)

    def policy(self, stage: Stage, models: Models, folder: Path | None, eta: float | None) -> Policy:
        """Reference guided by the value model of a folder; `eta` is that of the settings by default."""
        if folder is None:
            return _reference(models)
        algo = _settings(stage)
        value = self._load(stage, models, folder)
        return _reference(models, Guided(value, algo.eta if eta is None else eta, algo.top_k))

    def etas(self, stage: Stage, evaluation: Evaluation) -> tuple[float | None, ...]:
        """All etas of the settings: one guide serves them all."""
        return evaluation.etas

    def _begin(self, stage: Stage, models: Models, examples: Sequence[Example]) -> list[_Begun]:
        """Texts rolled in and cut, by example and draw."""
        drawn = [(e, draw) for e in examples for draw in range(stage.data_collection.samples_per_example)]
        prompts = [tuple(models.tokenizer.encode(example.prompt)) for example, _ in drawn]
        texts = self.policy(stage, models, models.previous, None).generate(
            prompts,
            [stage.seed_of(example.index, draw, ROLL_IN) for example, draw in drawn],
            max_new_tokens=stage.generation.max_new_tokens,
            temperature=stage.generation.temperature,
            top_p=stage.generation.top_p,
            batch_size=stage.generation.batch_size,
        )
        begun = []
        for (example, draw), prompt, text in zip(drawn, prompts, texts, strict=True):
            cut = np.random.default_rng(stage.seed_of(example.index, draw, CUT)).integers(len(text))
            begun.append(_Begun(example, draw, prompt, text[:cut]))
        return begun

    def _guide(self, stage: Stage, models: Models) -> ValueModel:
        """Guide to begin with: that of the round before, or one that values all tokens alike."""
        if models.previous is not None:
            return self._load(stage, models, models.previous)
        guide = load_model(
            stage.pair.guide, device=models.device, attn_impl=stage.system.attn_impl, train=True
        )
        return ValueModel(guide.base_model, models.reference.config.vocab_size, self.law(stage))

    def _load(self, stage: Stage, models: Models, folder: Path) -> ValueModel:
        """Value model of an earlier round, which must have the law of this one."""
        model, law = ValueModel.load(folder, models.device, stage.system.attn_impl), self.law(stage)
        if (model.law.name, model.law.atoms) != (law.name, law.atoms):
            raise ValueError(
                f"{str(folder)!r} was trained with law={model.law.name}, atoms={model.law.atoms}, and the settings say "
                f"law={law.name}, atoms={law.atoms}; go on with the former, or begin at round 1"
            )
        return model


class QSharp(ValueGuided):
    """Q#: the guide learns the law of the reward behind each token of a completion (Zhou et al., 2025).

    With the exact law the guided policy is the optimum of ``E[r] - KL(pi || ref) / eta``. Completions for it must be
    drawn from the reference itself, so ``generation.temperature`` and ``generation.top_p`` should be 1.
    """

    name = "QSharp"

    def law(self, stage: Stage) -> Law:
        """Law of the settings."""
        algo = _settings(stage)
        return law_named(algo.law, algo.atoms)

    def rows(self, samples: Sequence[Sample]) -> list[ValueRow]:
        """Each completion with its reward."""
        return [ValueRow(sample.context_ids, sample.a_ids, sample.score_a) for sample in samples]

    def complete(self, stage: Stage, models: Models, begun: Sequence[_Begun], scorer: Scorer) -> list[Sample]:
        """One sampled completion of each, and its reward."""
        first = _completions(stage, models, begun, FIRST)
        scores = _scores(self.law(stage), models, begun, [first], scorer)
        return [
            _sample(models, start, a, (), score, math.nan, -1)
            for start, a, score in zip(begun, first, scores, strict=True)
        ]


class PITA(ValueGuided):
    """PITA: the guide learns which of two completions is preferred, from preferences alone.

    One completion is the greedy one, the other is sampled. The guided policy needs no reward model: preferences are
    made of rewards here, while data are collected. ``bradley_terry_sampling`` draws y_a with the probability
    ``sigmoid(beta (r_a - r_b))``; otherwise the larger reward is preferred, and one of two equal ones by a fair coin.
    """

    name = "PITA"

    def law(self, stage: Stage) -> Law:
        """Logit of being chosen."""
        return PreferenceLaw()

    def rows(self, samples: Sequence[Sample]) -> list[ValueRow]:
        """Both completions, the chosen one with 1, the rejected one with 0; of pairs of the same text neither."""
        return [
            row
            for pair in preferences(samples)
            for row in (ValueRow(pair.context, pair.chosen, 1.0), ValueRow(pair.context, pair.rejected, 0.0))
        ]

    def complete(self, stage: Stage, models: Models, begun: Sequence[_Begun], scorer: Scorer) -> list[Sample]:
        """A greedy and a sampled completion of each, and which of them is preferred."""
        greedy = _completions(stage, models, begun, None)
        drawn = _completions(stage, models, begun, SECOND)
        scores = _scores(self.law(stage), models, begun, [greedy, drawn], scorer)
        samples = []
        for start, a, b, score_a, score_b in zip(
            begun, greedy, drawn, scores[: len(begun)], scores[len(begun) :], strict=True
        ):
            point = np.random.default_rng(stage.seed_of(start.example.index, start.draw, CHOICE)).random()
            preferred = int(point >= share_of_first(stage.data_collection, score_a, score_b))
            samples.append(_sample(models, start, a, b, score_a, score_b, preferred))
        return samples


def _settings(stage: Stage) -> settings.ValueGuided:
    return cast("settings.ValueGuided", stage.algo)


def _reference(models: Models, guidance: Guided | None = None) -> Policy:
    tokenizer = models.tokenizer
    return Policy(models.reference, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id, guidance=guidance)


def _completions(
    stage: Stage, models: Models, begun: Sequence[_Begun], purpose: int | None
) -> list[tuple[int, ...]]:
    """Completions by the reference, as long as is left after the cut; `purpose` None is greedy.

    Those with as much left are drawn together, so that none is drawn longer than it is kept.
    """
    found: dict[int, tuple[int, ...]] = {}
    policy = _reference(models)
    for cut in sorted({len(start.kept) for start in begun}):
        rows = [row for row, start in enumerate(begun) if len(start.kept) == cut]
        seeds = None
        if purpose is not None:
            seeds = [stage.seed_of(begun[row].example.index, begun[row].draw, purpose) for row in rows]
        written = policy.generate(
            [begun[row].context for row in rows],
            seeds,
            max_new_tokens=stage.generation.max_new_tokens - cut,
            temperature=stage.generation.temperature,
            top_p=stage.generation.top_p,
            batch_size=stage.generation.batch_size,
        )
        found.update(zip(rows, written, strict=True))
    return [found[row] for row in range(len(begun))]


def _scores(
    law: Law,
    models: Models,
    begun: Sequence[_Begun],
    completions: Sequence[Sequence[tuple[int, ...]]],
    scorer: Scorer,
) -> list[float]:
    """Rewards of all texts in one call, those of the first completions first."""
    texts = [
        models.tokenizer.decode(start.kept + tokens)
        for written in completions
        for start, tokens in zip(begun, written, strict=True)
    ]
    scores = scorer.score([start.example for start in begun] * len(completions), texts)
    law.check_targets(scores)
    return scores


def _sample(
    models: Models,
    start: _Begun,
    a: tuple[int, ...],
    b: tuple[int, ...],
    score_a: float,
    score_b: float,
    preferred: int,
) -> Sample:
    decode = models.tokenizer.decode
    return Sample(
        start.example.index,
        start.draw,
        start.example.question,
        start.example.answer,
        start.example.prompt,
        len(start.kept),
        start.example.prompt + decode(start.kept),
        decode(a),
        decode(b) if b else "",
        score_a,
        score_b,
        preferred,
        start.prompt,
        start.context,
        a,
        b,
    )
