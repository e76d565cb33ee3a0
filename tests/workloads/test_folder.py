"""What the tasks of workloads that write files do on a machine that has not the run's folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb import context
from mgpu_nb.context import Worker
from mgpu_nb.workloads import fit, protein, tracin, training
from mgpu_nb.workloads.alignment import check
from mgpu_nb.workloads.alignment import worker as alignment_worker
from mgpu_nb.workloads.protein import worker as protein_worker
from mgpu_nb.workloads.tracin import batch, source
from mgpu_nb.workloads.tracin import worker as tracin_worker
from mgpu_nb.workloads.training import worker as training_worker

NOTE = "the run's folder /r of host laptop is not on node n2: return what must be kept, or give the run another folder"


ANY: Any = None  # it does not come to that

CALLS: dict[str, Callable[[], object]] = {
    "protein": lambda: protein_worker.run_experiment("standard", 1, protein.Config()),
    "alignment": lambda: alignment_worker.train(ANY, ANY, "", ANY),
    "alignment evaluates": lambda: alignment_worker._written(
        "train", {"folder": "models/m"}, context.worker()
    ),
    "alignment check": lambda: check.look([], "eager", 0, 2),
    "training": lambda: training_worker.train_here(training.Config(), Path("/r")),
    "tracin": lambda: tracin_worker.run_shard(tracin.Config(top_k=None), "", "train", 0, 1),
    "tracin's models": lambda: source.load_models(tracin.Config(), ANY, None, "cpu"),
    "tracin train": lambda: tracin_worker.run_training(tracin.TrainConfig()),
    "tracin batch": lambda: batch.run_triple(tracin.BatchConfig(), "", 0),
    "a model": lambda: fit.output_file(None, context.worker(), "model.safetensors"),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls are made as by a worker without the folder, and write nothing here."""
    monkeypatch.chdir(tmp_path)
    context.set_worker(Worker(0, "cpu", ("cpu",), None, "cpu:0", task="t", folder_note=NOTE))
    yield
    context.set_worker(None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", CALLS)
def test_it_says_what_to_do_before_any_work(name: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        CALLS[name]()
    assert str(error.value) == NOTE


def test_a_file_that_has_a_place_of_its_own_needs_no_folder() -> None:
    assert fit.output_file("/data/m.safetensors", context.worker(), "m.safetensors") == Path(
        "/data/m.safetensors"
    )
