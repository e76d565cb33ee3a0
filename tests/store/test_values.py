"""Values on disk: what comes back is what was stored, and no pickle is written or read."""

import datetime
import enum
import json
import math
import re
import sys
import types
import uuid
from collections import OrderedDict, defaultdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ids import steady

from mgpu_nb.store.files import file_stem
from mgpu_nb.store.values import (
    NotStored,
    brief_value,
    load_value,
    not_kept,
    readable,
    scalars,
    store_value,
)


def there_and_back(folder: Path, value: Any) -> Any:
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
def test_plain_values(tmp_path: Path, value: Any) -> None:
    back = there_and_back(tmp_path, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_lacks(tmp_path: Path, value: float) -> None:
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
def test_arrays(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    back = there_and_back(tmp_path, {"a": array, "b": [array]})
    assert np.array_equal(back["a"], array)
    assert back["b"][0].dtype == array.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype).T
    back = there_and_back(tmp_path, (tensor,))[0]
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_tables(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [1, 2], "s": ["a", None], "t": pd.to_datetime(["2026-01-01", "NaT"])})
    pd.testing.assert_frame_equal(there_and_back(tmp_path, frame), frame)


@pytest.mark.parametrize("value", [object(), {"deep": [1, len]}, np.array([None, 1], dtype=object), len])
def test_what_is_not_kept_says_so(tmp_path: Path, value: Any) -> None:
    text = store_value(tmp_path, "x", value)
    assert "$unstored" in text
    with pytest.raises(NotStored, match="is not kept on disk"):
        load_value(tmp_path, json.loads(text))


def test_a_value_whose_repr_fails_is_told(tmp_path: Path) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "its repr raised RuntimeError" in store_value(tmp_path, "x", Broken())


def test_a_journal_chooses_no_file_elsewhere_and_no_method(tmp_path: Path) -> None:
    np.savez(tmp_path / "secret.npz", a0=np.ones(1))
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match="outside the run's folder"):
        load_value(run, {"$array": "../secret.npz#a0"})
    with pytest.raises(ValueError, match="not a kind of value"):
        load_value(run, {"$_init__": str(tmp_path)})


def test_a_pickle_in_the_place_of_an_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "values").mkdir()
    np.savez(tmp_path / "values" / "x.npz", a0=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        load_value(tmp_path, {"$array": "values/x.npz#a0"})


def test_file_names_are_safe_and_tell_the_task() -> None:
    assert file_stem(3, "lr=0.1 sizes=8,8") == "00003-lr=0.1 sizes=8,8"
    assert re.fullmatch("00003-a b_=1-[0-9a-f]{8}", file_stem(3, "a b/=1"))
    assert file_stem(3, "city=上海").startswith("00003-city=_-")
    different = (
        *("甲", "乙", "x" * 81, "x" * 80 + "y", "x" * 80, "\udc80"),
        *("a b", "a=b", "a/b", "a//b", "a:b", "a_b", "a__b"),
    )
    assert len({file_stem(3, name) for name in different}) == len(different)
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
def test_what_disk_cannot_hold_is_marked_not_changed_and_fails_no_task(tmp_path: Path, value: Any) -> None:
    text = store_value(tmp_path, "x", value)
    if "$unstored" not in text:
        back = load_value(tmp_path, json.loads(text))
        assert type(back) is type(value)
        assert back == value


def test_a_state_dict_comes_back_in_its_order(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    text = store_value(tmp_path, "x", {"model": state})
    back = load_value(tmp_path, json.loads(text))["model"]
    assert type(back) is type(state)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


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


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, also in the types and the order of all that they hold."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return same([*a.items()], [*b.items()])
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@settings(max_examples=150)
@given(VALUES)
def test_what_is_made_of_plain_parts_comes_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    assert same(there_and_back(tmp_path_factory.getbasetemp(), value), value)


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int8(-3), -3),
        (np.longlong(5), 5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.float64(0.5), 0.5),
        (np.str_("a\x00"), "a\x00"),
    ],
)
def test_numbers_of_numpy_keep_their_type_and_are_numbers_to_other_programs(
    tmp_path: Path, scalar: Any, plain: bool | float
) -> None:
    encoded = json.loads(store_value(tmp_path, "x", {"deep": [scalar]}))
    assert same(load_value(tmp_path, encoded), {"deep": [scalar]})
    assert same(readable(encoded), {"deep": [plain]})
    assert same(brief_value(encoded), {"deep": [plain]})


@pytest.mark.parametrize(
    "value",
    [
        np.float64("nan"), np.float16(0.1), np.longdouble("0.1"), np.complex64(1 - 2j), np.bytes_(b"a\x00"),
        np.datetime64("2026-01-01T00:00:00.123456789"), np.datetime64("NaT", "D"), np.timedelta64(5, "h"),
        np.zeros(1, [("a", "<i2"), ("b", ">f4", (2,))])[0], np.array(3)[()],
    ],
    ids=repr,
)  # fmt: skip
def test_scalars_of_numpy_come_back_the_same(tmp_path: Path, value: Any) -> None:
    back = there_and_back(tmp_path, (value, [value]))
    assert same(back, (value, [value]))
    assert back[0].dtype == value.dtype


@pytest.mark.parametrize(
    "array",
    [
        np.array(["2026-01-01", "NaT"], "datetime64[us]"), np.array([1, 2], "timedelta64[D]"),
        np.arange(3, dtype=">f4"), np.array([b"a", b"bc"]), np.array([1j, np.nan]), np.arange(4).astype(np.longdouble),
        np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)), np.array((1, "x"), "i4,U3"), np.array(0.5),
        np.asfortranarray(np.ones((2, 3), bool)),
    ],
    ids=lambda array: str(array.dtype),
)  # fmt: skip
def test_arrays_of_every_type_come_back_the_same(tmp_path: Path, array: Any) -> None:
    back = there_and_back(tmp_path, array)
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    assert (back.shape, repr(back.tolist())) == (array.shape, repr(array.tolist()))


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, np.dtype((np.record, [("a", "i4")]))), np.array(["x"], "T") if hasattr(np, "dtypes") else len,
        np.zeros(1, [("a", "i4")]).view(np.recarray), np.ma.masked_array([1], [True]), np.zeros(1, [("a", "O")]),
    ],
    ids=["records", "strings", "recarray", "masked", "objects"],
)  # fmt: skip
def test_arrays_that_a_file_would_change_are_not_kept(tmp_path: Path, value: Any) -> None:
    text = store_value(tmp_path, "x", [value])
    assert not_kept(text).startswith("numpy.")


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"])
def test_types_of_ml_dtypes_are_kept(tmp_path: Path, name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([[1.5, -2], [0, 3]]).astype(getattr(ml_dtypes, name)).T
    back = there_and_back(tmp_path, {"a": array, "s": array[0, 0], "0d": array[0, 0].reshape(())})
    assert back["a"].dtype == array.dtype
    assert back["a"].tolist() == array.tolist()
    assert type(back["s"]) is type(array[0, 0])


def stand_in(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """A library ml_dtypes with one type."""
    library = types.ModuleType("ml_dtypes")
    setattr(library, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "ml_dtypes", library)


def test_types_of_ml_dtypes_are_kept_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, np.float16)
    array = np.array([[1.5, -2.0]], np.float16).T
    encoded = json.loads(store_value(tmp_path, "x", array))
    assert encoded == {"$ml_dtypes": ["float16", {"$array": "values/x.npz#a0"}]}
    with np.load(tmp_path / "values" / "x.npz") as file:
        assert file["a0"].dtype == np.uint16
    back = load_value(tmp_path, encoded)
    assert (back.dtype, back.tolist()) == (np.dtype(np.float16), [[1.5], [-2.0]])
    with pytest.raises(ValueError, match="no type of numbers"):
        load_value(tmp_path, {"$ml_dtypes": ["__name__", encoded["$ml_dtypes"][1]]})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(NotStored, match="needs the package ml_dtypes"):
        load_value(tmp_path, encoded)


TENSORS = [
    name for name in (
        "complex32", "complex64", "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "float16", "bfloat16", "int8", "float64",
    )
    if hasattr(torch, name)
]  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2)])
def test_tensors_of_every_type_come_back_the_same(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(6.0)[: math.prod(shape)].reshape(shape).to(getattr(torch, name))
    tensor = tensor.mT if tensor.ndim == 2 else tensor
    back = there_and_back(tmp_path, tensor)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert repr(back) == repr(tensor)


def test_a_tensor_that_wants_a_gradient_still_does(tmp_path: Path) -> None:
    back = there_and_back(tmp_path, [torch.ones(2, requires_grad=True), torch.ones(2)])
    assert [tensor.requires_grad for tensor in back] == [True, False]
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    for other in (quantized, torch.nn.Parameter(torch.ones(1)), torch.Size([1])):
        assert not_kept(store_value(tmp_path, "x", other)).startswith("torch.")


class Colour(enum.IntEnum):
    RED = 1


class Named(NamedTuple):
    a: int


@pytest.mark.parametrize(
    "value",
    [
        complex(math.inf, -0.0), {1, "a", (2,)}, frozenset({1.5}), bytearray(b"x"), range(10, 0, -3), -0.0, 2**70,
        Decimal("1.10"), Decimal("NaN"), Fraction(1, 3), uuid.UUID(int=5), datetime.date(2026, 1, 2),
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6), datetime.time(1, 2), {None: 1, 1.5: 2, True: 3, (1,): 4, b"k": 5},
    ],
    ids=steady,
)  # fmt: skip
def test_types_of_the_standard_library_come_back_the_same(tmp_path: Path, value: Any) -> None:
    assert same(there_and_back(tmp_path, [value]), [value])


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED, Named(1), OrderedDict(a=object()), defaultdict(int), datetime.datetime.now(datetime.UTC), slice(1),
        type("Text", (str,), {})("x"), type("Folder", (type(Path()),), {})("x"), pd.Series([1]), pd.Timestamp(0),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_would_change_its_type_is_not_kept_and_named(tmp_path: Path, value: Any) -> None:
    text = store_value(tmp_path, "x", {"v": value, "twice": [value]})
    kind = object if type(value) is OrderedDict else type(value)
    assert not_kept(text) == f"{kind.__module__}.{kind.__qualname__}"


FRAMES = {
    "times": pd.DataFrame({"a": [1.0, 2.0]}, index=pd.date_range("2026", periods=2, tz="Europe/Berlin")),
    "monthly": pd.DataFrame({"a": [1.0, 2.0]}, index=pd.date_range("2026", periods=2, freq="MS")),
    "periods": pd.DataFrame({"a": [1, 2]}, index=pd.period_range("2026", periods=2, freq="M")),
    "intervals": pd.DataFrame({"a": [1, 2]}, index=pd.interval_range(0, 2)),
    "ordered": pd.DataFrame({"c": pd.Categorical(["b", "a"], ["b", "a", "z"], ordered=True)}),
    "named": pd.DataFrame({"a": [1]}, index=pd.Index([7], name="n")).rename_axis(columns="m"),
    "numbered columns": pd.DataFrame([[1, 2]]),
    "column levels": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
    "durations": pd.DataFrame({"d": pd.to_timedelta([1, None], unit="s")}),
    "moments": pd.DataFrame({"d": pd.to_datetime(["2026-01-01"]).as_unit("s").tz_localize("UTC")}),
    "mixed": pd.DataFrame({"o": np.array([1, "a", None, 2.5], object)}),
    "missing": pd.DataFrame({"o": np.array([None, np.nan, "x"], object)}),
    "nullable": pd.DataFrame({"i": pd.array([1, None], "Int64"), "b": pd.array([True, None], "boolean")}),
    "small": pd.DataFrame({"h": np.array([0.5], np.float16), "c": np.array([1], np.uint8)}),
    "attributes": pd.DataFrame({"a": [1]}),
    "step": pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(3, 9, 3)),
    "twice": pd.DataFrame([[1, 2]], columns=["a", "a"]),
    "objects": pd.DataFrame({"o": [Decimal("1.5"), datetime.date(2026, 1, 1)]}),
    "arrays": pd.DataFrame({"o": [np.ones(2), np.ones(1)]}),
    "paths": pd.DataFrame({"o": [Path("a")]}),
}
FRAMES["attributes"].attrs["unit"] = ("m", 1)


@pytest.mark.parametrize("name", FRAMES)
def test_a_table_of_any_kind_is_kept_exactly_or_not_at_all(tmp_path: Path, name: str) -> None:
    frame = FRAMES[name]
    text = store_value(tmp_path, "x", frame)
    if not_kept(text):
        assert not list(tmp_path.rglob("*.*"))
        return
    back = load_value(tmp_path, json.loads(text))
    pd.testing.assert_frame_equal(back, frame, check_exact=True, check_index_type=True, check_freq=True)
    assert back.attrs == frame.attrs
    assert [list(map(type, back[c])) for c in back] == [list(map(type, frame[c])) for c in frame]


def test_common_tables_are_kept(tmp_path: Path) -> None:
    for name in ("times", "monthly", "ordered", "named", "durations", "nullable", "step"):
        assert not not_kept(store_value(tmp_path, "x", FRAMES[name])), name


def circle() -> list[list[list[list[Any]]]]:
    loop: list[Any] = []
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
def test_storing_never_fails_a_task_that_ended_well(tmp_path: Path, value: Any) -> None:
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
def test_a_table_comes_back_as_it_was_or_not_at_all(tmp_path: Path, frame: pd.DataFrame) -> None:
    try:
        back = there_and_back(tmp_path, frame)
    except NotStored:
        return
    assert list(back.columns) == list(frame.columns)
    assert repr(back.to_dict()) == repr(frame.to_dict())
    pd.testing.assert_frame_equal(back, frame)


def test_one_value_may_hold_many_of_every_kind(tmp_path: Path) -> None:
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


def test_a_view_with_a_sign_still_to_apply_keeps_its_sign(tmp_path: Path) -> None:
    view = torch.tensor([1 + 2j]).conj().imag
    assert view.is_neg()
    assert there_and_back(tmp_path, view).tolist() == [-2.0]


class Fit(NamedTuple):
    acc: float
    model: Any


def test_entries_of_what_is_not_kept_whole_are_scalars_and_texts(tmp_path: Path) -> None:
    value = Fit(math.inf, object())
    encoded = json.loads(store_value(tmp_path, "x", value))
    assert scalars(tmp_path, encoded) == {"acc": math.inf, "model": "<object>"}
    odd = {"acc": 0.5, "n": math.nan, "model": object(), "w": [1], "t": torch.tensor(2.0), "l": [object()]}
    mixed = scalars(tmp_path, json.loads(store_value(tmp_path, "x", odd)))
    assert repr(mixed) == (
        "{'acc': 0.5, 'n': nan, 'model': '<object>', 'w': [1], 't': tensor(2.), 'l': '<list>'}"
    )
    for nothing in (object(), [object()], {"model": object()}, Fit(cast(Any, object()), []), 3):
        assert scalars(tmp_path, json.loads(store_value(tmp_path, "x", nothing))) is None
