"""How failures are told."""

import pickle
import signal

import pytest
import torch

from mgpu_nb import TaskError
from mgpu_nb.engines.protocol import Failure
from mgpu_nb.errors import message_of, out_of_memory
from mgpu_nb.scheduler.outcome import describe_exit, revive


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "with the server"), (0, "os._exit was called"), (3 << 8, "exit code 3"),
        (signal.SIGSEGV, "segmentation fault"), (signal.SIGKILL, "SIGKILL"), (signal.SIGBUS, "bus error"),
        (signal.SIGUSR1, "ended by SIGUSR1"), (64, "ended by SIGRTMAX"), (63, "ended by signal 63"),
    ],
)  # fmt: skip
def test_ends_in_words(status, words):
    assert words in describe_exit(None if status is None else int(status))


class Mute(Exception):
    def __str__(self):
        raise ValueError


def test_out_of_memory_is_recognised():
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"))
    assert not out_of_memory(RuntimeError("shapes"))
    assert not out_of_memory(ValueError("not enough memory"))
    assert message_of(Mute()) == "<its message raised ValueError>"


def failure(**more):
    return Failure(
        kind="KeyError", message="'x'", traceback='  File "a.py", line 1, in f\n', out_of_memory=False, **more
    )


def test_an_exception_comes_back_with_the_remote_traceback():
    error, text = revive(failure(exception=pickle.dumps(KeyError("x"))))
    assert isinstance(error, KeyError)
    assert text.strip() in str(error.__cause__)


@pytest.mark.parametrize("pickled", [b"", b"rubbish", pickle.dumps("no exception")])
def test_one_that_does_not_survive_comes_as_a_task_error(pickled):
    error, _ = revive(failure(exception=pickled))
    assert type(error) is TaskError
    assert str(error) == "KeyError: 'x'"
