"""``torchrun -m mgpu_nb.workloads.molecules``: ranks share the chunks, and leave the files that a pool leaves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_molecules import options

from mgpu_nb import Run
from mgpu_nb.workloads import molecules
from mgpu_nb.workloads.arguments import UsageError
from mgpu_nb.workloads.command import run_module
from mgpu_nb.workloads.molecules.config import Config
from mgpu_nb.workloads.molecules.workload import WORKLOAD

pytestmark = pytest.mark.slow
PLACE = Path("eval", "mlff_guided")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

FEW = "--steps 3 --batch_size 4 --hidden 32 --layers 1 --heavy_atoms 1 --conformers 1 --world_size 2"


def words(path: str, folder: Path, **changes: Any) -> list[str]:
    given = options(path, output_dir=str(folder), skip_chain=False, **changes)
    found = []
    for name, value in given.items():
        if isinstance(value, bool):
            found += [f"--{name}" if value else f"--no_{name}"]
        else:
            found += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return found


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    left_out = ("RANK", "WORLD_SIZE")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    paths = os.pathsep.join(filter(None, sys.path))
    return {**env, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **(more or {})}


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*TORCHRUN, "-m", "mgpu_nb.workloads.molecules", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment(), check=False
    )


def contents(folder: Path) -> dict[str, bytes]:
    place = folder / PLACE
    files = [path for path in place.rglob("*") if path.is_file() and path.name != "times.json"]
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def test_two_ranks_leave_the_files_of_a_pool_and_go_on(model_path: str, tmp_path: Path) -> None:
    done = torchrun(*words(model_path, tmp_path / "ranks"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("metrics.json") == 1  # rank 0 alone reports
    assert re.search(r"(\d+) of \1 tasks done", done.stderr)
    config = Config(**options(model_path, skip_chain=False, slots=2, output_dir=str(tmp_path / "pool")))
    run = molecules.start(config).wait(120)
    molecules.collect(run).save()
    assert contents(tmp_path / "ranks") == contents(tmp_path / "pool")
    shared = Run.open(tmp_path / "ranks")
    assert shared.tasks == run.tasks
    assert {record.slot for record in shared.records} <= {0, 1}
    assert str(molecules.collect(shared)).splitlines()[1].startswith("baseline")
    before = {record.name: record.started for record in shared.records}
    done = torchrun(*words(model_path, tmp_path / "ranks", n_samples=10))
    assert done.returncode == 0, done.stderr
    after = {record.name: record.started for record in Run.open(tmp_path / "ranks").records}
    assert before.items() & after.items()  # whole chunks are kept
    assert len(list((tmp_path / "ranks" / PLACE / "baseline").iterdir())) == 10


@pytest.mark.slow
def test_a_rank_computes_the_bits_of_a_pool_at_sizes_where_mkl_has_a_choice(tmp_path: Path) -> None:
    given = "--n_samples 7 --sampler dpm_solver++ --steps 6 --judge None --skip_chain --guidance_scales 0"
    done = torchrun(*given.split(), "--output_dir", str(tmp_path / "ranks"))
    assert done.returncode == 0, done.stderr
    config = Config(
        n_samples=7, sampler="dpm_solver++", steps=6, judge=None, skip_chain=True, guidance_scales=(0.0,),
        slots=1, output_dir=str(tmp_path / "pool"),
    )  # fmt: skip
    molecules.collect(molecules.start(config).wait(120)).save()
    assert contents(tmp_path / "ranks") == contents(tmp_path / "pool")


def test_a_pool_goes_on_with_what_ranks_have_done(model_path: str, tmp_path: Path) -> None:
    done = torchrun(*words(model_path, tmp_path))
    assert done.returncode == 0, done.stderr
    before = {record.name: record.started for record in Run.open(tmp_path).records}
    config = Config(**options(model_path, skip_chain=False, slots=1, output_dir=str(tmp_path)))
    run = molecules.start(config).wait(60)
    assert {record.name: record.started for record in run.records} == before


def test_bad_options_are_told_by_the_rank_that_failed(model_path: str, tmp_path: Path) -> None:
    done = torchrun(*words(model_path, tmp_path / "run", n_nodes=4))
    assert done.returncode != 0
    assert "n_nodes must be 3 to 9" in done.stderr


def test_an_option_that_ranks_cannot_have_is_told_as_it_was_given(
    model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And raised, so that torchrun shows it; before the rank meets the other."""
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["molecules", *words(model_path, tmp_path / "run", slots=2)])
    with pytest.raises(UsageError, match="--slots: torchrun and srun say how many ranks"):
        run_module(WORKLOAD)


def test_a_rank_that_is_killed_is_named_and_nothing_hangs(model_path: str, tmp_path: Path) -> None:
    """Without torchrun's agent, which would end the others: as if the whole machine were gone."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    code = "from mgpu_nb.workloads import board; board.SILENCE = 3.0; board.BEAT = 0.2\n"
    code += "import runpy; runpy.run_module('mgpu_nb.workloads.molecules', run_name='__main__')"
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    given = words(model_path, tmp_path / "run", mlff_model="tiny_molecules:Slow", steps=20, n_samples=100)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, *given],
            env=environment({**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    end = time.monotonic() + 120
    while not server.check(["mgpu_nb/handed/0"]):
        assert time.monotonic() < end
        assert all(rank.poll() is None for rank in ranks)
        time.sleep(0.05)
    ranks[1].kill()
    ranks[1].communicate()
    _, said = ranks[0].communicate(timeout=120)
    assert ranks[0].returncode != 0
    assert re.search(r"RankError: rank 1 has given no sign of life for 3 s", said), said
    assert not psutil.Process().children(recursive=True) or all(rank.poll() is not None for rank in ranks)
    assert any(record.ok for record in Run.open(tmp_path / "run").records)


def test_a_training_by_ranks_leaves_weights_that_are_loaded(tmp_path: Path) -> None:
    command = [*TORCHRUN, "-m", "mgpu_nb", "molecules", "train", *FEW.split(), "--output_dir", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "over the last tenth of 3 steps" in done.stdout
    model = molecules.load_model(tmp_path / "edm_small.safetensors")
    assert model.schedule.steps == 1000
