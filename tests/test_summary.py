"""Short texts for any value."""

import dataclasses
import datetime
import decimal
import enum
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from mgpu_nb.summary import short


class Colour(enum.IntEnum):
    RED = 3


class Text(str):
    __slots__ = ()


class Plain:
    pass


class Own:
    def __repr__(self) -> str:
        return "Own(\n  1)"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError


@dataclasses.dataclass
class Config:
    lr: float = 0.1
    net: Any = None


class Pair(NamedTuple):
    a: int
    b: Any


def circle() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1), (True, True), (None, None), (0.5, 0.5), ("a\nb", "a\nb"), ("x" * 300, "x" * 199 + "…"),
        (Text("a"), "a"),
        (np.float32(0.5), 0.5), (np.int8(3), 3), (np.bool_(True), True), (torch.tensor(2), 2), (Path("/a"), "/a"),
        (Colour.RED, "Colour.RED"), (10**5000, "<an integer of 16610 bits>"), (np.zeros((3, 4), "f4"), "float32[3, 4]"),
        (torch.zeros(2), "float32[2]"), (pd.DataFrame({"a": [1]}), "DataFrame[1, 1]"), (torch.device("cpu"), "cpu"),
        (torch.zeros((), device="meta"), "float32[]"), (len, "len"), (Plain, "Plain"), (Plain(), "<Plain>"),
        (Own(), "Own( 1)"), (Broken(), "<Broken, its repr raised RuntimeError>"),
        (functools.partial(max, 1), "partial(max)"),
        (Config(net=Config()), "Config(lr=0.1, net=Config(lr=0.1, net=None))"),
        (Pair(1, np.zeros(2)), "Pair(a=1, b=float64[2])"),
        (b"abc", "<3 bytes>"), ({"a": [1, {"b": 2}]}, "{'a': [1, {'b': 2}]}"),
        (list(range(99)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        (decimal.Decimal("1.5"), "1.5"), (datetime.date(2020, 1, 2), "2020-01-02"), (1j, "1j"),
        (pd.Timestamp("2020-01-02"), "2020-01-02 00:00:00"), ([np.float64(0.5)], "[0.5]"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_short_text_for_anything(value: Any, expected: Any) -> None:
    assert short(value) == expected
    assert type(short(value)) in (int, bool, float, str, type(None))


def test_no_value_costs_much() -> None:
    nested: Any = 1
    for _ in range(50):
        nested = [nested] * 50
    began = time.process_time()
    for value in (nested, circle(), dict.fromkeys(range(1000), nested), [Config(net=nested)] * 1000):
        assert len(str(short(value))) <= 100
    assert time.process_time() - began < 2
