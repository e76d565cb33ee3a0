"""Options of an evaluation: names and defaults of the script, checks, sets, what decides a task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.workloads.molecules.config import PRESETS, Config, SampleSet, canonical, default_output, preset


def test_names_and_defaults_are_those_of_the_script() -> None:
    config = Config()
    assert (config.n_samples, config.n_nodes, config.batch_size, config.seed) == (200, None, 50, 42)
    assert config.guidance_scales == (0.0, 0.0005, 0.0007, 0.008)
    assert (config.guidance_iterations, config.noise_threshold, config.force_clip) == (1, 0.8, None)
    assert (config.skip_baseline, config.skip_chain, config.use_wandb) == (False, False, False)
    assert (config.mlff_model, config.judge, config.sampler) == ("potential", "gfn2", "ddpm")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_samples": 0}, "n_samples must be an integer >= 1, got 0"),
        ({"n_samples": 2.5}, "n_samples must be an integer"),
        ({"n_nodes": 0}, "n_nodes must be an integer >= 1 or None"),
        ({"guidance_scales": (0.0, -0.1)}, r"guidance_scales\[1\] must be a finite number >= 0"),
        ({"guidance_scales": (math.nan,)}, r"guidance_scales\[0\] must be"),
        ({"guidance_scales": (math.inf,)}, r"guidance_scales\[0\] must be"),
        ({"guidance_scales": ("strong",)}, r"guidance_scales\[0\] must be"),
        ({"guidance_scales": (0.1, 0.1)}, "without duplicates"),
        ({"guidance_scales": (0.0, -0.0)}, "without duplicates"),
        ({"guidance_scales": ()}, "non-empty"),
        ({"sampler": "dmp_solver++"}, "sampler must be one of ddpm, dpm_solver"),
        ({"noise_threshold": 2}, "noise_threshold must be"),
        ({"force_clip": 0}, "force_clip must be"),
        ({"guidance_iterations": 0}, "guidance_iterations must be"),
        ({"chunk_size": 0}, "chunk_size must be"),
        ({"seed": -1}, "seed must be"),
        ({"relax": True, "skip_baseline": True}, "leave skip_baseline out"),
    ],
)
def test_invalid_options_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Config(**options)


def test_sets_are_computed_once_and_shown_by_name() -> None:
    config = Config(guidance_scales=(0.0, 0.0005, 1e-5), relax=True)
    assert [of.name for of in config.sets()] == [
        "baseline",
        "guided_scale_0.0005",
        "guided_scale_1e-05",
        "relaxed",
    ]
    assert config.shown() == {
        "baseline": "baseline",
        "guided_scale_0.0": "baseline",
        "guided_scale_0.0005": "guided_scale_0.0005",
        "guided_scale_1e-05": "guided_scale_1e-05",
        "relaxed": "relaxed",
    }
    only = Config(guidance_scales=(0.0,), skip_baseline=True)
    assert only.sets() == [SampleSet("baseline")]
    assert only.shown() == {"guided_scale_0.0": "baseline"}
    assert [of.name for of in Config(guidance_scales=(0.1,), skip_baseline=True).sets()] == [
        "guided_scale_0.1"
    ]
    assert Config(guidance_scales=(-0.0,)).shown() == {"baseline": "baseline", "guided_scale_0.0": "baseline"}


def test_the_guided_chain_is_of_the_largest_scale() -> None:
    assert Config().chains() == {"chain_baseline": 0.0, "chain_guided": 0.008}
    assert Config(guidance_scales=(0.0,)).chains() == {"chain_baseline": 0.0}
    assert Config(skip_baseline=True).chains() == {"chain_guided": 0.008}
    assert Config(skip_chain=True).chains() == {}


def test_a_task_is_what_decides_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(
        model_path="m", n_samples=50, slots=2, chunk_size=7, guidance_scales=(0.1,), mlff_model="gfn1"
    )
    other = Config(model_path=str(tmp_path / "m"), n_samples=251, slots=4, guidance_scales=(0.1, 0.2))
    assert canonical(config) == canonical(other)
    assert canonical(config, 0.1) != canonical(other, 0.1)  # another guide
    assert canonical(config).model_path == str(tmp_path / "m")
    assert canonical(Config(seed=1)) != canonical(Config())
    assert canonical(Config(force_clip=1.0)) == canonical(Config())
    assert canonical(Config(force_clip=1.0), relaxed=True) != canonical(Config(), relaxed=True)


def test_presets() -> None:
    assert set(PRESETS) == {"quick_test", "comprehensive", "paper"}
    assert preset("paper").guidance_scales == Config().guidance_scales
    assert preset("paper", n_samples=3).n_samples == 3
    with pytest.raises(ValueError, match="did you mean 'quick_test'"):
        preset("quick_tset")


def test_results_of_a_model_in_a_folder_go_below_it(tmp_path: Path) -> None:
    assert default_output(Config(model_path=str(tmp_path))) == str(tmp_path / "eval" / "mlff_guided")
    (tmp_path / "m.safetensors").write_bytes(b"")
    assert default_output(Config(model_path=str(tmp_path / "m.safetensors"))) is None
    assert default_output(Config()) is None
