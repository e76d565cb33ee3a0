"""What is said of a training and of a fit that have ended: what was left out, and what is no result of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_molecules import Ended

from mgpu_nb.tasks import Record
from mgpu_nb.workloads.molecules.report import collect_fit, collect_training
from mgpu_nb.workloads.molecules.train import TRAINING

VALUE = {"path": "m.safetensors", "loss": 1.0, "losses": [[6, 1.0]], "steps": 6, "parameters": 3, "bytes": 12}


def ended(**more: Any) -> Ended:
    return Ended(["train"], [Record(name="train", index=0, kind="", status="ok", value=VALUE | more)])


def test_a_training_says_what_it_left_out() -> None:
    left_out = {"without a conformer": 2, "of G2 with other elements": 1200}
    report = collect_training(ended(molecules=1500, left_out=left_out))
    words = "on 1,500 molecules (left out: 2 without a conformer, 1,200 of G2 with other elements); 3 weights"
    assert words in report.text
    assert "on 5 molecules; 3" in collect_training(ended(molecules=5)).text  # of an earlier version


def test_a_fit_says_what_it_left_out() -> None:
    report = collect_fit(ended(frames=90, left_out=7))
    assert "on 90 frames (left out: 7 on which GFN1-xTB did not converge); 3 parameters" in report.text
    assert "on 90 frames; 3 parameters" in collect_fit(ended(frames=90, left_out=0)).text


@pytest.mark.parametrize(
    ("collect", "value"), [(collect_training, {"frames": 1}), (collect_fit, {"molecules": 1})]
)
def test_one_is_not_the_other(collect: Callable[[Ended], Any], value: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is not the training of a model"):
        collect(ended(**value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(VALUE)[:20], "is no JSON: .*line 1"),
        ("", "is no JSON"),
        ("[]", "does not say what a training came to"),
        ("{}", "does not say what a training came to"),
    ],
)
def test_what_ranks_have_left_is_checked(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / TRAINING).write_text(text)
    with pytest.raises(ValueError, match=rf"training\.json {words}.*; start the training again"):
        collect_training(Ended([], [], tmp_path))
