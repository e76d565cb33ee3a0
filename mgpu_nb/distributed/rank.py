"""A rank of a gang that `launch` started: what its process does around the user's function."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from ..context import worker
from .rendezvous import LOOPBACK, Meeting, interface_to, stay_on_loopback, talk_over

__all__ = ["run_rank"]

OTHERS_RECORD = 3.0  # seconds in which the death of another rank becomes the reason of this one's end
ANSWER = 5.0  # seconds in which the store of a gang answers
OTHERS_TIME_OUT = 2.0  # seconds in which ranks that waited for the same collective give up, too
# Seconds. Until 2.9, torch waits for the threads of gloo with the GIL held when a group goes (pytorch/pytorch#154976).
# Such a thread needs the GIL for the tensors of the last collective: it gets it while this one sleeps.
GLOO_LETS_GO = 0.01
_JOINED, _ALL_JOINED = "mgpu_nb/joined", "mgpu_nb/all_joined"
# What gloo says, and the store of a timeout; a user's own error may say the like, and stays what it is.
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
    port: int | None,
    backend: str | None,
    timeout: float,
) -> Any:
    """Be a rank: join the group, call the function, leave the group.

    Parameters
    ----------
    port
        Of the store that the parent process serves on the loopback; None if rank 0 serves it.
    backend
        Of the group; None for nccl if all ranks are on GPUs, else gloo.
    """
    import torch
    import torch.distributed as dist

    meeting = _meeting(rank, world, port, timeout)
    os.environ.update(meeting.environment())
    here = worker()
    if here.device.startswith("cuda"):
        torch.cuda.set_device(here.device)
    if backend is None:
        backend = "nccl" if here.members is not None and here.members.on_gpus else "gloo"
    with meeting.store() as store:
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
            if store.add(_JOINED, 1) == world:
                store.set(_ALL_JOINED, "")
            value = fn(*args, **kwargs)
            # A rank that leaves at once would break the connections that another one is still making.
            with contextlib.suppress(RuntimeError):
                store.wait([_ALL_JOINED], timedelta(seconds=timeout))
        except RuntimeError as error:
            if isinstance(error, dist.DistNetworkError) or _OTHER_IS_GONE.search(str(error)):
                # The parent process learns of that other rank, and ends this one for it.
                time.sleep(OTHERS_RECORD)
            if _TIMED_OUT.search(str(error)):
                raise TimeoutError(_who_was_missing(meeting)) from error
            raise
        finally:
            if backend == "gloo" and torch.__version__ < "2.9":
                time.sleep(GLOO_LETS_GO)
            with contextlib.suppress(Exception):  # it is broken where another rank is gone
                dist.destroy_process_group()
    return value


def _meeting(rank: int, world: int, port: int | None, timeout: float) -> Meeting:
    """Where the ranks meet; gloo and NCCL will talk over the interface by which this one gets there."""
    members = worker().members
    hosts = ("",) * world if members is None else members.hosts
    if port is not None:
        stay_on_loopback()
        return Meeting(rank, hosts, LOOPBACK, port, "", timeout)
    if members is None or members.meeting_point is None:
        raise RuntimeError(f"rank {rank} was not told where rank 0 is")
    address, port = members.meeting_point
    if (interface := interface_to(address)) is not None:
        talk_over(interface)
    return Meeting(rank, hosts, address, port, members.start, timeout)


def _who_was_missing(meeting: Meeting) -> str:
    """Message that names the ranks missing from a collective: those that have not given up waiting for it as well."""
    waited = f"rank {meeting.rank} waited {meeting.timeout:g} s in a collective"
    found: list[list[str]] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            found.append(_missing(meeting))

    # A store whose process was stopped takes a connection and never answers: torch would wait for it without end.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    if not found:
        silent = (
            "rank 0, where ranks meet, does not answer" if meeting.start else "their store does not answer"
        )
        return f"{waited}; {silent}, so it is not known which rank was missing"
    if not found[0]:
        return f"{waited} that all ranks came to; they may have called different ones"
    return f"{waited}; missing: rank {', '.join(found[0])}"


def _missing(meeting: Meeting) -> list[str]:
    """Ranks that have not given up."""
    store = meeting._replace(timeout=ANSWER).join()
    store.set(f"mgpu_nb/timed_out/{meeting.rank}", "1")
    time.sleep(OTHERS_TIME_OUT)
    missing = [rank for rank in range(meeting.world) if not store.check([f"mgpu_nb/timed_out/{rank}"])]
    if meeting.serves:  # the others look there, too
        time.sleep(OTHERS_TIME_OUT)
    return [str(rank) for rank in missing]
