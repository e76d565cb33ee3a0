"""The pictures of the README: panels in JupyterLab, looked at through Chromium.

``python docs/pictures.py`` writes docs/images/panel.png: above, a run on four virtual devices of this machine; below,
`watch` with eight GPUs that do not exist, whose figures are made up here. ``python docs/pictures.py FRAMES`` writes
notebooks/watch_h100.png from frames that the tests recorded on a GPU. It needs what the browser tests need.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from mgpu_nb.hardware.holders import Holder
from mgpu_nb.telemetry.samples import DeviceSample, Snapshot, WorkerSample, WorkerState

HERE = Path(__file__).parent
GIB = 2**30

# What the cells before the pictured one do is not in the picture.
RUN = [
    """
import time
import numpy as np
from mgpu_nb import GPUPool, worker

def fit(lr, seed):
    rng = np.random.default_rng(seed)
    loss, steps, held = 4.0 + rng.random(), 40 + 10 * seed, []
    for step in range(steps):
        time.sleep(0.15)
        held.append(np.ones((seed + 1) * 2**20))
        loss += lr * (0.08 - loss) + 0.03 * lr * rng.normal()
        worker().report(loss=loss, progress=(step + 1) / steps)
    return {"loss": loss}

pool = GPUPool(slots=4)
list(pool.map(abs, range(8)))
""",
    """run = pool.sweep(fit, lr=[0.05, 0.1, 0.3], seed=[0, 1, 2], name="sweep")
run""",
]
WATCH = [
    f"""
import sys
sys.path.append({str(HERE)!r})
import pictures
pictures.eight_gpus()
from mgpu_nb import watch
""",
    "watch()",
]
# No toolbar of the cell, and not the line below a panel that remains if the notebook kernel dies.
PLAIN = ".jp-cell-toolbar, .jp-OutputArea-child + .jp-OutputArea-child {display: none !important}"


class Recorded:
    """A sampler that has taken its snapshots already."""

    def __init__(self, frames: Iterator[Snapshot]) -> None:
        self.history = deque(frames)

    def take(self) -> Snapshot:
        return self.history[-1]

    def listen(self, _: object) -> None: ...

    def leave(self, _: object) -> None: ...


def eight_gpus() -> None:
    """Have `watch` see eight GPUs: a training on four of them, a sweep on two, two of somebody else."""
    from mgpu_nb.telemetry import sampler

    sampler.shared = Recorded(_frames())  # type: ignore[assignment]


def _frames(count: int = 240) -> Iterator[Snapshot]:
    now = time.time()
    tasks = ["rank-0", "rank-1", "rank-2", "rank-3", "lr=0.1 seed=0", "lr=0.1 seed=1"]
    others = {
        6: Holder(21437, 61 * GIB, "anna", "python train.py"),
        7: Holder(30112, 4 * GIB, "jupyter", "python -m ipykernel_launcher"),
    }
    for n in range(count):
        devices, workers = [], []
        for gpu in range(8):
            ours = 0
            if gpu < 6:
                steps = max(0.0, n - 60 if gpu < 4 else (n + 37 * gpu) % 120)
                ours = int((46 + 2 * gpu if gpu < 4 else 19) * GIB * (1 - math.exp(-steps / 12)))
                state = WorkerState(
                    pool=1, slot=gpu, label=f"cuda:{gpu}", uuid=f"GPU-{gpu}", kind="cuda", pid=4000 + gpu,
                    task=tasks[gpu],
                )  # fmt: skip
                workers.append(WorkerSample(state, ours, "nvml"))
            holder = others.get(gpu)
            held = holder.size or 0 if holder else 0
            busy = 0 if gpu == 7 else 93 + (5 * gpu + n) % 6 if gpu < 4 or gpu == 6 else 71 + (7 * n) % 9
            devices.append(
                DeviceSample(
                    uuid=f"GPU-{gpu}", label=f"cuda:{gpu}", name="fake GPU, 80 GB", kind="cuda", total=80 * GIB,
                    used=ours + held + GIB // 2, ours=ours, others=held + GIB // 2, utilisation=float(busy),
                    temperature=34 + busy // 3 + gpu % 3, power=90.0 + 6.1 * busy, holders=(holder,) if holder else (),
                )
            )  # fmt: skip
        yield Snapshot(now - (count - n) / 2, tuple(devices), tuple(workers))


def stacked(pictures: Sequence[Path], path: Path) -> None:
    """Write pictures below each other as one of few colours, which is a third of the bytes."""
    from PIL import Image

    parts = [Image.open(picture).convert("RGB") for picture in pictures]
    whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    path.parent.mkdir(exist_ok=True)
    whole.quantize(224, dither=Image.Dither.NONE).save(path, optimize=True)


def recorded(frames: Path) -> None:
    """Write the picture of the frames that the tests recorded on a GPU, in ``frames.html`` of what .ci/gpu leaves."""
    sys.path.append(str(HERE.parent / "tests" / "helpers"))
    from lab import CHROMIUM
    from playwright.sync_api import sync_playwright

    parts = re.split(r"<!-- frame: (.*?) -->", frames.read_text())
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    chosen = ["watch", "run", "watch, a holder that is not ours"]
    # The folder is a temporary one of that machine.
    shown = "<hr>".join(re.sub(r"/\S+/run ", "runs/frames ", named[name]) for name in chosen)
    style = "body{margin:12px 16px;background:#fff;font-family:sans-serif}hr{border:0;height:14px}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1040, "height": 400}, device_scale_factor=2)
        page.set_content(f"<!doctype html><style>{style}</style>{shown}")
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "frames.png"
            page.screenshot(path=picture, full_page=True)
            stacked([picture], HERE.parent / "notebooks" / "watch_h100.png")
        browser.close()


def main() -> None:
    """Write the picture."""
    sys.path.append(str(HERE.parent / "tests" / "helpers"))
    from lab import CHROMIUM, Lab, NotebookPage
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        lab, pictures = Lab(Path(home)), []
        try:
            options = ["--no-sandbox", "--disable-gpu"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
            for name, cells, shown, seconds in (
                ("run", RUN, "4 running", 9.0),
                ("watch", WATCH, "cuda:7", 1.0),
            ):
                lab.notebook(f"{name}.ipynb", cells)
                page = browser.new_page(viewport={"width": 1230, "height": 1000}, device_scale_factor=2)
                book = NotebookPage(lab, page, f"{name}.ipynb")
                page.add_style_tag(content=PLAIN)
                book.command("application:toggle-left-area")
                book.run_cell(0)
                book.idle()
                book.run_cell(1)
                page.wait_for_function(f"() => document.body.innerText.includes({shown!r})", timeout=60_000)
                page.wait_for_timeout(1000 * seconds)  # curves that can be seen
                pictures.append(Path(home) / f"{name}.png")
                page.locator(".jp-CodeCell").nth(1).screenshot(path=pictures[-1])
                page.close()
                lab.stop_kernels()
            browser.close()
        finally:
            lab.close()
        stacked(pictures, HERE / "images" / "panel.png")


if __name__ == "__main__":
    if sys.argv[1:]:
        recorded(Path(sys.argv[1]))
    else:
        main()
