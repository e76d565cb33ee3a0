"""Values on disk: what comes back is what was stored, and no pickle is written or read."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mgpu_nb.store.files import file_stem
from mgpu_nb.store.values import NotStored, load_value, store_value


def there_and_back(folder, value):
    return load_value(folder, json.loads(store_value(folder, "00000-x", value)))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -1.5,
        "grüße\x00",
        [1, [2, {}]],
        (1, (2,)),
        {"a": (1,)},
        {1: "x", (2, 3): None},
        {"$a": 1},
        b"\x00\xff",
        Path("a/b"),
        {"list": [(), b""]},
    ],
)
def test_plain_values(tmp_path, value):
    back = there_and_back(tmp_path, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_lacks(tmp_path, value):
    text = store_value(tmp_path, "x", [value])
    json.loads(text, parse_constant=pytest.fail)
    assert np.array_equal(load_value(tmp_path, json.loads(text)), [value], equal_nan=True)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.zeros((0, 4), np.int8),
        np.array(3),
        np.array(["ü", "b"]),
        np.arange(6)[::-2],
    ],
    ids=["matrix", "empty", "scalar", "text", "strided"],
)
def test_arrays(tmp_path, array):
    back = there_and_back(tmp_path, {"a": array, "b": [array]})
    assert np.array_equal(back["a"], array)
    assert back["b"][0].dtype == array.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype).T
    back = there_and_back(tmp_path, (tensor,))[0]
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_tables(tmp_path):
    frame = pd.DataFrame({"n": [1, 2], "s": ["a", None], "t": pd.to_datetime(["2026-01-01", None])})
    pd.testing.assert_frame_equal(there_and_back(tmp_path, frame), frame)


@pytest.mark.parametrize("value", [object(), {"deep": [1, {2, 3}]}, np.array([None, 1], dtype=object), len])
def test_what_is_not_kept_says_so(tmp_path, value):
    text = store_value(tmp_path, "x", value)
    assert "$unstored" in text
    with pytest.raises(NotStored, match="is not kept on disk"):
        load_value(tmp_path, json.loads(text))


def test_a_value_whose_repr_fails_is_told(tmp_path):
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert "its repr raised RuntimeError" in store_value(tmp_path, "x", Broken())


def test_a_journal_chooses_no_file_elsewhere_and_no_method(tmp_path):
    np.savez(tmp_path / "secret.npz", a0=np.ones(1))
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match="outside the run's folder"):
        load_value(run, {"$array": "../secret.npz#a0"})
    with pytest.raises(ValueError, match="no kind of value"):
        load_value(run, {"$_init__": str(tmp_path)})


def test_a_pickle_in_the_place_of_an_array_is_refused(tmp_path):
    (tmp_path / "values").mkdir()
    np.savez(tmp_path / "values" / "x.npz", a0=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_value(tmp_path, {"$array": "values/x.npz#a0"})


def test_file_names_are_safe_and_tell_the_task():
    assert file_stem(3, "a b/ü=1") == "00003-a_b_1"
    assert len(file_stem(1, "x" * 999)) < 100
    assert file_stem(1, "a?") != file_stem(2, "a!")


@pytest.mark.parametrize(
    "value",
    [
        10**5000, torch.empty(2, device="meta"), pd.DataFrame({"a": [2**100]}), pd.DataFrame({"a": [{1}]}),
        np.datetime64("2020-01-01", "ns"), np.timedelta64(5),
    ],
    ids=["huge", "meta", "huge-cell", "set-cell", "moment", "duration"],
)  # fmt: skip
def test_what_disk_cannot_hold_is_marked_not_changed_and_fails_no_task(tmp_path, value):
    text = store_value(tmp_path, "x", value)
    if "$unstored" not in text:
        back = load_value(tmp_path, json.loads(text))
        assert type(back) is type(value)
        assert back == value


def test_a_state_dict_comes_back_in_its_order(tmp_path):
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    text = store_value(tmp_path, "x", {"model": state})
    back = load_value(tmp_path, json.loads(text))["model"]
    assert type(back) is type(state)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
