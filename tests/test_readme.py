"""The examples of the README run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def run(source: str, folder: Path) -> str:
    """What a script says that runs an example in a folder."""
    script = folder / "example.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_first_example_and_what_is_made_of_it(tmp_path: Path) -> None:
    first, then, *_ = blocks()
    shown = run(f"{first}\n{then}\nprint(run.best('distance', mode='min').name, run.progress)", tmp_path)
    assert shown.startswith("lr=0.1 seed=")
    assert "9 of 9 done" in shown


@pytest.mark.slow
def test_the_example_of_a_model_that_is_loaded_once(tmp_path: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(16, 1).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "batches").mkdir()
    for n in range(3):
        torch.save(torch.full((4, 16), float(n)), tmp_path / "batches" / f"{n}.pt")
    (example,) = [block for block in blocks() if "weights.pt" in block]
    assert (
        run(f"{example}\nprint(len(values), {{type(v).__name__ for v in values}})", tmp_path)
        == "3 {'float'}\n"
    )
