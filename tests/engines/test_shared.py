"""What several calls of a batch have travels once."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mgpu_nb import Task
from mgpu_nb.engines import payload
from mgpu_nb.engines.payload import LARGE, Payload
from mgpu_nb.engines.segment import Segment
from mgpu_nb.engines.shared import MAX_SEGMENTS, SharedCalls
from mgpu_nb.runs.fingerprint import fingerprint


def given(*args: Any) -> tuple[Any, ...]:
    return args


def packed(*calls: tuple[Any, ...], fn: Callable[..., Any] = given) -> list[Payload]:
    batch = SharedCalls()
    payloads = [batch.dumps_call(fn, args, {}) for args in calls]
    batch.place()
    return payloads


def unpacked(call: Payload) -> Any:
    fn, args, kwargs = payload.loads(call.body, tuple(map(os.dup, call.fds)))
    return fn(*args, **kwargs)


def files(calls: list[Payload]) -> set[int]:
    return {os.fstat(fd).st_ino for call in calls for fd in call.fds}


def closure(value: Any) -> Callable[[Any], Any]:
    return lambda n: (value, n)


ARRAY = np.random.default_rng(0).random(2**17)
SHARED = [
    ARRAY,
    ARRAY[::-2],
    torch.arange(2**18),
    torch.rand(600, 600).t(),
    os.urandom(2**20),
    bytearray(os.urandom(2**20)),
    "äb" * 2**18,
    torch.nn.Linear(400, 400),
    [ARRAY, {"a": (1, ARRAY[: 2**16])}],
    partial(given, ARRAY),
    closure(ARRAY),
]


@pytest.mark.parametrize("value", SHARED, ids=lambda value: type(value).__name__)
def test_what_is_given_to_many_calls_is_held_once(value: Any) -> None:
    calls = packed(*((n, value) for n in range(20)))
    assert len(files(calls)) == 1
    assert all(len(call.body) < LARGE for call in calls)
    assert [unpacked(call)[0] for call in calls] == list(range(20))
    identity = [fingerprint(Task(given, each), 0) for each in (value, unpacked(calls[-1])[1])]
    assert identity[0] == identity[1]


def test_calls_that_are_the_function_alone_share_what_it_carries() -> None:
    calls = packed((1,), (2,), fn=closure(ARRAY))
    assert len(files(calls)) == 1
    for n, call in enumerate(calls, 1):
        array, number = unpacked(call)
        assert np.array_equal(array, ARRAY)
        assert number == n


def test_what_is_of_one_call_alone_is_beside_what_is_shared() -> None:
    calls = packed(*((ARRAY, np.full(2**16, n), "x" * n) for n in range(3)))
    assert len(files(calls)) == 4
    for n, call in enumerate(calls):
        array, own, text = unpacked(call)
        assert np.array_equal(array, ARRAY)
        assert (own == n).all()
        assert len(text) == n


def test_an_array_and_a_part_of_it_are_two() -> None:
    arrays: tuple[np.ndarray[Any, Any], ...] = ARRAY, ARRAY[: 2**16], ARRAY.view(np.uint8)
    calls = packed(*((array,) for array in arrays))
    for call, expected in zip(calls, arrays, strict=True):
        assert np.array_equal(unpacked(call)[0], expected)
    assert unpacked(calls[2])[0].dtype == np.uint8


def test_more_shared_values_than_a_frame_has_descriptors_for() -> None:
    arrays = [np.full(2**15, n) for n in range(2 * MAX_SEGMENTS)]
    calls = packed((arrays,), *((array,) for array in arrays))  # each pair has its own set of users
    assert len(calls[0].fds) <= MAX_SEGMENTS + 1
    assert all((a == b).all() for a, b in zip(unpacked(calls[0])[0], arrays, strict=True))
    for call, array in zip(calls[1:], arrays, strict=True):
        assert (unpacked(call)[0] == array).all()


def test_many_values_of_the_same_calls_are_one_segment() -> None:
    arrays = [np.full(2**15, n) for n in range(50)]
    calls = packed((arrays, 1), (arrays, 2), (arrays, 3))
    assert len(files(calls)) == 1


def test_memory_goes_with_the_last_call() -> None:
    calls = packed((ARRAY, 1), (ARRAY, 2))
    fd = calls[0].fds[0]
    calls[0].release()
    assert np.array_equal(unpacked(calls[1])[0], ARRAY)
    calls[1].close()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)


def test_a_change_stays_with_the_call_that_made_it() -> None:
    one, two = packed((ARRAY,), (ARRAY,))
    unpacked(one)[0][:] = 0
    assert np.array_equal(unpacked(two)[0], ARRAY)


def test_without_descriptors_each_call_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: int) -> Segment:
        raise OSError("no descriptor left")

    monkeypatch.setattr(Segment, "of", refuse)
    for n, call in enumerate(packed((ARRAY, 0), (ARRAY, 1))):
        assert call.fds == ()
        assert unpacked(call)[1] == n
