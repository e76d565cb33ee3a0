"""The same files whatever makes them: any number of slots and chunks, after a killed worker, after a killed parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_molecules import options

from mgpu_nb import GPUPool, Run
from mgpu_nb.workloads import molecules
from mgpu_nb.workloads.molecules.config import Config

pytestmark = pytest.mark.slow
PLACE = Path("eval", "mlff_guided")


def contents(folder: Path) -> dict[str, bytes]:
    """Results of a run by name, without times."""
    place = folder / PLACE
    files = [path for path in place.rglob("*") if path.is_file() and path.name != "times.json"]
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def saved(config: Config, pool: GPUPool | None = None) -> dict[str, bytes]:
    """Results of an evaluation that is run to its end."""
    run = molecules.start(config, pool).wait(240)
    assert run.progress.counts == {"ok": len(run.tasks)}
    molecules.collect(run).save()
    return contents(run.folder)


def config(path: str, folder: Path, **changes: Any) -> Config:
    given = {"skip_chain": False, "sampler": "ddpm", "steps": 10, "n_samples": 11, **changes}
    return Config(**options(path, output_dir=str(folder), **given))


def test_any_number_of_slots_and_any_chunks_give_the_same_files(model_path: str, tmp_path: Path) -> None:
    found = {}
    for slots, chunk in ((1, 3), (2, 3), (3, 3), (4, 3), (2, 1), (3, 5)):
        given = config(model_path, tmp_path / f"{slots}-{chunk}", slots=slots, chunk_size=chunk)
        found[slots, chunk] = saved(given)
    with GPUPool(slots=2, isolation="task") as pool:
        found[2, 0] = saved(replace(config(model_path, tmp_path / "task"), gpu_ids=None), pool)
    first = found.pop((1, 3))
    assert len(first) == 3 * 11 + 3 + 2 + 2
    for how, files in found.items():
        assert files == first, how


@pytest.mark.skipif(
    not Path(molecules.__file__).with_name("edm_small.safetensors").is_file(), reason="needs weights"
)
def test_the_shipped_model_and_the_default_fields_give_the_same_files(tmp_path: Path) -> None:
    few: dict[str, Any] = {"n_samples": 6, "steps": 30, "guidance_scales": (0.0, 0.01), "gpu_ids": "cpu"}
    found = [
        saved(Config(**few, slots=slots, chunk_size=chunk, output_dir=str(tmp_path / f"{slots}-{chunk}")))
        for slots, chunk in ((1, 6), (2, 2), (3, 1))
    ]
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_the_chunk_of_a_killed_worker_is_drawn_again(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = saved(config(model_path, tmp_path / "whole", slots=2))
    monkeypatch.setenv("TINY_KILLS", str(tmp_path / "killed"))
    given = config(model_path, tmp_path / "run", slots=2, mlff_model="tiny_molecules:KillsOnce")
    run = molecules.start(given).wait(120)
    assert run.progress.counts == {"ok": len(run.tasks)}
    assert Counter(record.attempt for record in run.records)[2] == 1
    molecules.collect(run).save()
    found = contents(run.folder)
    assert {name: data for name, data in found.items() if name.endswith(".xyz")} == {
        name: data for name, data in wanted.items() if name.endswith(".xyz")
    }


def test_after_a_killed_parent_only_what_is_missing_is_drawn(model_path: str, tmp_path: Path) -> None:
    given = config(model_path, tmp_path / "run", slots=2, chunk_size=1, mlff_model="tiny_molecules:Slow")
    code = f"""
        from mgpu_nb.workloads import molecules
        molecules.start(molecules.Config(**{_plain(given)!r})).wait()
    """
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=environ)
    journal = tmp_path / "run" / "journal.jsonl"
    end = time.monotonic() + 120
    while not (journal.is_file() and journal.read_text().count('"event": "record"') >= 5):
        assert parent.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    before = {record.name: record.started for record in Run.open(tmp_path / "run").records if record.ok}
    run = molecules.start(given).wait(240)
    after = {record.name: record.started for record in run.records}
    assert run.progress.counts == {"ok": len(run.tasks)}
    assert 5 <= len(before) < len(after)
    assert {name: after[name] for name in before} == before
    molecules.collect(run).save()
    plain = saved(config(model_path, tmp_path / "plain", slots=1, mlff_model="tiny_molecules:Slow"))
    assert contents(tmp_path / "run") == plain


def _plain(given: Config) -> dict[str, Any]:
    return {name: getattr(given, name) for name in Config.__dataclass_fields__}
