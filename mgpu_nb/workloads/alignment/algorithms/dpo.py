"""DPO: the policy learns from preferences, without a reward model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from ...threads import one_thread
from ..batches import Forced, Tokens, forced
from ..descent import Rows, descend
from ..job import Example, Sample
from ..logprobs import forced_logprobs, token_logprobs
from ..losses import dpo
from ..preferences import Preference, preferences, same_text
from .base import Models, Stage, Trained
from .post_training import PostTraining, save_policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .. import settings
    from ..rewards import Scorer

__all__ = ["DPO"]

ORDER = 3


class DPO(PostTraining):
    """Direct preference optimisation (Rafailov et al., 2023) on pairs that the policy of the round before drew.

    The loss of a pair is `losses.dpo` against the original reference, plus ``sft_weight`` times the mean negative
    log-likelihood of the tokens of the chosen completion (R. Y. Pang et al., Iterative Reasoning Preference
    Optimization, 2024, equation 1), which keeps it from becoming unlikely together with the rejected one. The loss of a
    batch is the mean over its pairs. Pairs of twice the same text stay in the data, and teach nothing.
    """

    name = "DPO"

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
        """Train the policy of the round before on the pairs of this round, and write it."""
        algo, pairs = cast("settings.DPO", stage.algo), preferences(samples)
        with one_thread(str(models.device)):
            rows = _rows(models, pairs, stage.training.micro_batch_size)
            model = self.trainable(stage, models)
            done = descend(
                model,
                Rows(rows, _Collate(models.tokenizer.pad_id)),
                lambda batch: _loss(model, batch, algo.beta, algo.sft_weight).sum(),
                [1.0] * len(rows),
                algo=algo,
                training=stage.training,
                system=stage.system,
                seed=stage.seed_of(0, 0, ORDER),
                report=report,
            )
        save_policy(model, stage.pair.reference, folder)
        return Trained(
            done.steps, done.loss, metrics={"pairs": float(len(pairs)), "left_out": float(same_text(samples))}
        )


class _Row(NamedTuple):
    """A preference, and the log-probabilities of its completions under the reference."""

    pair: Preference
    ref_chosen: float
    ref_rejected: float


def _rows(models: Models, pairs: Sequence[Preference], batch_size: int) -> list[_Row]:
    """Rows of pairs; the reference is asked here, once."""
    rows: list[_Row] = []
    for at in range(0, len(pairs), batch_size):
        part = pairs[at : at + batch_size]
        contexts, completions = _both(part)
        with torch.no_grad():
            logps, _ = token_logprobs(models.reference, contexts, completions, models.tokenizer.pad_id)
        chosen, rejected = logps.sum(1).view(2, -1).tolist()
        rows += map(_Row, part, chosen, rejected)
    return rows


def _both(pairs: Sequence[Preference]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Contexts and completions of pairs, the chosen ones first."""
    contexts = [pair.context for pair in pairs] * 2
    return contexts, [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]


class _Collate:
    """A micro-batch of rows as tensors on the CPU; a class, so that processes that load data can be sent it."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[_Row]) -> Mapping[str, Tensor]:
        batch = forced(*_both([row.pair for row in rows]), self.pad_id, torch.device("cpu"))
        return {
            **batch.tokens._asdict(),
            "targets": batch.targets,
            "kept": batch.kept,
            "ref": torch.tensor([[row.ref_chosen for row in rows], [row.ref_rejected for row in rows]]),
        }


def _loss(model: PreTrainedModel, batch: Mapping[str, Tensor], beta: float, sft_weight: float) -> Tensor:
    """Loss of each pair of a micro-batch, shape [B]."""
    tokens = Tokens(batch["ids"], batch["mask"], batch["positions"])
    logps = forced_logprobs(model, Forced(tokens, batch["targets"], batch["kept"]))
    chosen, rejected = logps.sum(1).view(2, -1)
    ref_chosen, ref_rejected = batch["ref"]
    loss = dpo(chosen, rejected, ref_chosen, ref_rejected, beta)
    if sft_weight:
        loss = loss - sft_weight * chosen / batch["kept"].sum(1).view(2, -1)[0]
    return loss
