"""GRPO-HF: GRPO whose rewards are those of a model that learns them from preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ...threads import one_thread
from ..descent import Rows, descend
from ..job import Example, Sample
from ..models import checkpoint_activations, load_model
from ..preferences import Preference, preferences, same_text
from ..reward_model import RewardModel, preference_loss
from .base import Models, Stage, Trained
from .grpo import Rollouts, optimise
from .post_training import PostTraining

if TYPE_CHECKING:
    from .. import settings
    from ..rewards import Scorer

__all__ = ["GRPOHF"]

REWARD_ORDER = 7  # what random numbers are for
_FITTED = 0.3  # share of a training that is done when the reward model is fitted


class GRPOHF(PostTraining):
    """GRPO from preferences: no reward of the data set is asked while the policy is trained.

    Pairs are drawn as those of DPO. A Bradley-Terry reward model, the body of the guide and a scalar head, is fitted
    to the pairs of all rounds, anew in each: a policy that is good already draws few that tell good from bad. Then
    the policy of the round before is trained as `GRPO` does it, on the scores of that model.
    """

    name = "GRPO-HF"
    aggregates = True

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
        """Fit the reward model, train the policy on it, and write the policy."""
        every = [*models.earlier, *samples]
        pairs = preferences(every)

        def fitting(*, step: int, loss: float, progress: float) -> None:
            report(reward_model_loss=loss, progress=_FITTED * progress)

        def training(*, progress: float, **figures: float) -> None:
            report(**figures, progress=_FITTED + (1 - _FITTED) * progress)

        with one_thread(str(models.device)):
            judge, loss = _fitted(stage, models, pairs, fitting)
            batch_size = stage.data_collection.reward_batch_size

            def reward(rollouts: Rollouts) -> list[float]:
                return judge.score(rollouts.prompts, rollouts.completions, batch_size)

            trained = optimise(
                stage, models, self.trainable(stage, models), examples, reward, folder, training
            )
        figures = {
            "reward_model_loss": loss,
            "pairs": float(len(pairs)),
            "left_out": float(same_text(every)),
        }
        return trained._replace(metrics={**trained.metrics, **figures})


def _fitted(
    stage: Stage, models: Models, pairs: Sequence[Preference], report: Callable[..., None]
) -> tuple[RewardModel, float]:
    """Reward model of preferences, in eval mode, and its mean loss in the last epoch."""
    algo = cast("settings.GRPOHF", stage.algo)
    guide = load_model(stage.pair.guide, device=models.device, attn_impl=stage.system.attn_impl, train=True)
    if stage.training.gradient_checkpointing:
        checkpoint_activations(guide)
    end_id, pad_id = models.tokenizer.end_id, models.tokenizer.pad_id
    model = RewardModel(guide.base_model, end_id=end_id, pad_id=pad_id).train()
    done = descend(
        model,
        Rows(pairs, model.collate),
        lambda batch: preference_loss(model, batch).sum(),
        [1.0] * len(pairs),
        algo=replace(algo, learning_rate=algo.reward_learning_rate, epochs=algo.reward_epochs),
        training=stage.training,
        system=stage.system,
        seed=stage.seed_of(0, 0, REWARD_ORDER),
        report=report,
    )
    return model.eval(), done.loss
