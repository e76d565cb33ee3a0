"""Limits of the system: raised, or told with their numbers."""

import os
import resource
from typing import Any

import pytest

from mgpu_nb import GPUPool
from mgpu_nb.engines import limits


class Limits:
    """Limits that a test sets, in place of this process's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.now = (soft, hard)
        monkeypatch.setattr(resource, "getrlimit", lambda which: self.now)
        monkeypatch.setattr(resource, "setrlimit", self.set)

    def set(self, which: int, wanted: tuple[int, int]) -> None:
        soft, hard = wanted
        if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
            raise ValueError("not allowed to raise maximum limit")
        self.now = wanted


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(limits, "_open_descriptors", lambda: 100)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return lambda soft, hard: Limits(monkeypatch, soft, hard)


def test_the_soft_limit_is_raised_as_far_as_is_needed(few: Any) -> None:
    limit = few(256, 20_000)
    limits.check_limits(64)
    assert limit.now == (2 * (100 + 64 * limits.PER_SLOT + limits.BESIDE), 20_000)
    limit = few(256, resource.RLIM_INFINITY)
    limits.check_limits(64)
    assert limit.now[0] > 256
    limit = few(10_000, 10_000)
    limits.check_limits(64)
    assert limit.now == (10_000, 10_000)


def test_a_hard_limit_that_is_half_enough_is_enough(few: Any) -> None:
    limit = few(256, 600)
    limits.check_limits(64)
    assert limit.now == (600, 600)


def test_too_few_descriptors_are_refused_with_the_numbers(few: Any) -> None:
    few(256, 300)
    with pytest.raises(
        OSError, match=r"64 slots need 516 file descriptors.*100 that are open.*`ulimit -n` says 300"
    ):
        limits.check_limits(64)


def test_too_few_processes_are_refused_with_the_numbers(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(limits, "_check_descriptors", lambda slots: None)
    monkeypatch.setattr(limits, "_threads_of_user", lambda: 50)
    few(60, 60)
    limits.check_limits(8)
    with pytest.raises(OSError, match=r"64 slots need 65 processes.*has 50.*of the 60 that `ulimit -u`"):
        limits.check_limits(64)
    limit = few(60, 500)
    limits.check_limits(64)
    assert limit.now == (500, 500)


def test_a_pool_refuses_before_any_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, 64, 64)
    with pytest.raises(OSError, match="ulimit -n"):
        GPUPool("cpu", slots=64)
