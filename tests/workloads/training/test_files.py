"""Lands in files, of ours and of the land model's."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mgpu_nb.workloads.training import Config, Land, generate, read_land, start, write_land
from mgpu_nb.workloads.training.files import table


@pytest.fixture(scope="module")
def some() -> Land:
    return generate(12)


def same(one: Land, other: Land, but: Sequence[str] = ()) -> None:
    for field in dataclasses.fields(one):
        if field.name not in but:
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_a_land_survives_a_file(tmp_path: Path, some: Land) -> None:
    same(read_land(write_land(some, tmp_path / "land.npz")), some)
    same(read_land(write_land(some, tmp_path / "of" / "land.parquet")), some, but=("balance",))
    with pytest.raises(ValueError, match=r"written as \.npz or \.parquet"):
        write_land(some, tmp_path / "land.csv")


def test_pickled_batches_are_read_where_they_are_trusted(tmp_path: Path, some: Land) -> None:
    whole = table(some)
    whole.iloc[:5].to_pickle(tmp_path / "1_training_data_batch_01.pkl")
    whole.iloc[5:].to_pickle(tmp_path / "1_training_data_batch_02.pkl")
    same(read_land(tmp_path, trust=True), some, but=("balance",))
    for how in (lambda: read_land(tmp_path), lambda: start(Config(data=str(tmp_path)))):
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


def test_tables_as_the_land_model_writes_them(tmp_path: Path, some: Land) -> None:
    real = table(some)
    real["FLDS"] = real["FLDS"].map(lambda months: np.concatenate([np.zeros(1236), months]))  # 123 years
    real = real.assign(lon=1.0, landfrac=0.5, Y_GPP=2.0)
    real["H2OSOI_10CM"] = [[0.1] * 20] * len(real)  # a list that nobody asked for
    real.to_pickle(tmp_path / "real.pkl")
    with pytest.raises(ValueError, match=r"20 static columns are wanted, these are 22: .*lon"):
        read_land(tmp_path / "real.pkl", trust=True)
    names = [f"static_{n}" for n in range(19)]
    with pytest.raises(ValueError, match=r"5 scalar columns are wanted, these are 6: .*Y_GPP"):
        read_land(tmp_path / "real.pkl", trust=True, static=[*names, "lon"])
    scalars = ["Y_production", "Y_respiration", "Y_litter", "Y_plant_carbon", "Y_GPP"]
    back = read_land(tmp_path / "real.pkl", trust=True, static=[*names, "lon"], scalars=scalars)
    assert (back.static[:, -1] == 1.0).all()
    assert (back.scalar[:, -1] == 2.0).all()
    np.testing.assert_array_equal(back.series, some.series)


def broken(arrays: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {**arrays, **changes}


def test_bad_files_are_named_with_what_is_wrong(tmp_path: Path, some: Land) -> None:
    def refused(name: str, words: str, error: type[Exception] = ValueError, **options: Any) -> None:
        with pytest.raises(error, match=words):
            read_land(tmp_path / name, **options)

    arrays = {field.name: getattr(some, field.name) for field in dataclasses.fields(some)}
    np.savez(tmp_path / "short.npz", **broken(arrays, static=arrays["static"][:, :7]))
    refused("short.npz", r"short\.npz: static has shape \[12, 7\], wanted \[B, 20\]")
    np.savez(tmp_path / "less.npz", **{name: array for name, array in arrays.items() if name != "lists"})
    refused("less.npz", "no array lists")
    np.savez(tmp_path / "single.npz", **broken(arrays, series=np.float64(1)))
    refused("single.npz", r"series has shape \[\], wanted \[B, 240, 6\]")
    holes = arrays["series"].copy()
    holes[3, 7, 2] = np.nan
    np.savez(tmp_path / "holes.npz", **broken(arrays, series=holes))
    refused("holes.npz", "series of row 3 is not finite")
    np.savez(tmp_path / "texts.npz", **broken(arrays, scalar=np.full((12, 5), "x")))
    refused("texts.npz", "scalar holds what is no number")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "objects.npy").rename(tmp_path / "objects.npz")
    refused("objects.npz", r"no \.npz file")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "short.npz").read_bytes()[:1000])
    refused("cut.npz", r"no \.npz file")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    refused("bad.parquet", r"no \.parquet file")
    (tmp_path / "land.csv").write_text("a,b\n")
    refused("land.csv", r"read from \.npz, \.parquet, \.pkl")
    refused("nothing.npz", "there is no such file", FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refused("empty", r"holds no \.npz", FileNotFoundError)
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "else.parquet")
    refused("else.parquet", "20 static columns are wanted, these are 1: x")
    table(some).drop(columns="TBOT").to_parquet(tmp_path / "cold.parquet")
    refused("cold.parquet", "no column TBOT")
    table(some).assign(tlai=pd.Series([[1.0, 2.0]] * 12)).to_parquet(tmp_path / "few.parquet")
    refused("few.parquet", r"tlai of row 0 has shape \[2\], wanted \[16\]")
    table(some).assign(soil3c_vr=pd.Series([["x"]] * 12)).to_parquet(tmp_path / "words.parquet")
    refused("words.parquet", "soil3c_vr of row 0 is no list of numbers")
    pd.Series([1]).to_pickle(tmp_path / "series.pkl")
    refused("series.pkl", "holds no table with rows", trust=True)
