"""Calls of a batch: what several of them have is copied into shared memory once, and mapped by every worker.

Parts of two calls are the same if they lie at the same place in the memory of this process, or are equal bytes: an
array, a tensor or a model that is given to many tasks, in whatever it is wrapped. All calls are pickled before any of
them is copied, so that nothing can change in between.
"""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any, NamedTuple

from . import payload
from .payload import LARGE, Draft, Payload
from .pickler import CallPickler, tensor_bytes
from .segment import Segment

__all__ = ["SharedCalls"]

MAX_SEGMENTS = 7  # that a call refers to beside its own: a frame carries eight descriptors


class _Place(NamedTuple):
    """Where a shared part is."""

    segment: Segment
    start: int
    size: int


class _Pickler(CallPickler):
    """Pickler that makes one contiguous copy of what is not contiguous, or on a GPU, for all calls."""

    def __init__(self, *args: Any, copies: dict[Hashable, tuple[Any, Any]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._copies = copies  # with what they were made of, whose place in memory must not become another's

    def bytes_of(self, tensor: Any) -> Any:
        """Bytes of a tensor."""
        if tensor.numel() * tensor.element_size() < LARGE:
            return tensor_bytes(tensor)
        key = (
            tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(),
            tensor.is_neg(),
        )  # fmt: skip
        if key not in self._copies:
            self._copies[key] = tensor, tensor_bytes(tensor)
        return self._copies[key][1]

    def reducer_override(self, obj: Any) -> Any:
        """How to pickle an object."""
        np = sys.modules.get("numpy")
        array = np is not None and type(obj) is np.ndarray and not obj.dtype.hasobject
        if array and obj.nbytes >= LARGE and not obj.flags.forc:
            if id(obj) not in self._copies:
                self._copies[id(obj)] = obj, obj.copy()
            return self._copies[id(obj)][1].__reduce_ex__(5)
        return super().reducer_override(obj)


class SharedCalls:
    """Pickles the calls of a batch; `place` has to be called when all are, and completes their payloads."""

    def __init__(self) -> None:
        self._drafts: list[tuple[Draft, Payload]] = []
        self._copies: dict[Hashable, tuple[Any, Any]] = {}
        self._bytes: dict[bytes, bytes] = {}  # equal ones, by which each of them is replaced

    def dumps_call(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Payload:
        """Pickle a call, see `payload.dumps_call`; what is large is left to `place`."""
        return payload.dumps_call(fn, args, kwargs, self._pack)

    def _pack(self, value: Any) -> Payload:
        draft = payload.draft(value, partial(_Pickler, copies=self._copies))
        if not draft.large:
            return draft.place()
        for at, part in enumerate(draft.parts):
            if type(part) is bytes and len(part) >= LARGE:
                draft.parts[at] = self._bytes.setdefault(part, part)
        packed = Payload(b"")
        draft.annotate(packed)
        self._drafts.append((draft, packed))
        return packed

    def place(self) -> None:
        """Copy what is large: once what several calls have, and beside it what is of one alone."""
        shared = self._shared()
        while self._drafts:
            _place(*self._drafts.pop(), shared)
        self._copies.clear()
        self._bytes.clear()

    def _shared(self) -> dict[Hashable, _Place]:
        """Copies of what several calls have, by key. What the same calls have is in one segment."""
        uses: Counter[Hashable] = Counter()
        users: dict[Hashable, int] = {}
        views: dict[Hashable, memoryview] = {}
        for number, (draft, _) in enumerate(self._drafts):
            for key, view in dict(_keyed(draft)).items():
                uses[key] += 1
                users[key] = hash((users.get(key), number))
                views[key] = view
        groups: dict[int, list[Hashable]] = {}
        for key, number in uses.items():
            if number > 1:
                groups.setdefault(users[key], []).append(key)
        places: dict[Hashable, _Place] = {}
        for keys in groups.values():
            try:
                segment = Segment.of(sum(views[key].nbytes for key in keys))
            except OSError:  # no descriptor left: each call has a copy, or goes through the pipe
                continue
            places |= {key: _Place(segment, *segment.append(views[key])) for key in keys}
        return places


def _keyed(draft: Draft) -> Iterator[tuple[Hashable, memoryview]]:
    """Large parts of a pickle with what they are known by: their place in memory."""
    for part in (*draft.parts, *draft.buffers):
        if (key := _key(part)) is not None:
            yield key, memoryview(part)


def _key(part: Any) -> Hashable:
    import numpy as np

    if (size := memoryview(part).nbytes) < LARGE:
        return None
    return np.frombuffer(part, np.uint8).__array_interface__["data"][0], size


def _place(draft: Draft, packed: Payload, shared: dict[Hashable, _Place]) -> None:
    """Complete a payload: by places in segments, its own first, then those that it shares."""
    known = {key: shared[key] for key, _ in _keyed(draft) if key in shared}
    segments = tuple(dict.fromkeys(place.segment for place in known.values()))[:MAX_SEGMENTS]
    if not segments:
        alone = draft.place()
        packed.body, packed.segment = alone.body, alone.segment
        return

    def is_shared(part: Any) -> bool:
        place = known.get(_key(part))
        return place is not None and place.segment in segments

    size = sum(memoryview(part).nbytes for part in (*draft.parts, *draft.buffers) if not is_shared(part))
    own = None
    if size >= LARGE:
        try:
            own = Segment.of(size)
        except OSError:
            packed.body = payload.dumps_in_band(draft.value).body
            return

    def place_of(part: Any) -> tuple[int, int, int]:
        if own is not None and not is_shared(part):
            return (0, *own.append(part))
        segment, start, size = known[_key(part)]
        return segments.index(segment) + (own is not None), start, size

    stream: list[Any] = []
    for part in draft.parts:
        if own is not None or is_shared(part):
            stream.append(place_of(part))
        elif stream and type(stream[-1]) is bytes:
            stream[-1] += part
        else:
            stream.append(bytes(part))
    packed.body = pickle.dumps((stream, [place_of(view) for view in draft.buffers]), 5)
    packed.segment, packed.shared = own, segments
