"""What is split, and what is refused before anything starts."""

import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgpu_nb.workloads import tracin
from mgpu_nb.workloads.tracin.checkpoints import load_conve, read_state
from mgpu_nb.workloads.tracin.ranking import Top, order


@pytest.mark.parametrize(
    ("train", "test", "slots", "engine", "side", "shards"),
    [
        (5216, 100, 2, "factored", "train", 2),
        (5216, 100, 64, "factored", "train", 21),  # no more than there are batches
        (300, 40_000, 4, "factored", "test", 4),
        (5216, 0, 2, "factored", "train", 2),
        (5216, 100, 4, "jvp", "test", 4),
        (5216, 1, 4, "jvp", "train", 4),
        (10, 1, 4, "vmap", "train", 1),
    ],
)
def test_the_side_that_repeats_less_work_is_split(
    train: int, test: int, slots: int, engine: Literal["factored", "vmap", "jvp"], side: str, shards: int
) -> None:
    split = tracin.sharding(tracin.Config(engine=engine), train, test, slots)
    assert (split.side, len(split.ranges)) == (side, shards)
    count = -(-train // 256) if side == "train" else -(-test // (1 if engine == "jvp" else 64))
    assert [n for start, stop in split.ranges for n in range(start, stop)] == list(range(count))
    assert f"{side} triples are split over {shards} shard" in split.reason


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 8), st.integers(1, 9))
def test_the_largest_are_the_same_whatever_the_pieces(numbers: list[int], k: int, size: int) -> None:
    values = np.array([numbers, numbers[::-1]], np.float32)
    top = Top(2, k)
    for start in reversed(range(0, len(numbers), size)):
        top.add(values[:, start : start + size], np.arange(start, min(start + size, len(numbers))))
    index = np.arange(len(numbers))
    for row in range(2):
        first = order(values[row], index)[:k]
        assert top.index[row][:k].tolist() == first.tolist()
        assert top.values[row][:k].tolist() == values[row][first].tolist()
        assert len(set(top.index[row])) == len(top.index[row]) == min(2 * k, len(numbers))
        assert np.array_equal(top.values[row], values[row][top.index[row]])
        largest = np.lexsort((index, -values[row]))[:k]
        rest = np.setdiff1d(index, largest)
        smallest = rest[np.lexsort((rest, values[row][rest]))[:k]]
        assert set(top.index[row]) == {*largest, *smallest}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "all"}, "mode must be one of test, self, single, got 'all'"),
        ({"engine": "factord"}, "did you mean 'factored'"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"top_k": 0}, "top_k must be an integer >= 1 or None"),
        ({"learning_rate": (1.0, 2.0)}, "2 for 1 checkpoints"),
        ({"learning_rate": (0.0,)}, r"learning_rate\[0\] must be a finite number > 0"),
        ({"mode": "single", "test_indices": (0, 1)}, "mode single takes one"),
        ({"test_indices": ()}, "test_indices must be a non-empty"),
        ({"gpu_ids": ()}, "gpu_ids must be a non-empty"),
        ({"checkpoints": ("a.pt",)}, "give one of the two"),
        ({"use_mixed_precision": True, "precision": "fp64"}, "choose one of the two"),
        ({"use_last_layers_only": True, "layers": ("linear",)}, "give one of the two"),
        ({"use_torch_compile": True, "engine": "jvp"}, "factored and vmap, not with jvp"),
        ({"loss": "softmax"}, "loss must be one of"),
        ({"model": "transe"}, "model must be one of"),
        ({"test": None}, "test missing"),
        ({"test_indices": (3, 3)}, "without duplicates"),
    ],
)
def test_options_that_cannot_be_are_refused(
    small: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        tracin.Config(**{"model_path": "model.pt", **small, **options})


@pytest.mark.parametrize("option", ["output", "csv_output", "parquet_output"])
def test_a_file_that_could_not_be_written_is_refused_before_the_run(
    small: dict[str, Any], tmp_path: Path, option: str
) -> None:
    config = tracin.Config(model_path="model.pt", **small, **{option: str(tmp_path)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{option}='{tmp_path}' is a folder"):
        tracin.tasks(config)


def test_weights_are_told_by_their_option(small: dict[str, Any], tmp_path: Path) -> None:
    for option, name in (
        ({"model_path": "no.pt"}, "model_path"),
        ({"checkpoints": ("no.pt",)}, r"checkpoints\[0\]"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"{name}='.*no\.pt': there is no such file"):
            tracin.tasks(tracin.Config(**option, **small))
    with pytest.raises(IsADirectoryError, match=f"model_path='{tmp_path}' is a folder"):
        tracin.tasks(tracin.Config(model_path=str(tmp_path), **small))


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("ran",)


def test_weights_that_cannot_be_are_refused(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = tracin.Shape(entities=5, relations=2, height=2, width=4, channels=2)
    state = tracin.ConvE(shape).state_dict()
    file = tmp_path / "model.pt"
    config = tracin.Config(model_path=str(file), **small)
    with file.open("wb") as opened:
        pickle.dump(Evil(), opened)
    with pytest.raises(ValueError, match="without running code from it"):
        tracin.tasks(config)
    assert "ran" not in capsys.readouterr().out
    for content, words in [
        ({"state_dict": {}}, "no state dict"),
        (
            {**state, "entities.weight": torch.zeros(4, 8)},
            r"shape \(4, 8\), the map of names asks for \(5, 8\)",
        ),
        (
            {**state, "relations.weight": torch.zeros(3, 8)},
            r"shape \(3, 8\), the map of names asks for \(2, 8\)",
        ),
        (
            {**state, "norm_hidden.weight": torch.zeros(3)},
            r"norm_hidden.weight has shape \(3,\), the model asks for \(8,\)",
        ),
        ({k: v for k, v in state.items() if k != "linear.bias"}, "has no linear.bias"),
        ({**state, "linear.weight": torch.zeros(8, 5)}, "linear.weight has 5 inputs"),
        (
            {"fc.weight": torch.zeros(3, 3)},
            "no weights of a ConvE, entities.weight is not there: another model is",
        ),
        (
            {**state, "entities.weight": torch.zeros(5)},
            r"no weights of a ConvE, entities.weight is shape \(5,\)",
        ),
        ({**state, "linear.bias": torch.zeros(8).long()}, "linear.bias is int64, the model asks for float32"),
        (
            {**state, "bias.weight": torch.full((5, 1), float("nan"))},
            r"bias.weight holds NaN or infinity \(5 of 5 numbers\): the training diverged; give an earlier",
        ),
        (
            {**state, "norm_image.running_var": torch.tensor([float("nan")])},
            "norm_image.running_var holds NaN",
        ),
    ]:
        torch.save(content, file)
        with pytest.raises(ValueError, match=rf"{file}.*{words}"):
            tracin.tasks(config)
    torch.save(state, file)
    whole = file.read_bytes()
    for data, words in [
        (b"", "is no checkpoint, it is empty: copy it again, or save model.state_dict"),
        (b"head\trelation", r"is no checkpoint, it begins with b'head.trelation'"),
        (whole[:-200], r"is no checkpoint, damaged or cut off \(.*\): copy it again"),
    ]:
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{file}.*{words}"):
            tracin.tasks(config)
    torch.save(state, file)
    with pytest.raises(ValueError, match="there is no test triple 4, they go from 0 to 0"):
        tracin.tasks(tracin.Config(model_path=str(file), test_indices=(4,), **small))
    with pytest.raises(ValueError, match=r"loss: .nowhere:loss. does not import"):
        tracin.tasks(tracin.Config(model_path=str(file), loss="nowhere:loss", **small))
    refused: list[tuple[dict[str, Any], str]] = [
        (
            {"loss": "operator:neg"},
            r"loss: operator:neg cannot be called as loss\(model, triples\): too many",
        ),
        ({"loss": "math:pi"}, r"loss: math:pi cannot be called as .*: it is a float"),
        (
            {"model": "torch.nn:Linear"},
            r"model: torch.nn:Linear cannot be called as model\(\): missing .*in_features",
        ),
    ]
    for own, words in refused:
        with pytest.raises(ValueError, match=words):
            tracin.tasks(tracin.Config(model_path=str(file), **small, **own))
    with pytest.raises(ValueError, match="has no 'fc'"):
        tracin.tasks(tracin.Config(model_path=str(file), layers=("fc",), **small))
    assert len(tracin.tasks(tracin.Config(model_path=str(file), slots=2, **small))) == 1


@pytest.mark.parametrize(
    "kind", ["plain", "state_dict", "model_state_dict", "safetensors", "module", "authors"]
)
def test_checkpoints_of_every_kind(tmp_path: Path, kind: str) -> None:
    shape = tracin.Shape(entities=5, relations=2, height=2, width=6, channels=2)
    torch.manual_seed(0)
    model = tracin.ConvE(shape).eval()
    state = dict(model.state_dict())
    file = tmp_path / "model.pt"
    config = {"embedding_height": 2}
    if kind == "safetensors":
        from safetensors.torch import save_file

        file = tmp_path / "model.safetensors"
        save_file({name: value.contiguous() for name, value in state.items()}, file)
    elif kind == "module":
        torch.save(
            {"state_dict": {f"module.{name}": value for name, value in state.items()}, "config": config}, file
        )
    elif kind == "authors":
        theirs = {"entities": "emb_e", "relations": "emb_rel", "norm_image": "bn0", "convolution": "conv1",
                  "norm_features": "bn1", "linear": "fc", "norm_hidden": "bn2"}  # fmt: skip
        named = {
            f"{theirs[n.split('.')[0]]}.{n.split('.')[1]}": v
            for n, v in state.items()
            if not n.startswith("bias")
        }
        torch.save({**named, "b": state["bias.weight"][:, 0]}, file)
    else:
        torch.save(state if kind == "plain" else {kind: state, "config": config}, file)
    back = load_conve(file, 5, 2, height=2)
    triples = torch.tensor([[0, 0, 1], [4, 1, 2]])
    torch.testing.assert_close(back.score(triples), model.score(triples))
    assert not back.training
    assert read_state(file)[1] in ({}, config)


def test_changed_files_end_a_shard(small: dict[str, Any], tmp_path: Path) -> None:
    from mgpu_nb.workloads.tracin.config import canonical
    from mgpu_nb.workloads.tracin.source import inputs_digest, load_graph

    shape = tracin.Shape(entities=5, relations=2, height=2, width=4, channels=2)
    torch.save(tracin.ConvE(shape).state_dict(), tmp_path / "model.pt")
    options = canonical(tracin.Config(model_path=str(tmp_path / "model.pt"), **small))
    before = inputs_digest(options)
    with Path(small["train"]).open("a") as file:
        file.write("e3\tlikes\te4\n")
    with pytest.raises(ValueError, match="have changed since the run was started"):
        load_graph(options, before)
    assert inputs_digest(options) != before


def test_training_is_checked_and_tells_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most one for each of the 2 epochs"):
        tracin.TrainConfig(epochs=2)
    with pytest.raises(ValueError, match="give train, entity_to_id and relation_to_id"):
        tracin.TrainConfig(train="train.tsv")
    said: list[dict[str, Any]] = []
    result = tracin.fit(
        tracin.TrainConfig(epochs=2, checkpoints=2, batch_size=64),
        tmp_path,
        report=lambda **v: said.append(v),
    )
    assert [value["progress"] for value in said] == [0.5, 1.0]
    assert (result["epochs"], len(result["checkpoints"])) == ([1, 2], 2)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"communities": 1}, "two communities"), ({"tails": 16}, "no more tails"),
        ({"corrupted": 1.0}, "corrupted=1.0"), ({"test": 5}, "test=5"),
    ]  # fmt: skip
    for arguments, words in refused:
        with pytest.raises(ValueError, match=words):
            tracin.community_graph(**arguments)


def test_numbers_of_numpy_are_pythons(small: dict[str, Any]) -> None:
    config = tracin.Config(
        model_path="m.pt",
        top_k=np.int64(5),  # type: ignore[arg-type]
        batch_size=np.int32(7),  # type: ignore[arg-type]
        test_indices=np.array([1, 2]),  # type: ignore[arg-type]
        **small,
    )
    assert (type(config.top_k), type(config.batch_size)) == (int, int)
    assert config.test_indices == (1, 2)
    batch = tracin.BatchConfig(n_hops=np.int64(2))  # type: ignore[arg-type]
    assert type(batch.n_hops) is int


@pytest.mark.parametrize("name", ["output", "csv_output", "parquet_output"])
def test_a_batch_refuses_what_it_would_ignore(name: str) -> None:
    option: dict[str, Any] = {name: "x"}
    with pytest.raises(ValueError, match=f"{name}: a batch writes two files"):
        tracin.BatchConfig(**option)
    with pytest.raises(ValueError, match="split by test triples"):
        tracin.BatchConfig(shard_by="train")


def test_an_image_that_is_not_told_is_asked_for(tmp_path: Path) -> None:
    model = tracin.ConvE(tracin.Shape(5, 2, 8, 8, 2))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(
        ValueError,
        match=r"of height 4 and 8, and no .* which: say which one as height \(--height\)",
    ):
        load_conve(tmp_path / "model.pt", 5, 2)
    assert load_conve(tmp_path / "model.pt", 5, 2, height=8).shape.width == 8


def test_twice_the_relations_are_another_graph(tmp_path: Path) -> None:
    torch.save(tracin.ConvE(tracin.Shape(5, 6, 10, 20, 2)).state_dict(), tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"relations has shape \(6, 200\), the map of names asks for \(3, 200\)"
    ):
        load_conve(tmp_path / "model.pt", 5, 3)


def test_weights_that_are_no_numbers_are_told() -> None:
    graph = tracin.community_graph()
    model = tracin.ConvE(tracin.Shape(120, 4, 8, 8, 2)).eval()
    torch.nn.init.constant_(model.bias.weight, float("nan"))
    with pytest.raises(ValueError, match="scores are not finite"):
        tracin.evaluate(model, graph.test, graph.train)


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a smaller learning_rate"):
        tracin.fit(tracin.TrainConfig(epochs=3, checkpoints=1, batch_size=480, learning_rate=1e30), tmp_path)
