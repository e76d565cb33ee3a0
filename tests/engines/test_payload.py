"""Values on the wire."""

import os
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb.engines import payload, segment
from mgpu_nb.engines.payload import LARGE
from mgpu_nb.engines.segment import SMALL


def through(value: Any) -> Any:
    packed = payload.dumps(value)
    back = payload.loads(packed.body, tuple(map(os.dup, packed.fds)))
    packed.close()
    return back


def called(fn: Callable[..., Any], *args: int | str, **kwargs: int) -> Any:
    packed = payload.dumps_call(fn, args, kwargs)
    fn, args, kwargs = payload.loads(packed.body, tuple(map(os.dup, packed.fds)))
    return fn(*args, **kwargs)


def descriptors() -> int:
    return psutil.Process().num_fds()


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:mgpu_nb")


@pytest.mark.parametrize(
    "value",
    [
        1,
        None,
        1.5,
        "ü" * 10,
        "x" * 2 * LARGE,
        b"y" * 2 * LARGE,
        bytearray(b"z" * 2 * LARGE),
        {"a": [1, (2,)]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_and_large_values(value: Any) -> None:
    back = through(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("n", [0, 10, LARGE])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_arrays(n: int, order: str) -> None:
    array = np.arange(2.0 * n).reshape(2, n)
    array = np.asfortranarray(array) if order == "F" else array[:, ::2] if order == "strided" else array
    back = through([array, {"again": array}])
    assert np.array_equal(back[0], array)
    assert back[0] is back[1]["again"]
    back[0][...] = 7.0  # writable, and nobody else's
    assert not n or array.max() != 7.0 or n == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.complex64])
def test_tensors(dtype: torch.dtype) -> None:
    tensor = torch.arange(LARGE).to(dtype).reshape(-1, 2)
    back = through((tensor, tensor.T, tensor[:0]))
    assert torch.equal(back[0], tensor)
    assert torch.equal(back[1], tensor.T)
    assert back[2].shape == (0, 2)
    assert through(torch.ones(3, requires_grad=True)).requires_grad


def test_of_a_view_only_what_it_shows_is_sent() -> None:
    whole = torch.zeros(64 * LARGE)
    assert payload.dumps(whole[:4]).size < 10_000


def test_a_change_stays_with_the_one_who_made_it() -> None:
    packed = payload.dumps(np.zeros(LARGE))
    one, two = (payload.loads(packed.body, (os.dup(packed.fds[0]),)) for _ in range(2))
    one[0] = 5.0
    assert two[0] == 0.0


def test_memory_goes_with_the_value() -> None:
    before, open_before = mapped(), descriptors()
    value = through(np.zeros(4 * LARGE))
    view = value[10:20]
    assert mapped() == before + 1
    del value
    assert view.sum() == 0.0
    del view
    assert mapped() == before
    assert descriptors() == open_before


def test_small_shared_memory_is_used_again_and_the_values_stay() -> None:
    first, second = np.full(LARGE // 8, 1.0), np.full(LARGE // 2, 2.0)
    packed = payload.dumps(first)
    file = os.fstat(packed.fds[0]).st_ino
    back = payload.loads(packed.body, (os.dup(packed.fds[0]),))
    packed.release()
    packed.release()  # once is enough
    again = payload.dumps(second)
    assert os.fstat(again.fds[0]).st_ino == file
    assert np.array_equal(payload.loads(again.body, (os.dup(again.fds[0]),)), second)
    assert np.array_equal(back, first)
    assert back.ctypes.data % 64 == 0
    back[0] = 5.0  # it is the receiver's own
    again.close()


def test_a_fork_does_not_write_to_what_its_parent_keeps() -> None:
    payload.dumps(np.ones(LARGE // 8)).release()
    assert segment._free_list
    if (pid := os.fork()) == 0:
        os._exit(len(segment._free_list))
    assert os.waitpid(pid, 0)[1] == 0
    assert segment._free_list


def test_what_may_still_be_read_is_not_used_again() -> None:
    packed = payload.dumps(np.ones(LARGE // 8))
    kept = list(segment._free_list)
    packed.read = False
    packed.release()
    assert segment._free_list == kept
    assert packed.fds == ()


def test_shared_memory_that_is_too_short_is_an_error() -> None:
    packed = payload.dumps(np.ones(LARGE // 8))
    os.ftruncate(packed.fds[0], 100)
    with pytest.raises(OSError, match="ends after 100"):
        payload.loads(packed.body, (os.dup(packed.fds[0]),))
    packed.close()


def test_large_shared_memory_is_not_kept() -> None:
    before = descriptors()
    packed = payload.dumps(np.ones(SMALL // 8))
    assert not packed.small
    packed.release()
    assert descriptors() == before


def test_no_more_than_a_few_are_kept() -> None:
    packed = [payload.dumps(np.ones(LARGE // 8)) for _ in range(20)]
    before = descriptors()
    for one in packed:
        one.release()
    assert descriptors() <= before - 16


def test_without_shared_memory_the_pipe_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(size: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(segment.Segment, "of", fails)
    packed = payload.dumps(np.ones(LARGE))
    assert packed.fds == ()
    assert payload.loads(packed.body).sum() == LARGE


def test_calls_of_every_kind() -> None:
    k = 3

    class Local:
        def method(self, x: int) -> int:
            return x + k

    assert called(jobs.add, 1, b=2) == 3
    assert called(lambda x: x * k, 2) == 6
    assert called(partial(pow, 2), 5) == 32
    assert called(Local().method, 1) == 4
    assert called(len, "abc") == 3


def cell(body: str, **space: Any) -> Any:
    space |= {"__name__": "__main__"}
    exec(body, space)
    return space


def test_a_function_of_a_cell_is_sent_as_it_is_now() -> None:
    space = cell("def f(x, y=1):\n    return len([x]) + y")
    f = space["f"]
    assert called(f, 3) == called(f, 3) == 2
    f.__defaults__ = (5,)
    assert called(f, 3) == 6
    space["len"] = lambda _: 100  # a global of that name is there only now
    assert called(f, 3) == 105
    space["len"] = lambda _: 200
    assert called(f, 3) == 205
    f.__code__ = cell("def f(x, y=1):\n    return -x")["f"].__code__
    assert called(f, 3) == -3


def test_a_function_that_refers_to_nothing_is_pickled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    f = cell("def f(x):\n    return x + 1")["f"]
    called(f, 1)
    monkeypatch.setattr(payload, "dumps_in_band", pytest.fail)
    assert called(f, 2) == 3


def test_a_heavy_function_is_told_of_and_a_light_one_is_not() -> None:
    heavy = np.zeros(2 * 2**20)
    with pytest.warns(UserWarning, match="carries 16 MB"):
        payload.dumps_call(lambda: heavy.sum(), (), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        payload.dumps_call(jobs.add, (heavy,), {})


def test_what_cannot_be_pickled_is_the_callers_error() -> None:
    import threading

    with pytest.raises((TypeError, pickle.PicklingError), match="lock"):
        payload.dumps_call(jobs.add, (threading.Lock(),), {})


def test_conjugate_and_meta_tensors_travel() -> None:
    conjugate = torch.complex(torch.ones(2), torch.ones(2)).conj()
    assert torch.equal(through(conjugate), conjugate)
    assert through(torch.empty(2, device="meta")).is_meta


@pytest.mark.parametrize("new", [1.0, True])
def test_an_equal_default_of_another_type_is_seen(new: bool | float) -> None:
    f = cell("def f(x, y=1):\n    return repr(y)")["f"]
    for default in (1, new):
        f.__defaults__ = (default,)
        fn, args, _ = payload.loads(payload.dumps_call(f, (0,), {}).body)
        assert fn(*args) == repr(default)


LEAVES = st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.booleans()
PLAIN = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=8,
)


@settings(max_examples=100)
@given(PLAIN)
def test_plain_values_come_back_the_same(value: Any) -> None:
    assert repr(through(value)) == repr(value)


@pytest.mark.parametrize("size", [LARGE // 2, LARGE, LARGE + 1])
def test_what_is_large_goes_through_shared_memory_and_the_pipe_gets_little(size: int) -> None:
    packed = payload.dumps(np.ones(size, np.uint8))
    assert bool(packed.fds) == (size >= LARGE)
    assert packed.size >= size
    assert len(packed.body) < 1000 or not packed.fds
    packed.close()


@pytest.mark.parametrize("n", [2, LARGE])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: torch.arange(2.0 * n).reshape(1, -1)[:, n],
        lambda n: torch.ones(n, dtype=torch.complex64).mul(1j).conj().imag,
        lambda n: torch.arange(n).reshape(2, -1).T,
        lambda n: torch.ones(1).expand(n),
        lambda n: torch.arange(2 * n)[::2],
        lambda n: torch.ones(n, dtype=torch.bool),
        lambda n: torch.tensor(2.5),
    ],
    ids=["one of a row", "negative", "transposed", "expanded", "strided", "bool", "scalar"],
)
def test_views_of_tensors_come_back_as_what_they_show(make: Callable[..., Any], n: int) -> None:
    tensor = make(n)
    back = through({"t": tensor})["t"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert back.tolist() == tensor.tolist()


@pytest.mark.parametrize("n", [4, LARGE])
def test_a_module_keeps_its_parameters_and_that_they_learn(n: int) -> None:
    module = torch.nn.Linear(n, 1, bias=False)
    back = through(module)
    assert torch.equal(back.weight, module.weight)
    assert isinstance(back.weight, torch.nn.Parameter)
    assert back.weight.requires_grad
    with torch.no_grad():
        back.weight.zero_()
    assert module.weight.abs().sum() > 0


def test_of_a_slice_of_an_array_only_what_it_shows_is_sent() -> None:
    assert payload.dumps(np.zeros(64 * LARGE)[:4]).size < 10_000


@pytest.mark.parametrize(
    "array",
    [np.array([1, "a", None], object), np.array(["ü", "bc"]), np.zeros(2, [("a", "i4"), ("b", "f8")]), np.array(3)],
    ids=["objects", "text", "records", "scalar"],
)  # fmt: skip
def test_arrays_of_other_kinds(array: np.ndarray[Any, Any]) -> None:
    back = through(array)
    assert back.dtype == array.dtype
    assert back.tolist() == array.tolist()


def test_pickling_that_fails_leaves_no_descriptor() -> None:
    before = descriptors()
    with pytest.raises(TypeError):
        payload.dumps([np.zeros(LARGE), (i for i in range(3))])
    assert descriptors() == before


def test_a_payload_that_is_dropped_or_closed_twice_gives_its_descriptor_back_once() -> None:
    before = descriptors()
    packed = payload.dumps(np.zeros(LARGE))
    assert descriptors() == before + 1
    packed.close()
    packed.close()
    assert descriptors() == before
    dropped = payload.dumps(np.zeros(LARGE))
    del dropped
    assert descriptors() == before


@pytest.mark.parametrize(
    ("fn", "args", "kwargs", "result"),
    [
        (partial(jobs.add, b=3), (1,), {}, 4),
        (partial(partial(pow, 2), 3), (), {}, 8),
        ("grüße".replace, ("g", "G"), {}, "Grüße"),
        (lambda *, k=2: k, (), {"k": 5}, 5),
        (dict.fromkeys, ("ab", 0), {}, {"a": 0, "b": 0}),
    ],
    ids=["partial", "nested partial", "bound", "keyword only", "class method"],
)
def test_calls_of_other_kinds(
    fn: Callable[..., Any], args: tuple[int | str, ...], kwargs: dict[str, Any], result: dict[str, Any]
) -> None:
    assert called(fn, *args, **kwargs) == result
