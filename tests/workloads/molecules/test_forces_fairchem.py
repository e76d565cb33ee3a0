"""fairchem's UMA, by stand-ins with the signatures of fairchem-core 2.24: neither it nor its weights are here."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgpu_nb.workloads.molecules.forces.base import evaluate
from mgpu_nb.workloads.molecules.forces.load import check_field, load_field


class AtomicData:
    """One molecule, or many."""

    def __init__(
        self, pos: Tensor, atomic_numbers: Tensor, natoms: Tensor, charge: Tensor, spin: Tensor
    ) -> None:
        self.pos, self.atomic_numbers, self.natoms = pos, atomic_numbers, natoms
        self.charge, self.spin = charge, spin
        self.dataset: list[str] = []

    @classmethod
    def from_ase(
        cls,
        input_atoms: Any,
        r_edges: bool = False,
        radius: float = 6.0,
        max_neigh: int | None = None,
        sid: str | None = None,
        molecule_cell_size: float | None = None,
        r_energy: bool = True,
        r_forces: bool = True,
        r_stress: bool = True,
        r_data_keys: list[str] | None = None,
        task_name: str | None = None,
        target_dtype: torch.dtype = torch.float32,
    ) -> "AtomicData":
        asked = r_data_keys or []
        data = cls(
            torch.from_numpy(input_atoms.get_positions()).to(target_dtype),
            torch.from_numpy(input_atoms.get_atomic_numbers()).long(),
            torch.tensor([len(input_atoms)]),
            torch.tensor([input_atoms.info.get("charge", 0) if "charge" in asked else 0]),
            torch.tensor([input_atoms.info.get("spin", 0) if "spin" in asked else 0]),
        )
        data.dataset = [str(task_name)]
        return data


def atomicdata_list_to_batch(
    data_list: list[AtomicData], exclude_keys: list[str] | None = None
) -> AtomicData:
    names = ("pos", "atomic_numbers", "natoms", "charge", "spin")
    batch = AtomicData(*(torch.cat([getattr(data, name) for data in data_list]) for name in names))
    batch.dataset = [name for data in data_list for name in data.dataset]
    return batch


@dataclass
class InferenceSettings:
    tf32: bool = False
    activation_checkpointing: bool = True
    merge_mole: bool = False
    compile: bool = False
    external_graph_gen: bool = False


class Unit:
    """Atoms bound to the origin; the energy of a doublet is one more."""

    def __init__(self) -> None:
        self.seen: list[AtomicData] = []

    def predict(self, data: AtomicData, undo_element_references: bool = True) -> dict[str, Tensor]:
        self.seen.append(data)
        energies = [0.5 * part.square().sum() for part in data.pos.split(data.natoms.tolist())]
        return {"energy": torch.stack(energies) + (data.spin - 1), "forces": -data.pos}


@pytest.fixture
def fairchem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Installed packages fairchem-core and huggingface_hub, without a token and with an empty cache."""
    state = SimpleNamespace(unit=Unit(), calls=[], token=None, cached=None)

    def get_predict_unit(
        model_name: str,
        inference_settings: InferenceSettings | str = "default",
        overrides: dict[str, Any] | None = None,
        device: str | None = None,
        cache_dir: str = "",
        workers: int = 1,
        seed: int = 41,
    ) -> Unit:
        assert device in ("cpu", "cuda")
        state.calls.append((model_name, inference_settings, device))
        unit: Unit = state.unit
        return unit

    def module(name: str, **names: Any) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    pretrained = module("fairchem.core.calculate.pretrained_mlip", get_predict_unit=get_predict_unit)
    module("fairchem")
    module("fairchem.core", pretrained_mlip=pretrained)
    module("fairchem.core.units")
    module("fairchem.core.units.mlip_unit")
    module("fairchem.core.units.mlip_unit.api")
    module("fairchem.core.units.mlip_unit.api.inference", InferenceSettings=InferenceSettings)
    module("fairchem.core.datasets")
    module(
        "fairchem.core.datasets.atomic_data",
        AtomicData=AtomicData,
        atomicdata_list_to_batch=atomicdata_list_to_batch,
    )

    def try_to_load_from_cache(
        repo_id: str, filename: str, cache_dir: str | Path | None = None
    ) -> str | None:
        assert (repo_id, filename) == ("facebook/UMA", "checkpoints/uma-s-1p1.pt")
        return state.cached  # type: ignore[no-any-return]

    module("huggingface_hub", get_token=lambda: state.token, try_to_load_from_cache=try_to_load_from_cache)
    state.file = tmp_path / "uma-s-1p1.pt"
    state.file.write_bytes(b"weights")
    return state


def test_everything_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(ValueError) as raised:
        check_field("uma-s-1p1")
    said = str(raised.value)
    for part in (
        "mlff_model='uma-s-1p1' needs",
        "pip install fairchem-core",
        "https://huggingface.co/facebook/UMA",
        "huggingface-cli login",
        "HF_TOKEN",
        "'uma-s-1p1:/path/to/uma-s-1p1.pt'",
    ):
        assert part in said


def test_gated_weights_need_a_token_a_cache_or_a_file(fairchem: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="its weights, which are gated: accept the licence"):
        check_field("uma-s-1p1")
    check_field(f"uma-s-1p1:{fairchem.file}")
    fairchem.token = "a token"
    check_field("uma-s-1p1")
    fairchem.token, fairchem.cached = None, str(fairchem.file)
    check_field("uma-s-1p1")
    with pytest.raises(
        ValueError, match=r"'/no/file.pt' is no file; give the path of uma-.*\.pt of https://huggingface"
    ):
        check_field("uma-s-1p1:/no/file.pt")
    assert fairchem.calls == []  # nothing is loaded to check


def test_a_batch_is_one_call(fairchem: SimpleNamespace) -> None:
    field = load_field(f"uma-s-1p1:{fairchem.file}", "cuda:0")
    ((path, settings, device),) = fairchem.calls
    assert (path, device) == (str(fairchem.file), "cuda")
    assert settings == InferenceSettings(merge_mole=False, compile=False)  # a batch has many compositions
    numbers = torch.tensor([[6, 1, 1, 1, 1], [6, 1, 1, 1, 0], [8, 1, 1, 0, 0]])
    positions = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = evaluate(field, numbers, positions)
    (data,) = fairchem.unit.seen
    assert data.spin.tolist() == [1, 2, 1]
    assert data.charge.tolist() == [0, 0, 0]
    assert data.dataset == ["omol"] * 3
    assert found.failed == 0
    mask = numbers > 0
    assert torch.allclose(found.forces[mask], -positions[mask], atol=1e-6)
    assert float(found.forces[~mask].abs().sum()) == 0
    energy, forces = field.forces(numbers[1, :4].numpy(), positions[1, :4].numpy())
    assert energy == pytest.approx(float(found.energy[1]))
    assert np.allclose(forces, found.forces[1, :4].numpy())


def test_what_fairchem_says_is_told(fairchem: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    fairchem.token = "a token without the licence"

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("403 Client Error: gated repo")

    monkeypatch.setattr(sys.modules["fairchem.core"].pretrained_mlip, "get_predict_unit", refuse)
    with pytest.raises(ValueError, match=r"cannot load 'uma-s-1p1' \(OSError: 403 .*licence"):
        load_field("uma-s-1p1")
