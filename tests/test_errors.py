"""What an exception is taken for."""

import torch

from mgpu_nb.errors import message_of, out_of_memory


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_out_of_memory_is_recognised() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"))
    assert not out_of_memory(RuntimeError("shapes"))
    assert not out_of_memory(ValueError("not enough memory"))


def test_a_message_that_fails_is_described() -> None:
    assert message_of(Mute()) == "<its message raised ValueError>"


class Line(str):
    """As `torch._utils.KeyErrorMessage`, which a loader process gives a KeyError of a dataset."""

    def __repr__(self) -> str:
        return self


def test_a_message_is_a_plain_string() -> None:
    message = message_of(KeyError(Line("Caught KeyError in DataLoader worker process 0.")))
    assert type(message) is str
    assert message == "Caught KeyError in DataLoader worker process 0."
