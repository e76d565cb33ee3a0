"""largest_batch: what fits, by trying."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch

from mgpu_nb import GPUPool, largest_batch
from mgpu_nb.studies import batch_size, remembered
from mgpu_nb.studies.remembered import Bracket, Remembered, cache_folder
from mgpu_nb.views import progress


@pytest.mark.slow
def test_finds_the_exact_size(pool: GPUPool) -> None:
    assert largest_batch(jobs.fits_up_to_37, pool) == 37
    assert largest_batch(jobs.fits_up_to_37, pool, start=30) == 37


def test_it_says_what_it_tries(
    pool: GPUPool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    assert largest_batch(jobs.fits_up_to_37, pool, progress=True, fresh=True) == 37
    said = capsys.readouterr().err
    assert "at least 0; trying 1" in said
    assert re.search(r"largest batch: 37 in \d+:\d\d", said)


def test_the_share_of_the_trials_grows() -> None:
    tried = [(0, 1025), (32, 1025), (32, 64), (32, 48), (36, 40), (37, 38)]
    shares = [batch_size._share(*each, 0.0) for each in tried]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert all(0 <= share <= 1 for share in shares)


def test_stops_at_the_limit_and_at_the_tolerance(pool: GPUPool) -> None:
    assert largest_batch(jobs.fits_up_to_37, pool, limit=20) == 20
    assert 33 <= largest_batch(jobs.fits_up_to_37, pool, tolerance=0.1) <= 37


def test_nothing_fits(pool: GPUPool) -> None:
    assert largest_batch(jobs.out_of_memory_for, pool, start=8) == 0


def test_a_process_that_allocates_too_much(pool: GPUPool) -> None:
    n = largest_batch(torch.empty, pool, start=2**20, limit=2**62, tolerance=0.5)  # of floats, none touched
    assert 2**20 <= n < 2**62


def test_other_errors_come_through(pool: GPUPool) -> None:
    with pytest.raises(ValueError, match="1"):
        largest_batch(jobs.raises, pool)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"start": 0}, {"start": 9, "limit": 8}, {"tolerance": 1.0}])
def test_bad_input_is_refused(pool: GPUPool, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        largest_batch(jobs.says_nothing, pool, **wrong)


# What is remembered.


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MGPU_NB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "largest_batch.json"


Tried = Callable[..., tuple[int, list[int]]]


@pytest.fixture
def tried(pool: GPUPool, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Tried:
    """Finds the largest batch where so much fits; the answer, and what was tried."""

    def find(
        fits: int, fn: Callable[[int], Any] = jobs.says_nothing, **options: Any
    ) -> tuple[int, list[int]]:
        sizes: list[int] = []

        def try_one(fn: Any, pool: Any, size: int, tell: Any) -> bool:
            sizes.append(size)
            return size <= fits

        monkeypatch.setattr(batch_size, "_fits", try_one)
        return largest_batch(fn, pool, **options), sizes

    return find


def test_what_was_found_is_tried_once(tried: Tried, cache: Path) -> None:
    found, sizes = tried(37)
    assert found == 37
    assert len(sizes) > 5
    assert tried(37) == (37, [37])
    (kept,) = json.loads(cache.read_text())["sizes"].values()
    assert (kept["fits"], kept["too_large"]) == (37, 38)
    assert kept["function"] == "jobs:says_nothing"
    assert tried(37, fresh=True)[1] == sizes


def test_what_fits_no_more_is_searched_below(tried: Tried) -> None:
    tried(37)
    found, sizes = tried(21)
    assert found == 21
    assert sizes[0] == 37
    assert max(sizes[1:]) < 37
    assert tried(21) == (21, [21])


def test_a_search_goes_on_where_another_ended(tried: Tried) -> None:
    assert tried(37, tolerance=0.5)[0] < 37
    found, sizes = tried(37)
    assert found == 37
    assert min(sizes) >= 32
    assert tried(37, limit=20) == (20, [20])
    assert tried(37) == (37, [37])  # still known
    assert tried(37, limit=10, fresh=True)[0] == 10
    assert tried(37)[1][:2] == [10, 20]


def test_another_function_device_or_version_is_measured_anew(
    tried: Tried, pool: GPUPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(size: int) -> int:
        return size

    tried(37, one)
    assert tried(37, one) == (37, [37])

    def two(size: int) -> int:
        return size + 1

    assert tried(37, two)[1][0] == 1
    keys = {Remembered(one, pool.slots).key, Remembered(two, pool.slots).key}
    monkeypatch.setattr(remembered, "total_memory", lambda slot: 2**30)
    keys.add(Remembered(one, pool.slots).key)
    monkeypatch.setattr(remembered, "version", lambda name: "9.9")
    keys.add(Remembered(one, pool.slots).key)
    assert len(keys) == 4


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 0, "sizes": {}}',
        '{"format": 1, "sizes": []}',
        '{"format": 1, "sizes": {"KEY": 37}}',
        '{"format": 1, "sizes": {"KEY": {"fits": "37"}}}',
        '{"format": 1, "sizes": {"KEY": {"fits": true, "too_large": null}}}',
        '{"format": 1, "sizes": {"KEY": {"fits": 37, "too_large": 3}}}',
        '{"format": 1, "sizes": {"KEY": {"fits": -1, "too_large": 3}}}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_file_that_cannot_be_read_is_written_anew(
    tried: Tried, cache: Path, pool: GPUPool, content: str
) -> None:
    cache.parent.mkdir()
    key = Remembered(jobs.says_nothing, pool.slots).key
    cache.write_bytes(content.replace("KEY", key).encode("utf-8", "surrogateescape"))
    assert tried(3)[1][0] == 1
    assert tried(3) == (3, [3])


def test_where_nothing_can_be_written_it_is_measured(
    tried: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MGPU_NB_CACHE", str(tmp_path / "file"))
    assert tried(3)[0] == tried(3)[0] == 3


def test_a_function_that_has_no_identity_is_measured(tried: Tried, cache: Path) -> None:
    handle = iter(range(3)).__reduce__  # of no class that pickles

    def fn(size: int, generator: Any = (i for i in range(3))) -> Any:
        return handle, generator

    assert tried(3, fn)[0] == 3
    assert not cache.exists()
    Remembered(jobs.says_nothing, ()).remember(Bracket(0, 1))  # nothing to begin with
    assert not cache.exists()


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MGPU_NB_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("MGPU_NB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mgpu_nb"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "mgpu_nb"
