"""Print a line per check of .ci/gpu, the worst first: ``python .ci/gpu_summary.py FOLDER``."""

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

WORST = ("failed", "hung", "not run", "skipped", "passed")


def machine() -> str:
    """Return GPU, driver, Python and torch in a line."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        gpu = "no GPU"
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    return f"{gpu}; Python {platform.python_version()}, torch {torch}, {platform.platform()}"


def tests(folder: Path) -> list[tuple[str, str, float, str]]:
    """Return outcome, name, seconds and first line of the error of each test."""
    file = folder / "journal.jsonl"
    last = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        entry = json.loads(line)
        last[entry["test"]] = entry
    return [
        (e["outcome"], name.rpartition("/")[2], e.get("seconds", 0.0), e.get("error", ""))
        for name, e in last.items()
    ]


def benchmarks(folder: Path) -> list[tuple[str, str, float, str]]:
    """Return the same of each section of the benchmark."""
    file = folder / "benchmark.json"
    if not file.exists():
        return [("not run", "benchmarks/gpu.py", 0.0, "it wrote nothing")]
    return [
        (s["outcome"], f"benchmarks/gpu.py::{name}", s["seconds"], s["error"])
        for name, s in json.loads(file.read_text())["sections"].items()
    ]


def main() -> None:
    """Print all of it."""
    folder = Path(sys.argv[1])
    found = tests(folder) + benchmarks(folder)
    found.sort(key=lambda entry: WORST.index(entry[0]))
    print(machine())
    for outcome, name, seconds, error in found:
        print(f"{outcome:8}{seconds:7.1f} s  {name}{': ' if error else ''}{error[:300]}")
    counts = {outcome: sum(entry[0] == outcome for entry in found) for outcome in WORST}
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))


if __name__ == "__main__":
    main()
