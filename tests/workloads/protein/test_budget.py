"""What a budget of network calls buys, and the best_of_n that others are compared with."""

from __future__ import annotations

from typing import Any

import pytest

from mgpu_nb.workloads.protein import Config, preset, run_experiment, tasks
from mgpu_nb.workloads.protein.budget import branch_steps, equal_starts, evaluations, experiments
from mgpu_nb.workloads.protein.config import METHODS


def cost(config: Config) -> dict[str, int]:
    return {e.name: evaluations(e.method, e.num_branches, e.options(config)) for e in experiments(config)}


@pytest.mark.parametrize("num_keep", [1, 3])
@pytest.mark.parametrize("budget", [400, 800, 1600, 5000])
def test_each_method_spends_nearly_its_budget_and_no_more(budget: int, num_keep: int) -> None:
    for method in METHODS[1:]:
        config = Config(budget=(budget,), methods=(method,), num_keep=num_keep)
        (spent,) = cost(config).values()
        # Of noise_search a branch more is nine completions more, of best_of_n one start.
        enough = budget - (
            50 if method == "best_of_n" else 180 * num_keep if method == "noise_search" else budget / 20
        )
        assert enough <= spent <= budget, method


def test_branchings_stay_as_they_are_asked_for_where_the_budget_allows() -> None:
    wide, own = experiments(Config(budget=(400, 1420), methods=("sde_path_exploration",)))
    assert (own.name, own.stride, own.budgets) == ("sde_path_exploration-b5", None, (1420,))
    assert evaluations("sde_path_exploration", 5, Config()) == 1415
    assert wide.stride is not None
    assert branch_steps(wide.options(Config())).step == wide.stride > 5
    assert wide.name == f"sde_path_exploration-b3.every{wide.stride}"


@pytest.mark.parametrize("steps", [7, 50, 113])
def test_every_stride_is_had_by_its_interval(steps: int) -> None:
    for stride in range(1, steps + 1):
        assert branch_steps(Config(steps=steps, branch_interval=stride / steps)).step == stride


def test_a_budget_that_is_too_small_is_refused_with_what_is_needed() -> None:
    with pytest.raises(ValueError) as caught:
        tasks(Config(budget=(120, 800)))
    assert str(caught.value) == (
        "budget=(120, 800): network calls per sample, of which sde_path_exploration needs 149 at least, 120 is too "
        "little; divergence_free_ode needs 149 at least, 120 is too little; random_search_divfree needs 249 at least, "
        "120 is too little; noise_search needs 226 at least, 120 is too little: raise it, leave the method out of "
        "methods, or take fewer steps"
    )
    with pytest.raises(ValueError, match="standard needs 50 at least, 49 is too little"):
        tasks(Config(budget=(49,), methods=("standard",)))
    assert cost(Config(budget=(149,), methods=("divergence_free_ode",))) == {
        "divergence_free_ode-b2.every50": 149
    }


def test_budgets_that_buy_the_same_share_an_experiment() -> None:
    found = experiments(Config(budget=(800, 400, 420), methods=("standard", "best_of_n")))
    assert [(e.name, e.budgets) for e in found] == [
        ("standard-b1", (400, 420, 800)), ("best_of_n-b8", (400, 420)), ("best_of_n-b16", (800,)),
    ]  # fmt: skip


def test_budgets_take_the_place_of_branch_counts() -> None:
    assert preset("comprehensive", budget=(1600,)).budget == (1600,)
    with pytest.raises(ValueError, match=r"branch_counts=\(3,\) and budget=\(400,\) both say"):
        Config(branch_counts=(3,), budget=(400,))
    with pytest.raises(ValueError, match="budget must be a non-empty sequence"):
        Config(budget=())


def test_best_of_n_gets_the_calls_of_the_costliest_method() -> None:
    names = [e.name for e in experiments(Config())]
    assert names[1:5] == ["best_of_n-b2", "best_of_n-b4", "best_of_n-b8", "best_of_n-b53"]  # 2640 calls
    assert equal_starts(2640, 50) == 53
    assert equal_starts(2650, 50) == 53
    for methods in (("standard", "best_of_n"), ("standard", "noise_search")):
        assert len(experiments(Config(methods=methods))) == 4
    assert len(experiments(Config(budget=(400, 800)))) == 11  # the largest budget buys enough


@pytest.mark.slow
def test_the_best_of_n_of_fewer_starts_is_within_that_of_more() -> None:
    config: dict[str, Any] = {"num_samples": 3, "sample_length": 24, "steps": 10, "num_folds": 4}
    for score in ("tm_score", "rmsd"):
        options = Config(**config, scoring_function=score)
        many = run_experiment("best_of_n", 40, options)
        assert [sample[-1] for sample in many["scores_by_n"]] == many["scores"]
        for n in (1, 3, 20):
            few = run_experiment("best_of_n", n, options)
            assert few["scores"] == pytest.approx([sample[n - 1] for sample in many["scores_by_n"]], abs=1e-5)
        assert many["nfe"] == 400
    assert "scores_by_n" not in run_experiment("noise_search", 2, Config(**config))
