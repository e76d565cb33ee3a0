"""CONTRIBUTING.md tells the truth: its examples run, its tree is the table of rooms, what it names exists."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from outside import MAIN, Site

import mgpu_nb

ROOT = Path(mgpu_nb.__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """The examples as one installed package, with the entry points that the page gives."""
    modules = {}
    for source in blocks("python"):
        name = re.match(r"# (\w+)\.py\n", source)
        assert name, source
        modules[name[1]] = source
    points: dict[str, dict[str, str]] = {}
    for source in blocks("toml"):
        points |= tomllib.loads(source)["project"]["entry-points"]
    assert points.keys() == {"mgpu_nb.workloads", "mgpu_nb.engines"}
    site = Site(tmp_path)
    site.add("examples", points, **modules)
    return site


@pytest.mark.slow
def test_the_workload_runs(site: Site) -> None:
    done = site.run(MAIN, "matmul", "--preset", "small", "--output_dir", "out", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()[:3]
    assert [line.split()[0] for line in shown] == ["size", "64", "128"]
    saved = (site.folder / "out" / "results" / "matmul.csv").read_text().splitlines()
    assert saved[0] == "size,device,TFLOP/s"
    assert all(float(line.split(",")[2]) > 0 for line in saved[1:])
    again = site.run(MAIN, "report", "out")
    assert (again.returncode, again.stdout.splitlines()) == (0, shown), again.stderr


@pytest.mark.slow
def test_the_workload_is_studied_and_drawn(site: Site) -> None:
    done = site.run(
        """
        from mgpu_nb import Run, speedup
        from mgpu_nb.workloads.base import WORKLOADS, Report, start
        import matmul
        config = matmul.Config(sizes=(32, 64), output_dir="out")
        assert speedup(config, [1, 2], repeats=1).counts == [1, 2]
        start(WORKLOADS["matmul"], config).wait(60)
        report = matmul.WORKLOAD.collect(Run.open("out"))
        assert isinstance(report, Report)
        assert len(report.plot().patches) == 2
        assert "<td" in report._repr_html_()
        """,
        CUDA_VISIBLE_DEVICES="",
        MPLBACKEND="Agg",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_engine_chooses_slots_and_leaves_memory(site: Site) -> None:
    done = site.run(
        """
        import os, socket
        from mgpu_nb import GPUPool, Task
        from mgpu_nb.hardware import host
        host.cores, os.getloadavg = lambda: 3, lambda: (1.2, 0.0, 0.0)
        with GPUPool(engine="idle", memory_timeout=0.1) as pool:
            assert [slot.label for slot in pool.slots] == ["cpu:1", "cpu:2"], pool
            free = host.memory()[2]
            many = [Task(pow, n, 2) for n in range(4)]
            run = pool.run([*many, Task(pow, 2, 2, memory=int(0.97 * free))], folder="out").wait(60)
            *good, last = run.records
            assert [record.value for record in good] == [0, 1, 4, 9]
            for record in good:
                assert (record.slot, record.device) in {(0, "cpu:1"), (1, "cpu:2")}, record
                assert record.host == socket.gethostname()
            assert last.status == "out-of-memory", last
        os.getloadavg = lambda: (3.4, 0.0, 0.0)
        try:
            GPUPool(engine="idle")
        except ValueError as error:
            print(error)
        """,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "every device is in use: wait, or take engine='local'\n"


def test_the_engine_leaves_a_gpu_that_another_program_uses(site: Site) -> None:
    done = site.run(
        f"""
        sys.path.insert(0, {str(ROOT / "tests" / "helpers")!r})
        import idle
        from dataclasses import replace
        from mgpu_nb.engines.local import LocalEngine
        from mgpu_nb.hardware.slots import Slot
        gpus = tuple(
            Slot(index=n, kind="cuda", gpu_id=n, uuid=f"GPU-{{n}}", name="", threads=1) for n in range(3)
        )
        import os
        LocalEngine.slots = lambda self, *options: gpus
        idle.used_by = lambda uuid: {{"GPU-0": {{os.getpid(): 1}}, "GPU-1": {{1: None}}}}.get(uuid, {{}})
        assert idle.IdleEngine().slots(None, None, None) == (gpus[0], replace(gpus[2], index=1))
        """
    )
    assert done.returncode == 0, done.stderr


def test_the_tree_is_the_table_of_rooms() -> None:
    source = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    (table,) = [
        node.value
        for node in source.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ROOMS"
    ]
    assert isinstance(table, ast.Dict)
    rooms = [ast.literal_eval(key) for key in table.keys if key is not None]
    (tree,) = blocks("text")
    assert [line.split()[0] for line in tree.splitlines()] == rooms
    assert all(len(line.split()) > 2 for line in tree.splitlines())


def rows() -> list[tuple[str, str]]:
    """File and name of each step of a task's way."""
    return re.findall(r"`(\w+(?:/\w+)*\.py)` `([\w.]+)`", TEXT)


def test_the_way_of_a_task_has_all_its_steps() -> None:
    assert len(rows()) > len(set(re.findall(r"^\| (\d+) \|", TEXT, re.M))) >= 15


@pytest.mark.parametrize(("file", "name"), rows())
def test_what_is_on_the_way_of_a_task_exists(file: str, name: str) -> None:
    body = ast.parse((ROOT / "mgpu_nb" / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [
            node for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == part
        ]
        assert found, f"{file} has no {name}"
        body = found[0].body


def test_the_paths_exist() -> None:
    paths = set(re.findall(r"`((?:tests|benchmarks|mgpu_nb|\.ci)/[\w/.]*)", TEXT)) - {"benchmarks/NAME.py"}
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_marks_exist() -> None:
    (line,) = re.findall(r"`pytest -m slow`.*", TEXT)
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    marks = {mark.partition(":")[0] for mark in options["ini_options"]["markers"]}
    assert {"slow", "browser", "slurm", "reference"} <= marks
    assert all(
        f"`{mark}`" in line.replace("pytest -m ", "") for mark in ("slow", "browser", "slurm", "reference")
    )
