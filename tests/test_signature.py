"""Whose a keyword is: the function's, or that of what runs it."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jobs
import pytest
from ids import steady

from mgpu_nb import Task, launch
from mgpu_nb.options import OptionTypeError
from mgpu_nb.signature import Parameters, name_of, named_arguments, parameters, refusal, value_of


def fit(x: float, lr: float = 0.1, *, seed: int = 0) -> float:
    return x * lr + seed


def any_keyword(x: float, **more: Any) -> Any:
    return x, more


def starred(x: float, *rest: float, name: str = "") -> Any:
    return x, rest, name


def by_position(seed: int, /, x: int = 0) -> int:
    return seed + x


def awkward(args: Any = (), kwargs: Any = None) -> Any:
    return args, kwargs


@functools.wraps(fit)
def wrapped(*args: Any, **kwargs: Any) -> float:
    return fit(*args, **kwargs)


class Model:
    def __init__(self, width: int = 1, seed: int = 0) -> None:
        self.width = width

    def __call__(self, x: float, name: str = "") -> float:
        return x * self.width

    def fit(self, x: float, cost: float = 0.0) -> float:
        return x

    @classmethod
    def make(cls, memory: int) -> "Model":
        return cls(memory)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, retries: int = 0) -> int:
        return retries


@pytest.mark.parametrize(
    ("fn", "option"),
    [
        (fit, "seed"), (wrapped, "seed"), (functools.partial(fit, 1.0), "seed"), (starred, "name"), (Model, "seed"),
        (Model(), "name"), (Model().fit, "cost"), (Model.make, "memory"), (Unhashable(), "retries"),
        (lambda timeout: timeout, "timeout"), (f"{__name__}:fit", "seed"), (f"{__name__}:Model.fit", "cost"),
        (any_keyword, "seed"), (any_keyword, "devices"), (functools.partial(any_keyword, lr=1), "retries"),
    ],
    ids=steady,
)  # fmt: skip
def test_a_keyword_that_function_and_task_both_have_is_refused(fn: Any, option: str) -> None:
    value: Any = {"name": "a", "memory": 2, "devices": 2}.get(option, 3)
    with pytest.raises(OptionTypeError, match=option) as caught:
        Task(fn, **{option: value})
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    assert f"kwargs={{{option!r}: {value!r}, ...}}" in str(caught.value)


@pytest.mark.parametrize(
    "option", ["name", "cost", "memory", "devices", "timeout", "retries", "seed", "after"]
)
def test_a_value_that_is_the_default_may_be_meant_for_the_function_too(option: str) -> None:
    default = value_of((Task.__init__.__kwdefaults__ or {})[option])
    assert str(inspect.signature(Task).parameters[option]).endswith(f" = {default!r}")
    namespace: dict[str, Any] = {}
    exec(f"def own({option}=7): return {option}", namespace)
    with pytest.raises(OptionTypeError, match=f"{option}="):
        Task(namespace["own"], **{option: default})
    assert Task(namespace["own"]) == Task(namespace["own"], args=(), **{option: default})


def test_the_form_that_the_error_names_is_unambiguous() -> None:
    for fn in (fit, wrapped, any_keyword, f"{__name__}:fit"):
        task = Task(fn, args=(1.0,), kwargs={"seed": 3}, seed=4, name="a")
        assert (task.args, task.kwargs, task.seed, task.name) == ((1.0,), {"seed": 3}, 4, "a")
    assert Task(fit, 1.0, kwargs={"seed": 3}).kwargs == {"seed": 3}
    assert Task(fit, 1.0, lr=0.2, kwargs={"seed": 3}, seed=5).kwargs == {"lr": 0.2, "seed": 3}
    assert Task(fit, args=[1.0]).args == (1.0,)


@pytest.mark.parametrize(
    "fn",
    [
        by_position, functools.partial(fit, seed=1), functools.partial(functools.partial(fit, 1), seed=1), abs, print,
        math.hypot, jobs.add, "no_such_module:fit", functools.partial(any_keyword, seed=1),
    ],
    ids=steady,
)  # fmt: skip
def test_a_keyword_that_the_function_cannot_take_is_the_task_s(fn: Any) -> None:
    assert Task(fn, seed=3).seed == 3
    assert Task(fn, name="a").name == "a"


def test_a_parameter_that_is_filled_by_position_takes_no_keyword() -> None:
    assert Task(fit_by_seed, 3, seed=4).args == (3,)
    assert Task(starred, 1.0, 2.0, retries=1).retries == 1
    with pytest.raises(OptionTypeError, match="seed=4"):
        Task(fit_by_seed, lr=1.0, seed=4)


def fit_by_seed(seed: int, lr: float = 0.1) -> float:
    return seed * lr


def test_any_keyword_leaves_the_name_to_the_task() -> None:
    assert Task(any_keyword, 1.0, lr=0.1, name="a").kwargs == {"lr": 0.1}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"args": 3}, "args must be a tuple"), ({"args": "ab"}, "args must be a tuple"),
        ({"kwargs": [1]}, "kwargs must be a mapping"), ({"kwargs": {1: 2}}, "kwargs must be a mapping"),
        ({"kwargs": {"lr": 1}, "lr": 2}, "lr: given twice"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(more: Any, message: str) -> None:
    with pytest.raises(OptionTypeError, match=message):
        Task(fit, **more)
    with pytest.raises(OptionTypeError, match="given twice"):
        Task(fit, 1.0, args=(2.0,))


def test_a_function_may_have_a_parameter_named_args_or_kwargs() -> None:
    assert Task(awkward, (1, 2), {"a": 3}).args == ((1, 2), {"a": 3})
    with pytest.raises(OptionTypeError, match="by position"):
        Task(awkward, args=(1,))
    with pytest.raises(OptionTypeError, match="by position"):
        Task(awkward, kwargs={})
    both = Task(awkward, args=((1,),), kwargs={"kwargs": 2})
    assert awkward(*both.args, **both.kwargs) == ((1,), 2)


def both_have_a_seed(seed: int = 0, timeout: float = 1.0, nprocs: int = 3) -> int:
    return seed


@pytest.mark.parametrize("option", [{"seed": 3}, {"seed": 0}, {"timeout": 2.0}, {"nprocs": 1}], ids=str)
def test_launch_refuses_what_the_function_may_want(option: dict[str, Any]) -> None:
    with pytest.raises(OptionTypeError, match=r"launch\(both_have_a_seed, args="):
        launch(both_have_a_seed, **option)


def test_launch_asks_about_any_keyword_only_what_functions_have() -> None:
    with pytest.raises(OptionTypeError, match="takes any keyword"):
        launch(any_keyword, 1.0, nprocs=1, seed=3)
    with pytest.raises(OptionTypeError, match="given twice"):
        launch(any_keyword, 1.0, args=(2.0,), nprocs=1)


def test_launch_passes_what_is_named_explicitly(tmp_path: Any) -> None:
    run = launch(both_have_a_seed, kwargs={"seed": 5}, nprocs=1, seed=7, folder=tmp_path, gpu_ids="cpu")
    assert run.results(60) == [5]


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "named"),
    [
        (fit, (1,), {"seed": 2}, {"x": 1, "seed": 2}),
        (starred, (1, 2, 3), {}, {"x": 1, "rest[0]": 2, "rest[1]": 3}),
        (functools.partial(fit, 1, lr=2), (), {"seed": 3}, {"x": 1, "lr": 2, "seed": 3}),
        (functools.partial(fit, lr=2), (1,), {"lr": 4}, {"x": 1, "lr": 4}),
        (Model().fit, (1, 2), {}, {"x": 1, "cost": 2}),
        (math.hypot, (1, 2), {}, {"args[0]": 1, "args[1]": 2}),
        (pow, (2, 3), {}, {"base": 2, "exp": 3}),
        (fit, (1, 2, 3), {"unknown": 4}, {"x": 1, "lr": 2, "args[0]": 3, "unknown": 4}),
        (any_keyword, (1,), {"lr": 2}, {"x": 1, "lr": 2}),
    ],
)
def test_arguments_have_the_names_of_the_parameters(
    fn: Callable[..., Any], args: Any, kwargs: Any, named: dict[str, Any]
) -> None:
    assert named_arguments(fn, args, kwargs) == named


def test_a_signature_that_fails_is_unknown() -> None:
    class Odd:
        __signature__ = 3

        def __call__(self) -> None: ...

    assert not parameters(Odd()).known
    assert parameters(fit) == Parameters(("x", "lr"), frozenset({"x", "lr", "seed"}))


def test_why_a_function_cannot_be_called() -> None:
    assert refusal(fit, 1, seed=2) == refusal(pow, 1, exp=2) == ""
    assert refusal(fit) == "missing a required argument: 'x'"
    assert "unexpected keyword argument 'depth'" in refusal(functools.partial(fit, 1), depth=2)
    assert refusal(dict, 1, 2, 3) == ""  # has no signature: who knows


def test_names_for_messages() -> None:
    assert name_of(functools.partial(fit, 1)) == "fit"
    assert name_of("a.b:C.f") == "C.f"
    assert name_of(Model()) == "Model"
