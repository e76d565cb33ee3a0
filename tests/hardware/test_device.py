"""The table of devices, on machines that a fake NVML describes."""

import subprocess
import sys
from html.parser import HTMLParser

import pynvml
import pytest
from fake_nvml import GIB, Gpu, gpus, install, mig_gpu, uuid

from mgpu_nb.hardware import host, visible
from mgpu_nb.hardware import slots as device
from mgpu_nb.hardware.slots import devices, free_memory, resolve_slots, total_memory

L4 = "NVIDIA L4"


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cores", lambda: 8)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [], init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


class Text(HTMLParser):
    """Tags and text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_gpus_are_listed_as_the_kernel_numbers_them(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4, L4))
    table = devices()
    assert [(d.index, d.label, d.kind, d.uuid) for d in table] == [
        (0, "cuda:0", "cuda", uuid(0)),
        (1, "cuda:1", "cuda", uuid(1)),
    ]
    assert table.has_gpu
    assert table.gpus == tuple(table)
    assert (table.reason, table.notes) == ("", ())
    first = table[0]
    assert (first.total, first.used, first.free) == (40 * GIB, 3 * GIB, 36 * GIB)
    assert (first.utilisation, first.temperature, first.power, first.driver) == (37, 61, 250.5, "580.65.06")


def test_a_table_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4, L4))
    lines = repr(devices()).splitlines()
    assert lines[0] == "2 GPUs"
    headings = "device name total used free util temp power driver uuid"
    assert " ".join(lines[1].split()) == headings
    assert lines[2].split() == (
        f"cuda:0 {L4} 40.0 GiB 3.0 GiB 36.0 GiB 37 % 61 °C 250 W 580.65.06 {uuid(0)}".split()
    )
    assert len({line.index("GPU-") for line in lines[2:]}) == 1


def test_a_table_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4, L4))
    table = devices()
    assert table.fitted(200) == str(table)
    assert table.fitted(80).splitlines()[1].split() == ["device", "name", "total", "used", "free", "util"]
    assert max(map(len, table.fitted(60).splitlines())) <= 60
    assert table.fitted(20).splitlines()[1].split() == ["device", "used", "free", "util"]


def test_what_is_not_known_is_empty_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    blind, fine = gpus(L4, L4)
    for function in ("MemoryInfo", "UtilizationRates", "Temperature", "PowerUsage"):
        code = "UNKNOWN" if function == "MemoryInfo" else "NOT_SUPPORTED"
        blind.errors[f"nvmlDeviceGet{function}"] = getattr(pynvml, f"NVML_ERROR_{code}")
    install(monkeypatch, [blind, fine])
    table = devices()
    assert repr(table).splitlines()[2].split() == ["cuda:0", *L4.split(), "580.65.06", uuid(0)]
    frame = table.frame()
    numbers = ["total", "used", "free", "utilisation", "temperature", "power"]
    assert frame[numbers].iloc[:1].isna().to_numpy().all()
    assert frame[numbers].iloc[1].tolist() == [40 * GIB, 3 * GIB, 36 * GIB, 37, 61, 250.5]
    assert free_memory(resolve_slots([0])[0]) is None


def test_a_frame_has_a_row_per_device_and_whole_bytes(no_gpu: None) -> None:
    frame = devices().frame()
    assert len(frame) == 8
    assert frame["total"].dtype == "Int64"
    assert frame["index"].tolist() == list(range(8))
    assert list(device.DeviceTable([]).frame().columns) == list(frame.columns)


def test_html_is_escaped_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus("<img src=x onerror=alert(1)>", "A&B"))
    monkeypatch.setattr(visible, "probe_cuda_order", lambda order: ())
    html = devices()._repr_html_()
    page = Text(html)
    assert page.tags == {"style", "div", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "A&B" in page.text
    assert "PCI order" in page.text
    assert "--jp-" in html


def test_a_table_is_a_sequence(no_gpu: None) -> None:
    table = devices()
    assert len(table) == 8
    assert [d.label for d in table[2:4]] == ["cpu:2", "cpu:3"]
    assert table[2:4].reason == table.reason
    assert table[-1] in table


def test_without_a_gpu_it_says_why_and_lists_virtual_devices(no_gpu: None) -> None:
    table = devices()
    assert not table.has_gpu
    assert "no NVIDIA driver" in table.reason
    assert [d.uuid for d in table] == [f"cpu:{n}" for n in range(8)]
    assert table[0].total == host.memory()[0]
    for shown in (repr(table), Text(table._repr_html_()).text):
        assert "No GPU: no NVIDIA driver" in shown
        assert "8 virtual CPU devices" in shown


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_hidden_gpus_are_listed_as_hidden(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    install(monkeypatch, gpus(L4, "NVIDIA T4"))
    monkeypatch.setattr(visible, "probe_cuda_order", lambda order: ())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    table = devices()
    assert f"hidden by CUDA_VISIBLE_DEVICES={value!r}" in table.reason
    assert [(d.index, d.problem) for d in table[:2]] == [(None, "hidden by CUDA_VISIBLE_DEVICES")] * 2
    assert [d.label for d in table[:3]] == ["", "", "cpu:0"]
    assert [s.kind for s in resolve_slots()] == ["cpu"] * 8


def test_a_gpu_named_twice_hides_all_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus(L4, L4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,0")
    assert "names a GPU twice" in devices().reason
    with pytest.raises(ValueError, match="names a GPU twice"):
        resolve_slots([0])


def test_a_driver_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [])
    assert "shows no GPU" in devices().reason


def test_a_failing_gpu_is_shown_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, *fine = gpus(L4, L4, L4)
    broken.errors["*"] = pynvml.NVML_ERROR_UNKNOWN
    install(monkeypatch, [broken, *fine])
    monkeypatch.setattr(visible, "probe_cuda_order", lambda order: (uuid(1), uuid(2)))
    table = devices()
    assert [(d.index, d.uuid) for d in table.gpus] == [(0, uuid(1)), (1, uuid(2))]
    assert table[2].index is None
    assert "Unknown Error" in repr(table)
    assert [s.uuid for s in resolve_slots()] == [uuid(1), uuid(2)]


def test_only_failing_gpus_are_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [Gpu(errors={"*": pynvml.NVML_ERROR_GPU_IS_LOST})])
    assert devices().reason == "none of the GPUs can be used: fails: GPU is lost (GPU 0 in PCI order)"


@pytest.mark.parametrize("old", [False, True])
def test_mig_instances_are_devices(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    gpu = mig_gpu(0, old)
    instances = [i for i in gpu.instances or () if i]
    install(monkeypatch, [gpu], old=old)
    table = devices()
    assert [(d.index, d.uuid, d.mig) for d in table] == [
        (0, instances[0].uuid, True),
        (1, instances[1].uuid, True),
        (None, gpu.uuid, False),
    ]
    slots = resolve_slots()
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in slots] == [i.uuid for i in instances]
    assert [total_memory(s) for s in slots] == [5 * GIB] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", instances[1].uuid)
    assert [s.uuid for s in resolve_slots()] == [instances[1].uuid]


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs of three models, which CUDA numbers fastest first."""
    names = ["NVIDIA T4", "NVIDIA H100", L4, "NVIDIA T4", L4, "NVIDIA H100", "NVIDIA T4", L4]
    order = (1, 5, 2, 4, 7, 0, 3, 6)
    install(monkeypatch, gpus(*names))
    monkeypatch.setattr(visible, "probe_cuda_order", lambda _: tuple(uuid(n) for n in order))


def test_ids_are_cudas_and_not_nvmls(eight: None) -> None:
    assert [d.uuid for d in devices()] == [uuid(n) for n in (1, 5, 2, 4, 7, 0, 3, 6)]
    assert [s.uuid for s in resolve_slots([0, 5, 5])] == [uuid(1), uuid(0), uuid(0)]


@pytest.mark.parametrize(
    ("value", "uuids"), [("5,0,2", [0, 1, 2]), ("GPU-6,GPU-1", [6, 1]), (f"{uuid(3)},{uuid(0)}", [3, 0])]
)
def test_ids_are_read_in_the_kernels_view(
    eight: None, monkeypatch: pytest.MonkeyPatch, value: str, uuids: list[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert [s.uuid for s in resolve_slots()] == [uuid(n) for n in uuids]
    assert [(s.gpu_id, s.uuid) for s in resolve_slots([1])] == [(1, uuid(uuids[1]))]
    assert len(devices()) == 8
    with pytest.raises(ValueError, match="there is no GPU 7"):
        resolve_slots([7])


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = """
import sys
heavy = {"torch", "pandas", "matplotlib", "psutil", "pynvml", "numpy", "subprocess", "ipywidgets"}
import mgpu_nb.hardware.slots as device
assert not heavy & set(sys.modules), heavy & set(sys.modules)
repr(device.devices()); device.devices()._repr_html_(); device.resolve_slots(slots=2)
assert not {"torch", "pandas", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
