"""Laws of values: offsets are those of the distribution, losses have their least where it is right."""

import math

import pytest
import torch
from torch import Tensor

from mgpu_nb.workloads.alignment.laws import BernoulliLaw, CategoricalLaw, Law, PreferenceLaw, law_named


@pytest.mark.parametrize("eta", [0.0, 0.5, 3.0, 12.0, 80.0])
def test_the_bernoulli_offset_is_that_of_success(eta: float) -> None:
    logits = torch.tensor([-20.0, -3.0, 0.0, 2.5, 15.0], dtype=torch.float64)
    expected = torch.log1p(torch.sigmoid(logits) * math.expm1(eta))
    torch.testing.assert_close(BernoulliLaw().offset(logits[:, None], eta), expected, rtol=1e-6, atol=1e-9)


def test_offsets_of_sure_values_are_none_and_eta() -> None:
    sure = torch.tensor([[-100.0], [100.0]])
    torch.testing.assert_close(BernoulliLaw().offset(sure, 6.0), torch.tensor([0.0, 6.0]))
    law = CategoricalLaw(11)
    values = torch.full((2, 11), -100.0)
    values[0, 0] = values[1, 10] = 100.0
    torch.testing.assert_close(law.offset(values, 6.0), torch.tensor([0.0, 6.0]))


def test_the_categorical_offset_is_that_of_its_atoms() -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 11, dtype=torch.float64)
    rewards = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = (values.softmax(1) * (3 * rewards).exp()).sum(1).log()
    torch.testing.assert_close(CategoricalLaw(11).offset(values, 3.0), expected)


def test_two_atoms_are_success_and_failure() -> None:
    values = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    logits = (values[:, 1] - values[:, 0])[:, None]
    targets = torch.tensor([0.0, 1, 1, 0, 1, 0, 0])
    torch.testing.assert_close(CategoricalLaw(2).offset(values, 4.0), BernoulliLaw().offset(logits, 4.0))
    torch.testing.assert_close(CategoricalLaw(2).loss(values, targets), BernoulliLaw().loss(logits, targets))


def test_a_preference_moves_logits_in_proportion() -> None:
    values = torch.tensor([[-1.5], [0.0], [2.0]])
    assert PreferenceLaw().offset(values, 8.0).tolist() == [-12.0, 0.0, 16.0]


@pytest.mark.parametrize("law", [BernoulliLaw(), PreferenceLaw(), CategoricalLaw(11)])
def test_offsets_are_none_at_eta_zero(law: Law) -> None:
    values = torch.randn(9, law.atoms, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(law.offset(values, 0.0), torch.zeros(9), atol=1e-6, rtol=0)


@pytest.mark.parametrize("reward", [0.0, 0.03, 0.1, 0.55, 1.0])
def test_the_atoms_learn_the_mean_of_a_reward(reward: float) -> None:
    values = torch.zeros(1, 11, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([values], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = CategoricalLaw(11).loss(values, torch.tensor([reward], dtype=torch.float64)).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    learnt = float((values.detach().softmax(1) * torch.linspace(0, 1, 11, dtype=torch.float64)).sum())
    assert learnt == pytest.approx(reward, abs=5e-3)


def test_rewards_out_of_a_law_are_refused() -> None:
    BernoulliLaw().check_targets([0, 1, 0.0, 1.0])
    CategoricalLaw(11).check_targets([0, 0.5, 1])
    PreferenceLaw().check_targets([-7.5, 0, 1e9])
    with pytest.raises(ValueError, match=r"rewards of 0 and 1, got 0\.5; .*algos\.QSharp\.law=categorical"):
        BernoulliLaw().check_targets([1, 0.5])
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"law=categorical takes rewards in \[0, 1\], got"):
            CategoricalLaw(11).check_targets([bad])
    with pytest.raises(ValueError, match="finite"):
        PreferenceLaw().check_targets([math.inf])


def test_laws_have_names() -> None:
    assert [law_named(name, 5).atoms for name in ("bernoulli", "categorical", "preference")] == [1, 5, 1]
    with pytest.raises(ValueError, match="categorical"):
        law_named("categoric", 5)
    with pytest.raises(ValueError, match="atoms must be >= 2, got 1"):
        law_named("categorical", 1)
