"""FoldFlow-2 by stand-ins of its modules: what is missing is named, and it runs in an environment of its own."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from environments import CORE, TORCH, environment
from omegaconf import OmegaConf

from mgpu_nb import GPUPool
from mgpu_nb.workloads import protein
from mgpu_nb.workloads.base import own_config, read_config
from mgpu_nb.workloads.inputs import absolute_python, check_imports
from mgpu_nb.workloads.protein import foldflow2 as foldflow2_module
from mgpu_nb.workloads.protein.foldflow2 import check, foldflow2, load_config
from mgpu_nb.workloads.protein.models import check_model

BIOTITE = ("biotite", "packaging")
# Of its names and its shape: the real one makes its parts of the configuration, and has rigid frames.
FLOW_MODEL = """
import einops_of_theirs
import torch
from torch import nn
from foldflow.models.ff2flow.ff2_dependencies import FF2Dependencies
from foldflow.models.ff2flow.structure_network import FF2StructureNetworkConfig

class FF2Model(nn.Module):
    def __init__(self, dependencies):
        super().__init__()
        self.config = dependencies.config
        self.network = nn.Linear(1, 1, bias=False)

    @classmethod
    def from_ckpt(cls, ckpt, deps):
        assert deps.config.model.esm2_model_key == ckpt["esm_model"]
        model = cls(deps)
        state = {key.replace("vectorfield_network.", ""): value for key, value in ckpt["state_dict"].items()}
        model.load_state_dict(state)
        return model

    def forward(self, batch):
        scaling = self.config.flow_matcher.r3.coordinate_scaling
        positions = scaling * batch["rigids_t"][..., 4:]
        return {"trans_vectorfield": self.network.weight * positions / batch["t"][:, None, None]}
"""
DEPENDENCIES = """
class FF2Dependencies:
    def __init__(self, config):
        self.config = config
"""
STRUCTURE_NETWORK = """
import dataclasses

@dataclasses.dataclass
class EmbedderConfig:
    size: int = 3

@dataclasses.dataclass
class FF2StructureNetworkConfig:
    embed: EmbedderConfig = {default}
"""


def install(folder: Path, default: str = "dataclasses.field(default_factory=EmbedderConfig)") -> None:
    """Put the stand-in into a folder of packages; as it is in the real one, a default raises since Python 3.11."""
    inner = folder / "foldflow" / "models" / "ff2flow"
    inner.mkdir(parents=True)
    (folder / "einops_of_theirs.py").touch()
    (inner / "flow_model.py").write_text(FLOW_MODEL)
    (inner / "ff2_dependencies.py").write_text(DEPENDENCIES)
    (inner / "structure_network.py").write_text(STRUCTURE_NETWORK.format(default=default))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights and configuration, as variables name them."""
    state = {"vectorfield_network.network.weight": torch.tensor([[1.0]])}
    torch.save({"state_dict": state, "esm_model": "esm2_650M"}, tmp_path / "ff2.pth")
    config = tmp_path / "runner" / "config"
    (config / "model").mkdir(parents=True)
    (config / "flow_matcher").mkdir()
    (config / "model" / "ff2.yaml").write_text(
        "esm2_model_key: esm2_650M\nbb_encoder:\n  coordinate_scaling: ${flow_matcher.r3.coordinate_scaling}\n"
    )
    (config / "flow_matcher" / "default.yaml").write_text(
        "r3: {coordinate_scaling: 0.1, g: 0.1}\nso3: {inference_scaling: -0.01, g: 0.1}\n"
    )
    (config / "inference.yaml").write_text(
        "defaults: [base, override model: ff2, _self_]\nflow_matcher:\n  so3:\n    inference_scaling: 10.0\n"
    )
    monkeypatch.setenv("FOLDFLOW2_WEIGHTS", str(tmp_path / "ff2.pth"))
    monkeypatch.setenv("FOLDFLOW2_CONFIG", str(config))
    return tmp_path


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try its own modules alone, not those that import torch."""
    monkeypatch.setattr(foldflow2_module, "_IMPORTS", ("foldflow.models.ff2flow.structure_network",))


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for packages on the path."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("foldflow", "einops_of_theirs"):
            del sys.modules[name]


def test_missing_files_are_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOLDFLOW2_WEIGHTS", raising=False)
    monkeypatch.setenv("FOLDFLOW2_CONFIG", "/no/such.yaml")
    with pytest.raises(ValueError, match="model='foldflow2' needs") as caught:
        check_model("foldflow2", None)
    text = str(caught.value)
    assert "give checkpoint= or set FOLDFLOW2_WEIGHTS;" in text
    assert "set FOLDFLOW2_CONFIG to the folder runner/config" in text
    assert "('/no/such.yaml' is no file)" in text


def test_what_does_not_import_is_said_with_the_environment_that_does(
    files: Path, importable: Path, light: None
) -> None:
    with pytest.raises(ValueError, match="does not import in") as caught:
        check()
    text = str(caught.value)
    assert (
        f"model='foldflow2' does not import in {sys.executable} (Python {sys.version.split()[0]}, torch 2."
        in text
    )
    assert (
        "foldflow.models.ff2flow.structure_network: ModuleNotFoundError: No module named 'foldflow'" in text
    )
    assert "works in Python 3.10 with torch before 2.4" in text
    assert "python3.10 -m venv foldflow-env" in text
    assert "give python='foldflow-env/bin/python'" in text
    install(importable, "EmbedderConfig()")  # there, and yet it cannot be used
    with pytest.raises(ValueError, match=r"ValueError: mutable default .* for field embed is not allowed"):
        check()


def test_what_imports_is_accepted(files: Path, importable: Path, light: None) -> None:
    install(importable)
    check()


def test_configuration_is_composed_as_hydra_does(files: Path) -> None:
    config = load_config(files / "runner" / "config")
    assert config.model.bb_encoder.coordinate_scaling == 0.1
    assert config.flow_matcher.so3 == {"inference_scaling": 10.0, "g": 0.1}
    OmegaConf.save(config, files / "inference_conf.yaml")
    assert load_config(files / "inference_conf.yaml") == config
    (files / "half.yaml").write_text("model: {}\n")
    with pytest.raises(ValueError, match=r"half.yaml has no section flow_matcher: set FOLDFLOW2_CONFIG"):
        load_config(files / "half.yaml")


def test_weights_and_configuration_reach_the_model(
    files: Path, importable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(importable)
    monkeypatch.delenv("FOLDFLOW2_WEIGHTS")
    model = foldflow2(str(files / "ff2.pth"))
    assert model.get_parameter("network.network.weight").item() == 1.0
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(1, keepdim=True)
    velocity = model(x, torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(velocity, -x / torch.tensor([1.0, 0.25])[:, None, None])


def test_an_interpreter_is_named_by_its_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python-of-mine").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert absolute_python("./python-of-mine") == str(tmp_path / "python-of-mine")
    assert absolute_python("python-of-mine") == str(tmp_path / "python-of-mine")
    assert absolute_python(None) is None
    with pytest.raises(
        ValueError, match=r"x='y' does not import in .*: no_such: ModuleNotFoundError.* Do this"
    ):
        check_imports(None, ["no_such", "mgpu_nb.tasks"], "x='y'", "Do this")


def test_a_pool_of_another_interpreter_is_refused(pool: GPUPool, tmp_path: Path) -> None:
    config = protein.Config(python="/no/such/python", output_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="pool's workers are of this interpreter"):
        protein.start(config, pool)


@pytest.mark.slow
def test_experiments_run_in_an_environment_of_its_own(files: Path, tmp_path: Path) -> None:
    """It is installed there alone: neither the plan nor the report imports it."""
    python = environment(tmp_path / "env", (*CORE, *TORCH, *BIOTITE, "omegaconf", "yaml"))
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    options = {
        "model": "foldflow2", "python": str(python), "num_samples": 2, "sample_length": 12, "steps": 4,
        "branch_counts": (2,), "methods": ("standard", "best_of_n"), "slots": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"does not import in {python}.*No module named 'foldflow'"):
        protein.start(protein.Config(**options, output_dir=str(tmp_path / "no")))  # type: ignore[arg-type]
    install(site)
    config = protein.Config(**options, output_dir=str(tmp_path / "run"))  # type: ignore[arg-type]
    run = protein.start(config).wait(progress=False)
    assert all(record.ok for record in run.records), [record.error for record in run.records]
    report = protein.collect(run)
    assert report.frame()["mean_score"].notna().all()
    made = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])["made"]
    assert made["workers"]["path"] == str(python)
    assert made["workers"]["packages"]["torch"] == torch.__version__
    assert own_config(tmp_path / "run", protein.Config).python == str(python)
    assert read_config(tmp_path / "run")[0].name == "protein"
    assert "foldflow" not in sys.modules


@pytest.mark.slow
def test_a_model_of_the_users_is_imported_in_that_environment(tmp_path: Path) -> None:
    python = environment(tmp_path / "env", (*CORE, *TORCH, *BIOTITE))
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    options = {
        "model": "only_there:make",
        "python": str(python),
        "methods": ("standard",),
        "sample_length": 12,
    }
    config = protein.Config(**options, num_samples=1, steps=4, output_dir=str(tmp_path / "run"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only_there: ModuleNotFoundError"):
        protein.start(config)
    (site / "only_there.py").write_text(
        "from torch import nn\n"
        "class Pull(nn.Module):\n"
        "    def forward(self, x, t):\n"
        "        return -x\n"
        "make = Pull\n"
    )
    (record,) = protein.start(config).wait(progress=False).records
    assert record.ok, record.error
