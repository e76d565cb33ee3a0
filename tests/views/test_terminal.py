"""The devices as lines of a terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mgpu_nb.hardware.holders import Holder
from mgpu_nb.telemetry.samples import DeviceSample, Snapshot, WorkerSample, WorkerState
from mgpu_nb.views.terminal import device_lines, text

GIB = 2**30
ANA = Holder(4321, 10 * GIB, "ana", "python train.py")


def device(n: int = 0, **more: Any) -> DeviceSample:
    values = {
        "uuid": f"GPU-{n}", "label": f"cuda:{n}", "name": "NVIDIA H100 80GB HBM3", "kind": "cuda", "total": 80 * GIB,
        "used": 40 * GIB, "ours": 30 * GIB, "others": 10 * GIB, "utilisation": 97, "temperature": 61, "power": 402.4,
        "holders": (ANA,),
    }  # fmt: skip
    return DeviceSample(**{**values, **more})


def history(*devices: DeviceSample, count: int = 600) -> list[Snapshot]:
    state = WorkerState(
        pool=1, slot=0, label="cuda:0", uuid="GPU-0", kind="cuda", pid=100, task="fit", run_name="long"
    )
    workers = (WorkerSample(state, 30 * GIB, "nvml"),)
    return [Snapshot(1e9 + n / 2, devices, workers) for n in range(count)]


def shown(*devices: DeviceSample, width: int = 80, **more: Any) -> list[str]:
    return text(device_lines(history(*devices), width, **more)).splitlines()


def test_a_device_has_a_line_of_figures_with_their_units_and_one_of_holders() -> None:
    heading, figures, holders, key = shown(device())
    assert heading.split() == ["device", "memory", "used", "util", "temp", "power", "last", "5", "min"]
    assert (
        figures.split()
        == [
            "cuda:0",
            "████▒▒▒·····",
            "40.0",
            "/",
            "80.0",
            "GiB",
            "97",
            "%",
            "61",
            "°C",
            "402",
            "W",
            "▅▅▅▅▅▅▅▅▅▅▅▅",
        ]
        or figures
    )
    assert holders.strip() == "fit of run 'long' 30.0 GiB; ana: python train.py (pid 4321) 10.0 GiB"
    assert key.startswith("█ workers of this process  ▒ others  · free  ")


@pytest.mark.parametrize("width", [40, 60, 80, 104, 120, 200])
def test_the_lines_fit_the_terminal(width: int) -> None:
    many = tuple(ANA._replace(pid=n) for n in range(10))
    lines = shown(*(device(n, holders=many) for n in range(8)), width=width)
    assert len(lines) == 18
    assert max(map(len, lines)) <= width
    assert all("40.0 / 80.0 GiB" in line for line in lines[1:17:2])
    assert all("more" in line for line in lines[2:17:2])
    assert ("memory, last 5 min" in lines[0]) == (width >= 104)
    assert ("H100" in lines[1]) == (width >= 120)
    assert len({line.index("/ 80.0 GiB") for line in lines[1:17:2]}) == 1


@pytest.mark.parametrize(
    ("ours", "used", "bar"),
    [
        (0, 0, "············"),
        (40, 80, "██████▒▒▒▒▒▒"),
        (80, 80, "████████████"),
        (1, 2, "█▒··········"),
        (0, 80, "▒" * 12),
    ],
)
def test_each_part_of_a_bar_has_its_own_character(ours: int, used: int, bar: str) -> None:
    assert shown(device(ours=ours * GIB, used=used * GIB))[1].split()[1] == bar


def test_styles_name_the_parts() -> None:
    line = device_lines(history(device()))[1]
    assert {piece[:1]: style for piece, style in line if style} == {"█": "ours", "▒": "others", "·": "free"}


def test_what_is_not_known_is_empty_and_columns_that_nobody_has_are_left_out() -> None:
    blind = device(used=None, others=None, ours=0, utilisation=None, power=None, temperature=None, holders=())
    lines = text(device_lines([replace(history(blind)[0], workers=())])).splitlines()
    assert lines[0] == "device"
    assert lines[1] == "cuda:0"
    heading, first, *_ = shown(blind, device(1))
    assert "power" in heading
    assert "W" not in first


def test_a_device_that_fails_says_why() -> None:
    assert (
        shown(device(), device(1, label="GPU 1", problem="fails: GPU is lost"))[3]
        == "GPU 1  fails: GPU is lost"
    )
    assert shown(device(problem="lost"))[1] == "cuda:0  lost"


def test_the_memory_of_a_machine_is_in_use() -> None:
    ram = DeviceSample(
        uuid="cpu", label="cpu", name="2 cores", kind="cpu", total=8 * GIB, used=2 * GIB, others=2 * GIB
    )
    lines = text(device_lines([Snapshot(1e9, (ram,), ())], 80)).splitlines()
    assert lines[1].split()[:6] == ["cpu", "▒▒▒·········", "2.0", "/", "8.0", "GiB"]
    assert lines[-1].startswith("▒ in use  · free  ")
    assert shown(device(), ours="yours")[-1].startswith("█ yours  ▒ others")


def test_nothing_moves_the_cursor() -> None:
    evil = "\x1b[2J\r\n\u202e"
    now = replace(history(device(label=evil, holders=(Holder(1, GIB, evil, evil),)))[0], note=evil)
    lines = text(device_lines([now], 200))
    assert not set("\x1b\r\u202e") & set(lines)
    assert len(lines.splitlines()) == 5
