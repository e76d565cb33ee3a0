"""Keys and values of a sequence that grows by a token at a time, written in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["GrowingLayer", "growing_cache"]

_ROOM = 64  # tokens that are made room for at a time


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Layer of a cache with room for tokens to come; transformers' own copies all keys and values for every token."""

    keys: Tensor
    values: Tensor
    _rooms: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, heads, T, width]; all of them, which are views of the room."""
        before = self.get_seq_length()
        after = before + key_states.shape[2]
        rooms = self._rooms
        if rooms is None or rooms[0].shape[0] != key_states.shape[0] or rooms[0].shape[2] < after:
            super().update(key_states, value_states, *args, **kwargs)
            rooms = self._rooms = _with_room(self.keys), _with_room(self.values)
        else:
            rooms[0][:, :, before:after] = key_states
            rooms[1][:, :, before:after] = value_states
        self.keys, self.values = rooms[0][:, :, :after], rooms[1][:, :, :after]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, which can be repeated."""
        super().reorder_cache(beam_idx)
        self._rooms = None


def _with_room(states: Tensor) -> Tensor:
    """States [B, heads, T, width] as the beginning of a tensor with `_ROOM` more tokens."""
    batch, heads, length, width = states.shape
    room = states.new_empty(batch, heads, length + _ROOM, width)
    room[:, :, :length] = states
    return room


def growing_cache(config: Any) -> DynamicCache:
    """Empty cache of the kinds of layers that a configuration asks for, written in place; not for training."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
