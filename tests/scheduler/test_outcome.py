"""Exceptions brought back to the parent process, and every way a process ends."""

import asyncio
import dataclasses
import linecache
import os
import pickle
import signal
from concurrent.futures import CancelledError
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from mgpu_nb import TaskError
from mgpu_nb.engines.protocol import Failure
from mgpu_nb.scheduler.outcome import describe_exit, outcome_of_failure


def revive(failure: Failure) -> tuple[Any, str]:
    outcome = outcome_of_failure(failure)
    if outcome.decode is not None:
        outcome.decode(outcome)
    return outcome.exception, outcome.traceback


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    pass


class TwoArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} {b}")


class ExitsOnLoad:
    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return exit, (3,)


def failure(pickled: bytes, traceback: str = "  tb\n") -> Failure:
    return Failure(kind="Bad", message="text", traceback=traceback, out_of_memory=False, exception=pickled)


@pytest.mark.parametrize("error", [KeyError("x"), Frozen(), ValueError("ü", 2)], ids=repr)
def test_an_exception_comes_back_with_the_remote_traceback(error: Any) -> None:
    back, _ = revive(failure(pickle.dumps(error)))
    assert type(back) is type(error)
    assert back.args == error.args
    assert "  tb" in str(back.__cause__)


class OwnEnd(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(0), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), CancelledError(),
        StopIteration(7), BaseExceptionGroup("several", [KeyboardInterrupt()]), OwnEnd("mine"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_would_end_the_asking_code_is_the_cause_of_a_task_error(error: Any) -> None:
    kind, message = type(error).__name__, str(error)
    failed = Failure(
        kind=kind, message=message, traceback="  tb\n", out_of_memory=False, exception=pickle.dumps(error)
    )
    outcome = outcome_of_failure(failed, "task 'fit-3'")
    if outcome.decode is not None:
        outcome.decode(outcome)
    assert outcome.exception is not None
    assert type(outcome.exception) is TaskError
    assert str(outcome.exception).startswith(f"task 'fit-3' raised {kind}")
    assert type(outcome.exception.__cause__) is type(error)
    assert "  tb" in str(getattr(outcome.exception.__cause__, "__cause__", None))


def test_an_error_is_one_line_and_all_of_it_is_in_the_exception() -> None:
    message = "device-side assert\nCUDA kernel errors\r\n\tmight be \x1b[31mred\u2028" + "x" * 5_000_000
    outcome = outcome_of_failure(Failure("Bad", message, f"  tb\nBad: {message}\n", False))
    assert outcome.error.startswith("Bad: device-side assert CUDA kernel errors might be red xxx")
    assert outcome.error.isprintable()
    assert len(outcome.error) < 500
    assert str(outcome.exception) == f"Bad: {message}"
    assert message[-100:] in outcome.traceback


@pytest.mark.parametrize(
    "pickled",
    [
        b"", b"rubbish", b"cno.such\nname\n.", pickle.dumps("no exception"), pickle.dumps(ValueError),
        pickle.dumps(TwoArguments(1, 2)), pickle.dumps(ExitsOnLoad()),
    ],
    ids=["nothing", "rubbish", "unknown class", "text", "a class", "arguments", "exits"],
)  # fmt: skip
def test_one_that_does_not_load_comes_as_a_task_error(pickled: bytes) -> None:
    error, text = revive(failure(pickled))
    assert type(error) is TaskError
    assert str(error) == "Bad: text"
    assert text == "  tb\n"


def test_source_is_filled_in_where_only_the_parent_knows_it(tmp_path: Path) -> None:
    cell = tmp_path / "cell.py"  # there is no such file
    text = "first\n    second()\n"
    linecache.cache[str(cell)] = (len(text), None, text.splitlines(keepends=True), str(cell))
    _, text = revive(
        failure(b"", f'  File "{cell}", line 2, in f\n  File "{cell}", line 1, in g\n    there\nBad\n')
    )
    assert (
        text
        == f'  File "{cell}", line 2, in f\n    second()\n  File "{cell}", line 1, in g\n    there\nBad\n'
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "with the server"), (0, "os._exit was called"), (3 << 8, "exit code 3"),
        (signal.SIGSEGV, "segmentation fault"), (signal.SIGKILL, "SIGKILL"), (signal.SIGBUS, "bus error"),
        (signal.SIGUSR1, "ended by SIGUSR1"), (64, "ended by SIGRTMAX"), (63, "ended by signal 63"),
    ],
)  # fmt: skip
def test_exits_in_words(status: int | Signals | None, words: str) -> None:
    assert words in describe_exit(None if status is None else int(status))


CORE = 0x80  # the bit that says that a core was written


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGILL, signal.SIGHUP, 40], ids=str
)
@pytest.mark.parametrize("core", [0, CORE])
def test_every_signal_is_described_by_name_or_number(number: int | Signals, core: int) -> None:
    assert os.waitstatus_to_exitcode(number | core) == -number
    said = describe_exit(number | core)
    assert (number.name if isinstance(number, signal.Signals) else f"signal {number}") in said


@pytest.mark.parametrize("code", [1, 2, 127, 255])
def test_every_exit_code_is_described(code: int) -> None:
    assert f"exit code {code} before the task did" in describe_exit(code << 8)
