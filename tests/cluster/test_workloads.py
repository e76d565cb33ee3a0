"""All five workloads over two nodes: the results of two slots here, to the last bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from safetensors.numpy import load_file
from tiny_molecules import options, tiny_model

from mgpu_nb import Agents, GPUPool, Run
from mgpu_nb.workloads import alignment, molecules, protein, tracin, training
from mgpu_nb.workloads.alignment.algorithms import base
from mgpu_nb.workloads.base import WORKLOADS, start

pytestmark = pytest.mark.slow
Pools = dict[str, GPUPool]
# What says where, when or how fast, and not what was computed.
ELSEWHERE = (
    "seconds",
    "time",
    "speed",
    "per_second",
    "memory",
    "host",
    "device",
    "slot",
    "pid",
    "gpu",
    "date",
    "output_dir",
)


@pytest.fixture(scope="module")
def pools(share: Callable[[GPUPool], AbstractContextManager[GPUPool]]) -> Iterator[Pools]:
    """Two slots here, and two nodes of one slot; their workers have the stand-ins of alignment."""
    here = GPUPool("cpu", slots=2, threads=1, setup=stand_in.register)
    there = GPUPool("cpu", slots=1, threads=1, setup=stand_in.register, cluster=Agents(here=2))
    with pytest.MonkeyPatch.context() as patch, share(here), share(there):
        patch.setattr(base, "ALGORITHMS", stand_in.TABLE)
        there.wait_for_slots(2, timeout=120)
        yield {"here": here, "there": there}


def computed(value: Any) -> Any:
    """What was computed of a result: without times and places."""
    if isinstance(value, dict):
        return {
            name: computed(each)
            for name, each in value.items()
            if not any(word in name for word in ELSEWHERE)
        }
    if isinstance(value, (list, tuple)):
        return [computed(each) for each in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value


def on_both(pools: Pools, name: str, config: Callable[[Path], Any], folder: Path) -> dict[str, Path]:
    """Folders of a run of a workload here, and over two nodes; tasks of the latter ran on both."""
    found = {}
    for where, pool in pools.items():
        run = start(WORKLOADS[name], config(folder / where), pool).wait(240, progress=False)
        assert not run.failures, [record.error for record in run.failures]
        hosts = {record.host for record in run.records}
        assert len(hosts) == (1 if where == "here" else 2), hosts
        found[where] = run.folder
    return found


def same_files(folders: dict[str, Path], *patterns: str) -> None:
    """Files of both runs hold the same bytes, and there are some."""
    here, there = folders["here"], folders["there"]
    names = [
        path.relative_to(here)
        for pattern in patterns
        for path in sorted(here.glob(pattern))
        if path.is_file()
    ]
    assert names
    for name in names:
        assert (there / name).read_bytes() == (here / name).read_bytes(), name


def test_protein(pools: Pools, tmp_path: Path) -> None:
    def config(folder: Path) -> protein.Config:
        return protein.Config(
            num_samples=2, branch_counts=(2,), steps=8, sample_length=24, output_dir=str(folder)
        )

    folders = on_both(pools, "protein", config, tmp_path)
    here, there = (WORKLOADS["protein"].collect(Run.open(folder)).frame() for folder in folders.values())
    kept = [column for column in here.columns if not any(word in column for word in ELSEWHERE)]
    assert len(kept) > 3
    assert here[kept].equals(there[kept])


def test_molecules(pools: Pools, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "tiny.safetensors")

    def config(folder: Path) -> molecules.Config:
        return molecules.Config(**{**options(model), "gpu_ids": None, "output_dir": str(folder)})

    folders = on_both(pools, "molecules", config, tmp_path)
    here, there = (computed(Run.open(folder).results()) for folder in folders.values())
    assert len(here) == 8
    assert repr(here) == repr(there)  # also of what is no number


def test_tracin(pools: Pools, tmp_path: Path) -> None:
    trained = tmp_path / "model"
    result = tracin.fit(tracin.TrainConfig(epochs=3, checkpoints=2), trained)
    files: dict[str, Any] = {
        name: str(trained / f"{name}.tsv") for name in ("train", "test", "entity_to_id", "relation_to_id")
    }
    checkpoints = tuple(str(trained / file) for file in result["checkpoints"])

    def config(folder: Path) -> tracin.Config:
        return tracin.Config(
            **files, checkpoints=checkpoints, max_test_triples=3, top_k=4, output_dir=str(folder)
        )

    folders = on_both(pools, "tracin", config, tmp_path)
    here, there = (WORKLOADS["tracin"].collect(Run.open(folder)).frame() for folder in folders.values())
    assert len(here)
    assert here.equals(there)


def test_training(pools: Pools, tmp_path: Path) -> None:
    small = training.Config(columns=53, width=8, layers=1, heads=2, batch_size=12, epochs=2, world_size=2)

    def config(folder: Path) -> training.Config:
        return dataclasses.replace(small, output_dir=str(folder))

    folders = on_both(pools, "training", config, tmp_path)
    results = [json.loads((folder / "training_results.json").read_text()) for folder in folders.values()]
    assert computed(results[0]["history"]) == computed(results[1]["history"])
    one, two = (load_file(folder / "model.safetensors") for folder in folders.values())
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_alignment(pools: Pools, tmp_path: Path) -> None:
    settings = (
        "data_collection.max_examples=4", "data_collection.examples_per_task=2", "evaluation.etas=[1]",
        "data_collection.samples_per_example=2", "evaluation.samples_per_example=2", "evaluation.max_examples=2",
        "algos.QSharp.enabled=false", "algos.GRPO-HF.enabled=false", "algos.GRPO.enabled=false",
    )  # fmt: skip

    def config(folder: Path) -> alignment.Config:
        return alignment.Config(settings, output_dir=str(folder))

    folders = on_both(pools, "alignment", config, tmp_path)
    same_files(folders, "datasets/**/*", "models/**/*", "results/**/*")
