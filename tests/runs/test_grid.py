"""Every combination of values: tasks, their names, and whose a keyword is."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ids import steady

from mgpu_nb import GPUPool, grid, worker
from mgpu_nb.tasks import check_name


def fit(lr: float, seed: int = 0, name: str = "", data: Any = None) -> dict[str, Any]:
    worker().report(step=seed)
    return {"loss": lr * (1 + seed), "name": name}


def plain(x: float, y: float = 1.0) -> float:
    return x * y


def any_keyword(**more: Any) -> dict[str, Any]:
    return more


def test_every_combination_the_last_varies_fastest() -> None:
    tasks = grid(fit, lr=[0.1, 1e-5], seed=range(2), data="d")
    assert [task.name for task in tasks] == [
        "lr=0.1 seed=0",
        "lr=0.1 seed=1",
        "lr=1e-05 seed=0",
        "lr=1e-05 seed=1",
    ]
    assert [task.kwargs for task in tasks][2] == {"lr": 1e-5, "seed": 0, "data": "d"}
    assert [task.seed for task in tasks] == [None] * 4
    assert grid(fit, {"lr": [0.1]}, name=["a"])[0].kwargs == {"lr": 0.1, "name": "a"}


def test_names_are_unique_and_can_name_files() -> None:
    values = [
        "a/b",
        "a b",
        "a\\b",
        "..",
        "x" * 300,
        "x" * 301,
        0.1 + 0.2,
        0.3,
        np.float64(0.5),
        None,
        [1, 2],
        len,
    ]
    names = [task.name for task in grid(any_keyword, {"v": values})]
    assert len({*names}) == len(values)
    assert all(check_name(name) == name and len(name) < 130 for name in names)
    assert names[8:] == ["v=0.5", "v=None", "v=[1,2]", "v=len"]
    assert [task.name for task in grid(plain, x=1.0)] == ["plain"]


@pytest.mark.parametrize(
    "one",
    ["text", 3, None, {"a": 1}, b"ab", np.zeros((2, 2)), torch.zeros(2, 2), pd.DataFrame({"a": [1]}), fit],
)
def test_what_is_no_list_is_for_all(one: Any) -> None:
    tasks = grid(fit, lr=[0.1, 0.2], data=one)
    assert len(tasks) == 2
    assert all(task.kwargs["data"] is one for task in tasks)


@pytest.mark.parametrize(
    "either",
    [(0.1, 0.2), {1, 2}, iter([1]), np.arange(3), torch.arange(3), pd.Series([1]), {}.keys(), map(str, [])],
)
def test_what_may_be_either_is_refused(either: Any) -> None:
    with pytest.raises(TypeError, match=r"data=list\(\.\.\.\) to try each, or data=\[\.\.\.\]"):
        grid(fit, lr=[0.1], data=either)
    assert grid(fit, lr=[0.1], data=[either])[0].kwargs["data"] is either


@pytest.mark.parametrize(
    ("fn", "values", "message"),
    [
        (fit, {}, "no values"), (fit, {"lr": []}, "lr=\\[\\]"), (fit, {"lrr": [1]}, "did you mean 'lr'"),
        (fit, {"seed": [1]}, "fit needs lr"), (pow, {"x": [1]}, "pow takes no keyword 'x'"),
        ("os:no", {"x": 1}, "import"),
        (3, {"x": 1}, "function or an import path"), (functools.partial(plain, 1.0), {"x": [2]}, "no keyword 'x'"),
    ],
    ids=steady,
)  # fmt: skip
def test_what_the_function_cannot_take_is_refused(fn: Any, values: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        grid(fn, values)


def test_options_are_those_of_all_tasks() -> None:
    (task,) = grid(fit, {"lr": [0.1], "seed": 3}, {"timeout": 5, "retries": 2})
    assert (task.timeout, task.retries, task.seed, task.kwargs["seed"]) == (5, 2, None, 3)
    with pytest.raises(ValueError, match="'seed' is none of"):
        grid(fit, {"lr": [0.1]}, {"seed": 3})
    with pytest.raises(TypeError, match="lr: given twice"):
        grid(fit, {"lr": [0.1]}, lr=0.1)


def test_partials_and_paths() -> None:
    assert grid(functools.partial(plain, 2.0), y=[1.0])[0].arguments == {"x": 2.0, "y": 1.0}
    assert grid(f"{__name__}:plain", x=[1.0, 2.0])[1].arguments == {"x": 2.0}


def test_a_sweep_is_a_table_with_its_best_row(pool: GPUPool, tmp_path: Path) -> None:
    run = pool.sweep(fit, lr=[0.3, 0.1], seed=[0, 1], folder=tmp_path / "run").wait(60)
    assert run.name == "sweep"
    frame = run.frame()
    assert frame[["lr", "seed"]].to_numpy().tolist() == [[0.3, 0], [0.3, 1], [0.1, 0], [0.1, 1]]
    best = run.best("loss", mode="min")
    assert (best.name, best.arguments) == ("lr=0.1 seed=0", {"lr": 0.1, "seed": 0})
    assert frame.sort_values("loss").iloc[0]["name"] == best.name


def test_of_a_sweep_a_list_is_the_functions_and_a_mapping_leaves_no_doubt(
    pool: GPUPool, tmp_path: Path
) -> None:
    run = pool.sweep(fit, {"lr": 0.5, "seed": [1, 2]}, seed=7, name="mine", folder=tmp_path / "run").wait(60)
    assert (run.name, [record.arguments["seed"] for record in run.records]) == ("mine", [1, 2])
    named = pool.sweep(fit, lr=0.5, name=["a", "b"], folder=tmp_path / "named")
    assert [value["name"] for value in named.results(60)] == ["a", "b"]
    assert named.name == "sweep"


@pytest.mark.parametrize(
    ("fn", "more", "message"),
    [
        (
            fit,
            {"lr": [0.1], "seed": 3},
            r"pool\.sweep\(fit, \{'seed': \[\.\.\.\], \.\.\.\}\) passes it to fit",
        ),
        (fit, {"lr": [0.1], "seed": 0}, "fit could want it"),
        (fit, {"lr": [0.1], "name": "x"}, "fit could want it"),
        (any_keyword, {"lr": [0.1], "seed": 3}, "any_keyword could want it"),
        (plain, {"x": [1.0], "seed": [1, 2]}, "the function has no such parameter"),
        (plain, {"x": [1.0], "timeout": [1, 2]}, "the function has no such parameter"),
    ],
)
def test_of_a_sweep_what_may_be_either_is_refused(
    pool: GPUPool, tmp_path: Path, fn: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        pool.sweep(fn, folder=tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()
    assert pool.sweep(any_keyword, lr=[1], name="y", folder=tmp_path / "y").results(60) == [{"lr": 1}]


def test_values_of_one_text_have_names_of_their_own() -> None:
    values = [f"{'x' * 150}{n}" for n in range(3000)]
    names = [task.name for task in grid(fit, lr=values)]
    assert len(set(names)) == 3000
    assert (names[1], names[-1]) == (f"{names[0]} (2)", f"{names[0]} (3000)")
    assert [task.name for task in grid(fit, lr=["a", "a (2)", "a"])] == ["lr=a", "lr=a_(2)", "lr=a (2)"]
