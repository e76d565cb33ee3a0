"""The table of workloads: how any of them is started, resumed and read back, and how another package adds one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outside import MAIN, Site

from mgpu_nb import GPUPool, Run, Task
from mgpu_nb.cli import COMMANDS
from mgpu_nb.renamed import RENAMED
from mgpu_nb.runs.batch import Batch
from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.workloads import base as workloads_base
from mgpu_nb.workloads import protein, tracin, training
from mgpu_nb.workloads.base import (
    RESERVED,
    WORKLOADS,
    Report,
    Workload,
    find_workload,
    load_run,
    read_config,
    start,
    workload_of,
    write_config,
)

SMALL: dict[str, dict[str, Any]] = {
    "protein": {"methods": ("standard", "best_of_n"), "branch_counts": (2,), "steps": 5, "sample_length": 20},
    "protein-train": {"steps": 20, "batch_size": 2, "hidden": 8, "layers": 1, "shortest": 8, "longest": 8},
    "tracin": {"max_test_triples": 1, "top_k": 2},
    "tracin-batch": {"max_triples": 2, "n_hops": 1},
    "tracin-train": {"epochs": 2, "checkpoints": 1},
    "training": {"columns": 53, "width": 8, "layers": 1, "heads": 2, "batch_size": 12, "epochs": 1},
    "training-check": {"world_size": 2},
    "molecules": {
        "n_samples": 2,
        "sampler": "dpm_solver++",
        "steps": 10,
        "guidance_scales": (0.0, 0.01),
        "judge": None,
    },
    "molecules-fit": {"molecules": 3, "frames": 2, "steps": 100, "batch_size": 2, "channels": 2, "hidden": 4},
    "molecules-train": {
        "steps": 3,
        "batch_size": 2,
        "hidden": 32,
        "layers": 1,
        "heavy_atoms": 1,
        "conformers": 1,
    },
}
SMALL["alignment"] = {
    "overrides": (
        "rounds_of_training=1",
        "data_collection.max_examples=4",
        "evaluation.max_examples=2",
        "evaluation.samples_per_example=2",
        "training.micro_batch_size=2",
        "algos.DPO.batch_size=4",
        "algos.DPO.epochs=1",
        *(f"algos.{name}.enabled=false" for name in ("PITA", "QSharp", "GRPO", "GRPO-HF")),
    )
}
SMALL["alignment-check"] = {"largest": 2}
SMALL["alignment-fit"] = {"steps": 3, "batch_size": 4, "layers": 1, "width": 8, "heads": 2}
Program = Callable[..., subprocess.CompletedProcess[str]]
Runs = dict[str, tuple[Run, Report]]
EVERY = [each.name for w in WORKLOADS.values() for each in (w, *w.verbs.values())]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Each workload and verb, started in one pool: its run and its report."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    with GPUPool(slots=2, isolation="task", preload=["torch._dynamo"]) as pool:
        for name in EVERY:
            workload = find_workload(name)
            config = workload.preset(**SMALL[name], output_dir=str(folder / name))
            run = start(workload, config, pool)
            found[name] = run.wait(120), workload.collect(run)
    return found


def test_every_workload_has_an_example_here() -> None:
    assert sorted(EVERY) == sorted(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_folder_alone_gives_the_report(runs: Runs, name: str) -> None:
    run, report = runs[name]
    workload, config = read_config(run.folder)
    assert workload is find_workload(name) is workload_of(config)
    opened = workload.collect(Run.open(run.folder))
    assert isinstance(opened, Report)
    assert str(opened) == str(report) != ""
    assert opened.folder == run.folder == Path(config.output_dir)
    assert len(opened.frame()) > 0
    opened.plot().figure.canvas.draw()
    assert "<" in opened._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_the_tables_of_the_run_stay_when_a_report_is_saved(runs: Runs, tmp_path: Path, name: str) -> None:
    run, report = runs[name]
    names = ("detailed_results.json", "summary_results.csv", "journal.jsonl", "config.json")
    before = [(run.folder / name).read_bytes() for name in names]
    saved = report.save()
    assert saved
    assert all(path.is_file() for path in saved)
    assert [(run.folder / name).read_bytes() for name in names] == before
    rows = json.loads((run.folder / "detailed_results.json").read_text())
    assert [row["name"] for row in rows] == list(run.tasks)
    copies = report.save(tmp_path / "copy")
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in saved]
    assert all(path.is_relative_to(tmp_path) for path in copies)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("training")])
def test_started_again_it_takes_over_what_is_done(runs: Runs, name: str) -> None:
    run, _ = runs[name]
    workload, config = read_config(run.folder)
    again = start(workload, config).wait(60)
    assert again.folder == run.folder
    assert {r.name: r.started for r in again.records if r.name in run.tasks} == {
        r.name: r.started for r in run.records
    }


@pytest.mark.slow
def test_a_moved_folder_is_read_where_it_is(runs: Runs, tmp_path: Path) -> None:
    import shutil

    run, report = runs["tracin-batch"]
    moved = Path(shutil.copytree(run.folder, tmp_path / "moved"))
    (moved / "batch_tracin_summary.json").unlink(missing_ok=True)
    workload, opened = load_run(moved)
    assert workload is not None
    assert workload.collect(opened).save() == [moved / "batch_tracin_summary.json"]
    assert str(workload.collect(opened)) == str(report)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("protein", ["config.json"]),
        ("training", ["config.json"]),
        ("alignment", ["config.json", "config.yaml", "job_states.json"]),
    ],
)
def test_a_folder_says_what_it_is_before_the_first_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: list[str]
) -> None:
    begin = Batch.begin
    there: list[bool] = []

    def look(batch: Batch) -> None:
        there.extend((tmp_path / "run" / file).is_file() for file in files)
        begin(batch)

    monkeypatch.setattr(Batch, "begin", look)
    config = WORKLOADS[name].config(**SMALL[name], gpu_ids="cpu", output_dir=str(tmp_path / "run"))
    run = start(WORKLOADS[name], config)
    run.cancel()
    run.wait(120)
    assert there == [True] * len(files)


def test_paths_of_a_config_are_absolute_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tracin.Config(
        train="a", test="b", entity_to_id="c", relation_to_id="d", checkpoints=("e", "f"), loss="own:loss"
    )
    write_config(tmp_path, WORKLOADS["tracin"], config)
    _, back = read_config(tmp_path)
    assert (back.train, back.checkpoints) == (str(tmp_path / "a"), (str(tmp_path / "e"), str(tmp_path / "f")))
    assert back.loss == "own:loss"


def test_numbers_of_numpy_are_written(tmp_path: Path) -> None:
    write_config(tmp_path, WORKLOADS["protein"], protein.Config(num_samples=np.int64(3)))  # type: ignore[arg-type]
    _, config = read_config(tmp_path)
    assert config.num_samples == 3


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: give the config as well"):
        tracin.collect(Run(Ledger("x", tmp_path, ())))
    (tmp_path / "config.json").write_text('{"workload": "tracni", "config": {}}')
    with pytest.raises(ValueError, match="did you mean 'tracin'"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text('{"workload": "tracin", "config": {"colour": 1}}')
    with pytest.raises(ValueError, match="colour"):
        load_run(tmp_path)
    write_config(tmp_path, WORKLOADS["protein"], protein.Config())
    with pytest.raises(ValueError, match="holds a run of protein, whose config is not a Config"):
        tracin.collect(Run(Ledger("x", tmp_path, ())))


def test_a_run_without_a_journal_is_over(tmp_path: Path) -> None:
    write_config(tmp_path, WORKLOADS["training"], training.Config())
    workload, run = load_run(tmp_path)
    assert workload is WORKLOADS["training"]
    assert run._ledger.settled
    assert run.results(5) == []


@pytest.mark.slow
def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="is not the config of a workload; there are protein, tracin, training, molecules"
    ):
        workload_of(SMALL)
    with pytest.raises(TypeError, match=r"protein takes a .*protein\.config\.Config, not a Config"):
        start(WORKLOADS["protein"], tracin.Config())
    with GPUPool(slots=1) as pool, pytest.raises(ValueError, match="gpu_ids and pool both choose devices"):
        start(WORKLOADS["protein"], protein.Config(gpu_ids="cpu"), pool)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds files that are not a run's"):
        protein.start(protein.Config(**SMALL["protein"], output_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="needs either tasks or, for a gang, launch"):
        Workload(name="none", summary="", config=protein.Config, collect=protein.collect)


@pytest.mark.slow
def test_a_check_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = training.start(training.CheckConfig())
    report = training.collect_check(run.wait(60))
    assert "World size: 1" in str(report)
    assert report.save() == []
    assert not run.folder.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_with_the_output_of_a_batch_job_takes_a_run(tmp_path: Path) -> None:
    (tmp_path / "slurm-17.out").write_text("")
    run = protein.start(protein.Config(**SMALL["protein"], output_dir=str(tmp_path)), resume=False)
    assert run.folder == tmp_path
    assert run.wait(60).progress.counts == {"ok": 2}


def test_the_table_costs_nothing_until_it_is_read() -> None:
    code = """
        import sys
        from mgpu_nb.workloads.base import WORKLOADS
        loaded = lambda: {n for n in ("torch", "pandas", "matplotlib", "tyro", "numpy") if n in sys.modules}
        packages = lambda: [m for m in sys.modules if m.startswith("mgpu_nb.workloads.") and m.count(".") > 2]
        assert not loaded() and not packages(), (loaded(), packages())
        assert list(WORKLOADS) == ["protein", "tracin", "training", "molecules", "alignment"]
        assert not packages()
        [each.config for each in WORKLOADS.values()]
        assert not loaded() - {"numpy"}, loaded()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("former", "now"), [(a, b) for a, b in RENAMED.items() if a.startswith(("workloads.", "views."))]
)
def test_former_names_of_modules_are_importable(former: str, now: str) -> None:
    code = (
        "import importlib, warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        f"    module = importlib.import_module('mgpu_nb.{former}')\n"
        f"assert module is importlib.import_module('mgpu_nb.{now}')\n"
        f"assert any('mgpu_nb.{former} is now mgpu_nb.{now}' in str(w.message) for w in seen)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_names_of_commands_are_reserved() -> None:
    assert set(RESERVED) == set(COMMANDS)


GARDEN = '''
"""A workload of another package."""
from dataclasses import dataclass
from pathlib import Path

from mgpu_nb import Task
from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.workloads.base import Workload, results_folder


@dataclass(frozen=True)
class Config:
    """A garden."""

    plants: int
    """Number of plants."""
    output_dir: str | None = None
    """Folder of the run."""


def grow(n):
    return n * n


def tasks(config, slots):
    return [Task(grow, n, name=f"plant-{n}") for n in range(config.plants)]


class Report:
    def __init__(self, heights, folder):
        self.heights, self.folder = heights, folder

    def frame(self):
        import pandas as pd

        return pd.DataFrame({"height": self.heights})

    def plot(self, ax=None):
        return self.frame().plot(ax=ax)

    def save(self, folder=None):
        path = results_folder(self.folder, folder) / "heights.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.frame().to_csv(path)
        return [path]

    def __str__(self):
        return f"heights: {self.heights}"

    def _repr_html_(self):
        return str(self)


def collect(run, config=None):
    return Report([record.value for record in run.records], run.folder)


WORKLOAD = Workload(
    name="garden", summary="Grow plants.", config=Config, tasks=tasks, collect=collect,
    presets={"small": {"plants": 2}}, published={2: 1.9},
)
'''


@pytest.fixture
def outside(tmp_path: Path) -> Program:
    """Packages with workloads: a good one, broken ones, and some with names that are taken."""
    site = Site(tmp_path)

    def add(distribution: str, points: Mapping[str, str], **modules: str) -> None:
        site.add(distribution, {"mgpu_nb.workloads": points}, **modules)

    add("garden", {"garden": "garden:WORKLOAD"}, garden=GARDEN)
    add("weeds", {"weeds": "weeds:WORKLOAD"}, weeds="import no_such_module\n")
    add("twins", {"protein": "garden:WORKLOAD", "watch": "garden:WORKLOAD"})
    add("zealots", {"zeal": "garden:Config"})
    return site.run


@pytest.mark.slow
def test_another_package_adds_a_workload(outside: Program, tmp_path: Path) -> None:
    done = outside(MAIN, "garden", "--plants", "3", "--output_dir", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "heights: [0, 1, 4]"
    assert (tmp_path / "out" / "results" / "heights.csv").is_file()
    done = outside(MAIN, "report", "out")
    assert (done.returncode, done.stdout) == (0, "heights: [0, 1, 4]\n"), done.stderr
    done = outside(MAIN, "garden", "run", "--preset", "small")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "heights: [0, 1]"), done.stderr
    assert outside(MAIN, "garden").returncode == 2  # plants are asked for
    done = outside("""
        import garden
        from mgpu_nb import speedup
        study = speedup(garden.Config(plants=2), [1, 2], repeats=1)
        assert study.counts == [1, 2] and len(study.measurements[0].seconds) == 2
        ax = study.plot(published="garden")
        assert "stated by the guide (garden)" in [line.get_label() for line in ax.get_lines()]
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_package_that_is_broken_breaks_no_other(outside: Program) -> None:
    done = outside(MAIN, "--help")
    assert done.returncode == 0
    assert "  garden            Grow plants." in done.stdout
    assert "  tracin batch " in done.stdout
    assert "workload 'protein' of twins is left out: mgpu-nb has that name already" in done.stderr
    assert "workload 'watch' of twins is left out: it is the name of a command of mgpu-nb" in done.stderr
    assert "workload 'weeds' of weeds cannot be imported: " in done.stderr
    assert "no_such_module" in done.stderr
    assert "workload 'zeal' of zealots: garden:Config is not a Workload of that name" in done.stderr
    done = outside(MAIN, "weeds")
    assert done.returncode == 2
    assert "workload 'weeds' of weeds cannot be imported" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_what_the_tasks_refuse_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tasks(config: Waves, slots: int) -> list[Task]:
        raise ValueError(f"not on {slots} slots")

    def pool(**options: Any) -> GPUPool:
        raise AssertionError("a pool was made")

    monkeypatch.setattr(workloads_base, "GPUPool", pool)
    workload = Workload(
        name="rounds", summary="", config=Waves, tasks=tasks, collect=lambda run, config=None: run
    )
    with pytest.raises(ValueError, match="not on 3 slots"):
        start(workload, Waves(slots=3, output_dir=str(tmp_path / "run")))


def test_a_workload_may_ask_for_rounds_and_for_a_pool_by_its_config(tmp_path: Path) -> None:
    workload = Workload(
        name="rounds",
        summary="Tasks in rounds.",
        config=Waves,
        tasks=lambda config, slots: [Task(pow, 2, n, name=str(n)) for n in range(4)],
        collect=lambda run, config=None: run,
        pool=lambda config: {"slots": config.most},
        rounds=lambda config, tasks: {str(n): n % 2 for n in range(len(tasks))} if config.waves else False,
    )
    for waves in (False, True):
        run = start(workload, Waves(waves, most=2, output_dir=str(tmp_path / str(waves)))).wait(60)
        first, second = ([r for r in run.records if int(r.name) % 2 == odd] for odd in (0, 1))
        assert len(run.slots) == 2
        assert not waves or max(r.finished or 0 for r in first) <= min(r.started or 0 for r in second)


@dataclass(frozen=True)
class Waves:
    waves: bool = False
    most: int = 1
    gpu_ids: Any = "cpu"
    slots: int | None = None
    output_dir: str | None = None
