"""What a worker may send: plain data of the right types, or nothing of it is believed."""

import math
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ids import steady

from mgpu_nb.engines.protocol import (
    Failure,
    Measured,
    ProtocolError,
    Reported,
    pack,
    unpack,
    unpack_failure,
    unpack_measured,
    unpack_memory,
    unpack_reported,
)

MEASURED = Measured(1.5, 2, None, 3, 4, 5, True, "stored")
FAILURE = Failure("ValueError", "bad \ud800", "trace", False, b"\x80", MEASURED)
READERS: list[Callable[[bytes], Any]] = [
    unpack_measured,
    unpack_failure,
    unpack_memory,
    lambda packed: unpack_reported(packed, b""),
]


def test_messages_come_back() -> None:
    assert unpack_measured(pack(MEASURED)) == MEASURED
    assert unpack_measured(b"") is None
    assert unpack_failure(pack(FAILURE)) == FAILURE
    values = {"a": 1, "b": 2.5, "c": "text", "d": None, "e": True, "f": math.inf}
    assert unpack_reported(pack((values, b"last")), b"lines") == Reported(values, b"lines", b"last")
    assert unpack_memory(pack((1, 2))) == (1, 2)


class Acts:
    def __reduce__(self) -> Any:
        return os.putenv, ("MGPU_TEST", "acted")


@pytest.mark.parametrize(
    "sent",
    [
        Acts(),
        os.system,
        [Acts()],
        MEASURED,
        ValueError("x"),
        "text",
        None,
        3,
        (),
        (1,),
        {},
        ("a", "b"),
        (1.0, 2.0),
    ],
    ids=steady,
)
def test_what_is_not_of_the_right_types_is_refused(sent: Any) -> None:
    packed = pickle.dumps(sent)
    for read in READERS:
        with pytest.raises(ProtocolError):
            read(packed)


@pytest.mark.parametrize(
    ("message", "name", "value"),
    [(MEASURED, "seconds", "long"), (MEASURED, "held", None), (MEASURED, "peak_rss", 1.5), (MEASURED, "stored", b"")],
)  # fmt: skip
def test_each_part_has_its_type(message: Measured, name: str, value: Any) -> None:
    changed = message._replace(**{name: value})
    with pytest.raises(ProtocolError):
        unpack_measured(pack(changed))
    failure = Failure("E", "m", "t", False, b"", changed)
    with pytest.raises(ProtocolError):
        unpack_failure(pack(failure))


@pytest.mark.parametrize("values", [{1: 2}, {"a": [1]}, {"a": b""}, {"a": (1, 2)}])
def test_only_plain_values_are_reported(values: dict[Any, Any]) -> None:
    with pytest.raises(ProtocolError):
        unpack_reported(pack((values, b"")), b"")


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_and_run_nothing(data: bytes) -> None:
    for packed in (data, b"\x80\x05" + data):
        for read in READERS:
            try:
                read(packed)
            except Exception:
                continue


def test_a_class_is_refused_before_anything_runs() -> None:
    with pytest.raises(ProtocolError, match="putenv"):
        unpack(pickle.dumps(Acts()))
