"""Pictures of an alignment: reward against divergence beside what is possible, reward by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...tasks import Record
from ...views.palette import INK, NEUTRAL, colour_of, drawing, drawings, literal, whole_ticks
from ...views.timeline import timeline
from .names import read_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["reward_against_kl", "reward_by_round", "timelines"]

_CHAIN = ["algo", "family", "dataset"]
_REFERENCE = 0  # its round
_APART = 0.075  # between two labels, of the height of the axes
_MARKERS = "osD^vPX"  # of pairs of models and data sets
_BARS: dict[str, Any] = {"elinewidth": 0.8, "capsize": 0}


class _Chain(NamedTuple):
    """Rows of an algorithm on a pair of models and a data set, and how they are drawn."""

    algo: str
    where: str
    rows: pd.DataFrame
    colour: str
    marker: str


class _Label(NamedTuple):
    text: str
    place: tuple[float, float]
    colour: str


def reward_against_kl(
    frame: pd.DataFrame,
    frontiers: Mapping[tuple[str, str], Sequence[tuple[float, float]]] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw average reward against KL divergence from the reference, a line for each algorithm and round.

    A value-guided algorithm has a point for each eta, joined in their order; of another the rounds are joined. The last
    round is drawn with solid lines and filled points, those before it with dashes and hollow points. Bars are standard
    errors.

    Parameters
    ----------
    frame
        A row per job and eta with columns algo, family, dataset, round (0 for a reference), eta (NaN for a policy
        without one), avg_reward, avg_reward_se, avg_kl, avg_kl_se. Rows without reward or divergence are left out.
    frontiers
        Highest reward at each divergence, points (KL, reward) by family and data set, where it is known.
    ax
        Axes to draw on; new ones by default.
    """
    rows = frame.dropna(subset=["avg_reward", "avg_kl"]).reset_index(drop=True)
    with drawing(ax, (7.6, 4.2)) as ax:
        labels = []
        for chain in _chains(rows):
            last = chain.rows["round"].max()
            guided = chain.rows.dropna(subset=["eta"])
            for number, of_round in guided.groupby("round"):
                _line(ax, chain, of_round.sort_values("eta"), number == last)
            alone = chain.rows[chain.rows["eta"].isna()].sort_values("round")
            if len(alone):
                ax.plot(alone["avg_kl"], alone["avg_reward"], color=chain.colour, lw=1.2)
                for number, of_round in alone.groupby("round"):
                    _line(ax, chain, of_round, number == last)
            final = chain.rows[chain.rows["round"] == last]
            end = final.sort_values("avg_reward").iloc[-1]
            labels.append(_Label(chain.algo, (end["avg_kl"], end["avg_reward"]), chain.colour))
        references = rows[rows["round"] == _REFERENCE].drop_duplicates(["avg_kl", "avg_reward"])
        ax.plot(references["avg_kl"], references["avg_reward"], "*", color=INK, ms=11, ls="none", zorder=4)
        if len(references):
            lowest = references.sort_values("avg_reward").iloc[0]
            text = "reference" if len(references) == 1 else "references"
            place = (lowest["avg_kl"], lowest["avg_reward"])
            ax.annotate(text, place, (8, -4), textcoords="offset points", color=INK, fontsize="small")
        ax.set(xlabel="KL divergence from the reference, nats per completion", ylabel="average reward")
        _draw_frontiers(ax, rows, frontiers or {})
        _name(ax, _chains(rows), labels)
        ax.set_title(_how(rows), fontsize="small", loc="left", color=INK)
    return ax


def reward_by_round(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw average reward by round, a line for each algorithm from its reference, round 0; bars are standard errors.

    Of a value-guided algorithm the line is that of the eta with the highest reward in the last round, which is named.

    Parameters
    ----------
    frame, ax
        As `reward_against_kl` takes them.
    """
    rows = frame.dropna(subset=["avg_reward"]).reset_index(drop=True)
    with drawing(ax, (6.4, 3.6)) as ax:
        labels = []
        references = rows[rows["round"] == _REFERENCE]
        for chain in _chains(rows):
            last = chain.rows[chain.rows["round"] == chain.rows["round"].max()]
            eta = last.sort_values("avg_reward")["eta"].iloc[-1]
            guided = eta == eta  # not NaN
            shown = chain.rows[chain.rows["eta"] == eta if guided else chain.rows["eta"].isna()]
            first = chain.rows.iloc[0]
            own = (references["family"] == first["family"]) & (references["dataset"] == first["dataset"])
            points = _joined(references[own], shown.sort_values("round"))
            ax.errorbar(
                points["round"], points["avg_reward"], points["avg_reward_se"].fillna(0.0), color=chain.colour,
                marker=chain.marker, ms=5, lw=1.5, **_BARS,
            )  # fmt: skip
            end = points.iloc[-1]
            name = f"{chain.algo}, eta {eta:g}" if guided else chain.algo
            labels.append(_Label(name, (end["round"], end["avg_reward"]), chain.colour))
        ax.set(xlabel="round (0: the reference)", ylabel="average reward")
        whole_ticks(ax.xaxis)
        _name(ax, _chains(rows), labels)
    return ax


def timelines(parts: Mapping[str, Sequence[Record]], axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draw timelines below each other to one scale, the tasks of a round in one colour.

    Parameters
    ----------
    parts
        Records by the title of their timeline; those of the last may have been placed by `schedule.placements`.
    axes
        Axes to draw on, as many; new ones by default.
    """
    rows = max(len({record.slot for record in records}) for records in parts.values())
    with drawings(axes, len(parts), (8, len(parts) * (1.3 + min(8.0, 0.4 * rows))), below=True) as axes:
        for ax, (title, records) in zip(axes, parts.items(), strict=True):
            timeline(records, ax, by=_round_of)
            ax.set_title(title, fontsize="small", loc="left", color=INK)
        last = max(ax.get_xlim()[1] for ax in axes)
        for n, ax in enumerate(axes):
            ax.set_xlim(0, last)
            if n:
                ax.legend_ = None
            if n < len(axes) - 1:
                ax.set_xlabel("")
    return axes


def _round_of(task: str) -> str:
    """What a timeline calls a task; the references are evaluated for all rounds."""
    name = read_name(task)
    return task if name is None else f"round {name.round}" if name.round else "reference"


def _chains(rows: pd.DataFrame) -> list[_Chain]:
    """Chains with their colours, by algorithm, and markers, by pair and data set; in the order of the rows."""
    trained = rows[rows["round"] != _REFERENCE]
    algos = [*dict.fromkeys(trained["algo"])]
    places = [*dict.fromkeys(zip(trained["family"], trained["dataset"], strict=True))]
    found = []
    for (algo, family, dataset), own in trained.groupby(_CHAIN, sort=False):
        place = places.index((family, dataset))
        colour, marker = colour_of(algos.index(algo)), _MARKERS[place % len(_MARKERS)]
        found.append(_Chain(str(algo), f"{family} on {dataset}", own, colour, marker))
    return found


def _line(ax: Axes, chain: _Chain, points: pd.DataFrame, last: bool) -> None:
    """The points of a round, joined."""
    ax.errorbar(
        points["avg_kl"], points["avg_reward"], points["avg_reward_se"].fillna(0.0), points["avg_kl_se"].fillna(0.0),
        color=chain.colour, marker=chain.marker, ms=5.5, lw=1.5 if last else 1.0, ls="-" if last else "--",
        mfc=chain.colour if last else "none", zorder=3 if last else 2, **_BARS,
    )  # fmt: skip


def _joined(*parts: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([part for part in parts if len(part)])


def _draw_frontiers(
    ax: Axes, rows: pd.DataFrame, frontiers: Mapping[tuple[str, str], Sequence[tuple[float, float]]]
) -> None:
    """The best rewards, as far as the policies go; beyond their ends they stay as high."""
    drawn = {(row.family, row.dataset) for row in rows.itertuples()}
    known = {key: [*points] for key, points in frontiers.items() if key in drawn}
    if not known:
        return
    most = max([ax.get_xlim()[1], *(points[-1][0] for points in known.values())])
    curves: list[tuple[str, list[tuple[float, float]]]] = []
    for (family, dataset), points in known.items():
        if all(points != others for _, others in curves):
            curves.append((f"best possible, {family} on {dataset}", points))
    for name, points in curves:
        kl, reward = zip(*points, (most, points[-1][1]), strict=True)
        ax.plot(kl, reward, color=NEUTRAL, lw=1.5, zorder=1)
        text = "best possible" if len(curves) == 1 else name
        middle = min(points, key=lambda point: abs(point[0] - points[-1][0] / 2))
        beside = middle[0] > 0.3 * most  # left of the curve there is room; else above its end
        place, offset = (middle, (-8, 5)) if beside else ((most, points[-1][1]), (0, 4))
        ax.annotate(
            literal(text),
            place,
            offset,
            textcoords="offset points",
            ha="right",
            color=NEUTRAL,
            fontsize="small",
        )
    ax.set_xlim(right=most)


def _name(ax: Axes, chains: Sequence[_Chain], labels: Sequence[_Label]) -> None:
    """Name the lines beside the axes: each of one pair and data set, of several by colours and markers."""
    from matplotlib.lines import Line2D

    where = {chain.where: chain.marker for chain in chains}
    if len(where) < 2:
        _label(ax, labels)
        return
    algos = {chain.algo: chain.colour for chain in chains}
    handles = [Line2D([], [], color=colour, label=literal(algo)) for algo, colour in algos.items()]
    handles += [
        Line2D([], [], color=INK, marker=marker, ls="none", label=literal(place))
        for place, marker in where.items()
    ]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _label(ax: Axes, labels: Sequence[_Label]) -> None:
    """Labels in a column beside the axes, each with a thin line from its place, far enough from each other."""
    ax.autoscale_view()
    low, high = ax.get_ylim()
    order = sorted(labels, key=lambda label: label.place[1])
    heights: list[float] = []
    for label in order:  # from the lowest up, then those that were pushed over the top down again
        wanted = (label.place[1] - low) / (high - low)
        heights.append(max(wanted, heights[-1] + _APART) if heights else wanted)
    top = 1.0
    for n in reversed(range(len(heights))):
        heights[n] = min(heights[n], top)
        top = heights[n] - _APART
    for label, height in zip(order, heights, strict=True):
        leader = {"arrowstyle": "-", "color": label.colour, "lw": 0.5, "alpha": 0.6, "relpos": (0, 0.5)}
        ax.annotate(
            literal(label.text), label.place, (1.03, height), textcoords="axes fraction", va="center",
            color=label.colour, annotation_clip=False, arrowprops={**leader, "shrinkB": 4},
        )  # fmt: skip


def _how(rows: pd.DataFrame) -> str:
    """How to read the picture."""
    trained = rows[rows["round"] != _REFERENCE]
    etas = sorted(trained["eta"].dropna().unique())
    rounds = sorted(trained["round"].unique())
    told = [f"along a line: eta {', '.join(f'{eta:g}' for eta in etas)}"] if len(etas) > 1 else []
    if len(rounds) > 1:
        before = f"round {rounds[0]}" if len(rounds) == 2 else f"rounds before {rounds[-1]}"
        told.append(f"dashed: {before}")
    if trained["avg_reward_se"].notna().any():
        told.append("bars: standard error")
    return "; ".join(told)
