"""CUDA tensors as values and arguments: they come as CPU tensors, bit for bit, and wake no CUDA where they arrive."""

from pathlib import Path
from typing import Any

import gpu_jobs
import torch
from gpu_fixtures import Figures

from mgpu_nb import GPUPool, Run, Task


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.device.type == "cpu"
    assert (found.dtype, found.shape, found.requires_grad) == (
        wanted.dtype,
        wanted.shape,
        wanted.requires_grad,
    )
    assert torch.equal(found.detach(), wanted.detach())


def wanted() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    large = torch.arange(2**20).reshape(1024, 1024)
    return {
        "plain": base,
        "bf16": base.bfloat16(),
        "half": base.half(),
        "transposed": base.t(),
        "strided": base[::2, 1::2],
        "requires_grad": base.clone().requires_grad_(),
        "of_a_graph": (base * 2).requires_grad_(),
        "scalar": base.sum(),
        "empty": base[:0],
        "long": base.long(),
        "bool": base > 3,
        "complex": torch.complex(base, -base).conj(),
        "large": torch.ones(2**22),
        "large transposed": large.t(),
        "large strided": large[::2, 1:].bfloat16(),
        "large expanded": large[:1].expand(1024, 1024),
        "large complex": torch.complex(large.float(), -large.float()).conj(),
    }


def test_values_come_as_cpu_tensors(tmp_path: Path, figures: Figures) -> None:
    with GPUPool([0]) as pool:
        plain = pool.submit(gpu_jobs.values).result(25)
        run = pool.run([Task(gpu_jobs.values, name="values")], folder=tmp_path / "run")
        value = run.results(25)[0]
    for found in (plain, value):
        for name, tensor in wanted().items():
            same(found[name], tensor)
        same(found["nested"]["list"][1], wanted()["bf16"])
        assert {parameter.device.type for parameter in found["model"].parameters()} == {"cpu"}
        assert found["model"](torch.ones(1, 3)).shape == (1, 2)
    assert not torch.cuda.is_initialized()


def test_values_on_disk_are_the_same(tmp_path: Path) -> None:
    with GPUPool([0]) as pool:
        pool.run([Task(gpu_jobs.only_tensors, name="tensors")], name="kept", folder=tmp_path / "run").results(
            25
        )
    (record,) = Run.open(tmp_path / "run").records
    for name, tensor in record.value.items():
        assert torch.equal(tensor, wanted()[name].detach())


def test_arguments_from_a_kernel_with_cuda_awake(live_kernel: dict[str, Any]) -> None:
    assert live_kernel["told"] == live_kernel["sent"]
    assert {name: entry[0] for name, entry in live_kernel["told"].items()} == dict.fromkeys(
        live_kernel["sent"], "cpu"
    )
    assert live_kernel["sum_on_gpu"] == live_kernel["keyword_sum"] == 276.0
    assert live_kernel["values_on"] == ["cpu"]


def test_an_argument_is_brought_to_the_gpu_by_the_task() -> None:
    with GPUPool([0]) as pool:
        assert pool.submit(gpu_jobs.on_gpu_sum, torch.ones(2**21, dtype=torch.bfloat16)).result(25) == 2.0**21
