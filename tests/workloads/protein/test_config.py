from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.workloads import protein
from mgpu_nb.workloads.protein import PRESETS, Config, preset, tasks
from mgpu_nb.workloads.protein.config import canonical
from mgpu_nb.workloads.protein.worker import run_experiment

NAN, INF = float("nan"), float("inf")


def test_the_defaults_are_those_of_the_seed() -> None:
    config = Config()
    assert (config.num_samples, config.sample_length, config.scoring_function) == (4, 50, "tm_score")
    assert (config.noise_scale, config.lambda_div, config.branch_interval) == (0.3, 0.6, 0.1)
    assert (config.branch_counts, config.num_keep, config.branch_start_time) == ((2, 4, 8), 1, 0)
    assert (config.gpu_ids, config.seed, config.steps, config.model) == (None, 0, 50, "mixture")
    assert config.divergence_free == "antisymmetric"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"branch_counts": (2, 0)}, "must be an integer >= 1, got 0"),
        ({"branch_counts": (2.5,)}, "branch_counts[0] must be an integer >= 1, got 2.5"),
        ({"branch_counts": ()}, "branch_counts must be a non-empty sequence"),
        ({"branch_counts": (2, 4, 2)}, "without duplicates, got (2, 4, 2)"),
        ({"sample_length": 3}, "sample_length must be an integer >= 4, got 3"),
        ({"num_samples": 0}, "num_samples must be an integer >= 1, got 0"),
        ({"num_samples": True}, "num_samples must be an integer >= 1, got True"),
        ({"num_keep": 0}, "num_keep must be an integer >= 1, got 0"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"num_folds": 0}, "num_folds must be an integer >= 1 or None, got 0"),
        ({"slots": 0}, "slots must be an integer >= 1 or None, got 0"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"seed": 2**63}, "got 9223372036854775808"),
        ({"gpu_ids": ()}, "gpu_ids must be a non-empty sequence"),
        ({"gpu_ids": (-1,)}, "must be an integer >= 0, got -1"),
        ({"noise_scale": NAN}, "noise_scale must be a finite number >= 0, got nan"),
        ({"noise_scale": -0.1}, "noise_scale must be a finite number >= 0, got -0.1"),
        ({"lambda_div": INF}, "lambda_div must be a finite number >= 0, got inf"),
        ({"lambda_div": -1}, "lambda_div must be a finite number >= 0, got -1"),
        ({"lambda_div": "much"}, "lambda_div must be a finite number >= 0, got 'much'"),
        ({"branch_interval": 0}, "branch_interval must be a number > 0 and <= 1, got 0"),
        ({"branch_interval": 1.5}, "branch_interval must be a number > 0 and <= 1, got 1.5"),
        ({"branch_start_time": 1.0}, "branch_start_time must be a number >= 0 and < 1, got 1.0"),
        ({"branch_start_time": -0.1}, "branch_start_time must be a number >= 0 and < 1, got -0.1"),
        ({"methods": ("best_off_n",)}, "got 'best_off_n'; did you mean 'best_of_n'?"),
        ({"methods": ("standard", "standard")}, "without duplicates, got ('standard', 'standard')"),
        ({"methods": ()}, "methods must be a non-empty sequence"),
        ({"scoring_function": "tmscore"}, "got 'tmscore'; did you mean 'tm_score'?"),
        ({"divergence_free": "projected"}, "got 'projected'; did you mean 'projection'?"),
        ({"model": "mixtur"}, "got 'mixtur'; did you mean 'mixture'?"),
        ({"model": "package:"}, "or 'package.module:name' of a factory"),
        ({"checkpoint": "weights.pt"}, "the mixture is a closed form without weights"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        Config(**options)
    assert reason in str(caught.value)


def test_what_is_outside_is_checked_before_there_are_tasks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="is a file; name a folder, new or not"):
            tasks(Config(output_dir=str(output)))
    with pytest.raises(ValueError, match="is no folder"):
        tasks(Config(references=str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"holds no \.pdb or \.cif"):
        tasks(Config(references=str(tmp_path)))
    protein.write_pdb(tmp_path / "short.pdb", protein.generate_folds(10, 1)[0])
    with pytest.raises(ValueError, match="does not give a fold of 50 residues"):
        tasks(Config(references=str(tmp_path)))
    with pytest.raises(ValueError, match="does not import"):
        tasks(Config(model="no_such_package:make"))
    with pytest.raises(ValueError, match="is no file"):
        tasks(Config(model="ca_net", checkpoint=str(tmp_path / "none.pt")))


def test_lists_and_paths_are_taken() -> None:
    config = Config(
        gpu_ids=[0, 0, 1],  # type: ignore[arg-type]
        branch_counts=[2, 3],  # type: ignore[arg-type]
        methods="standard",  # type: ignore[arg-type]
        output_dir=Path("out"),  # type: ignore[arg-type]
        references=Path("folds"),  # type: ignore[arg-type]
        model="ca_net",
        checkpoint=Path("weights.pt"),  # type: ignore[arg-type]
    )
    assert (config.gpu_ids, config.branch_counts, config.methods) == ((0, 0, 1), (2, 3), ("standard",))
    assert (config.output_dir, config.references, config.checkpoint) == ("out", "folds", "weights.pt")
    assert Config(**asdict(config)) == config


def test_presets_are_those_of_the_seed() -> None:
    assert list(PRESETS) == ["quick_test", "comprehensive", "sde_focused", "ode_focused"]
    quick, comprehensive = preset("quick_test"), preset("comprehensive")
    assert (quick.slots, quick.num_samples, quick.branch_counts) == (2, 2, (2, 4))
    assert (comprehensive.slots, comprehensive.num_samples, comprehensive.sample_length) == (3, 8, 100)
    assert comprehensive.branch_counts == (2, 4, 8, 16)
    assert (preset("sde_focused").noise_scale, preset("sde_focused").lambda_div) == (0.1, 0.3)
    assert (preset("ode_focused").noise_scale, preset("ode_focused").lambda_div) == (0.2, 0.8)
    changed = preset("quick_test", num_samples=7, gpu_ids=(0, 0))
    assert (changed.num_samples, changed.branch_counts, changed.slots, changed.gpu_ids) == (
        7,
        (2, 4),
        None,
        (0, 0),
    )
    with pytest.raises(
        ValueError, match=r"preset must be one of .*, got 'quick'; did you mean 'quick_test'\?"
    ):
        preset("quick")


def test_tasks_are_an_experiment_each_and_the_baseline_once() -> None:
    config = Config(branch_counts=(2, 4), num_samples=3)
    made = tasks(config)
    names = [task.name for task in made]
    assert names[:3] + names[4:5] == [
        "standard-b1",
        "best_of_n-b2",
        "best_of_n-b4",
        "sde_path_exploration-b2",
    ]
    assert len(names) == len(set(names)) == 12
    assert names[3] == "best_of_n-b27"  # for as many network calls as random_search_divfree has
    assert all(task.fn is run_experiment for task in made)
    cost = dict(zip(names, (task.cost for task in made), strict=True))
    assert cost["standard-b1"] == 150
    assert cost["sde_path_exploration-b4"] == 3 * 1140
    assert [task.args[:2] for task in made][:2] == [("standard", 1), ("best_of_n", 2)]
    assert tasks(Config(methods=("standard",)))[0].args[:2] == ("standard", 1)


def test_a_task_is_small_and_the_same_in_any_run(tmp_path: Path) -> None:
    here = {task.name: task.args for task in tasks(Config(branch_counts=(2, 4)))}
    there = {
        task.name: task.args
        for task in tasks(Config(branch_counts=(4, 8), gpu_ids=(0, 1), output_dir=str(tmp_path)))
    }
    assert here["noise_search-b4"] == there["noise_search-b4"]
    data = pickle.dumps(here["noise_search-b4"])
    assert len(data) < 1500
    assert pickle.loads(data) == here["noise_search-b4"]
    assert tasks(Config(seed=1))[0].args != here["standard-b1"]


def test_paths_in_tasks_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    protein.write_pdb("folds/a.pdb", protein.generate_folds(10, 1)[0])
    config = Config(references="folds", sample_length=10)
    assert tasks(config)[0].args[2].references == str(tmp_path / "folds")
    assert canonical(config) == canonical(canonical(config))


def test_the_options_need_neither_torch_nor_pandas_nor_matplotlib() -> None:
    code = (
        "import sys; from mgpu_nb.workloads import protein; protein.preset('quick_test'); "
        "print([name for name in ('torch', 'pandas', 'matplotlib', 'biotite', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in protein.__all__:
        assert getattr(protein, name) is not None
    assert set(protein.__all__) <= set(dir(protein))
    with pytest.raises(AttributeError, match="folding"):
        _ = protein.folding
