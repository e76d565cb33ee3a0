"""Lands in files: our own, and batches in the public layout of the land model."""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from land_batches import batch, write

from mgpu_nb.workloads.training import (
    CheckConfig,
    Config,
    Land,
    collect_check,
    generate,
    read_land,
    start,
    write_land,
)
from mgpu_nb.workloads.training.columns import Columns
from mgpu_nb.workloads.training.emulator import Emulator, loss_of
from mgpu_nb.workloads.training.files import table, weights_file, write_land_results
from mgpu_nb.workloads.training.layout import Layout
from mgpu_nb.workloads.training.reading import Reading

PUBLIC = Reading(
    crop_lists=(1, 17), pad_lists=16, crop_matrices=(18, 10), pad_matrices=(18, 10), months=240, pad_months=True,
    missing="fill", coordinates=True,
)  # fmt: skip
"""What the public loader does."""


@pytest.fixture(scope="module")
def some() -> Land:
    return generate(12)


def same(one: Land, other: Land, but: Sequence[str] = ()) -> None:
    for name, array in one.arrays().items():
        if name not in but:
            np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)


def done(land: Land) -> dict[str, list[str]]:
    """What was done, by column."""
    frame = land.layout.frame()
    return {str(name): [text for text in rows if text] for name, rows in frame.groupby("column")["done"]}


def test_a_land_survives_a_file(tmp_path: Path, some: Land) -> None:
    for path, but in ((tmp_path / "land.npz", ()), (tmp_path / "of" / "land.parquet", ("balance",))):
        back = read_land(write_land(some, path))
        same(back, some, but)
        assert back.sizes() == some.sizes()
        for part in ("series", "static", "matrices", "scalar", "vector", "matrix"):
            assert back.layout.names(part) == some.layout.names(part)
            assert [each.unit for each in back.layout.of(part)] == [
                each.unit for each in some.layout.of(part)
            ]
    with pytest.raises(ValueError, match=r"written as \.npz or \.parquet"):
        write_land(some, tmp_path / "land.csv")


def test_pickled_batches_are_read_where_they_are_trusted(tmp_path: Path, some: Land) -> None:
    whole = table(some)
    whole.iloc[:5].to_pickle(tmp_path / "1_training_data_batch_01.pkl")
    whole.iloc[5:].to_pickle(tmp_path / "1_training_data_batch_02.pkl")
    for path in (tmp_path, tmp_path / "*_batch_*.pkl", sorted(tmp_path.iterdir())):
        same(read_land(path, trust=True), some, but=("balance",))
    refused = (
        lambda: read_land(tmp_path),
        lambda: start(Config(data=str(tmp_path))),
        lambda: start(CheckConfig(data=(str(tmp_path),))),
    )
    for how in refused:
        with pytest.raises(ValueError, match=r"batch_01\.pkl is a pickle, .* give trust=True"):
            how()


def test_a_pickle_that_is_not_trusted_runs_nothing(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ValueError, match="trust=True"):
        read_land(tmp_path / "bad.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", [".pkl", ".parquet", ".npz"])
def test_public_batches_are_read_with_their_own_shapes(tmp_path: Path, ending: str) -> None:
    frame = batch()
    land = read_land(write(frame, tmp_path / f"batch{ending}"), trust=True)
    assert land.sizes()._replace(signed=()) == (6, 2, (2, 18), (1, 2, 15), 2, (1, 18), (1, 2, 15), ())
    assert land.series.shape == (12, 20, 6)
    np.testing.assert_array_equal(land.series[:, :, 5], np.stack(list(frame["TBOT"])))
    np.testing.assert_array_equal(land.vector[:, 0], frame["Y_deadcrootc"].tolist())
    np.testing.assert_array_equal(land.matrices[:, 0], frame["soil1c_vr"].tolist())
    np.testing.assert_array_equal(land.static, frame[["GPP", "NPP"]])
    np.testing.assert_array_equal(land.scalar, frame[["Y_GPP", "Y_NPP"]])
    was = done(land)
    assert was["pft_leafcn"] == ["kept whole, beside others of 18", "the same in all rows"]
    assert land.lists[0, 0, 16:].tolist() == [40.0, 0.0]
    assert "give coordinates" in was["Latitude"][0]
    assert was["GPP"] == was["TBOT"] == []
    units = {column.name: column.unit for column in land.layout.columns}
    assert (units["Y_GPP"], units["Y_soil1c_vr"], units["TBOT"]) == ("gC/m2/s", "gC/m3", "K")


@pytest.mark.parametrize("ending", [".pkl", ".parquet", ".npz"])
def test_the_options_do_what_the_public_loader_does(tmp_path: Path, ending: str) -> None:
    frame = batch()
    cells = frame["Y_soil1c_vr"].tolist()
    cells[3][1][2] = np.nan
    frame["Y_soil1c_vr"] = cells
    land = read_land(write(frame, tmp_path / f"batch{ending}"), trust=True, reading=PUBLIC)
    assert land.sizes() == (6, 4, (2, 16), (1, 18, 10), 2, (1, 16), (1, 18, 10), ())
    np.testing.assert_array_equal(land.vector[:, 0], [cell[1:17] for cell in frame["Y_deadcrootc"]])
    np.testing.assert_array_equal(land.lists[:, 0], [cell[1:17] for cell in frame["pft_leafcn"]])
    wanted = np.nan_to_num(np.array(cells)[:, :, :10])
    np.testing.assert_array_equal(land.matrix[:, 0, :2], wanted)
    assert not land.matrix[:, 0, 2:].any()
    np.testing.assert_array_equal(land.series[:, :20, 0], np.stack(list(frame["FLDS"])))
    assert not land.series[:, 20:].any()
    assert done(land)["Y_soil1c_vr"] == [
        "cropped from 2 x 15 to 2 x 10",
        "padded with rows and layers of 0 from 2 x 10 to 18 x 10",
        "1 missing (NaN) filled with 0",
    ]
    text = str(land.layout.table())
    assert "cropped to [1:17] of 18" in text
    assert "6 of 17 columns were read as they are" in text
    assert Layout.of_plain(land.layout.plain()) == land.layout


def test_long_series_lose_their_first_months(tmp_path: Path) -> None:
    frame = batch(months=250)
    write(frame, tmp_path / "batch.parquet")
    land = read_land(tmp_path / "batch.parquet")
    np.testing.assert_array_equal(land.series[:, :, 1], np.stack(list(frame["PSRF"]))[:, 10:])
    assert done(land)["PSRF"] == ["the last 240 months of 250"]
    assert read_land(tmp_path / "batch.parquet", reading=Reading(months=None)).series.shape[1] == 250


@pytest.mark.slow
def test_an_emulator_is_built_for_any_land(tmp_path: Path) -> None:
    whole = batch()
    lands = {
        "all": whole,
        "no statics": whole.drop(columns=["GPP", "NPP"]),
        "statics alone": whole[["GPP", "Y_NPP"]],
        "no lists": whole.drop(columns=["pft_leafcn", "deadcrootc", "Y_deadcrootc"]),
        "matrices alone": whole[["soil1c_vr", "Y_soil1c_vr"]],
        "below zero": whole.assign(Y_deadcrootc=pd.Series([[-1.0] * 17] * 6 + [[2.0] * 17] * 6)),
    }
    for name, frame in lands.items():
        land = read_land(write(frame, tmp_path / "some.parquet"))
        columns = Columns(land, np.arange(9), "cpu")
        model = Emulator(8, 1, 2, sizes=land.sizes())
        inputs, wanted = columns.of(torch.arange(12))
        found = model(inputs)
        assert [part.shape for part in found] == [part.shape for part in wanted], name
        loss_of(found, wanted).mean().backward()
        assert all(each.grad is not None for each in model.parameters()), name
        assert np.isfinite(columns.baseline(np.arange(9), np.arange(9, 12), (1.0, 1.0, 1.0))), name
        again = Emulator.of(model.metadata())
        again.load_state_dict(model.state_dict())
        torch.testing.assert_close(again(inputs), found)
    assert (
        Emulator(8, 1, 2, sizes=read_land(write(whole, tmp_path / "some.parquet")).sizes())(inputs)[1] > 0
    ).all()
    assert (found.vector < 0).any()  # of the last land, whose lists are below zero


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e36, 9.96921e36, -9999.0, -999.0])
def test_missing_numbers_are_refused_filled_or_dropped(tmp_path: Path, value: float) -> None:
    for name, place in (
        ("GPP", 4),
        ("Y_NPP", 4),
        ("TBOT", (4, 7)),
        ("Y_deadcrootc", (4, 2)),
        ("soil1c_vr", (4, 1, 3)),
    ):
        frame = batch()
        cells = np.array(frame[name].tolist(), np.float64)
        cells[place] = value
        frame[name] = list(cells) if cells.ndim < 3 else cells.tolist()
        path = write(frame, tmp_path / "holes.parquet")
        with pytest.raises(ValueError, match=rf"holes\.parquet: {name} of row 4 holds .*missing='fill'"):
            read_land(path)
        filled = read_land(path, reading=Reading(missing="fill", fill_value=2.5))
        assert len(filled) == 12
        assert any("1 missing" in text and "filled with 2.5" in text for text in done(filled)[name])
        dropped = read_land(path, reading=Reading(missing="drop"))
        assert len(dropped) == 11
        assert "1 of 12 rows were dropped" in dropped.layout.notes
        left = read_land(path, reading=Reading(leave_out=(name,)))
        assert name not in [column.name for column in left.layout.columns if column.part]
    if value == -999.0:
        assert read_land(path, reading=Reading(fill_values=None)).matrices[4, 0, 1, 3] == -999.0


class Noleap:
    """A date as cftime has them."""

    year, month, day = 1850, 2, 30


@pytest.mark.parametrize(
    ("name", "cells", "words"),
    [
        ("when", pd.Timestamp("1850-01-01"), "holds dates"),
        ("when", datetime.date(1850, 1, 1), "holds dates"),
        ("when", Noleap(), "holds dates"),
        ("when", pd.Timedelta("1D"), "holds durations"),
        ("name", "Niwot Ridge", "holds texts"),
        ("year", 1850, "a time, by its name"),
        ("start_date", 18500101, "a time, by its name"),
        ("gridcell_id", 7, "a number of a cell, by its name"),
        ("lon", 12.5, "a place: give coordinates"),
    ],
)
def test_what_is_no_quantity_is_left_out_by_name(tmp_path: Path, name: str, cells: Any, words: str) -> None:
    frame = batch().assign(**{name: [cells] * 12})
    land = read_land(write(frame, tmp_path / "batch.pkl"), trust=True)
    assert land.static.shape == (12, 2)
    assert words in done(land)[name][0]
    asked = Reading(static_columns=("GPP", name))
    if isinstance(cells, (int, float)):
        assert read_land(tmp_path / "batch.pkl", trust=True, reading=asked).static[0, 1] == cells
    else:
        with pytest.raises(ValueError, match=f"{name} holds .*static_columns needs a number a row"):
            read_land(tmp_path / "batch.pkl", trust=True, reading=asked)


def test_objects_and_truth_values_are_told(tmp_path: Path) -> None:
    frame = batch().assign(flag=[True, False] * 6, some=pd.Series([1, 2.5] * 6, dtype=object))
    land = read_land(write(frame, tmp_path / "batch.pkl"), trust=True)
    assert land.static[:2, 2:].tolist() == [[1.0, 1.0], [0.0, 2.5]]
    assert done(land)["flag"] == ["truth values as 0 and 1"]
    assert done(land)["some"] == ["numbers in a column of objects"]


def test_texts_of_which_one_is_missing_are_left_out(tmp_path: Path) -> None:
    frame = batch().assign(name=pd.array(["Niwot", None] * 6, dtype="string"))
    assert "holds texts" in done(read_land(write(frame, tmp_path / "batch.parquet")))["name"][0]
    mixed = batch().assign(some=pd.Series([1.0, pd.NA] * 6, dtype=object))
    with pytest.raises(ValueError, match="some"):
        read_land(write(mixed, tmp_path / "batch.pkl"), trust=True, reading=Reading(missing="refuse"))


def test_no_name_of_the_data_is_a_formula_in_a_table(tmp_path: Path) -> None:
    frame = batch().assign(**{"@SUM(1+1)": ["x"] * 12})
    path = write(frame, tmp_path / "batch.parquet")
    report = collect_check(start(CheckConfig(data=(str(path),), output_dir=str(tmp_path / "out"))).wait(60))
    report.save(tmp_path / "saved")
    text = (tmp_path / "saved" / "data.csv").read_text()
    assert "'@SUM(1+1)" in text
    assert not [line for line in text.splitlines() if line.startswith(("=", "+", "-", "@"))]
    (tmp_path / "predictions").mkdir()
    predictions = {"column": np.arange(2), "scalar": np.ones((2, 1)), "true_scalar": np.ones((2, 1))}
    write_land_results(tmp_path, {}, predictions, ["=1+1"])
    assert (tmp_path / "predictions" / "scalar.csv").read_text().splitlines()[0] == "column,'=1+1,true_=1+1"


def broken(arrays: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {**arrays, **changes}


def test_bad_files_are_named_with_what_is_wrong(tmp_path: Path, some: Land) -> None:
    def refused(name: str, words: str, error: type[Exception] = ValueError, **options: Any) -> None:
        with pytest.raises(error, match=words):
            read_land(tmp_path / name, **options)

    arrays: dict[str, Any] = {**some.arrays()}
    np.savez(tmp_path / "flat.npz", **broken(arrays, static=arrays["static"][:, 0]))
    refused("flat.npz", r"flat\.npz: static has shape \[12\], wanted \[B, columns\] with B = 12")
    np.savez(tmp_path / "less.npz", **{name: array for name, array in arrays.items() if name != "lists"})
    refused("less.npz", "no array lists")
    np.savez(tmp_path / "rows.npz", **broken(arrays, lists=arrays["lists"][:3]))
    refused("rows.npz", r"lists has shape \[3, 3, 16\]")
    np.savez(tmp_path / "single.npz", **broken(arrays, series=np.float64(1)))
    refused("single.npz", r"series has shape \[\], wanted \[B, months, columns\]")
    np.savez(tmp_path / "names.npz", **broken(arrays, static_names=np.array(["one"])))
    refused("names.npz", "static holds 20 columns, static_names names 1")
    holes = arrays["series"].copy()
    holes[3, 7, 2] = np.nan
    np.savez(tmp_path / "holes.npz", **broken(arrays, series=holes))
    refused("holes.npz", "FSDS of row 3 holds NaN")
    for name, array in {"texts": np.full((12, 5), "x"), "complex": arrays["scalar"] + 1j}.items():
        np.savez(tmp_path / f"{name}.npz", **broken(arrays, scalar=array))
        refused(f"{name}.npz", f"Y_production holds {name}")
    np.savez(tmp_path / "unequal.npz", a=np.ones(3), Y_b=np.ones(4))
    refused("unequal.npz", "unequal numbers of rows: a 3, Y_b 4")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "objects.npy").rename(tmp_path / "objects.npz")
    refused("objects.npz", r"no \.npz file")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "flat.npz").read_bytes()[:1000])
    refused("cut.npz", r"no \.npz file")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    refused("bad.parquet", r"no \.parquet file")
    (tmp_path / "land.csv").write_text("a,b\n")
    refused("land.csv", r"read from \.npz, \.parquet, \.pkl, \.pickle files: write a table as \.parquet")
    refused("nothing.npz", "there is no such file", FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refused("empty", r"holds no \.npz", FileNotFoundError)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/land.csv").touch()
    refused("tables", r"holds no \.npz.* file, but \.csv: write a table as", FileNotFoundError)
    (tmp_path / "nothing.pkl").touch()
    refused("nothing.pkl", r"\(Ran out of input\), damaged or of another kind: write a table", trust=True)
    (tmp_path / "foreign.pkl").write_bytes(b"cno_such_module\nThing\n)R.")
    refused("foreign.pkl", "No module named 'no_such_module'.*: install it, or write", trust=True)
    batch()[:0].to_pickle(tmp_path / "none.pkl")
    refused("none.pkl", "holds a table without rows: leave the file out", trust=True)
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "else.parquet")
    refused("else.parquet", r"has no output columns .*it has x")
    pd.Series([1]).to_pickle(tmp_path / "series.pkl")
    refused("series.pkl", "holds a Series, no table: write one", trust=True)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        (
            {"Y_deadcrootc": [[1.0] * 18] * 11 + [[1.0] * 17]},
            {},
            r"row 11 has shape \[17\].*crop_lists and pad_l",
        ),
        (
            {"soil1c_vr": [[[1.0] * 15] * 2] * 5 + [[[1.0] * 14] * 2] * 7},
            {},
            r"row 0 has shape \[2, 15\].*crop_matr",
        ),
        (
            {"soil1c_vr": [[[1.0] * 15, [1.0] * 14]] * 12},
            {},
            r"row 0 holds lists of unequal lengths \(14, 15\)",
        ),
        ({"TBOT": [[280.0] * 20] * 2 + [[280.0] * 19] * 10}, {}, r"row 0 has shape \[20\].*pad_months"),
        (
            {"TBOT": [[280.0] * 19] * 12},
            {},
            r"FLDS has shape \[20\]|TBOT has shape \[19\], another of the same kind",
        ),
        (
            {"Y_leafc": [[1.0] * 16] * 12},
            {},
            r"Y_leafc has shape \[16\], another of the same kind \[18\]: give crop_",
        ),
        ({"deadcrootc": [["a"] * 18] * 12}, {}, "deadcrootc of row 0 holds texts"),
        (
            {"deadcrootc": [[1.0] * 18] * 4 + [7.0] * 8},
            {},
            "deadcrootc holds a mixture of lists and numbers.*row 4",
        ),
        ({"WIND": [[1.0] * 240] * 12}, {}, "WIND holds 240 numbers a row: if they are months"),
        ({"GPP": [1j] * 12}, {}, "GPP holds complex numbers"),
        ({"Y_NPP": [1 + 2j] * 12}, {}, "Y_NPP holds complex numbers"),
        ({"deadcrootc": [[1j] * 18] * 12}, {}, "deadcrootc of row 0 holds complex numbers"),
        ({"Y_when": [pd.Timestamp("1850-01-01")] * 12}, {}, "output Y_when holds dates"),
        ({"odd": [{}] * 12}, {}, r"odd holds objects \(dict\)"),
        ({"mixed": [1.0] * 6 + ["x"] * 6}, {}, "mixed holds a mixture of numbers and texts.*row 6"),
        ({}, {"static_columns": ("GPPP",)}, "has no column GPPP; it has FLDS"),
        (
            {},
            {"scalar_columns": ("Y_deadcrootc",)},
            "Y_deadcrootc holds lists, and scalar_columns needs a number",
        ),
        ({}, {"series_columns": ("GPP",)}, "GPP holds numbers, and series_columns needs a list of months"),
        ({}, {"crop_lists": (17, 1)}, "must end after it begins"),
        ({}, {"pad_months": True, "months": None}, "pad_months=True needs months"),
        ({}, {"units": ("kg",)}, "NAME=UNIT, got 'kg'"),
        ({}, {"units": ("GPPP=kg",)}, "there is no column GPPP"),
        ({}, {"leave_out": ("GPP",), "static_columns": ("GPP",)}, "leave_out names GPP"),
        ({"GPP": [np.nan] * 12}, {"missing": "drop"}, "missing in every row"),
    ],
)
def test_what_options_do_not_allow_is_refused_with_a_remedy(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    frame = batch()
    for name, cells in changes.items():
        frame[name] = pd.Series(cells, dtype=complex if isinstance(cells[0], complex) else None)
    write(frame, tmp_path / "batch.pkl")
    with pytest.raises(ValueError, match=words):
        read_land(tmp_path / "batch.pkl", trust=True, reading=Reading(**options))


def test_ragged_lists_and_empty_cells_are_mended_by_the_options(tmp_path: Path) -> None:
    frame = batch()
    lists = frame["deadcrootc"].tolist()
    lists[2], lists[5], lists[7] = lists[2][:17], None, lists[7][:9]
    frame["deadcrootc"] = lists
    write(frame, tmp_path / "batch.pkl")
    land = read_land(tmp_path / "batch.pkl", trust=True, reading=PUBLIC)
    np.testing.assert_array_equal(land.lists[2, 1], lists[2][1:17])
    assert not land.lists[5, 1].any()
    np.testing.assert_array_equal(land.lists[7, 1], [*lists[7], *[0.0] * 7])
    told = dict(next(column.done for column in land.layout.columns if column.name == "deadcrootc"))
    assert told["cropped to [1:17] of 17"] == 1
    assert told["padded with items of 0 from 9 to 16"] == 1
    assert told["16 missing (NaN) filled with 0"] == 1


def test_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    write(batch(), tmp_path / "a.parquet")
    for frame, words in (
        (batch().drop(columns="pft_leafcn"), r"b\.parquet and .*a\.parquet differ in pft_leafcn"),
        (
            batch(shape=(2, 10)),
            r"b\.parquet: soil1c_vr has shape \[2, 10\], in .*a\.parquet \[2, 15\]: give crop_matr",
        ),
    ):
        write(frame, tmp_path / "b.parquet")
        with pytest.raises(ValueError, match=words):
            read_land(tmp_path)


def test_files_are_joined_whatever_the_order_of_their_columns(tmp_path: Path) -> None:
    one, other = batch(), batch()[[*batch().columns[::-1]]]
    write(one, tmp_path / "a.parquet")
    whole = read_land(tmp_path)
    write(other, tmp_path / "b.parquet")
    land = read_land(tmp_path)
    assert land.layout.columns[0].name == one.columns[0]
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(getattr(land, name), np.concatenate([array, array]))


def test_packed_pickles_are_read_and_hidden_files_are_not(tmp_path: Path) -> None:
    for name in ("a.pkl", "b.pickle", "c.pkl.gz", "d.pkl.xz"):
        batch().to_pickle(tmp_path / name)
        assert len(read_land(tmp_path / name, trust=True)) == len(batch())
        with pytest.raises(ValueError, match=f"{name} is a pickle, and loading it runs code"):
            read_land(tmp_path / name)
    (tmp_path / "._a.pkl").write_bytes(b"\0\5\x16\7")  # as a Mac copies it
    (tmp_path / "old.pkl").mkdir()
    assert len(read_land(tmp_path, trust=True)) == 4 * len(batch())


def test_masked_numbers_are_missing_and_categories_are_told(tmp_path: Path) -> None:
    frame = batch()
    masked: Any = [
        np.ma.masked_greater(np.arange(18.0), 16) for _ in range(len(frame))
    ]  # as netCDF4 reads them
    frame["deadcrootc"], frame["kind"] = masked, pd.Categorical([1, 2] * (len(frame) // 2))
    write(frame, tmp_path / "batch.pkl")
    with pytest.raises(
        ValueError, match="deadcrootc of row 0 holds NaN, and so do 12 of 12 rows, 12 numbers"
    ):
        read_land(tmp_path / "batch.pkl", trust=True)
    land = read_land(tmp_path / "batch.pkl", trust=True, reading=Reading(missing="fill"))
    done = {column.name: dict(column.done) for column in land.layout.columns}
    assert "categories as numbers" in done["kind"]
    assert done["deadcrootc"] == {"12 missing (NaN) filled with 0": 12, "the same in all rows": 12}


def test_options_without_data_have_no_effect_and_are_refused() -> None:
    for kind in (Config, CheckConfig):
        with pytest.raises(ValueError, match=r"crop_lists, missing: .* give data as well"):
            kind(crop_lists=(1, 17), missing="fill")
        with pytest.raises(ValueError, match="months must be an integer >= 1 or None, got 0"):
            kind(data="x", months=0)  # type: ignore[arg-type]


def test_units_of_a_user_are_shown(tmp_path: Path) -> None:
    land = read_land(write(batch(), tmp_path / "a.parquet"), reading=Reading(units=("Y_GPP=mol/m2/s",)))
    assert [column.unit for column in land.layout.of("scalar")] == ["mol/m2/s", "gC/m2/s"]


def test_weights_are_equal_bytes_for_equal_trainings() -> None:
    from safetensors.torch import load

    weights = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.int64)}
    texts = {f"key_{n}": str(n) for n in range(20)}  # in a hash table these come in any order
    first = weights_file(weights, texts)
    assert all(weights_file(dict(reversed(weights.items())), texts) == first for _ in range(5))
    back = load(first)
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())
    assert b'"__metadata__":{"key_0":"0","key_1":"1","key_10"' in first
