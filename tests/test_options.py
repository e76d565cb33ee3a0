"""Checks of options that annotations declare."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgpu_nb.options import (
    Above,
    AtLeast,
    Between,
    FileName,
    Finite,
    Matches,
    NonEmpty,
    NonNegativeFloat,
    OneOf,
    OptionTypeError,
    PositiveFloat,
    PositiveInt,
    Seconds,
    Seed,
    Unique,
    check_arguments,
    check_choice,
    check_options,
    check_value,
    checks_of,
)
from mgpu_nb.signature import value_of
from mgpu_nb.tasks import Task

Method = Annotated[str, OneOf(("ascent", "descent"), or_path="factory")]
GpuIds = tuple[PositiveInt, ...] | Literal["cpu"] | None


@dataclass(frozen=True)
class Options:
    size: PositiveInt = 8
    rate: PositiveFloat | None = None
    methods: Annotated[tuple[Method, ...], NonEmpty(), Unique()] = ("ascent",)
    weights: tuple[NonNegativeFloat, NonNegativeFloat] = (1.0, 1.0)
    folder: str | None = None
    fast: bool = False
    mode: Literal["train", "test"] = "train"
    setup: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class MoreOptions(Options):
    depth: Annotated[int, AtLeast(0)] = 0


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_at_least_and_above(low: int, value: int) -> None:
    for constraint, accepted, sign in (
        (AtLeast(low), value >= low, ">="),
        (Above(low), value > low, ">"),
    ):
        if accepted:
            assert check_value("n", value, Annotated[int, constraint]) == value
        else:
            with pytest.raises(ValueError, match=f"^n must be an integer {sign} {low}, got {value}$"):
                check_value("n", value, Annotated[int, constraint])


@given(st.floats(-2, 2), st.booleans(), st.booleans())
def test_between_leaves_out_its_open_ends(value: float, low_open: bool, high_open: bool) -> None:
    hint = Annotated[float, Between(-1, 1, low_open, high_open)]
    for number in (value, -1.0, 1.0):
        above = number > -1 if low_open else number >= -1
        below = number < 1 if high_open else number <= 1
        if above and below:
            assert check_value("x", number, hint) == number
        else:
            words = (
                f"x must be a number {'>' if low_open else '>='} -1 and {'<' if high_open else '<='} 1, got"
            )
            with pytest.raises(ValueError, match=words):
                check_value("x", number, hint)


@given(st.floats())
def test_floats_are_numbers(value: float) -> None:
    hint = Annotated[float, Finite()]
    if math.isfinite(value):
        assert check_value("x", value, hint) == value
    else:
        with pytest.raises(ValueError, match="x must be a finite number, got"):
            check_value("x", value, hint)


def test_a_duration_may_be_infinite_and_not_nan() -> None:
    assert check_value("timeout", math.inf, Seconds) == math.inf
    for wrong in (math.nan, 0, -1.0):
        with pytest.raises(ValueError, match="timeout must be a number > 0, got"):
            check_value("timeout", wrong, Seconds)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)], ids=repr)
def test_integers_become_plain(value: Any) -> None:
    for hint, kind in ((PositiveInt, int), (PositiveFloat, float)):
        plain = check_value("n", value, hint)
        assert plain == 3
        assert type(plain) is kind


@pytest.mark.parametrize(
    "value", [True, np.True_, torch.tensor(True), "3", b"3", None, [3], 3j, np.ones(2)], ids=repr
)
def test_what_is_no_number_is_of_the_wrong_type(value: Any) -> None:
    for hint in (PositiveInt, PositiveFloat, Seed):
        with pytest.raises(OptionTypeError, match="n must be") as caught:
            check_value("n", value, hint)
        assert isinstance(caught.value, TypeError)
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [3.0, np.float64(3), 1.5])
def test_floats_are_no_integers(value: Any) -> None:
    with pytest.raises(OptionTypeError, match="n must be an integer >= 1, got"):
        check_value("n", value, PositiveInt)


def test_numbers_too_large_for_a_float_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rate must be a finite number > 0, got 1000.*\.\.\.$"):
        check_value("rate", 10**400, PositiveFloat)
    assert check_value("seed", 2**63 - 1, Seed) == 2**63 - 1
    with pytest.raises(ValueError, match="<= 9223372036854775807, got 9223372036854775808"):
        check_value("seed", 2**63, Seed)


def test_choices_name_the_nearest() -> None:
    assert check_value("method", "descent", Method) == "descent"
    assert check_value("method", "package.module:make", Method) == "package.module:make"
    with pytest.raises(
        ValueError, match=r"one of ascent, descent or .*, got 'desent'; did you mean 'descent'\?$"
    ):
        check_value("method", "desent", Method)
    for half in ("module:", ":make", " : ", "xyz"):
        with pytest.raises(ValueError, match=r"'package\.module:name' of a factory, got"):
            check_value("method", half, Method)
    with pytest.raises(OptionTypeError):
        check_value("method", 3, Method)
    assert check_choice("a", {"a": 1, "b": 2}, "preset") == "a"
    with pytest.raises(ValueError, match=r"^preset must be one of a, b, got 'c'$"):
        check_choice("c", {"a": 1, "b": 2}, "preset")
    with pytest.raises(ValueError, match="mode must be one of train, test, got 'tests'; did you mean 'test'"):
        Options(mode="tests")  # type: ignore[arg-type]


def test_a_pattern_is_matched_whole() -> None:
    import re

    hint = Annotated[str, Matches(re.compile(r"\d+"), "digits")]
    assert check_value("time", "60", hint) == "60"
    for wrong in ("60 ", "a60", "60\n", ""):
        with pytest.raises(ValueError, match="time must be digits, got"):
            check_value("time", wrong, hint)


@given(st.text(max_size=5))
def test_file_names(name: str) -> None:
    good = bool(name.strip()) and name not in (".", "..") and not set(name) & set("/\\\0")
    if good:
        assert check_value("name", name, FileName) == name
    else:
        with pytest.raises(ValueError, match="name must be a string that can name a file"):
            check_value("name", name, FileName)


def test_the_options_of_a_dataclass_become_plain() -> None:
    options = Options(
        size=np.int32(4),  # type: ignore[arg-type]
        rate=np.float32(0.5),  # type: ignore[arg-type]
        methods=["ascent", "descent"],  # type: ignore[arg-type]
        weights=np.array([1, 2]),  # type: ignore[arg-type]
        folder=Path("runs"),  # type: ignore[arg-type]
    )
    assert options == Options(4, 0.5, ("ascent", "descent"), (1.0, 2.0), "runs")
    assert {type(options.size), *map(type, options.weights)} == {int, float}
    assert Options(methods="descent").methods == ("descent",)  # type: ignore[arg-type]
    assert Options(rate=None).rate is None


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": 0}, ValueError, "size must be an integer >= 1, got 0"),
        ({"size": None}, TypeError, "size must be an integer >= 1, got None"),
        ({"rate": math.nan}, ValueError, "rate must be a finite number > 0 or None, got nan"),
        ({"methods": ()}, ValueError, "methods must be a non-empty sequence (each one of"),
        ({"methods": ("ascent", "ascent")}, ValueError, "without duplicates, got ('ascent', 'ascent')"),
        ({"methods": ("ascent", "descend")}, ValueError, "methods[1] must be one of"),
        ({"methods": 3}, TypeError, "methods must be one of"),
        (
            {"weights": (1.0,)},
            ValueError,
            "weights must be a sequence of 2 items (each a finite number >= 0)",
        ),
        ({"weights": (1.0, math.nan)}, ValueError, "weights[1] must be a finite number >= 0, got nan"),
        ({"weights": 1.0}, TypeError, "weights must be a sequence of 2 items"),
        ({"folder": 3}, TypeError, "folder must be a string or None, got 3"),
        ({"folder": b"x"}, TypeError, "folder must be a string or None, got b'x'"),
        ({"fast": 1}, TypeError, "fast must be True or False, got 1"),
        ({"fast": np.True_}, TypeError, "fast must be True or False"),
    ],
    ids=str,
)
def test_a_refusal_names_option_and_value(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        Options(**options)
    assert words in str(caught.value)


def test_a_union_is_checked_by_the_type_of_its_value() -> None:
    for value, plain in (("cpu", "cpu"), (None, None), (2, (2,)), (np.arange(1, 3), (1, 2)), ({3}, (3,))):
        assert check_value("gpu_ids", value, GpuIds) == plain
    with pytest.raises(OptionTypeError) as caught:
        check_value("gpu_ids", "gpu", GpuIds)
    assert (
        str(caught.value) == "gpu_ids must be a sequence (each an integer >= 1) or 'cpu' or None, got 'gpu'"
    )
    with pytest.raises(ValueError, match=r"gpu_ids\[1\] must be an integer >= 1, got 0"):
        check_value("gpu_ids", (1, 0), GpuIds)
    with pytest.raises(OptionTypeError, match=r"ids\[0\] must be an integer or a string, got 0\.5"):
        check_value("ids", [0.5], Sequence[int | str])
    with pytest.raises(OptionTypeError, match="got 'torch'"):  # a sequence of strings is no string
        check_value("preload", "torch", Sequence[str])


def scale(
    x: Any, *, by: PositiveInt = 1, over: Iterable[PositiveInt] = (), then: Callable[[], Any] | None = None
) -> int:
    by, over = check_arguments(scale, by=by, over=over)
    return by + sum(over)


def test_arguments_are_checked_by_the_annotations_of_the_function() -> None:
    assert scale(None, by=np.int64(2), over=iter([1, 2])) == 5  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^by must be an integer >= 1, got 0$"):
        scale(None, by=0)
    with pytest.raises(KeyError):  # an argument without a check is a mistake of who asks for one
        check_arguments(scale, then=None)


def test_the_table_of_a_class_is_made_once() -> None:
    table = checks_of(Options)
    assert checks_of(Options) is table
    assert "setup" not in table
    assert list(checks_of(MoreOptions)) == [*table, "depth"]
    with pytest.raises(ValueError, match="size must be"):
        MoreOptions(size=0)
    before = checks_of.cache_info().misses
    Options()
    assert checks_of.cache_info().misses == before


def test_an_annotation_without_a_check_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="no check is known"):
        check_value("x", 1, dict[str, int])


def test_every_default_of_a_task_meets_its_own_check() -> None:
    checks = checks_of(Task)
    defaults = {name: value_of(default) for name, default in (Task.__init__.__kwdefaults__ or {}).items()}
    assert {"args", "kwargs"} == defaults.keys() - checks.keys()  # checked where they are joined
    for name in defaults.keys() & checks.keys():
        assert checks[name].apply(name, defaults[name]) == defaults[name]


def test_options_are_imported_without_the_heavy_libraries() -> None:
    code = (
        "import sys, mgpu_nb.options; print({'torch', 'pandas', 'numpy', 'tyro', 'difflib'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
