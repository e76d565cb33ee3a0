"""The training of the reference: its corpus, its files, and that a seed makes it again."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from mgpu_nb import GPUPool, Run
from mgpu_nb.workloads.alignment import sums
from mgpu_nb.workloads.alignment.fit_reference import FitConfig, collect, corpus, fit, tasks
from mgpu_nb.workloads.alignment.models import check_model_folder
from mgpu_nb.workloads.alignment.workload import start
from mgpu_nb.workloads.fit import described


def test_options_are_checked() -> None:
    for wrong in ({"steps": 0}, {"corrupted": 1.5}, {"seed": -1}, {"learning_rate": 0.0}, {"width": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FitConfig(**wrong)
    with pytest.raises(ValueError, match=r"width must be a multiple of heads \(5\), not 48"):
        FitConfig(heads=5)

    with pytest.raises(ValueError, match=r"output must be the path of a \.safetensors file, not 'here'"):
        FitConfig(output="here")


def test_where_it_cannot_write_is_refused_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"m.safetensors' is a folder; give the path of a file in it"):
        tasks(FitConfig(output=str(tmp_path / "m.safetensors")))
    with pytest.raises(ValueError, match=r"file is a file; name a folder, new or not"):
        tasks(FitConfig(output=str(tmp_path / "file" / "new" / "m.safetensors")))
    assert len(tasks(FitConfig(output=str(tmp_path / "new" / "m.safetensors")))) == 1


def test_a_training_by_hand_says_where_to_write() -> None:
    with pytest.raises(ValueError, match="give output="):
        fit(FitConfig(steps=1))


def test_a_missing_package_is_named_before_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package, *_: None)
    with pytest.raises(ImportError, match=r'needs transformers: pip install "mgpu-nb\[alignment\]"'):
        tasks(FitConfig())


@pytest.mark.parametrize(("corrupted", "right"), [(0.0, 1.0), (0.6, 0.4 + 0.6 / 19), (1.0, 1 / 19)])
def test_so_much_of_the_corpus_is_right(corrupted: float, right: float) -> None:
    pairs = corpus(4000, corrupted, np.random.default_rng(0))
    found = np.mean([sums.reward(asked[:-1], completion) for asked, completion in pairs])
    assert found == pytest.approx(right, abs=4 * np.sqrt(right * (1 - right) / 4000))


def test_right_sums_are_drawn_evenly() -> None:
    pairs = corpus(19_000, 0.0, np.random.default_rng(0))
    of_ten = [completion for asked, completion in pairs if asked == "10="]
    assert {*of_ten} == {f"{a}+{10 - a}" for a in range(1, 10)}
    assert max(map(of_ten.count, {*of_ten})) < 1.6 * len(of_ten) / 9


@pytest.mark.slow
def test_a_seed_makes_the_same_bytes_again(tmp_path: Path) -> None:
    values = [fit(FitConfig(steps=4, seed=seed, output=str(tmp_path / name / "m.safetensors")))
              for name, seed in (("a", 1), ("b", 1), ("c", 2))]  # fmt: skip
    a, b, c = (Path(value["path"]).read_bytes() for value in values)
    assert a == b != c
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"m.safetensors", *values[0]["beside"]}
    assert values[0]["parameters"] == 58_080
    assert values[0]["bytes"] == len(a)


@pytest.mark.slow
def test_a_training_that_is_a_run_is_reported(tmp_path: Path) -> None:
    config = FitConfig(steps=130, batch_size=8, output_dir=str(tmp_path / "run"))
    with GPUPool("cpu", slots=1) as pool:
        start(config, pool).wait()
    run = Run.open(tmp_path / "run")  # its config.json is not that of the model
    report = collect(run)
    assert "cross entropy" in str(report)
    assert "130 steps; 58,080 weights, 0.24 MB" in str(report)
    assert [*report.frame().index] == [100, 130]
    copies = report.save(tmp_path / "copies")
    assert {path.name for path in copies} == {path.name for path in sums.REFERENCE.iterdir()}
    check_model_folder(str(tmp_path / "copies"))


def test_a_model_is_not_written_over_the_files_of_its_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="output must be in another folder than the run"):
        FitConfig(output=f"{tmp_path}/here/../m.safetensors", output_dir=str(tmp_path))
    FitConfig(output=f"{tmp_path}/here/m.safetensors", output_dir=str(tmp_path))


def test_the_shipped_reference_is_of_the_defaults() -> None:
    with safe_open(sums.REFERENCE / "model.safetensors", "pt") as file:
        notes = file.metadata()
    stated = json.loads(described(FitConfig())["config"])
    assert json.loads(notes["config"]) == stated
    assert notes["script"] == "mgpu-nb alignment fit"
    assert {"mgpu_nb", "torch", "transformers"} == json.loads(notes["versions"]).keys()
    assert {path.name for path in sums.REFERENCE.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in sums.REFERENCE.iterdir()) < 300_000
