"""Copies of a GPU's tensors on the host: memory that is there, laid out as the tensor is."""

import pytest
import torch

from mgpu_nb.hardware.host_copy import filled, host_copy
from mgpu_nb.hardware.libc import libc

LARGE = torch.arange(2**20, dtype=torch.float32).reshape(1024, 1024)
TENSORS = {
    "contiguous": LARGE,
    "transposed": LARGE.t(),
    "every other": LARGE[:, ::2],
    "expanded": LARGE[:1].expand(1024, 1024),
    "conjugate": torch.complex(LARGE, LARGE).conj(),
    "channels last": LARGE.reshape(1, 4, 512, 512).to(memory_format=torch.channels_last),
    "bf16": LARGE.bfloat16(),
    "float8": LARGE.to(torch.float8_e4m3fn),
    "bool": LARGE > 5,
    "small": LARGE[0, :3],
    "none": LARGE[:0],
    "scalar": torch.tensor(3.5),
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_is_filled_takes_a_copy(name: str) -> None:
    tensor = TENSORS[name]
    made = filled(tensor)
    assert (made.dtype, made.shape, made.device.type) == (tensor.dtype, tensor.shape, "cpu")
    assert made.stride() == torch.empty_like(tensor).stride()
    assert not made.to(torch.complex64 if tensor.is_complex() else torch.float32).any()
    made.copy_(tensor)
    assert torch.equal(made.to(torch.complex64), tensor.to(torch.complex64))


def test_a_refusal_of_large_pages_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(address: int, size: int, advice: int) -> int:
        asked.append((address % 4096, size % 4096, advice))
        return -1

    monkeypatch.setattr(libc, "madvise", refuse)
    assert not filled(LARGE).any()
    assert asked == [(0, 0, 14)]


def test_a_tensor_of_the_host_is_not_copied() -> None:
    weight = LARGE.clone().requires_grad_()
    copied = host_copy(weight)
    assert copied.data_ptr() == weight.data_ptr()
    assert not copied.requires_grad
