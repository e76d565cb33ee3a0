"""What the tests of an evaluation share: a tiny model, once for all."""

from pathlib import Path

import matplotlib
import pytest
from tiny_molecules import tiny_model

matplotlib.use("Agg")


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a tiny model."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
