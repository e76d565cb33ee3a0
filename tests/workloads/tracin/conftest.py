"""A model trained once for all tests of the influence analysis."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.workloads import tracin


@dataclasses.dataclass
class Trained:
    """The embedded graph and model as files."""

    folder: Path
    result: dict[str, Any]
    graph: tracin.Graph

    def config(self, **options: Any) -> tracin.Config:
        return tracin.Config(**self._with_files(options))

    def batch_config(self, **options: Any) -> tracin.BatchConfig:
        return tracin.BatchConfig(**self._with_files(options))

    def _with_files(self, options: dict[str, Any]) -> dict[str, Any]:
        files = {
            name: str(self.folder / f"{name}.tsv")
            for name in ("train", "test", "entity_to_id", "relation_to_id")
        }
        weights = {"checkpoints": tuple(str(self.folder / file) for file in self.result["checkpoints"])}
        if "model_path" in options:
            weights = {}
        return {**files, **weights, "slots": 2, **options}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("model")
    result = tracin.fit(tracin.TrainConfig(), folder)
    return Trained(folder, result, tracin.community_graph())


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Files of a graph of 5 entities and 2 relations."""
    (tmp_path / "entities.tsv").write_text("".join(f"e{n}\t{n}\n" for n in range(5)))
    (tmp_path / "relations.tsv").write_text("likes\t0\nknows\t1\n")
    (tmp_path / "train.tsv").write_text("e0\tlikes\te1\ne1\tknows\te2\ne2\tlikes\te3\n")
    (tmp_path / "test.tsv").write_text("e0\tknows\te2\n")
    names = {"entity_to_id": "entities", "relation_to_id": "relations", "train": "train", "test": "test"}
    return {option: str(tmp_path / f"{name}.tsv") for option, name in names.items()}
