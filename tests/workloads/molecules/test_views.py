"""Pictures, asserted on what they draw; molecules in 3D with a picture for where no script runs."""

import base64
import io
import re
import sys
from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from contrast import least
from drawn_molecules import g2, molecule, random_molecule, shaken
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Circle

from mgpu_nb.views.palette import FAILURE, NEUTRAL
from mgpu_nb.workloads.molecules.bonds import bond_orders, stability
from mgpu_nb.workloads.molecules.intervals import NOTHING, Estimate
from mgpu_nb.workloads.molecules.molecule import NUMBERS
from mgpu_nb.workloads.molecules.turnable import MOST_SHOWN, _mol_block, show_molecules
from mgpu_nb.workloads.molecules.views import (
    ELEMENTS,
    PANELS,
    draw_molecule,
    draw_molecules,
    metric_picture,
    metrics_picture,
    trajectory_picture,
    widest,
)

pytestmark = pytest.mark.slow

mpl.use("Agg")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def metrics(value: float | None, half: float | None = 0.1) -> dict[str, Estimate]:
    if value is None:
        return dict.fromkeys(PANELS, NOTHING)
    low, high = (None, None) if half is None else (value - half, value + half)
    return dict.fromkeys(PANELS, Estimate(value, low, high, 50))


SETS = {
    "baseline": metrics(0.4),
    "guided_scale_0.008": metrics(0.3),
    "guided_scale_0.0": metrics(0.4),
    "guided_scale_0.0005": metrics(0.7),
    "relaxed": metrics(0.6),
}
SCALES = {"guided_scale_0.0": 0.0, "guided_scale_0.0005": 0.0005, "guided_scale_0.008": 0.008}


def test_metrics_are_drawn_against_scale_with_intervals() -> None:
    axes = metrics_picture(SETS, SCALES, steps=1000)
    assert [ax.get_title() for ax in axes] == list(PANELS.values())
    for ax in axes:
        base, relaxed, line, *bars = ax.lines
        assert np.asarray(line.get_ydata()).tolist() == [0.4, 0.7, 0.3]
        assert [np.asarray(bar.get_ydata()).tolist() for bar in bars] == [
            [pytest.approx(v - 0.1), pytest.approx(v + 0.1)] for v in (0.4, 0.7, 0.3)
        ]
        assert [text.get_text() for text in ax.get_xticklabels()] == ["0\n0", "0.0005\n0.5", "0.008\n8"]
        assert [entry.get_label() for entry in (base, relaxed)] == ["baseline", "relaxed"]
        assert base.get_color() != relaxed.get_color()
        assert len(ax.patches) == 2  # bands of the lines across
    assert axes[0].get_ylim() == (-0.03, 1.03)
    assert axes[-1].get_ylim()[0] == 0
    assert axes[-1].get_legend() is not None


def test_what_is_unknown_is_not_drawn() -> None:
    sets = {"baseline": metrics(None), "a": metrics(None), "b": metrics(0.5, None), "c": {}}
    axes = metrics_picture(sets, {"a": 0.1, "b": 0.2, "c": 0.3})
    for ax in axes:
        (line,) = ax.lines
        assert np.asarray(line.get_xdata()).tolist() == [1]
        assert len(ax.get_xticks()) == 3
    metrics_picture({}, {})[0].figure.canvas.draw()


def test_one_metric_is_drawn_too() -> None:
    ax = metric_picture("novelty", {name: {"novelty": one["validity"]} for name, one in SETS.items()}, SCALES)
    assert (ax.get_title(), ax.get_ylim()) == ("novelty", (-0.03, 1.03))
    assert len(ax.lines) == 6
    energies = {"a": {"energy_per_atom": Estimate(-90.0, -91.0, -89.0, 50)}}
    assert metric_picture("energy_per_atom", energies, {"a": 0.1}, ax=ax) is ax
    low, high = metric_picture("energy_per_atom", energies, {"a": 0.1}).get_ylim()
    assert -93 < low < -91
    assert -89 < high < -87


def test_metrics_are_drawn_on_given_axes() -> None:
    figure, given = plt.subplots(1, 4)
    assert list(metrics_picture(SETS, SCALES, axes=list(given))) == list(given)
    assert given[0].get_xticklabels()[1].get_text() == "0.0005"
    figure.canvas.draw()


def test_forces_along_the_way_are_medians_with_bands() -> None:
    step = np.arange(5.0)
    way = np.stack([step + 1, step + 2, step + 4])
    ax = trajectory_picture({"baseline": (step, way), "guided_scale_0.1": (step, way / 2)})
    assert [line.get_label() for line in ax.lines] == ["baseline", "guided scale 0.1"]
    assert np.asarray(ax.lines[1].get_ydata()).tolist() == ((step + 2) / 2).tolist()
    assert sum(isinstance(band, PolyCollection) for band in ax.collections) == 2
    assert ax.get_yscale() == "log"
    assert ax.lines[0].get_linestyle() == "--"
    way[:, 2] = np.nan
    trajectory_picture({"baseline": (step, way)}).figure.canvas.draw()
    trajectory_picture({}).figure.canvas.draw()


def circles(ax: Axes) -> list[Circle]:
    return [patch for patch in ax.patches if isinstance(patch, Circle)]


def test_atoms_and_bonds_are_drawn() -> None:
    drawn = [g2("C2H4"), shaken("CH4", 3, 0.4), g2("HCN")]
    figure = draw_molecules(drawn, columns=2, titles=["a", "$b$", "c"])
    axes = figure.axes
    assert [ax.get_title() for ax in axes] == ["a", r"\$b\$", "c"]
    assert [ax.get_position().x0 for ax in axes] == [0, 0.5, 0]
    for ax, one in zip(axes, drawn, strict=True):
        found = circles(ax)
        assert len(found) == len(one.numbers)
        colours = sorted(to_hex(circle.get_facecolor()).upper() for circle in found)
        symbols = {number: symbol for symbol, number in NUMBERS.items()}
        assert colours == sorted(ELEMENTS[symbols[n]] for n in one.numbers.tolist())
        ringed = [to_hex(circle.get_edgecolor()).upper() == FAILURE for circle in found]
        assert len(ringed) - sum(ringed) == stability(one).stable
        assert len(ax.lines) == np.triu(bond_orders(one)).sum()
    figure.savefig(io.BytesIO(), format="png")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["H", "C", "N", "valence not met"]
    assert len(draw_molecules([g2("CH4")]).legends[0].get_texts()) == 2
    assert len(circles(draw_molecule(g2("CH4"), plt.figure().add_subplot()))) == len(
        circles(draw_molecule(g2("CH4")))
    )


def test_an_atom_covers_what_is_behind_it() -> None:
    (ax,) = draw_molecules([g2("CH4")]).axes
    near_first = sorted(circles(ax), key=lambda circle: -circle.get_zorder())
    orders = {circle.get_zorder() for circle in near_first} | {line.get_zorder() for line in ax.lines}
    assert len(orders) > 2
    for line in ax.lines:  # ends at the surface of its atoms, and reaches into neither
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert np.hypot(x[1] - x[0], y[1] - y[0]) < 1.1 - 0.26 - 0.38 + 0.01


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(2))
def test_anything_can_be_drawn(seed: int) -> None:
    drawn = [random_molecule(seed), molecule("H", [[1, 2, 3]]), molecule("CC", np.zeros((2, 3)))]
    draw_molecules(drawn).savefig(io.BytesIO(), format="png", dpi=30)
    assert show_molecules(drawn)._repr_html_()


def test_the_widest_view_is_a_turn() -> None:
    for seed in range(5):
        positions = random_molecule(seed).positions
        seen = widest(positions)
        apart = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (positions, seen)]
        np.testing.assert_allclose(apart[0], apart[1], atol=1e-12)
        spread = seen.var(axis=0)
        assert spread[0] >= spread[1] >= spread[2]
        if len(positions) > 3:
            volumes = [np.linalg.det(p[1:4] - p[0]) for p in (positions, seen)]
            assert volumes[0] == pytest.approx(volumes[1])


def test_outlines_and_dark_elements_can_be_seen_on_any_page() -> None:
    assert least(NEUTRAL, FAILURE, ELEMENTS["C"], ELEMENTS["N"], ELEMENTS["O"]) >= 3


@pytest.mark.parametrize("wrong", [{"molecules": []}, {"columns": 0}, {"titles": ["one"]}])
def test_pictures_of_nothing_are_refused(wrong: dict[str, object]) -> None:
    options: dict[str, object] = {"molecules": [g2("CH4"), g2("H2O")], **wrong}
    for picture in (draw_molecules, show_molecules):
        with pytest.raises(ValueError, match=r"at least one molecule and one column|titles|zip"):
            picture(**options)  # type: ignore[arg-type]


def test_molecules_can_be_turned_and_have_a_picture() -> None:
    pytest.importorskip("py3Dmol")
    shown = show_molecules([g2("CH4"), g2("H2O"), g2("C2H2")], columns=2, titles=["a", "b", "c"])
    html = shown._repr_html_()
    assert html.count("addModel") == 3
    assert "rows: 2, cols: 2" in html
    encoded = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert encoded is not None
    assert base64.b64decode(encoded[1]) == shown.picture
    assert shown.picture.startswith(b"\x89PNG")
    bundle = shown._repr_mimebundle_()
    assert bundle["image/png"] == shown.picture
    assert bundle["text/plain"] == "3 molecules"
    first, second = (
        re.findall(r'<div id="(mgpu-[^"]+)-picture', text) for text in (html, shown._repr_html_())
    )
    assert len(first) == len(second) == 1
    assert first != second  # shown twice on one page, both can be turned
    assert "UNIQUEID" not in html


def test_without_py3dmol_the_picture_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3Dmol", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    html = show_molecules([g2("CH4")])._repr_html_()
    assert "data:image/png;base64" in html
    assert "<script" not in html


def test_titles_are_text() -> None:
    titles = ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>']
    html = show_molecules([g2("CH4"), g2("H2O")], titles=titles)._repr_html_()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert html.count("<script>") == html.count("</script>") <= 2


def test_of_many_the_first_are_shown() -> None:
    shown = show_molecules([g2("CH4")] * 40, columns=6)
    assert len(shown.molecules) == MOST_SHOWN
    assert repr(shown) == "24 molecules, 16 more are not shown"
    assert "16 more are not shown" in shown._repr_html_()


def test_bonds_in_3d_are_those_of_the_table() -> None:
    chem = pytest.importorskip("rdkit.Chem")
    for seed in range(10):
        drawn = random_molecule(seed)
        read = chem.MolFromMolBlock(_mol_block(drawn), sanitize=False, removeHs=False)
        orders = np.zeros((len(drawn.numbers),) * 2, dtype=int)
        for bond in read.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            orders[i, j] = orders[j, i] = int(bond.GetBondTypeAsDouble())
        assert (orders == bond_orders(drawn)).all()
        np.testing.assert_allclose(read.GetConformer().GetPositions(), widest(drawn.positions), atol=1e-4)
