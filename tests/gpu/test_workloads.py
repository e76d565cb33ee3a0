"""The workloads on a real GPU: the numbers of the CPU, the same twice; all settings of a training that need one."""

import re
import time
from pathlib import Path
from typing import Any

import gpu_jobs
import gpu_private
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gpu_dry import DRY
from gpu_fixtures import ComputePool, Figures, Trainings

from mgpu_nb import GPUPool, Run, Task
from mgpu_nb.workloads import protein, tracin, training
from mgpu_nb.workloads.tracin.graph import Triples
from mgpu_nb.workloads.training.report import Report


def triples(train: int = 800, test: int = 32, seed: int = 0) -> tuple[Triples, Triples]:
    rng = np.random.default_rng(seed)
    heads, relations, tails = (rng.integers(0, n, train + test) for n in (135, 46, 135))
    drawn = np.stack([heads, relations, tails], 1)
    return drawn[:train], drawn[train:]


def on_both(compute_pool: ComputePool, tasks: list[Task], folder: Path) -> list[list[Any]]:
    """Results of tasks on the CPU and twice on the GPU."""
    with GPUPool("cpu", 2) as cpu, compute_pool(1) as gpu:
        runs = [
            pool.run(tasks, name="w", folder=folder / name)
            for pool, name in ((cpu, "cpu"), (gpu, "gpu"), (gpu, "again"))
        ]
        return [run.results(40) for run in runs]


def apart(found: npt.ArrayLike, wanted: npt.ArrayLike) -> float:
    """Largest difference, relative to the largest number."""
    one, two = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.abs(one - two).max() / np.abs(two).max())


@pytest.mark.limit(60)
def test_influences_are_those_of_the_cpu_and_the_same_twice(
    tmp_path: Path, compute_pool: ComputePool, figures: Figures
) -> None:
    train, test = map(torch.from_numpy, triples())
    tasks = [Task(gpu_jobs.influences, kind, train, test, name=kind) for kind in ("fp32", "fp64")]
    cpu, gpu, again = on_both(compute_pool, tasks, tmp_path)
    differences = {
        "fp32": apart(gpu[0], cpu[0]), "fp64": apart(gpu[1], cpu[1]), "gpu_fp32_from_fp64": apart(gpu[0], cpu[1]),
        "cpu_fp32_from_fp64": apart(cpu[0], cpu[1]),
    }  # fmt: skip
    same = [torch.equal(one, two) for one, two in zip(gpu, again, strict=True)]
    figures(**differences, same_twice=same)
    assert differences["fp64"] < 1e-10
    assert differences["fp32"] < 1e-5
    assert same == [True, True]


@pytest.mark.limit(60)
def test_an_analysis_by_files_is_that_of_the_cpu(
    tmp_path: Path, compute_pool: ComputePool, figures: Figures
) -> None:
    train, test = triples(800, 20)
    entities, relations = (
        tuple(f"{kind}{n}" for n in range(count)) for kind, count in (("e", 135), ("r", 46))
    )
    none = np.zeros(0, np.int64)
    gpu_private.write_graph(
        tracin.Graph(train, test, entities, relations, none, none.reshape(0, 2)), tmp_path
    )
    torch.manual_seed(0)
    torch.save(tracin.ConvE(tracin.Shape(135, 46)).state_dict(), tmp_path / "model.pt")
    files: dict[str, Any] = {
        n: str(tmp_path / f"{n}.tsv") for n in ("train", "test", "entity_to_id", "relation_to_id")
    }
    config = tracin.Config(model_path=str(tmp_path / "model.pt"), **files, top_k=None)
    reports = []
    with GPUPool("cpu", 2) as cpu, compute_pool(2) as gpu:
        for pool, name in ((cpu, "cpu"), (gpu, "gpu"), (gpu, "again")):
            run = pool.run(tracin.tasks(config, slots=2), name="tracin", folder=tmp_path / name).wait(40)
            assert [record.error for record in run.records] == ["", ""]
            reports.append(tracin.collect(run, config))
    values = [report.influence(0)["influence"].sort_index().to_numpy() for report in reports]
    figures(apart=apart(values[1], values[0]), gpus=[report.num_gpus_used for report in reports])
    assert apart(values[1], values[0]) < 1e-5
    assert (values[1] == values[2]).all()
    assert reports[0].num_gpus_used == 0
    assert DRY or reports[1].num_gpus_used == 1


@pytest.mark.limit(60)
def test_scores_of_proteins_are_those_of_the_cpu(
    tmp_path: Path, compute_pool: ComputePool, figures: Figures
) -> None:
    pytest.importorskip("biotite", reason="biotite, which writes the structures, is not installed")
    config = protein.Config(num_samples=2, branch_counts=(2,), steps=20, sample_length=32)
    cpu, gpu, again = on_both(compute_pool, protein.tasks(config), tmp_path)
    differences = {
        f"{one['method']}-{one['num_branches']}": apart(two["scores"], one["scores"])
        for one, two in zip(cpu, gpu, strict=True)
    }
    same = [one["scores"] == two["scores"] for one, two in zip(gpu, again, strict=True)]
    seconds = {
        one["method"]: (one["total_time"], two["total_time"]) for one, two in zip(cpu, gpu, strict=True)
    }
    figures(apart=differences, same_twice=same, seconds_on_cpu_and_gpu=seconds)
    assert max(differences.values()) < 1e-5
    assert all(same)


@pytest.mark.limit(60)
def test_the_trained_network_of_proteins_runs_on_the_gpu(
    tmp_path: Path, compute_pool: ComputePool, figures: Figures
) -> None:
    pytest.importorskip("biotite", reason="biotite, which writes the structures, is not installed")
    config = protein.Config(
        model="ca_net", methods=("standard", "best_of_n"), num_samples=2, branch_counts=(2,), steps=10
    )
    cpu, gpu, again = on_both(compute_pool, protein.tasks(config), tmp_path)
    differences = [apart(two["scores"], one["scores"]) for one, two in zip(cpu, gpu, strict=True)]
    same = [one["scores"] == two["scores"] for one, two in zip(gpu, again, strict=True)]
    figures(apart=differences, same_twice=same)
    assert all(same)
    assert max(differences) < 1e-5


def config_of(folder: Path, **options: Any) -> training.Config:
    """A short training. Dry, what only a GPU can do is left out."""
    if DRY:
        for name in ("sync_batch_norm", "bf16_allreduce"):
            options.pop(name, None)
        if options.get("amp_dtype") == "fp16":
            options["amp_dtype"] = "bf16"
        options |= {"width": min(16, options.get("width", 16)), "layers": min(2, options.get("layers", 2))}
        if options.get("distributed_backend") == "nccl":
            options["distributed_backend"] = "gloo"
    chosen = {
        "columns": 32 if DRY else 256,
        "epochs": 3,
        "batch_size": 8 if DRY else 64,
        "learning_rate": 3e-3,
    }
    return training.Config(**{**chosen, **options, "output_dir": folder})


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Trainings:
    """Function from the name of a training to its report; all that the chosen tests compare run on four slots."""
    folder = tmp_path_factory.mktemp("trainings")
    one, two = (
        {"world_size": 1, "distributed_backend": "nccl"},
        {"world_size": 2, "distributed_backend": "gloo"},
    )
    # With few layers the peak lies in the backward pass of the LSTM over 240 months, recomputed or not: what the
    # Transformer kept is free by then. 384 layers keep 1.7 GB for 205 columns, recomputed 0.3.
    deep = {"width": 64, "layers": 384, "heads": 8, "batch_size": 256, "epochs": 1}
    # Neither Adam nor clipping sees a factor in the gradients: plain SGD does.
    sgd = {"optimizer": "sgd", "max_grad_norm": None, "learning_rate": 0.01}
    every = {
        "fp32": one, "bf16": {**one, "use_amp": True}, "fp16": {**one, "use_amp": True, "amp_dtype": "fp16"},
        "sgd": {**one, **sgd}, "fp32, exact": one, "two ranks, adamw": two, "two ranks, sgd": {**two, **sgd},
        "batch norm": {**one, "batch_norm": True},
        "sync batch norm": {**two, "batch_norm": True, "sync_batch_norm": True},
        "bf16 hook": {**one, "bf16_allreduce": True}, "fp16 hook": {**one, "fp16_allreduce": True},
        "kept": {**one, **deep}, "recomputed": {**one, **deep, "gradient_checkpointing": True},
        "accumulated": {**one, "gradient_accumulation_steps": 2},
    }  # fmt: skip
    marks = [mark for item in request.session.items for mark in item.iter_markers("compares")]
    wanted = {name: every[name] for name in every if any(name in mark.args for mark in marks)}

    def start(name: str) -> Run:
        with pytest.MonkeyPatch.context() as patch:
            if name in ("fp32, exact", "two ranks, adamw", "batch norm", "sync batch norm"):
                patch.setenv("NVIDIA_TF32_OVERRIDE", "0")
            return training.start(config_of(folder / re.sub("[, ]+", "-", name), **wanted[name]), pool)

    with (
        GPUPool("cpu", 4, isolation="task", preload=["torch._dynamo"])
        if DRY
        else GPUPool([0] * 4, isolation="task", preload=["torch._dynamo"])
    ) as pool:
        runs = {name: start(name) for name in wanted}
        reports: dict[str, Report | Exception] = {}
        end = time.monotonic() + 60
        for name, run in runs.items():
            try:
                reports[name] = training.collect(run.wait(max(0.1, end - time.monotonic())))
            except Exception as error:
                logs = "".join(run.logs(task)[-1500:] for task in run.tasks if run.done)
                reports[name] = RuntimeError(f"{error}\n{logs}")
                run.cancel()

    def get(name: str) -> Report:
        report = reports[name]
        if isinstance(report, Exception):
            raise report
        return report

    return get


def losses(report: Report) -> npt.NDArray[np.float64]:
    return report.frame()["loss"].to_numpy()


def memory(report: Report) -> int:
    return max(int(rank["peak_memory"]) for rank in report.results["ranks"])


@pytest.mark.compares("fp32")
def test_a_training_on_the_gpu_learns(trainings: Trainings, figures: Figures) -> None:
    report = trainings("fp32")
    figures(losses=list(losses(report)), backend=report.results["backend"], memory=memory(report))
    assert losses(report)[-1] < losses(report)[0]
    assert DRY or report.results["backend"] == "nccl"


@pytest.mark.compares("fp32", "bf16", "fp16", "bf16 hook", "fp16 hook")
@pytest.mark.parametrize("name", ["bf16", "fp16", "bf16 hook", "fp16 hook"])
def test_less_precision_gives_nearly_the_same_losses(
    name: str, trainings: Trainings, figures: Figures
) -> None:
    report = trainings(name)
    found, wanted = losses(report), losses(trainings("fp32"))
    scaler = torch.load(report.folder / "checkpoint.pt", weights_only=True)["scaler"]
    figures(
        apart=float(np.abs(found / wanted - 1).max()), losses=list(found), fp32=list(wanted), scaler=scaler
    )
    assert np.abs(found / wanted - 1).max() < 0.05
    assert DRY or (found != wanted).any()
    assert DRY or bool(scaler) == (name == "fp16"), "fp16 alone has small gradients, which a scaler saves"
    assert not scaler or scaler["scale"] > 1


@pytest.mark.compares("fp32, exact", "two ranks, adamw", "sgd", "two ranks, sgd")
@pytest.mark.parametrize(
    ("optimizer", "alone", "limit"),
    [("adamw", "fp32, exact", 1e-3), ("sgd", "sgd", 1e-4)],
    ids=["adamw", "sgd"],
)
def test_two_ranks_on_the_gpu_have_the_curve_of_one(
    optimizer: str, alone: str, limit: float, trainings: Trainings, figures: Figures
) -> None:
    """AdamW makes whole steps of what is only rounding in a gradient: noise of 1e-6 of the largest gradient moves
    this curve by 6e-7, noise of 1e-5 by 5e-4, of 1e-4 by 7e-3 (SGD's: below 1e-4). cuDNN computes LSTM and convolutions
    in TF32 by default, and half a batch may take another algorithm, so with AdamW TF32 is off."""
    found, wanted = losses(trainings(f"two ranks, {optimizer}")), losses(trainings(alone))
    figures(apart=list(np.abs(found / wanted - 1)), found=list(found), one_rank=list(wanted))
    assert np.abs(found / wanted - 1).max() < limit


@pytest.mark.compares("batch norm", "sync batch norm")
def test_synchronised_batch_norm_has_the_curve_of_one_rank(trainings: Trainings, figures: Figures) -> None:
    found, wanted = losses(trainings("sync batch norm")), losses(trainings("batch norm"))
    figures(apart=float(np.abs(found / wanted - 1).max()), found=list(found), one_rank=list(wanted))
    assert DRY or np.abs(found / wanted - 1).max() < 5e-3


@pytest.mark.compares("kept", "recomputed")
def test_recomputing_activations_takes_less_memory_for_the_same_losses(
    trainings: Trainings, figures: Figures
) -> None:
    kept, recomputed = trainings("kept"), trainings("recomputed")
    figures(
        kept=memory(kept),
        recomputed=memory(recomputed),
        losses=[float(losses(r)[0]) for r in (kept, recomputed)],
    )
    np.testing.assert_allclose(losses(recomputed), losses(kept), rtol=1e-3)
    assert DRY or memory(recomputed) < 0.75 * memory(kept)


@pytest.mark.compares("accumulated")
def test_accumulated_gradients_train(trainings: Trainings) -> None:
    assert np.isfinite(losses(trainings("accumulated"))).all()


def test_a_data_loader_with_workers_inside_a_task(tmp_path: Path, figures: Figures) -> None:
    with GPUPool([0]) as pool:
        run = pool.run([Task(gpu_jobs.loads_data, 2, name="loads")], folder=tmp_path / "run").wait(28)
    (record,) = run.records
    assert record.ok, record.error + run.logs("loads")
    total, processes, here = record.value
    figures(seconds=record.seconds)
    assert (total, processes, here) == (2 * sum(range(256)), 2, False)
