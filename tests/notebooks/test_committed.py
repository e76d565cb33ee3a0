"""The committed notebooks: what a reader sees in them."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))

SHOWN = {
    "alignment": (
        "45 of 45 done",
        ">reference</td>",
        ">GRPO-HF</td>",
        "with a barrier between rounds they would be idle",
        "✓",
        "results/summary.csv",
        "preferred",
        "'QSharp_gpt2_sums_r2': 'EVAL_COMPLETED'",
    ),
    "cluster": (
        "['here-0 cpu:0', 'here-1 cpu:0']",
        "on 2 nodes: ",
        "8 of 8 done",
        "6 of 6 done",
        "was lost with node here-",
        "here-2",
        "rank 1 of 2 is on node 1, local rank 0",
        "[15.0, 15.0]",
    ),
    "quickstart": ("9 of 9 done", "lr=0.5 seed=0", "✗ killed", "✗ timeout", "last words"),
    "monitoring": ("stopped, as of", "6 ok, 1 error", "✗ error", "looking for the third file", "peak, GiB"),
    "protein": (
        "16 of 16 done",
        "At equal network calls, against best_of_n:",
        ">not told apart</td>",
        ">better</td>",
        ">baseline</td>",
        "100%",
        "mean compact -12",
        "results/summary_results.csv",
    ),
    "molecules": (
        "force RMS, eV/Å",
        ">relaxed</td>",
        "Best: scale",
        "against the baseline",
        "3Dmol",
        "valence not met",
        "'summary.csv'",
        "'relaxed': 96",
    ),
    "tracin": ("3 of 3 done", "the strongest influences on it", "4 successful", "results/results.json"),
    "tracin_pykeen": (
        "Hits@10",
        "biomedical_occupation_or_discipline",
        "is wrong, the tail was",
        "tail before the slip",
    ),
    "training": (
        "[15.0, 15.0]",
        "✗ error",
        "– cancelled",
        "no data on this rank",
        "metrics of that epoch: accuracy",
        "speedup",
        "#SBATCH --nodes=2",
    ),
    "scaling": ("95 % interval", ">efficiency</th>", "Serial fraction", ">longest first</td>"),
}
"""What the text of a notebook promises, and its outputs hold."""


@cache
def book(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def code(name: str) -> list[Any]:
    return [cell for cell in book(name).cells if cell.cell_type == "code"]


def texts(cell: Any) -> str:
    """All that the outputs of a cell show, but for the pictures."""
    parts = []
    for output in cell.outputs:
        data = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
        parts += [output.get("text", ""), *data.values()]
    return "\n".join(parts)


def outputs(name: str) -> str:
    return "\n".join(map(texts, code(name)))


def test_every_notebook_is_known_here() -> None:
    assert sorted(SHOWN) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_was_run_whole_and_in_order(name: str) -> None:
    assert [cell.execution_count for cell in code(name)] == list(range(1, len(code(name)) + 1))
    kinds = {output.output_type for cell in code(name) for output in cell.outputs}
    assert "error" not in kinds
    assert not [o for cell in code(name) for o in cell.outputs if o.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_it_shows_what_it_promises(name: str) -> None:
    found = outputs(name)
    assert [words for words in SHOWN[name] if words not in found] == []
    for cell in code(name):
        if re.search(r"\.plot\w*\(|\bcurves\(", cell.source):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source


@pytest.mark.parametrize("name", NAMES)
def test_it_is_of_no_machine(name: str) -> None:
    assert re.findall(r".*(?:/work|/tmp|/home|/root|/Users)/.*", outputs(name)) == []
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 500_000
    assert "widget-view" not in text


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_like_a_story(name: str) -> None:
    assert book(name).cells[0].source.startswith("# ")
    for cell in book(name).cells:
        assert set(cell.metadata) <= {"tags"}  # no times of execution
        assert set(cell.metadata.get("tags", ())) <= {"nbval-ignore-output"}
    for cell in code(name):
        assert not re.search(r"NBVAL|tempfile|^_ = |\bassert\b", cell.source, re.MULTILINE), cell.source
        shown = "\n".join(output.get("text", "") for output in cell.outputs)
        assert not re.search(r"\bTrue\b|\bFalse\b", shown), cell.source  # a check belongs into a test
    prose = sum(len(cell.source) for cell in book(name).cells if cell.cell_type == "markdown")
    assert prose > 800


def test_the_first_proponent_is_the_planted_triple() -> None:
    (found,) = [
        cell.outputs[0].data["text/plain"] for cell in code("tracin") if "report.proponents(" in cell.source
    ]
    first = found.splitlines()[2].split()
    assert first[1:4] == ["c2e13", "r2", "c1e8"]
    assert first[4] == first[5]  # its influence is that on itself


def test_all_engines_of_tracin_give_one_number() -> None:
    (found,) = [texts(cell) for cell in code("tracin") if "engines.round" in cell.source]
    differences = [float(n) for n in re.findall(r"<td>(\de[+-]\d\d)</td>", found)]
    assert len(differences) == 4
    assert max(differences) < 1e-4


def test_both_rounds_of_every_algorithm_earn_more_than_the_reference() -> None:
    (found,) = [texts(cell) for cell in code("alignment") if "collect(run)" in cell.source]
    reached = re.findall(
        r"^(\S+), gpt2 on sums: reward ([\d.]+) of the reference, ([\d.]+) in round 1, ([\d.]+)", found, re.M
    )
    assert [algo for algo, *_ in reached] == ["PITA", "QSharp", "DPO", "GRPO", "GRPO-HF"]
    for algo, *rewards in reached:
        reference, first, second = map(float, rewards)
        assert min(first, second) > reference, algo
        if algo != "GRPO-HF":
            assert second > 0.8, algo


def test_a_barrier_leaves_slots_idle_longer() -> None:
    (found,) = [cell for cell in code("alignment") if "by_round=by_round" in cell.source]
    assert sum("image/png" in output.get("data", {}) for output in found.outputs) == 2


def test_two_ranks_compute_what_one_does() -> None:
    found = re.search(r"the losses differ by at most (\S+) of their value", outputs("training"))
    assert found
    assert float(found[1]) < 1e-2


def test_a_second_and_a_fourth_slot_gain_what_they_can() -> None:
    (found,) = [cell.outputs[-1].data["text/plain"] for cell in code("scaling") if "speedup(" in cell.source]
    gains = dict(re.findall(r"^ +(\d) +[\d.]+ +±[\d.]+% +([\d.]+)", found, re.MULTILINE))
    assert {n: round(float(gain)) for n, gain in gains.items()} == {"1": 1, "2": 2, "4": 4}
