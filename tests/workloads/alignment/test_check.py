"""The check of a set-up: every slot writes the same tokens, and what the report says of slots and batches."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.workloads.alignment import check
from mgpu_nb.workloads.alignment.check import CheckConfig, CheckReport, collect, compare, search, tasks
from mgpu_nb.workloads.alignment.config import Config
from mgpu_nb.workloads.alignment.device_manager import Trial
from mgpu_nb.workloads.alignment.inputs import check_inputs
from mgpu_nb.workloads.alignment.job import EMBEDDED, Pair
from mgpu_nb.workloads.alignment.workload import start

GIB = 2**30


def look(slot: int, tokens: list[list[int]]) -> dict[str, Any]:
    return {
        "slot": slot, "device": f"cuda:{slot}", "uuid": f"GPU-{slot}", "pid": 100 + slot, "host": "h",
        "tokens": {"gpt2": tokens}, "memory": (f"GPU {slot}", GIB, 2 * GIB, 80 * GIB),
    }  # fmt: skip


@dataclass
class Ended:
    """A record."""

    name: str
    value: Any
    ok: bool = True


@dataclass
class Over:
    """A run that has ended."""

    records: list[Ended]
    folder: Path | None = None
    tasks: list[str] = field(default_factory=list)


def report(*records: Ended) -> CheckReport:
    return collect(Over(list(records)))  # type: ignore[arg-type]


def test_slots_that_write_alike_pass() -> None:
    assert compare([look(0, [[1, 2], [3]]), look(1, [[1, 2], [3]])]) == 3
    with pytest.raises(
        RuntimeError, match=r"models\.gpt2 writes other tokens on cuda:1 \(slot 1\) than on cuda:0"
    ):
        compare([look(0, [[1, 2]]), look(1, [[1, 3]])])


def test_devices_of_two_machines_are_not_one() -> None:
    first, second = look(0, [[1, 2]]), {**look(0, [[1, 3]]), "slot": 1, "host": "h2"}
    with pytest.raises(RuntimeError, match=r"on h2 cuda:0 \(slot 1\) than on h cuda:0 \(slot 0\)"):
        compare([first, second])
    shown = report(Ended("slot_0", first), Ended("slot_1", second))
    assert [row[1] for row in shown.slots] == ["h cuda:0", "h2 cuda:0"]
    assert "on 2 devices" in str(shown)
    assert "  h2 GPU 0: 1.00 GB allocated" in str(shown)


def test_looks_wait_for_each_other(tmp_path: Path) -> None:
    begun = threading.Thread(target=check._meet, args=(tmp_path, 0, 2))
    begun.start()
    begun.join(0.1)
    assert begun.is_alive()
    check._meet(tmp_path, 1, 2)
    begun.join(30)
    assert not begun.is_alive()


def test_a_report_shows_slots_and_batches(tmp_path: Path) -> None:
    batch = {
        "models": "gpt2",
        "what": "generation",
        "fits": 4,
        "settings": 8,
        "": "give generation.batch_size=4",
    }
    found = report(
        Ended("slot_1", look(1, [[1]])), Ended("slot_0", look(0, [[1]])), Ended("same_tokens", 1),
        Ended("largest_generation_gpt2", batch), Ended("largest_training_gpt2", None, ok=False),
    )  # fmt: skip
    text = str(found)
    assert "2 slots in 2 processes on 2 devices" in text
    assert "All slots wrote the same 1 tokens." in text
    assert "  GPU 1: 1.00 GB allocated, 2.00 GB reserved, 80.00 GB total" in text
    assert "give generation.batch_size=4" in text
    assert found.frame()["slot"].tolist() == [0, 1]
    assert found.save() == []
    assert [path.name for path in found.save(tmp_path)] == ["check.csv"]
    assert len(found.plot().patches) == 2
    assert "<table" in found._repr_html_()


def test_a_check_without_a_slot_has_no_report() -> None:
    with pytest.raises(ValueError, match="no slot could write"):
        report(Ended("slot_0", None, ok=False))
    with pytest.raises(ValueError, match="give largest"):
        report(Ended("slot_0", look(0, [[1]]))).plot()


@pytest.mark.parametrize(
    ("fits", "asked", "words"),
    [
        (0, 8, "not one fits"),
        (4, 8, "give generation.batch_size=4"),
        (9, 8, ""),
        (16, 8, "larger ones were not tried"),
        (16, 128, "larger ones were not tried"),
    ],
)
def test_a_batch_that_does_not_fit_is_told(
    fits: int, asked: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mgpu_nb.workloads.alignment.device_manager.largest_here", lambda trial, largest: fits
    )
    trial = Trial("generation", Pair("gpt2", EMBEDDED, EMBEDDED), 1, 1, "eager", False)
    found = search(trial, 16, "generation.batch_size", asked)
    assert (found["fits"], found["settings"]) == (fits, asked)
    assert found[""].startswith(words)
    assert bool(words) == bool(found[""])


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"did you mean models\.llama"):
        tasks(CheckConfig(("models.lama=null",)), 1)
    with pytest.raises(ValueError, match=r"did you mean experiment\.name"):
        CheckConfig(("experiment.nam=x",))
    with pytest.raises(ValueError, match="is not a folder"):
        tasks(CheckConfig(("models.gpt2.reference=/nowhere",)), 1)


def test_models_that_cannot_read_the_data_are_told(tmp_path: Path) -> None:
    path = tmp_path / "words.jsonl"
    path.write_text('{"question": "What is 3 plus 4?", "answer": "#### 7"}\n')
    words = f"datasets.gsm8k.train={path}", f"datasets.gsm8k.test={path}", "generation.max_new_tokens=2"
    with pytest.raises(ValueError, match=r"cannot read 'Question: What is 3 .*models\.NAME=null"):
        tasks(CheckConfig(words), 1)
    with pytest.raises(ValueError, match=r"datasets\.gsm8k: models\.gpt2: .* cannot read 'Question"):
        check_inputs(Config(words))


def test_tasks_follow_each_other() -> None:
    found = tasks(CheckConfig(), 2)
    assert [task.name for task in found] == [
        "slot_0", "slot_1", "same_tokens", "largest_generation_gpt2", "largest_training_gpt2",
        "largest_guide_gpt2",
    ]  # fmt: skip
    assert [task.after for task in found[3:]] == [(task.name,) for task in found[2:-1]]
    assert len(tasks(CheckConfig(largest=0), 2)) == 3


@pytest.mark.slow
def test_every_slot_is_looked_at(tmp_path: Path) -> None:
    run = start(CheckConfig(slots=2, largest=2, output_dir=str(tmp_path / "out")))
    run.wait(progress=False)
    assert [record.error for record in run.records if not record.ok] == []
    found = collect(run)
    assert found.frame()["slot"].tolist() == [0, 1]
    assert found.frame()["process"].nunique() == 2
    assert found.same
    assert [row[:4] for row in found.batches] == [
        ("gpt2", "generation", 2, 8), ("gpt2", "training", 2, 4), ("gpt2", "guide", 2, 4)
    ]  # fmt: skip
    assert found.save()[0].is_file()
