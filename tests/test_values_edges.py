"""Odd values on disk: each comes back as it was or is called not stored; storing raises only for the disk."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb.store.values import NotStored, load_value, store_value

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.none() | st.integers() | st.text() | st.sampled_from(["$array", "$unstored", "$", "#"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


def there_and_back(folder, value):
    return load_value(folder, json.loads(store_value(folder, "00000-x", value)))


def same(a, b):
    """Whether two values are equal, also in the types and the order of all that they hold."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return same([*a.items()], [*b.items()])
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_what_is_made_of_plain_parts_comes_back_the_same(tmp_path_factory, value):
    assert same(there_and_back(tmp_path_factory.getbasetemp(), value), value)


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.float64("inf"), math.inf),
    ],
)
def test_numpy_scalars_come_back_as_pythons(tmp_path, scalar, plain):
    assert same(there_and_back(tmp_path, {"deep": [scalar]}), {"deep": [plain]})


def circle():
    loop = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    "value",
    [
        circle(),
        pd.DataFrame({"z": [1j]}),
        torch.ones(2, dtype=torch.complex64),
        np.ma.masked_array([1, 2], [True, False]),
        torch.eye(2).to_sparse(),
    ],
    ids=["circle", "complex table", "complex", "masked", "sparse"],
)
def test_storing_never_fails_a_task_that_ended_well(tmp_path, value):
    text = store_value(tmp_path, "x", value)  # would raise in the worker, and the task would be an error
    assert json.loads(text) is not None
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": [{"x": 1}, {"y": 2}]}),
        pd.DataFrame({"a": [(1, 2), (3,)]}),
        pd.DataFrame([[1, 2]], columns=[3, "a"]),
        pd.DataFrame({"a": [1, 2]}, index=pd.MultiIndex.from_tuples([(1, "x"), (2, "y")])),
        pd.DataFrame({"c": pd.Categorical(["b", "a"])}, index=["ü", "v"]),
        pd.DataFrame(),
    ],
    ids=["dicts", "tuples", "mixed names", "levels", "categories", "empty"],
)
def test_a_table_comes_back_as_it_was_or_not_at_all(tmp_path, frame):
    try:
        back = there_and_back(tmp_path, frame)
    except NotStored:
        return
    assert list(back.columns) == list(frame.columns)
    assert repr(back.to_dict()) == repr(frame.to_dict())
    pd.testing.assert_frame_equal(back, frame)


def test_one_value_may_hold_many_of_every_kind(tmp_path):
    value = {
        "arrays": [np.full(2, n) for n in range(3)],
        "tensors": (torch.tensor(2.5), torch.zeros(0, 3, dtype=torch.bfloat16)),
        "tables": [pd.DataFrame({"n": [n]}) for n in range(2)],
    }
    text = store_value(tmp_path, "00007-ü", value)
    kept = sorted(path.name.removeprefix("00007-ü") for path in (tmp_path / "values").iterdir())
    assert kept == [".0.parquet", ".1.parquet", ".npz", ".safetensors"]
    assert not any(b"\x80\x04" in path.read_bytes()[:2] for path in (tmp_path / "values").iterdir())
    back = load_value(tmp_path, json.loads(text))
    assert [array.tolist() for array in back["arrays"]] == [[0, 0], [1, 1], [2, 2]]
    assert back["tensors"][0].item() == 2.5
    assert (back["tensors"][1].shape, back["tensors"][1].dtype) == ((0, 3), torch.bfloat16)
    assert [frame["n"].item() for frame in back["tables"]] == [0, 1]


def test_a_view_with_a_sign_still_to_apply_keeps_its_sign(tmp_path):
    view = torch.tensor([1 + 2j]).conj().imag
    assert view.is_neg()
    assert there_and_back(tmp_path, view).tolist() == [-2.0]
