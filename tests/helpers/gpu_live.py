"""A kernel with CUDA awake: makes a pool, sends CUDA tensors as arguments, prints what came of it as JSON."""

import json
import os
import signal
from typing import Any

import gpu_dry
import gpu_jobs
import torch

from mgpu_nb import GPUPool, devices


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if gpu_dry.DRY:
        import pytest

        gpu_dry.install(pytest.MonkeyPatch())
        device = "cpu"
        gpu_dry.wake()
    else:
        torch.cuda.init()
        device = "cuda"
    base = torch.arange(24.0, device=device).reshape(4, 6)
    tensors = {
        "plain": base,
        "bf16": base.bfloat16(),
        "transposed": base.t(),
        "strided": base[::2, 1::2],
        "requires_grad": base.clone().requires_grad_(),
        "of_a_graph": base.clone().requires_grad_() * 2,
        "half": base.half(),
        "long": base.long(),
        "bool": base > 3,
        "empty": base[:0],
        "scalar": base.sum(),
        "large": torch.ones(2**22, device=device),
    }
    found: dict[str, Any] = {
        "awake": torch.cuda.is_initialized(),
        "uuid": devices().gpus[0].uuid,
        "pid": os.getpid(),
        "user": os.getuid(),
    }
    with GPUPool([0], isolation="task") as pool:
        found["sees"] = pool.submit(gpu_jobs.sees).result(40)
        found["told"] = pool.submit(gpu_jobs.told, tensors).result(20)
        found["sent"] = gpu_jobs.told({name: tensor.cpu() for name, tensor in tensors.items()})
        found["sum_on_gpu"] = pool.submit(gpu_jobs.on_gpu_sum, base).result(20)
        found["keyword_sum"] = pool.submit(gpu_jobs.on_gpu_sum, tensor=base.bfloat16().t()).result(20)
        back = pool.submit(gpu_jobs.values).result(20)
        found["values_on"] = sorted({t.device.type for t in back.values() if isinstance(t, torch.Tensor)})
    found["still_works"] = float((base * 2).sum())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
