"""Values on the wire: layouts, views and functions that are easily got wrong."""

import os
from functools import partial

import jobs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu_nb.engines import payload
from mgpu_nb.engines.payload import LARGE

LEAVES = st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.booleans()
PLAIN = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=8,
)


def through(value):
    packed = payload.dumps(value)
    back = payload.loads(packed.body, tuple(map(os.dup, packed.fds)))
    packed.close()
    return back


def called(fn, *args, **kwargs):
    packed = payload.dumps_call(fn, args, kwargs)
    fn, args, kwargs = payload.loads(packed.body, tuple(map(os.dup, packed.fds)))
    return fn(*args, **kwargs)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_plain_values_come_back_the_same(value):
    assert repr(through(value)) == repr(value)


@pytest.mark.parametrize("size", [LARGE // 2, LARGE, LARGE + 1])
def test_what_is_large_goes_through_shared_memory_and_the_pipe_gets_little(size):
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
def test_views_of_tensors_come_back_as_what_they_show(make, n):
    tensor = make(n)
    back = through({"t": tensor})["t"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert back.tolist() == tensor.tolist()


@pytest.mark.parametrize("n", [4, LARGE])
def test_a_module_keeps_its_parameters_and_that_they_learn(n):
    module = torch.nn.Linear(n, 1, bias=False)
    back = through(module)
    assert torch.equal(back.weight, module.weight)
    assert isinstance(back.weight, torch.nn.Parameter)
    assert back.weight.requires_grad
    with torch.no_grad():
        back.weight.zero_()
    assert module.weight.abs().sum() > 0


def test_of_a_slice_of_an_array_only_what_it_shows_is_sent():
    assert payload.dumps(np.zeros(64 * LARGE)[:4]).size < 10_000


@pytest.mark.parametrize(
    "array",
    [np.array([1, "a", None], object), np.array(["ü", "bc"]), np.zeros(2, [("a", "i4"), ("b", "f8")]), np.array(3)],
    ids=["objects", "text", "records", "scalar"],
)  # fmt: skip
def test_arrays_of_other_kinds(array):
    back = through(array)
    assert back.dtype == array.dtype
    assert back.tolist() == array.tolist()


def test_pickling_that_fails_leaves_no_descriptor():
    before = descriptors()
    with pytest.raises(TypeError):
        payload.dumps([np.zeros(LARGE), (i for i in range(3))])
    assert descriptors() == before


def test_a_payload_that_is_dropped_or_closed_twice_gives_its_descriptor_back_once():
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
def test_calls_of_other_kinds(fn, args, kwargs, result):
    assert called(fn, *args, **kwargs) == result
