"""What 10,000 tasks cost to show and to read: the table, the timeline, the frame and the metrics of a run.

    python benchmarks/views.py

The peers are what one writes by hand: the HTML of a DataFrame of all rows, and a bar per task.
"""

import math
import os
import tempfile
import time
from pathlib import Path

from mgpu_nb import GPUPool, Task, worker
from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.runs.run import Run
from mgpu_nb.tasks import Record

os.environ["MPLBACKEND"] = "Agg"
TASKS = 10_000
REPORTS = 100_000


def seconds_of(action):
    """Seconds of the quickest of three calls, and what the last returned."""
    best, value = math.inf, None
    for _ in range(3):
        began = time.perf_counter()
        value = action()
        best = min(best, time.perf_counter() - began)
    return best, value


def record(n):
    return Record(
        name=f"lr={n % 7} seed={n}", index=n, kind="m:fit", arguments={"lr": n % 7, "seed": n},
        status="ok" if n % 100 else "error", error="" if n % 100 else "ValueError: bad", value={"acc": n / TASKS},
        slot=n % 8, device=f"cuda:{n % 8}", queued=0.0, started=1.0 + n // 8, finished=1.9 + n // 8, seconds=0.9,
        attempt=1, peak_memory=2**30, metrics={"loss": 1 / (n + 1)},
    )  # fmt: skip


def draw(run):
    import matplotlib.pyplot as plt

    run.plot_timeline().figure.canvas.draw()
    plt.close("all")


def draw_bars(run):
    """A bar per task, as one draws it by hand."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    for r in run.records:
        ax.barh(r.slot, r.seconds, left=r.started)
    ax.figure.canvas.draw()
    plt.close("all")


def reports(count):
    began = time.perf_counter()
    for n in range(count):
        worker().report(loss=1 / (n + 1))
    return (time.perf_counter() - began) / count


def main():
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger("many", Path(folder), [record(n).name for n in range(TASKS)])
        for n in range(TASKS):
            ledger.ended(record(n))
        ledger.close()
        run = Run(ledger)
        reading, frame = seconds_of(run.frame)
        print(f"frame of {TASKS:,} tasks: {reading:.2f} s, {len(frame.columns)} columns")
        making, table = seconds_of(lambda: run.table()._repr_html_())
        peer, html = seconds_of(lambda: frame.to_html(max_rows=None))
        print(
            f"table: {making:.2f} s and {len(table) / 1000:.0f} kB; DataFrame.to_html {peer:.2f} s and ",
            end="",
        )
        print(f"{len(html) / 1000:,.0f} kB (ours {len(table) / len(html):.4f} of it)")
        ours, _ = seconds_of(lambda: draw(run))
        began = time.perf_counter()
        draw_bars(run)
        peer = time.perf_counter() - began
        print(f"timeline: {ours:.2f} s; a bar per task {peer:.1f} s (ours {ours / peer:.3f} of it)")
    with tempfile.TemporaryDirectory() as folder, GPUPool(slots=1) as pool:
        many = pool.run([Task(reports, REPORTS, name="storm")], folder=Path(folder) / "run")
        each = many.results(progress=False)[0]
        reading, points = seconds_of(many.metrics)
        size = (many.folder / "metrics.jsonl").stat().st_size
        print(
            f"{REPORTS:,} reports: {1e6 * each:.1f} us each, {len(points):,} points kept, {size / 1000:.0f} kB, ",
            end="",
        )
        print(f"read in {reading:.3f} s")


if __name__ == "__main__":
    main()
