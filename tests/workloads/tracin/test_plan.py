"""What is split, and what is refused before anything starts."""

import gzip
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
from mgpu_nb.workloads.tracin.graph import read_graph, read_ids, read_labels, read_triples
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


def test_files_that_cannot_be_are_refused_with_their_line(small: dict[str, Any], tmp_path: Path) -> None:
    entities, relations = read_ids(small["entity_to_id"]), read_ids(small["relation_to_id"])
    bad = tmp_path / "bad.tsv"
    for text, words in [
        ("e0\tlikes\te1\ne0\tlikes\n", r"bad\.tsv, line 2: wanted head, relation and tail"),
        ("\ne0\thates\te1\n", r"bad\.tsv, line 2: relation 'hates'"),
        ("e0\tlikes\te9\n", r"line 1: entity 'e9'"),
        ("", "holds no triples"),
    ]:
        bad.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_triples(bad, entities, relations)
    for text, words in [
        ("a\t0\nb\n", "line 2: wanted a name, a tab and a number"),
        ("a\t0\na\t1\n", "line 2: 'a' comes twice"),
        ("a\t0\nb\t0\n", "number 0 was given in line 1"),
        ("a\t0\nb\t2\n", "no name has number 1"),
        ("a\t0\nb\t999999999999\n", "numbers go up to 999999999999"),
        ("", "is empty"),
    ]:
        bad.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_ids(bad)
    bad.write_bytes("\ufeffe0\t0\n".encode())
    assert read_ids(bad) == {"e0": 0}
    bad.write_bytes("\xe9\t0\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"bad\.tsv is not UTF-8"):
        read_ids(bad)
    bad.write_text("e0\tzero\ne1\n")
    with pytest.raises(ValueError, match="line 2: wanted a name, a tab and a label"):
        read_labels(bad, list(entities))
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        tracin.tasks(tracin.Config(model_path=str(tmp_path / "nothing.pt"), **small))


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
    ]:
        torch.save(content, file)
        with pytest.raises(ValueError, match=words):
            tracin.tasks(config)
    torch.save(state, file)
    with pytest.raises(ValueError, match="there is no test triple 4, they go from 0 to 0"):
        tracin.tasks(tracin.Config(model_path=str(file), test_indices=(4,), **small))
    with pytest.raises(ValueError, match="does not import"):
        tracin.tasks(tracin.Config(model_path=str(file), loss="nowhere:loss", **small))
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


MAPS = {
    "PyKEEN": "id\tlabel\n0\tbrazil\n1\tburma\n",
    "by name": "brazil\t0\nburma\t1\n",
    "heading after names": "label\tid\nbrazil\t0\nburma\t1\n",
    "LibKGE": "0\tbrazil\n1\tburma\n",
    "OpenKE": "2\nbrazil\t0\nburma\t1\n",
    "lines of Windows": "entity\tentity_id\r\nbrazil\t0\r\nburma\t1\r\n",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", MAPS.values(), ids=MAPS)
def test_maps_of_names_as_libraries_write_them(tmp_path: Path, text: str, packed: bool) -> None:
    place = tmp_path / f"entity_to_id.tsv{'.gz' * packed}"
    place.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert read_ids(place) == {"brazil": 0, "burma": 1}


def test_names_that_are_numbers_come_before_theirs_unless_a_heading_says_otherwise(tmp_path: Path) -> None:
    place = tmp_path / "ids.tsv"
    place.write_text("7\t1\n9\t0\n")
    assert read_ids(place) == {"7": 1, "9": 0}
    place.write_text("id\tlabel\n1\t7\n0\t9\n")
    assert read_ids(place) == {"7": 1, "9": 0}
    place.write_text("0\tbrazil\n1\n")
    with pytest.raises(ValueError, match=r"ids\.tsv, line 2: wanted a number, a tab and a name"):
        read_ids(place)


def test_triples_as_libraries_write_them(tmp_path: Path) -> None:
    place, maps = tmp_path / "numeric_triples.tsv.gz", ({"a": 0, "b": 1}, {"likes": 0})
    for text in ("head\trelation\ttail\n1\t0\t0\n", "1\t0\t0\n", "h\tr\tt\r\nb\tlikes\ta\r\n"):
        place.write_bytes(gzip.compress(text.encode()))
        assert read_triples(place, *maps).tolist() == [[1, 0, 0]]
    place.write_text("1\t0\t0\n")
    assert read_triples(place, {"0": 1, "1": 0}, {"0": 0}).tolist() == [[0, 0, 1]]  # names
    place.write_text("1\t0\t5\n")
    with pytest.raises(ValueError, match="line 1: entity '5' is not in the map"):
        read_triples(place, *maps)


def test_triples_of_openke(tmp_path: Path) -> None:
    place, maps = tmp_path / "train2id.txt", ({"a": 0, "b": 1, "c": 2}, {"likes": 0, "hates": 1})
    for between in (" ", "\t", "  "):
        place.write_text(f"2\n{between.join('021')}\n{between.join('100')}\n")  # head, tail, relation
        assert read_triples(place, *maps).tolist() == [[0, 1, 2], [1, 0, 0]]
    place.write_text("2\n0 2 1\n1 0\n")
    with pytest.raises(ValueError, match=r"train2id\.txt, line 3: wanted head, relation and tail"):
        read_triples(place, *maps)
    place.write_text("1\n0 2 7\n")
    with pytest.raises(ValueError, match="line 2: relation '7' is not in the map"):
        read_triples(place, *maps)


def test_unseen_names_are_left_out_by_choice_and_counted(small: dict[str, Any], tmp_path: Path) -> None:
    files = [small[name] for name in ("train", "test", "entity_to_id", "relation_to_id")]
    whole = read_graph(*files)
    assert whole.unseen == (0, 0)
    more = tmp_path / "more.tsv"
    extra = "e0\tlikes\tnobody\nnobody\thates\tnobody\n"
    more.write_text(extra + Path(files[0]).read_text())
    with pytest.raises(ValueError, match=r"more\.tsv, line 1: entity 'nobody' .* drop_unseen=True leaves"):
        read_graph(str(more), *files[1:])
    found = read_graph(str(more), *files[1:], drop_unseen=True)
    assert found.unseen == (2, 0)
    assert np.array_equal(found.train, whole.train)
    more.write_text(extra)
    with pytest.raises(ValueError, match="the maps of names have none of the 2 in it"):
        read_graph(str(more), *files[1:], drop_unseen=True)


def test_a_packed_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    place = tmp_path / "ids.tsv.gz"
    place.write_bytes(gzip.compress(b"brazil\t0\n" * 100)[:-12])
    with pytest.raises(ValueError, match=r"ids\.tsv\.gz: its gzip data are broken or cut off"):
        read_ids(place)
