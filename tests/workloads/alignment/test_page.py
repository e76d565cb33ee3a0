"""The page of the workload, its docstring: what it says of files, columns and exports is so."""

from __future__ import annotations

import csv
import json
import re
import textwrap
from pathlib import Path

import pytest

from mgpu_nb.workloads import alignment
from mgpu_nb.workloads.alignment.config import Config
from mgpu_nb.workloads.alignment.datasets import load_examples
from mgpu_nb.workloads.alignment.files import COLUMNS
from mgpu_nb.workloads.alignment.settings import ALGOS, DATASETS, GRPO, Gsm8kData, ImdbData, load_settings

pytest.importorskip("omegaconf")
PAGE = alignment.__doc__ or ""
SMALL = (
    "rounds_of_training=1",
    "data_collection.max_examples=4",
    "evaluation.max_examples=2",
    "evaluation.samples_per_example=2",
    "evaluation.etas=[1]",
    *(f"algos.{name}.epochs=1" for name in ALGOS),
    *(f"algos.{name}.steps=2" for name, kind in ALGOS.items() if issubclass(kind, GRPO)),
)


def listed(file: str) -> list[str]:
    """Names that the page lists for a file, those in brackets and what is behind the full stop left out."""
    [found] = re.findall(rf"^- ``{re.escape(file)}``: (.*?)(?=^-|^\S|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    names = re.sub(r"\([^)]*\)", "", " ".join(found.split())).partition(".")[0]
    return [name.strip() for name in names.split(",")]


def test_all_that_is_exported_is_on_the_page() -> None:
    assert [name for name in alignment.__all__ if f"`{name}`" not in PAGE] == []


def test_the_settings_of_the_page_are_valid(tmp_path: Path) -> None:
    block = PAGE.partition('(``config="mine.yaml"``)::\n')[2].partition("\nWhat goes in")[0]
    (tmp_path / "mine.yaml").write_text(textwrap.dedent(block))
    settings = load_settings(Config(config=str(tmp_path / "mine.yaml")))
    assert list(settings.models) == ["llama"]
    assert settings.models["llama"].guide == "/models/Llama-3.2-1B"
    assert list(settings.datasets) == ["gsm8k"]
    assert list(settings.algos) == [name for name in ALGOS if name != "GRPO"]


def test_the_examples_of_the_page_are_read(tmp_path: Path) -> None:
    examples = dict(re.findall(r"^  ``(\w+)``\n      ``(\{.*?\})``", PAGE, re.MULTILINE))
    assert sorted([*examples, "sums"]) == sorted(DATASETS)
    for kind, line in examples.items():
        (tmp_path / f"{kind}.jsonl").write_text(line + "\n")
    gsm8k, imdb = str(tmp_path / "gsm8k.jsonl"), str(tmp_path / "imdb.jsonl")
    assert load_examples(Gsm8kData(train=gsm8k, test=gsm8k), "train")[0].answer == "It is 3.\n#### 3"
    [review] = load_examples(ImdbData(train=imdb, test=imdb, reward_model="x", prompt_words=3), "test")
    assert review.prompt == "A film that"


@pytest.mark.slow
def test_the_files_of_a_run_are_those_of_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = alignment.start(Config(SMALL, gpu_ids="cpu", slots=1, output_dir=str(folder))).wait(240)
    assert not run.failures
    alignment.collect(run).save()
    with (folder / "results" / "summary.csv").open(newline="") as file:
        assert listed("results/summary.csv") == [name.replace("@2", "@k") for name in next(csv.reader(file))]
    assert tuple(listed("datasets/ALGO/DATASET_FAMILY_rN.csv")) == COLUMNS
    told: set[str] = set()
    for algo in ALGOS:
        result = json.loads((folder / "results" / algo / "gpt2" / "sums" / "r1" / "result.json").read_text())
        assert list(result) == listed("results/ALGO/FAMILY/DATASET/rN/result.json")
        told |= result["training"].keys()
        with (folder / "datasets" / algo / "sums_gpt2_r1.csv").open(newline="") as file:
            assert tuple(next(csv.reader(file))) == COLUMNS
        model = {path.name for path in (folder / "models" / algo / "sums_gpt2_r1").iterdir()}
        value = {"config.json", "value.safetensors", "value.json"}
        assert (
            model == value if algo in ("PITA", "QSharp") else model > {"model.safetensors", "tokenizer.json"}
        )
    says = re.search(r"what the training says of itself\s+\(([^)]*)\)", PAGE)
    assert says is not None
    assert {name.strip() for name in says[1].split(",")} == told
    counts = json.loads((folder / "data.json").read_text())["sums"]["train"]
    assert listed("data.json") == list(counts)
    assert {path.name for path in (folder / "figures").iterdir()} == set(re.findall(r"\w+\.png", PAGE))
    assert set(alignment.read_states(folder).values()) == {"EVAL_COMPLETED"}
    assert [
        path.name for path in folder.iterdir() if not re.search(rf"\b{re.escape(path.name)}\b", PAGE)
    ] == []
