"""A training from a notebook: start, collect, and what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import land_batches
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors import safe_open

from mgpu_nb import GPUPool, Run, launch
from mgpu_nb.workloads import training
from mgpu_nb.workloads.training.land import POOLS, SCALARS, VECTORS
from mgpu_nb.workloads.training.worker import train_here

pytestmark = pytest.mark.slow  # seconds of work each

Trained = tuple[Run, training.Report]
SMALL = training.Config(columns=53, width=8, layers=1, heads=2, batch_size=12, epochs=3, learning_rate=3e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training of two ranks: its run, its report."""
    folder = tmp_path_factory.mktemp("trained") / "two"
    config = dataclasses.replace(
        SMALL,
        world_size=2,
        output_dir=folder,  # type: ignore[arg-type]  # a path becomes text
        log_level="DEBUG",
    )
    run = training.start(config)
    return run, training.collect(run.wait(120))


def test_the_files_of_a_training(trained: Trained) -> None:
    _, report = trained
    assert [path.relative_to(report.folder).as_posix() for path in report.save()] == [
        "model.safetensors", "normalisation.npz", "training_results.json", "training_validation_losses.csv",
        "predictions/held_out.npz", "predictions/scalar.csv",
    ]  # fmt: skip
    losses = pd.read_csv(report.folder / "training_validation_losses.csv")
    assert losses["epoch"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(losses["validation"], report.frame()["validation"], rtol=1e-12)
    results = json.loads((report.folder / "training_results.json").read_text())
    assert (results["world_size"], results["backend"]) == (2, "gloo")
    assert (results["batch_global"], results["batch_per_rank"]) == (12, 6)
    assert set(report.metrics) == {
        f"{a}_{b}" for a in ("scalar", "vector", "matrix") for b in ("mse", "rmse", "r2")
    }
    for name in ("scalar", "vector", "matrix"):
        assert report.metrics[f"{name}_rmse"] == pytest.approx(report.metrics[f"{name}_mse"] ** 0.5)
    best = results["history"][results["best_epoch"]]
    assert results["best_validation"] == min(v["validation"] for v in results["history"])
    assert report.metrics["matrix_mse"] == best["matrix_mse"]


def test_predictions_are_those_of_the_best_weights_in_the_units_of_the_land(trained: Trained) -> None:
    _, report = trained
    found = report.predictions()
    land = training.generate(53)
    np.testing.assert_allclose(found["true_matrix"], land.matrix[found["column"]], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["true_scalar"], land.scalar[found["column"]], rtol=1e-4)
    with np.load(report.folder / "normalisation.npz") as norm:
        error = (found["matrix"] - found["true_matrix"]) / norm["matrix_std"]
        inputs = [
            torch.from_numpy(
                (getattr(land, n)[found["column"]] - norm[f"{n}_mean"]) / norm[f"{n}_std"]
            ).float()
            for n in ("series", "static", "lists", "matrices")
        ]
        spread, mean = norm["scalar_std"], norm["scalar_mean"]
    assert np.square(error).mean() == pytest.approx(report.metrics["matrix_mse"], rel=1e-4)
    # The model of the file says the same.
    from mgpu_nb.workloads.training.emulator import Inputs

    with torch.no_grad():
        again = report.model()(Inputs(*inputs)).scalar.double().numpy() * spread + mean
    np.testing.assert_allclose(again, found["scalar"], rtol=1e-4)
    table = pd.read_csv(report.folder / "predictions" / "scalar.csv")
    assert list(table.columns) == ["column", *SCALARS, *(f"true_{name}" for name in SCALARS)]
    np.testing.assert_allclose(table[list(SCALARS)], found["scalar"], rtol=1e-12)
    with safe_open(report.folder / "model.safetensors", "pt") as file:
        assert file.metadata() == training.Emulator(8, 1, 2).metadata()


def test_a_report_has_units_r2_and_the_carbon(trained: Trained) -> None:
    _, report = trained
    outputs, found = report.outputs(), report.predictions()
    assert outputs.index.tolist() == [*SCALARS, *VECTORS, *POOLS]
    assert set(outputs["unit"]) == {"kg/m2"}
    error = found["scalar"][:, 1] - found["true_scalar"][:, 1]
    assert outputs.loc["respiration", "rmse"] == pytest.approx(np.sqrt(np.square(error).mean()))
    spread = found["true_scalar"][:, 1].var()
    assert outputs.loc["respiration", "r2"] == pytest.approx(1 - np.square(error).mean() / spread)
    assert report.metrics["scalar_r2"] == pytest.approx(outputs["r2"][: len(SCALARS)].mean())
    carbon = report.carbon()
    assert (carbon["true"] < 1e-4).all()  # the land closes, up to 32 bits
    assert (carbon["predicted"] > 1e-2).all()  # an emulator of three epochs does not
    for shown in ("kg/m2", "vegetation and soil pools change by production less respira", "R²"):
        assert shown in str(report)


def test_public_batches_are_trained_and_described(tmp_path: Path) -> None:
    for n in range(3):
        land_batches.write(land_batches.batch(9, seed=n), tmp_path / f"batch_{n}.parquet")
    config = dataclasses.replace(
        SMALL, data=str(tmp_path / "batch_*.parquet"), world_size=2, output_dir=str(tmp_path / "run"), epochs=1,
        crop_lists=(1, 17), coordinates=True, units=("Y_GPP=gC/m2/s",),
    )  # fmt: skip
    run = training.start(config).wait(120)
    report = training.collect(run)
    for text in (run.logs(0), str(report), str(report.data())):
        assert "cropped to [1:17] of 18" in text
    assert "27 columns of land from 3 files" in run.logs(0)
    assert "cropped" not in run.logs(1)
    assert report.predictions()["matrix"].shape[1:] == (1, 2, 15)
    assert report.outputs().loc["soil1c_vr", "unit"] == "gC/m3"
    assert list(pd.read_csv(tmp_path / "run/predictions/scalar.csv"))[1:3] == ["GPP", "NPP"]
    assert report.model().sizes == training.read_land(config.data, reading=config).sizes()  # type: ignore[arg-type]
    assert report.carbon().index.tolist() == ["stock: soil"]
    assert len(report.plot_predictions()) == 1
    again = dataclasses.replace(config, crop_lists=None)
    with pytest.raises(ValueError, match="crop_lists="):
        training.start(again)
    twice = dataclasses.replace(config, output_dir=str(tmp_path / "again"))
    training.start(twice).wait(120)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    sharded = dataclasses.replace(
        config, output_dir=str(tmp_path / "sharded"), strategy="fsdp", gradient_checkpointing=True
    )
    other = training.collect(training.start(sharded).wait(120))
    np.testing.assert_allclose(other.frame()["validation"], report.frame()["validation"], rtol=1e-5)
    assert other.model().sizes == report.model().sizes


def test_a_check_reads_data_and_trains_nothing(tmp_path: Path) -> None:
    path = land_batches.write(land_batches.batch(), tmp_path / "a.npz")
    check = training.CheckConfig(data=(str(path),), pad_lists=20, output_dir=str(tmp_path / "out"))
    report = training.collect_check(training.start(check).wait(60))
    data = report.data()
    assert data is not None
    assert "padded with items of 0 from 18 to 20" in set(data["done"])
    assert "DDP test completed!" in str(report)
    assert "12 columns of land from 1 file" in str(report)
    assert "padded with items" in report._repr_html_()
    assert [file.name for file in report.save(tmp_path / "saved")] == ["check.csv", "data.csv"]
    assert not list((tmp_path / "out").glob("*.safetensors"))
    bad = dataclasses.replace(check, leave_out=("Y_GPP", "Y_NPP", "Y_deadcrootc", "Y_soil1c_vr"))
    with pytest.raises(ValueError, match=r"a\.npz has no output columns"):
        training.start(bad)


def test_ranks_settings_and_text_of_a_report(trained: Trained, tmp_path: Path) -> None:
    run, report = trained
    ranks = report.ranks()
    assert (ranks["columns_per_second"] > 0).all()
    assert (ranks["peak_memory"] > 10 * 2**20).all()
    assert len(ranks) == 2
    settings = report.settings()["value"]
    assert settings["world_size"] == 2
    assert settings["batch_per_rank"] == 6
    assert settings["learning_rate_scaled"] == 3e-3
    assert set(dataclasses.asdict(SMALL)) <= set(settings.index)
    assert "2 ranks (gloo) x 6 columns: batch of 12, 12 per optimizer step" in str(report)
    assert ">columns per second</th>" in report._repr_html_()
    copies = report.save(tmp_path / "copy")
    assert all(path.is_file() for path in copies)
    assert training.Report.open(tmp_path / "copy").results == report.results
    assert training.collect(Run.open(run.folder)).results == report.results
    frame = run.frame()
    assert frame["columns_per_second"].notna().all()
    assert frame["validation"].nunique() == 1


def test_a_log_has_a_line_per_epoch_and_with_debug_one_per_step(trained: Trained) -> None:
    run, _ = trained
    first, second = run.logs(0), run.logs(1)
    assert "2 ranks x 6 columns, 12 per optimizer step" in first
    assert "epoch 3 of 3: loss" in first
    assert "epoch 3 of 3" not in second
    assert "DEBUG rank 0: step 1, loss" in first
    assert "DEBUG rank 1: step 12, loss" in second


def test_speedup_of_several_trainings(trained: Trained) -> None:
    _, report = trained
    one = training.Report(
        report.folder,
        {
            **report.results,
            "world_size": 1,
            "ranks": [{"rank": 0, "columns_per_second": 10.0, "peak_memory": 1}],
        },
    )
    rows = [{"rank": n, "columns_per_second": 8.0, "peak_memory": n} for n in range(2)]
    two = training.Report(report.folder, {**report.results, "ranks": rows})
    table = training.speedup_table([one, two])
    assert table.index.tolist() == [1, 2]
    assert table["speedup"].tolist() == [1.0, 1.6]
    assert table["efficiency"].tolist() == [1.0, 0.8]
    with pytest.raises(ValueError, match="no reports"):
        training.speedup_table([])


@pytest.mark.slow
def test_minimal_learns_and_is_resumed_by_another_world(tmp_path: Path) -> None:
    config = training.named("minimal", output_dir=tmp_path / "run", epochs=6)
    report = training.collect(training.start(config).wait(120))
    assert report.results["best_validation"] < 0.48 * report.results["baseline"]  # 0.442 was measured
    more = dataclasses.replace(config, epochs=7, world_size=2)
    longer = training.collect(training.start(more).wait(120))
    np.testing.assert_array_equal(longer.frame()["loss"][:6], report.frame()["loss"])
    assert longer.frame()["loss"][6] < longer.frame()["loss"][5]
    assert longer.results["world_size"] == 2


def test_a_finished_training_that_is_resumed_keeps_its_figures(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, output_dir=str(tmp_path / "run"), world_size=2)
    before = training.collect(training.start(config).wait(60))
    again = dataclasses.replace(config)
    after = training.collect(training.start(again).wait(60))
    assert after.results["history"] == before.results["history"]
    assert after.results["seconds"] >= before.results["seconds"] > 0
    assert (after.ranks()["columns_per_second"] > 0).all()
    by_another_world = training.collect(training.start(dataclasses.replace(again, world_size=1)).wait(60))
    assert by_another_world.ranks()["columns_per_second"].isna().all()
    with pytest.raises(ValueError, match="had nothing left to train"):
        training.speedup_table([by_another_world])
    assert "0 columns per second" in str(by_another_world)


def test_data_of_a_relative_path_are_the_same_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    training.write_land(training.generate(30), "land.npz")
    config = dataclasses.replace(SMALL, data="land.npz", output_dir="out", epochs=1)
    assert training.start(config).results(60)[0]["epochs"] == 1
    more = dataclasses.replace(config, data="./land.npz", epochs=2)
    assert training.start(more).results(60)[0]["epochs"] == 2


@pytest.mark.slow
def test_a_training_takes_slots_of_a_pool(tmp_path: Path) -> None:
    with GPUPool(slots=2) as pool:
        run = training.start(dataclasses.replace(SMALL, epochs=1, output_dir=str(tmp_path / "run")), pool)
        assert len(run.results(60)) == 2
        one = training.start(
            dataclasses.replace(SMALL, epochs=1, use_multi_gpu=False, output_dir=str(tmp_path / "one")), pool
        )
        assert len(one.results(60)) == 1


def test_slurm_says_how_many_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "a100:2")
    run = training.start(dataclasses.replace(SMALL, epochs=1, output_dir=str(tmp_path / "run")))
    assert len(run.results(60)) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"world_size": 16}, "batch_size=12 over 16 ranks: give each at least one"),
        ({"use_amp": True, "amp_dtype": "fp16"}, "fp16' needs GPUs: use bf16"),
        ({"world_size": 5}, "cannot be dealt over 5 ranks: 10 can"),
        ({"distributed_backend": "nccl"}, "'nccl' needs a GPU for each rank: use gloo"),
        ({"sync_batch_norm": True, "batch_norm": True}, "sync_batch_norm needs GPUs"),
        ({"bf16_allreduce": True}, "bf16_allreduce needs GPUs"),
        ({"gpu_ids": (7,)}, "7"),
    ],
)
def test_what_cannot_be_is_said_before_any_process_starts(changes: dict[str, Any], words: str) -> None:
    children = set(psutil.Process().children(recursive=True))
    with pytest.raises(ValueError, match=words):
        training.start(dataclasses.replace(SMALL, **changes))
    assert set(psutil.Process().children(recursive=True)) <= children


def test_a_pool_that_is_too_small_is_named() -> None:
    with GPUPool(slots=1) as pool, pytest.raises(ValueError, match="world_size=2: the pool has 1 slots"):
        training.start(dataclasses.replace(SMALL, world_size=2), pool)


def test_folders_that_cannot_take_a_training(tmp_path: Path, trained: Trained) -> None:
    def refused(words: str, error: type[Exception], **changes: Any) -> None:
        with pytest.raises(error, match=words):
            training.start(dataclasses.replace(SMALL, **changes))

    (tmp_path / "file").write_text("")
    refused("is a file; give a folder", NotADirectoryError, output_dir=tmp_path / "file")
    refused("/proc/nobody", OSError, output_dir="/proc/nobody/writes/here")
    _, report = trained
    refused(
        "is of another training: width=8 there, 16 here",
        ValueError,
        output_dir=report.folder,
        width=16,
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "checkpoint.pt").write_bytes(b"nothing")
    refused("no checkpoint of a training, or damaged", ValueError, output_dir=tmp_path / "bad")
    refused("there is no such file", FileNotFoundError, data=tmp_path / "nothing.npz")
    with pytest.raises(FileNotFoundError, match=r"holds no training_results\.json"):
        training.Report.open(tmp_path)
    (tmp_path / "training_results.json").write_text("[]")
    with pytest.raises(ValueError, match="is not of a training"):
        training.Report.open(tmp_path)


def test_a_run_that_has_not_ended_makes_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no training's"):
        training.collect(launch(int, nprocs=1, folder=tmp_path / "run").wait(30))
    run = training.start(dataclasses.replace(SMALL, epochs=100_000, output_dir=str(tmp_path / "long")))
    with pytest.raises(ValueError, match="0 of 1 ranks have ended: wait"):
        training.collect(run)
    run.cancel()
    with pytest.raises(ValueError, match="the training was cancelled"):
        training.collect(run.wait(60))


def fails(config: training.Config, rank: int, how: Callable[[Path], None], folder: Path) -> dict[str, Any]:
    """A rank that fails when its first epoch is over."""
    import torch.distributed as dist

    from mgpu_nb.workloads.training.trainer import Trainer

    epoch = Trainer.train_epoch

    def train_epoch(self: Trainer) -> dict[str, float]:
        if self.epoch == 1 and dist.get_rank() == rank:
            how(folder)
        return epoch(self)

    Trainer.train_epoch = train_epoch  # type: ignore[method-assign]
    return train_here(config, folder)


def is_killed(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raises(folder: Path) -> None:
    raise KeyError("mine")


def hangs(folder: Path) -> None:
    threading.Event().wait(60)


def starts_late(folder: Path) -> None:
    while not (folder / "training_validation_losses.csv").exists():
        time.sleep(0.01)
    time.sleep(0.2)


def failing(
    config: training.Config, rank: int, how: Callable[[Path], None], folder: Path, timeout: float
) -> Run:
    ranks: dict[str, Any] = {"nprocs": 2, "timeout": timeout, "preload": ["torch._dynamo"]}
    return launch(fails, config, rank, how, folder, folder=folder, name="training", **ranks)


@pytest.mark.parametrize(("how", "words"), [(is_killed, "SIGKILL"), (raises, "mine")])
def test_a_rank_that_fails_ends_the_training_and_is_named(
    tmp_path: Path, how: Callable[[Path], None], words: str
) -> None:
    config = dataclasses.replace(SMALL, epochs=500, checkpoint_every=1000)
    run = failing(config, 1, how, tmp_path, 60).wait(60)
    by_name = {record.name: record for record in run.records}
    assert words in by_name["rank-1"].error
    assert not by_name["rank-0"].ok
    ended, failed = by_name["rank-0"].finished, by_name["rank-1"].finished
    assert ended is not None
    assert failed is not None
    assert ended - failed < 30  # not the 60 of its time
    with pytest.raises(ValueError, match=f"rank-1 ended .*{words}"):
        training.collect(run)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_when_the_time_is_over(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, epochs=500)
    by_name = {record.name: record for record in failing(config, 1, hangs, tmp_path, 10).wait(120).records}
    assert "rank 0 waited 10 s in a collective; missing: rank 1" in by_name["rank-0"].error
    assert not by_name["rank-1"].ok


def test_a_rank_that_is_slow_is_waited_for(tmp_path: Path) -> None:
    run = failing(SMALL, 1, starts_late, tmp_path, 60)
    assert run.results(60)[0]["epochs"] == 3


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, epochs=4)
    failing(config, 0, is_killed, tmp_path, 60).wait(60)
    assert (tmp_path / "checkpoint.pt").exists()
    again = dataclasses.replace(config, output_dir=str(tmp_path), world_size=2)
    resumed = training.collect(training.start(again).wait(60)).frame()
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"), world_size=2)
    straight = training.collect(training.start(whole).wait(60)).frame()
    for name in ("loss", "validation", "matrix_mse"):
        np.testing.assert_array_equal(resumed[name], straight[name])
