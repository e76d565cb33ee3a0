"""A rank of a gang that `launch` started: what its process does around the user's function."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from ..context import worker
from .rendezvous import LOOPBACK, join, stay_on_loopback

__all__ = ["run_rank"]

OTHERS_RECORD = 3.0  # seconds in which the death of another rank becomes the reason of this one's end
OTHERS_TIME_OUT = 0.5  # seconds in which ranks that waited for the same collective give up, too
# Seconds. Until 2.9, torch waits for the threads of gloo with the GIL held when a group goes (pytorch/pytorch#154976).
# Such a thread needs the GIL for the tensors of the last collective: it gets it while this one sleeps.
GLOO_LETS_GO = 0.01
_JOINED, _ALL_JOINED = "mgpu_nb/joined", "mgpu_nb/all_joined"
# What gloo and the store say; a user's own error may say the like, and stays what it is.
_OTHER_IS_GONE = re.compile(
    r"gloo.*(closed by peer|reset by peer|broken pipe|connection refused)", re.I | re.S
)
_TIMED_OUT = re.compile(r"gloo.*timed out waiting \d+ ?ms|wait timeout after \d+ ?ms", re.I | re.S)


def run_rank(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rank: int,
    world: int,
    port: int,
    backend: str,
    timeout: float,
) -> Any:
    """Be a rank: join the group, call the function, leave the group."""
    import torch
    import torch.distributed as dist

    stay_on_loopback()
    os.environ.update(_environment(rank, world, port))
    if (device := worker().device).startswith("cuda"):
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        store = join(LOOPBACK, port, timeout)
        if store.add(_JOINED, 1) == world:
            store.set(_ALL_JOINED, "")
        value = fn(*args, **kwargs)
        # A rank that leaves at once would break the connections that another one is still making.
        with contextlib.suppress(RuntimeError):
            store.wait([_ALL_JOINED], timedelta(seconds=timeout))
        return value
    except RuntimeError as error:
        if _OTHER_IS_GONE.search(str(error)):
            time.sleep(
                OTHERS_RECORD
            )  # the parent process learns of that other rank, and ends this one for it
        if _TIMED_OUT.search(str(error)):
            raise TimeoutError(_who_was_missing(rank, world, port, timeout)) from error
        raise
    finally:
        if backend == "gloo" and torch.__version__ < "2.9":
            time.sleep(GLOO_LETS_GO)
        with contextlib.suppress(Exception):  # it is broken where another rank is gone
            dist.destroy_process_group()


def _environment(rank: int, world: int, port: int) -> dict[str, str]:
    """Environment variables that torchrun sets for a rank of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "ROLE_RANK": str(rank),
        "ROLE_NAME": "default",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_WORLD_SIZE": "1",
        "ROLE_WORLD_SIZE": str(world),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the parent process serves the store, as torchrun's agent does
    }


def _who_was_missing(rank: int, world: int, port: int, timeout: float) -> str:
    """Message that names the ranks missing from a collective: those that have not given up waiting for it as well."""
    waited = f"rank {rank} waited {timeout:g} s in a collective"
    try:
        store = join(LOOPBACK, port, timeout=5.0)
        store.set(f"mgpu_nb/timed_out/{rank}", "1")
        time.sleep(OTHERS_TIME_OUT)
        there = [other for other in range(world) if store.check([f"mgpu_nb/timed_out/{other}"])]
    except Exception:
        return f"{waited}; which rank was missing could not be found out"
    missing = [str(other) for other in range(world) if other not in there]
    if not missing:
        return f"{waited} that all ranks came to; they may have called different ones"
    return f"{waited}; missing: rank {', '.join(missing)}"
