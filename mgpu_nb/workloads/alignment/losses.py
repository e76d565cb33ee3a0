"""Losses of DPO, of GRPO and of a Bradley-Terry reward model, as functions of log-probabilities and rewards alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["bradley_terry", "dpo", "group_advantages", "grpo", "k3"]

_STD = 1e-4  # added to the standard deviation of a group


def bradley_terry(chosen: Tensor, rejected: Tensor, beta: float = 1.0) -> Tensor:
    """Negative log-likelihood of preferences, ``-log sigmoid(beta (chosen - rejected))``.

    The law of R. A. Bradley and M. E. Terry, Biometrika 39, 1952.

    Parameters
    ----------
    chosen, rejected
        Scores of what was preferred and of what was not, shape [B].
    beta
        How sharply scores decide.

    Returns
    -------
    Tensor
        Shape [B], nats.
    """
    return -logsigmoid(beta * (chosen - rejected))


def dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """Loss of direct preference optimisation.

    ``-log sigmoid(beta ((log pi(c) - log ref(c)) - (log pi(r) - log ref(r))))``: equation 7 of R. Rafailov et al.,
    Direct Preference Optimization, 2023. It is the Bradley-Terry loss of the rewards that the policy implies.

    Parameters
    ----------
    chosen, rejected
        Log-probabilities of whole completions under the policy, shape [B].
    ref_chosen, ref_rejected
        The same under the reference.
    beta
        Weight of KL(pi || ref), above 0: the optimum is ref * exp(reward / beta).

    Returns
    -------
    Tensor
        Shape [B], nats.
    """
    return bradley_terry(chosen - ref_chosen, rejected - ref_rejected, beta)


def group_advantages(rewards: Tensor) -> Tensor:
    """Rewards of groups less the mean of each, over its standard deviation plus 1e-4.

    The standard deviation is the unbiased one, as `torch.std` has it. A group of equal rewards has no advantages.

    Parameters
    ----------
    rewards
        Shape [P, G]: G completions of each of P prompts, G at least 2.

    Returns
    -------
    Tensor
        Shape [P, G].
    """
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + _STD)


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate of KL(pi || ref) from samples of pi: unbiased, and never negative.

    ``exp(d) - d - 1`` with ``d = log ref - log pi``: J. Schulman, Approximating KL Divergence, 2020. Its gradient by
    the log-probability of pi is ``1 - exp(d)``.

    Parameters
    ----------
    logps, ref_logps
        Log-probabilities of the samples under pi and under ref, of one shape.

    Returns
    -------
    Tensor
        The same shape, nats.
    """
    d = ref_logps - logps
    return torch.expm1(d) - d


def grpo(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    beta: float,
) -> Tensor:
    """Loss of group relative policy optimisation.

    Minus the objective ``min(rho A, clamp(rho, 1 - clip, 1 + clip) A) - beta k3`` with ``rho = exp(log pi - log old)``,
    a mean over the tokens of each completion: equation 3 of Z. Shao et al., DeepSeekMath, 2024. Every completion counts
    the same, whatever its length; this is TRL's ``loss_type="grpo"``.

    Parameters
    ----------
    logps
        Log-probabilities of the tokens under the policy, shape [B, T].
    old_logps, ref_logps
        The same under the policy that drew the completions, and under the reference.
    advantages
        Of each completion, shape [B].
    mask
        True where there is a token of the completion, shape [B, T].
    clip
        How far the ratio may leave 1 before its gradient ends.
    beta
        Weight of KL(pi || ref).

    Returns
    -------
    Tensor
        Shape [B].
    """
    ratio = torch.exp(logps - old_logps)
    gain = advantages[:, None]
    objective = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    objective = objective - beta * k3(logps, ref_logps)
    return -(objective * mask).sum(1) / mask.sum(1).clamp(min=1)
