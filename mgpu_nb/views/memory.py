"""Memory and utilisation of devices over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..output import clean
from .palette import INK, NEUTRAL, colour_of, drawing, literal

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["memory"]

MOST_NAMED = 3  # peaks that are labelled with their task
MACHINE = "cpu"  # the device of the samples of RAM and cores of a machine


def memory(samples: pd.DataFrame, ax: Axes | None = None, *, utilisation: bool = False) -> Axes:
    """Draw the memory that tasks held on each device over time; the largest peaks are labelled.

    For GPUs also what all programs held, as a dotted line.

    Parameters
    ----------
    samples
        `Run.samples`.
    ax
        Axes to draw on; a new figure by default.
    utilisation
        Whether to draw the utilisation of the devices as well, dashed, in per cent on an axis at the right; of virtual
        devices that of all cores of the machine. It is left out where it is not known.

    Raises
    ------
    ValueError
        If there are no samples.
    """
    if samples.empty:
        raise ValueError("no samples: the run was over before the first was taken")
    seconds = (samples["at"] - samples["at"].min()).dt.total_seconds()
    gib = samples["used"].astype("float64") / 2**30
    of_task = samples["kind"] == "task"
    machine = samples["device"] == MACHINE
    samples = samples.assign(device=_names(samples))
    devices = sorted(samples["device"][of_task].unique())
    colours = {device: colour_of(place) for place, device in enumerate(devices)}
    with drawing(ax, (8, 3.4)) as ax:
        moments = seconds.drop_duplicates().sort_values()
        for device in devices:
            own = of_task & (samples["device"] == device)
            # An ended task holds no memory: the line falls to zero while its slots are idle.
            held = gib[own].groupby(seconds[own]).sum().reindex(moments, fill_value=0.0)
            ax.step(
                held.index, held, where="post", color=colours[device], label=f"memory of tasks on {device}"
            )
        for device in sorted(samples["device"][~of_task & ~machine].unique()):
            rows = ~of_task & (samples["device"] == device)
            look: dict[str, Any] = {"color": colours.get(device, NEUTRAL), "lw": 1.0, "ls": ":"}
            ax.plot(seconds[rows], gib[rows], label=f"memory, all of {device}", **look)
        _name_peaks(ax, samples["task"].where(of_task), seconds, gib)
        ax.set_xlabel("seconds since the first sample")
        ax.set_ylabel("memory, GiB")
        ax.margins(y=0.15)
        ax.set_ylim(bottom=0)
        drawn = _draw_utilisation(ax, samples[~of_task], machine, seconds, colours) if utilisation else None
        handles, labels = ax.get_legend_handles_labels()
        if drawn is not None:
            more = drawn.get_legend_handles_labels()
            handles, labels = [*handles, *more[0]], [*labels, *more[1]]
        ax.set_title(
            "Memory of the run's tasks" + (" and utilisation of their devices" if drawn is not None else "")
        )
        ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.14 if drawn is not None else 1, 1))
    return ax


def _names(samples: pd.DataFrame) -> list[str]:
    """Names of the devices, with those of other machines before them."""
    hosts = samples["host"] if "host" in samples else [""] * len(samples)
    pairs = zip(samples["device"].astype(str), hosts, strict=True)
    return [literal(f"{clean(str(host))} {device}".strip()) for device, host in pairs]


def _draw_utilisation(
    ax: Axes,
    samples: pd.DataFrame,
    machine: pd.Series[bool],
    seconds: pd.Series[float],
    colours: dict[str, str],
) -> Axes | None:
    """Draw utilisation on an axis at the right, and return that; None if it is not known."""
    known = samples[samples["utilisation"].notna()]
    if known.empty:
        return None
    right: Any = ax.twinx()
    for device, rows in known.groupby("device", sort=True):
        cores = bool(machine[rows.index].all())
        of_node = str(device).removesuffix(MACHINE).strip()
        all_cores = f"utilisation of all cores{f' of {of_node}' if of_node else ''}"
        right.plot(
            seconds[rows.index],
            rows["utilisation"].astype("float64"),
            color=INK if cores else colours.get(str(device), NEUTRAL),
            ls="--",
            lw=0.9,
            label=all_cores if cores else f"utilisation of {device}",
        )
    right.spines["right"].set_visible(True)
    right.set_ylabel("utilisation, %")
    right.set_ylim(0, 105)
    axes: Axes = right
    return axes


def _name_peaks(ax: Axes, tasks: pd.Series[str], seconds: pd.Series[float], gib: pd.Series[float]) -> None:
    """Write the largest peaks and whose they are."""
    known = tasks.notna() & gib.notna()
    peaks = gib[known].groupby(tasks[known]).idxmax()
    for row in gib[peaks].nlargest(MOST_NAMED).index:
        ax.annotate(
            f"{literal(tasks[row])}: {gib[row]:.2f} GiB",
            (seconds[row], gib[row]),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
