"""A speed-up study as a picture and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .markup import STYLE, escape, table
from .palette import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..scaling import Study

__all__ = ["scaling", "study_html"]


def scaling(study: Study, ax: Axes | None, predict: list[int], published: str | None) -> Axes:
    """Draw speed-up against slots; see `Study.plot`."""
    import matplotlib.pyplot as plt
    import numpy as np

    from ..scaling import PUBLISHED

    if published is not None and published not in PUBLISHED:
        raise ValueError(f"no published figures for {published!r}; there are some for {', '.join(PUBLISHED)}")
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    frame = study.frame()
    base = study.counts[0]
    ahead = study.predict([study.counts[-1], *sorted(predict)]) if predict else None
    top = max([*study.counts, *predict, *(PUBLISHED.get(published or "", {}))])
    line = np.array([base, top])
    ax.plot(line, line / base, color="#999999", lw=1, label="ideal")
    if (serial := study.serial_fraction) is not None:
        n = np.linspace(base, top, 100) / base
        ax.plot(
            n * base,
            1 / (serial + (1 - serial) / n),
            color=COLOURS[4],
            lw=1,
            label=f"Amdahl, {serial:.1%} serial",
        )
    walls = {n: [m.wall for m in study.measurements if m.slots == n] for n in study.counts}
    gains = frame["speed_up"].to_numpy()
    first = study.wall(base)
    low = gains - np.array([first / max(walls[n]) for n in study.counts])
    high = np.array([first / min(walls[n]) for n in study.counts]) - gains
    ax.errorbar(
        frame["slots"],
        gains,
        np.maximum(0, [low, high]),
        fmt="o-",
        color=COLOURS[1],
        capsize=3,
        label="measured",
    )
    if ahead is not None:
        ax.plot(ahead["slots"], ahead["speed_up"], "s--", color=COLOURS[2], mfc="white", label="predicted")
    if published is not None:
        stated = PUBLISHED[published]
        ax.plot(
            [*stated], [*stated.values()], "x", color=COLOURS[5], label=f"stated by the guide ({published})"
        )
    ax.set_xlabel("slots")
    ax.set_ylabel(f"speed-up over {base} slot{'s' if base > 1 else ''}")
    ticks = sorted({*study.counts, *predict})
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.set_ylim(bottom=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax


def study_html(study: Study) -> str:
    """Return the table of a study with its notes."""
    head = [
        (name, "n")
        for name in ("slots", "wall, s", "spread, s", "speed-up", "efficiency", "busy", "overhead, s")
    ]
    forms = {
        "slots": "{}",
        "wall": "{:.2f}",
        "spread": "{:.2f}",
        "speed_up": "{:.2f}",
        "efficiency": "{:.0%}",
    }
    forms |= {"busy": "{:.0%}", "overhead": "{:.4f}"}
    rows = [
        [form.format(row[name]) for name, form in forms.items()] for row in study.frame().to_dict("records")
    ]
    notes = list(study.notes)
    if study.serial_fraction is not None:
        notes.insert(0, f"Serial fraction by Amdahl's law: {study.serial_fraction:.1%}.")
    said = "".join(f'<div class="q">{escape(note, 400)}</div>' for note in notes)
    return f'{STYLE}<div class="mgpu">{table(head, rows, "speed-up study", live=False)}{said}</div>'
