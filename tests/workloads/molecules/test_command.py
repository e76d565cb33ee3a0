"""``mgpu-nb molecules``: the options of the guide, errors as one line, Weights & Biases, batch scripts."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_molecules import options

from mgpu_nb import Run
from mgpu_nb.cli import main
from mgpu_nb.tasks import Record
from mgpu_nb.workloads import molecules
from mgpu_nb.workloads.base import find_workload, read_config
from mgpu_nb.workloads.molecules import tracking
from mgpu_nb.workloads.molecules.config import Config
from mgpu_nb.workloads.molecules.tracking import Tracker, listeners
from mgpu_nb.workloads.request import parse

PLACE = Path("eval", "mlff_guided")


def words(path: str, **changes: Any) -> list[str]:
    """The options of `tiny_molecules.options` as words."""
    found = []
    for name, value in options(path, **changes).items():
        if isinstance(value, bool):
            found += [f"--{name}" if value else f"--no_{name}"]
        else:
            found += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Weights & Biases, offline and silent; its process ends with the test."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.teardown()


def config_of(*arguments: str) -> Config:
    config: Config = parse(find_workload("molecules"), arguments, "mgpu-nb molecules").configs[None]
    return config


GUIDE = """
--model_path outputs/edm_1 --use_distributed --local_rank=3 --world_size 8 --dist_backend nccl --n_samples 1000
--guidance_scales 0.0 0.0005 --guidance_iterations 2 --noise_threshold 0.5 --mlff_model uma-s-1p1 --batch_size 20
--n_nodes 19 --force_clip 5 --use_wandb --wandb_project mine --sampler dpm_solver++ --skip_baseline --skip_chain
--seed 7 --n_gpus 4
"""


def test_the_command_of_the_guide_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(*GUIDE.split())
    assert config == Config(
        model_path="outputs/edm_1", n_samples=1000, guidance_scales=(0.0, 0.0005), guidance_iterations=2,
        noise_threshold=0.5, mlff_model="uma-s-1p1", batch_size=20, n_nodes=19, force_clip=5, use_wandb=True,
        wandb_project="mine", sampler="dpm_solver++", skip_baseline=True, skip_chain=True, seed=7, slots=4,
    )  # fmt: skip
    said = capsys.readouterr().err
    for name in ("use_distributed", "local_rank", "world_size", "dist_backend"):
        assert f"--{name}: " in said
    assert config_of("--local-rank", "0", "--n_samples", "3") == Config(n_samples=3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--n_samples", "0"], "n_samples must be an integer >= 1, got 0"),
        (["--guidance_scales", "0.0", "-1"], "--guidance_scales must be"),
        (["--guidance_scales", "nan"], "--guidance_scales must be"),
        (["--sampler", "dmp"], "--sampler must be one of ddpm, dpm_solver++"),
        (["--preset", "quick"], "did you mean 'quick_test'"),
        (["--n_sampels", "3"], "did you mean --n_samples?"),
        (["--n_nodes", "4"], "3 to 9 except 4, 6, 8"),
        (["--steps", "21"], "trained with 20 steps"),
        (["--mlff_model", "none:Field"], "does not import"),
        (
            ["--model_path", "nowhere"],
            "--model_path nowhere does not exist; give a .safetensors file or a folder",
        ),
        (["--model_path", __file__], "has no options of it; it needs args.json"),
    ],
)
def test_what_is_wrong_is_one_line(
    model_path: str, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    try:
        code: Any = main(["molecules", *words(model_path), *arguments])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert code == 2
    assert text in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
    assert list(here.iterdir()) == []


def test_a_pickled_args_file_needs_trust(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "edm").mkdir()
    (here / "edm" / "generative_model_ema.npy").write_bytes(b"")
    (here / "edm" / "args.pickle").write_bytes(pickle.dumps({"dataset": "qm9"}))
    assert main(["molecules", "--model_path", "edm"]) == 2
    said = capsys.readouterr().err
    assert "args.pickle is a pickle, which can run any code" in said
    assert "--trust" in said


def test_verbs_have_their_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ([], ["train"], ["fit"]):
        with pytest.raises(SystemExit):
            main(["molecules", *verb, "--help"])
    said = capsys.readouterr().out
    assert "--guidance_scales" in said
    assert "--learning_rate" in said
    assert "--world_size" in said
    assert "--frames" in said


def test_a_batch_script_is_one_process_with_a_pool_or_ranks(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--n_samples", "50", "--output_dir", "out", "--gpus-per-node", "4"]
    assert main(["slurm", "molecules", *asked, "--script", "one.sbatch"]) == 0
    text = (here / "one.sbatch").read_text()
    assert "--ntasks-per-node=1" in text
    assert "mgpu_nb.workloads.molecules --n_samples 50 --output_dir out" in text
    assert main(["slurm", "molecules", *asked, "--nodes", "2", "--script", "two.sbatch"]) == 0
    text = (here / "two.sbatch").read_text()
    assert "--ntasks-per-node=4" in text
    assert "#SBATCH --nodes=2" in text
    assert main(["slurm", "molecules", *asked, "--launcher", "torchrun", "--script", "three.sbatch"]) == 0
    assert "torchrun --standalone --nproc-per-node=4 -m" in (here / "three.sbatch").read_text()
    assert main(["slurm", "molecules", *asked, "--nodes", "2", "--slots", "2", "--script", "no.sbatch"]) == 2
    assert "--slots: --ranks_per_node says how many ranks" in capsys.readouterr().err
    assert main(["slurm", "molecules", "train", "--world_size", "2", "--ranks-per-node", "2"]) == 0
    assert "molecules train" in (here / "molecules-train.sbatch").read_text()
    assert main(["slurm", "molecules", "train", "--ranks-per-node", "2", "--script", "no.sbatch"]) == 2
    assert "--world_size 1, and there are 2 ranks" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_by_command_goes_below_the_folder_of_its_model(
    model_path: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edm = here / "outputs" / "edm_1"
    edm.mkdir(parents=True)
    (edm / "notes.txt").write_text("mine")
    state_of_edm(edm)
    rest = words(model_path, slots=2)
    del rest[:2]
    assert main(["molecules", "--model_path", str(edm), *rest]) == 0, capsys.readouterr().err
    folder = edm / PLACE
    assert (folder / "baseline" / "molecule_baseline_006.xyz").is_file()
    assert (folder / "metrics.json").is_file()
    assert (folder / "journal.jsonl").is_file()
    assert "baseline" in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    assert "guided_scale_0.01" in capsys.readouterr().out
    started = {record.name: record.started for record in Run.open(folder).records}
    assert main(["molecules", "--model_path", str(edm), *rest, "--n_samples", "9"]) == 0
    again = {record.name: record.started for record in Run.open(folder).records}
    assert started.items() & again.items()  # whole chunks are kept
    assert len(list((folder / "baseline").iterdir())) == 9


def state_of_edm(folder: Path) -> None:
    """A small model with the names and options of the public EDM."""
    import torch

    from mgpu_nb.workloads.molecules.diffusion import Diffusion
    from mgpu_nb.workloads.molecules.egnn import EGNN
    from mgpu_nb.workloads.molecules.noise import Schedule

    stated = {
        "dataset": "qm9", "diffusion_noise_schedule": "polynomial_2", "diffusion_steps": 20,
        "diffusion_noise_precision": 0.1, "include_charges": False, "nf": 32, "n_layers": 1, "inv_sublayers": 1,
        "attention": True, "tanh": True, "norm_constant": 1, "normalization_factor": 1,
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(stated))
    egnn = EGNN(6, 32, 1, inv_sublayers=1, attention=True, tanh=True, norm_constant=1, normalization_factor=1)
    model = Diffusion(egnn, histogram={5: 1}, schedule=Schedule(20, 0.1))
    torch.save(model.state_dict(), folder / "generative_model_ema.npy")


@pytest.mark.slow
def test_a_force_field_that_fails_ends_in_a_line_and_code_1(
    model_path: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = words(model_path, slots=1, mlff_model="tiny_molecules:Broken", n_samples=2, output_dir="out")
    assert main(["molecules", *rest]) == 1
    said = capsys.readouterr().err
    assert "failed on each of" in said
    assert "no convergence in 250 cycles" in said
    assert "Traceback" not in said
    assert not (here / "out" / "eval").exists()


@pytest.mark.slow
def test_wandb_gets_the_metrics_from_one_process(model_path: str, here: Path, offline: Any) -> None:
    config = Config(**options(model_path, slots=2, use_wandb=True, wandb_project="mine", output_dir="out"))
    run = molecules.start(config).wait(120)
    (folder,) = (here / "out" / "wandb").glob("offline-run-*")
    logged = _logged(next(folder.glob("*.wandb")))
    report = molecules.collect(run)
    frame = report.frame()
    for name in ("baseline", "guided_scale_0.0", "guided_scale_0.01"):
        for metric in ("molecule_stability", "atom_stability", "force_rms", "validity"):
            assert logged[f"{name}/{metric}"] == pytest.approx(frame.loc[name, metric])
    assert logged["best_guided_stability"] == report.headline["best_guided_stability"]
    assert logged["best_guidance_scale"] == 0.01
    assert logged["stability_improvement"] == report.headline["stability_improvement"]
    live = run.metrics("baseline/molecule_stability").set_index("task")["value"]
    sizes = {record.name: len(record.value["sizes"]) for record in run.records if record.name in live.index}
    whole = sum(live[name] * size for name, size in sizes.items()) / 7
    assert whole == pytest.approx(frame.loc["baseline", "molecule_stability"])


def _logged(file: Path) -> dict[str, float]:
    """Last value of each metric in a file of Weights & Biases: a log of LevelDB after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    found: dict[str, float] = {}
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is empty
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = (whole if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            for item in record.history.item:
                found["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return found


def test_many_tasks_are_few_looks_at_all_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [0.0], []

    def look() -> None:
        looks.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: now[0]))
    tracker = Tracker(Config(use_wandb=True), tmp_path)
    monkeypatch.setattr(tracker, "_log", look)
    for _ in range(100):
        tracker.ended(Record(name="a", index=0, kind="", status="ok"))
        now[0] += 0.5
    assert len(tracker.records) == 100
    assert looks == [0.0, 20.0, 40.0]
    quick = Tracker(Config(use_wandb=True), tmp_path)
    monkeypatch.setattr(quick, "_log", lambda: looks.append(now[0]))
    looks.clear()
    began = now[0]
    for _ in range(30):
        quick.ended(Record(name="a", index=0, kind="", status="ok"))
        now[0] += 0.5
    assert looks == [began, began + 5, began + 10]


@pytest.mark.slow
def test_nobody_is_told_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: Any
) -> None:
    assert listeners(Config(), tmp_path) == ()
    (tracker,) = listeners(Config(use_wandb=True), tmp_path)
    assert isinstance(tracker, Tracker)
    monkeypatch.delenv("WANDB_MODE")

    def refuse() -> bool:
        raise offline.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(offline, "login", refuse)
    with pytest.raises(
        ValueError, match=r"use_wandb: not logged in \(api_key not configured .* WANDB_MODE=offline"
    ):
        listeners(Config(use_wandb=True), tmp_path)


@pytest.mark.slow
def test_the_config_of_the_folder_is_read_back(model_path: str, here: Path) -> None:
    config = Config(**options(model_path, slots=1, n_samples=2, output_dir=str(here / "out")))
    molecules.start(config).wait(60)
    workload, back = read_config(here / "out")
    assert (workload.name, back) == ("molecules", config)
