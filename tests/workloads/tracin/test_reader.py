"""Files of triples, names and labels: what is read of them, what is left out, and what a wrong one is answered."""

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgpu_nb.cli import main
from mgpu_nb.workloads import tracin
from mgpu_nb.workloads.tracin.graph import read_graph
from mgpu_nb.workloads.tracin.reader import read_ids, read_labels, read_triples

TRIPLES = ("train", "test")
IDS = ("entity_to_id", "relation_to_id")
NO_TEXT = {
    "latin-1": "e0\tlikes\te1\ncaf\xe9\t0\n".encode("latin-1"),
    "UTF-16": "e0\t0\n".encode("utf-16"),
    "zip": b"PK\x03\x04\0\0",
    "bytes": bytes(range(256)),
}


def read(files: dict[str, Any], **options: Any) -> tracin.Graph:
    return read_graph(**files, **options)


@pytest.mark.parametrize("option", [*TRIPLES, *IDS])
def test_a_path_that_is_no_file_is_told_with_its_option(
    small: dict[str, Any], tmp_path: Path, option: str
) -> None:
    gone = small[option].replace(".tsv", ".tsw")
    with pytest.raises(
        FileNotFoundError, match=f"{option}='{gone}': there is no such file; did you mean '.*tsv'"
    ):
        read({**small, option: gone})
    with pytest.raises(FileNotFoundError, match=f"{option}=.*: there is no such file; check the path"):
        read({**small, option: "/nowhere/at/all"})
    with pytest.raises(IsADirectoryError, match=f"{option}='{tmp_path}' is a folder: name a file in it"):
        read({**small, option: str(tmp_path)})


@pytest.mark.parametrize("option", [*TRIPLES, *IDS])
@pytest.mark.parametrize("kind", NO_TEXT)
def test_a_file_that_is_no_text_is_told_with_its_line(small: dict[str, Any], option: str, kind: str) -> None:
    Path(small[option]).write_bytes(NO_TEXT[kind])
    line = 2 if kind in ("latin-1", "bytes") else 1
    with pytest.raises(
        ValueError, match=rf"{small[option]}, line {line} is not UTF-8 text.*: save the file as UTF-8"
    ):
        read(small)


@pytest.mark.parametrize("option", [*TRIPLES, *IDS])
def test_an_empty_file_and_a_packed_one_that_is_cut_off_are_told(small: dict[str, Any], option: str) -> None:
    place = Path(small[option])
    for text in ("", "\n \n", "# nothing yet\n"):
        place.write_text(text)
        with pytest.raises(
            ValueError, match=rf"{place} (holds no triples: wanted lines of head|is empty: wanted lines of a)"
        ):
            read(small)
    place.write_bytes(gzip.compress(b"e0\t0\n" * 100)[:-12])
    with pytest.raises(ValueError, match=rf"{place}: its gzip data are broken or cut off .*: copy it again"):
        read(small)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("e0\tlikes\te1\ne0\tlikes\n", r"line 2: wanted head, relation .* found 'e0\\tlikes': correct the line"),
        ("e0\tlikes\te1\t0.5\n", "line 1: wanted head, relation and tail"),
        ("e0 likes e1\n", "line 1: wanted head, relation and tail with tabs or commas between, found 'e0 likes e1'"),
        ("e0,likes,e1\ne0,likes\n", "line 2: wanted head, relation and tail .* found 'e0,likes'"),
        ('e0,likes,"e1\n' + "x" * 140_000, "line 2: .*field.*: look for a quote that is not closed"),
        ("\n# one\n\te0\nhates\te1\te2\n", "line 3: wanted head"),
        ("\ne0\thates\te1\n", "line 2: relation 'hates' is not in the map of relation names; drop_unseen=True leaves"),
        ("e0\tlikes\te9\n", "line 1: entity 'e9' is not in the map"),
        ("from\trel\tto\ne0\tlikes\te1\n", "line 1: entity 'from' .*; if it is a heading, call its columns head, rel"),
        ("e0\tlikes\t\x1b[31me9\n", r"line 1: entity '\\x1b\[31me9'"),
        ("e0\tlikes\t" + "e" * 1000, f"line 1: entity '{'e' * 80}…' is not"),
        ("0\t0\t1\n0\t0\t-1\n", "line 2: entity '-1' is not in the map of entity names, whose numbers go from 0 to 4"),
        ("0\t0\t1\n0\t2\t1\n", "line 2: relation '2' is not in the map .*, whose numbers go from 0 to 1"),
        ("0\t0\t1.5\n", "line 1: entity '1.5' is not in the map of entity names, whose numbers"),
        ("e0\te1\tlikes\n", "line 1: relation 'e1' .*; as head, tail and relation all are: put a first line above"),
        ("3\n0 1 0\n", "line 1: it says that 3 lines follow, as OpenKE has it, and 1 do: copy the file again"),
    ],
)  # fmt: skip
def test_triples_that_are_wrong_are_told_with_file_line_reason_and_remedy(
    small: dict[str, Any], text: str, words: str
) -> None:
    Path(small["train"]).write_text(text)
    with pytest.raises(ValueError, match=f"^{small['train']}, {words}"):
        read(small)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\t0\nb\n", ", line 2: wanted a name, a tab and a number, a whole one .*, found 'b': correct the line"),
        ("a\t0\nb\t-1\n", ", line 2: wanted a name, a tab and a number, a whole one from 0 on"),
        ("a\t0\nb\t1.0\n", ", line 2: wanted a name"),
        ("a\t0\tx\n", ", line 1: wanted a name"),
        ("0\tbrazil\n1\n", ", line 2: wanted a number, a tab and a name"),
        ("a\t0\na\t1\n", ", line 2: 'a' comes twice, first in line 1: give each name one number"),
        ("a\t0\nb\t0\n", ", line 2: number 0 was given in line 1 already: give each name a number of its own"),
        ("a\t0\n \t1\n", ", line 2: the name of number 1 is empty"),
        ("a\t0\nb\t2\n", ": no name has number 1, and numbers go up to 2: number the names from 0 on"),
        ("a\t1\nb\t2\n", ": no name has number 0"),
        ("a\t0\nb\t999999999999\n", ": .* numbers go up to 999999999999"),
        ("3\na\t0\nb\t1\n", ", line 1: it says that 3 lines follow, as OpenKE has it, and 2 do"),
    ],
)  # fmt: skip
def test_maps_of_names_that_are_wrong_are_told_with_file_line_reason_and_remedy(
    tmp_path: Path, text: str, words: str
) -> None:
    (place := tmp_path / "ids.tsv").write_text(text)
    with pytest.raises(ValueError, match=f"^{place}{words}"):
        read_ids(place)


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path: Path) -> None:
    (place := tmp_path / "ids.tsv").write_bytes("\ufeffe0\t0\n".encode())
    assert read_ids(place)[0] == {"e0": 0}


def test_labels_are_counted_and_a_wrong_line_is_told(tmp_path: Path) -> None:
    (place := tmp_path / "labels.tsv").write_text("a\tone\nb\ttwo\na\tfirst\nx\tother\n")
    labels, found = read_labels(place, ["a", "b", "c"])
    assert labels == ["first", "two", "c"]
    assert found.found == "labels of 2 of 3 names; name, label, with tabs"
    assert found.left_out == ("1 label of other names", "1 label before another of the same name")
    place.write_text("a\tzero\nb\n")
    with pytest.raises(
        ValueError, match=f"{place}, line 2: wanted a name, a tab and a label, found 'b': correct"
    ):
        read_labels(place, ["a"])


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
    assert read_ids(place)[0] == {"brazil": 0, "burma": 1}


def test_names_that_are_numbers_come_before_theirs_unless_a_heading_says_otherwise(tmp_path: Path) -> None:
    place = tmp_path / "ids.tsv"
    place.write_text("7\t1\n9\t0\n")
    assert read_ids(place)[0] == {"7": 1, "9": 0}
    place.write_text("id\tlabel\n1\t7\n0\t9\n")
    assert read_ids(place)[0] == {"7": 1, "9": 0}
    place.write_text("0\tbrazil\n1\n")
    with pytest.raises(ValueError, match=r"ids\.tsv, line 2: wanted a number, a tab and a name"):
        read_ids(place)


def test_triples_as_libraries_write_them(tmp_path: Path) -> None:
    place, maps = tmp_path / "numeric_triples.tsv.gz", ({"a": 0, "b": 1}, {"likes": 0})
    for text in ("head\trelation\ttail\n1\t0\t0\n", "1\t0\t0\n", "h\tr\tt\r\nb\tlikes\ta\r\n"):
        place.write_bytes(gzip.compress(text.encode()))
        assert read_triples(place, *maps)[0].tolist() == [[1, 0, 0]]
    place.write_text("1\t0\t0\n")
    assert read_triples(place, {"0": 1, "1": 0}, {"0": 0})[0].tolist() == [[0, 0, 1]]  # names
    place.write_text("1\t0\t5\n")
    with pytest.raises(ValueError, match="line 1: entity '5' is not in the map"):
        read_triples(place, *maps)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("b\tlikes\ta\n", "head, relation, tail, by name, with tabs"),
        ("b,likes,a\n", "head, relation, tail, by name, with commas"),
        ('b,"likes", a\n', "head, relation, tail, by name, with commas"),
        ("Head,Tail,Relation\nb,a,likes\n", "head, tail, relation, by name, with commas, below a heading"),
        ("# object\tpredicate\tsubject\na\tlikes\tb\n", "tail, relation, head, by name, with tabs, below a heading"),
        ("1\t0\t0\n", "head, relation, tail, by number, with tabs"),
        ("1\n1 0 0\n", "head, tail, relation, by number, with tabs, below their count"),
    ],
)  # fmt: skip
def test_the_order_and_the_form_of_triples_are_found_and_told(tmp_path: Path, text: str, form: str) -> None:
    place, maps = tmp_path / "train.txt", ({"a": 0, "b": 1}, {"likes": 0})
    place.write_text(text)
    triples, found = read_triples(place, *maps)
    assert triples.tolist() == [[1, 0, 0]]
    assert str(found) == f"{place}: 1 triple; {form}"
    place.write_bytes(gzip.compress(text.encode()))
    assert str(
        read_triples(place, *maps)[1]
    ) == f"{place}: 1 triple; {form.replace(', below', ', gzip, below')}" + (", gzip" * ("below" not in form))


def test_a_number_among_names_stays_a_name(tmp_path: Path) -> None:
    place, maps = tmp_path / "train.tsv", ({"7": 1, "8": 0}, {"1": 0})
    place.write_text("7\t1\t8\n0\t1\t8\n")
    with pytest.raises(ValueError, match="line 2: entity '0' is not in the map of entity names; drop"):
        read_triples(place, *maps)
    assert read_triples(place, *maps, drop_unseen=True)[0].tolist() == [[1, 0, 0]]


def test_triples_of_openke(tmp_path: Path) -> None:
    place, maps = tmp_path / "train2id.txt", ({"a": 0, "b": 1, "c": 2}, {"likes": 0, "hates": 1})
    for between in (" ", "\t", "  "):
        place.write_text(f"2\n{between.join('021')}\n{between.join('100')}\n")  # head, tail, relation
        assert read_triples(place, *maps)[0].tolist() == [[0, 1, 2], [1, 0, 0]]
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


LEFT_OUT = "\n# from the site\ne0\tlikes\te1\ne0\tlikes\te1\ne1\tknows\te2\n\ne0\tlikes\tnobody\n"
TOLD = "1 triple of names that the maps do not have, first in line 7, 2 blank lines, 1 comment"


def test_what_was_read_and_what_was_left_out_is_logged(
    small: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path(small["train"]).write_text(LEFT_OUT)
    (labels := tmp_path / "labels.tsv").write_text("e0\tzero\n")
    torch.save(tracin.ConvE(tracin.Shape(5, 2, 2, 4, 2)).state_dict(), model := tmp_path / "model.pt")
    config = tracin.Config(
        **small, model_path=str(model), slots=1, drop_unseen=True, entity_labels=str(labels)
    )
    with caplog.at_level(logging.INFO, "mgpu_nb.tracin"):
        tracin.tasks(config)
    said = [record.getMessage() for record in caplog.records if record.name == "mgpu_nb.tracin"]
    assert said[:6] == [
        f"{small['entity_to_id']}: 5 names; name, number, with tabs",
        f"{small['relation_to_id']}: 2 names; name, number, with tabs",
        f"{small['train']}: 3 triples, 1 of them repeated; head, relation, tail, by name, with tabs; left out: {TOLD}",
        f"{small['test']}: 1 triple; head, relation, tail, by name, with tabs",
        f"{labels}: labels of 1 of 5 names; name, label, with tabs",
        f"{model}: a ConvE, gradients of 175 of its numbers",
    ]
    assert said[6].startswith("train triples are split over 1 shard")


@pytest.mark.slow
@pytest.mark.parametrize("verb", [[], ["batch"], ["train"]])
def test_every_report_tells_what_was_left_out_and_workers_are_heard(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    Path(small["train"]).write_text(LEFT_OUT)
    words = [word for name, value in small.items() for word in (f"--{name}", value)]
    if verb == ["train"]:
        words += ["--epochs", "1", "--checkpoints", "1", "--height", "2", "--width", "4"]
    else:
        model = tmp_path / "model.pt"
        torch.save(tracin.ConvE(tracin.Shape(5, 2, 2, 4, 2)).state_dict(), model)
        words += ["--model_path", str(model), "--slots", "1"]
    words += ["--drop_unseen", "--output_dir", str(tmp_path / "run"), "--log_level", "DEBUG"]
    assert main(["tracin", *verb, *words]) == 0
    shown = capsys.readouterr()
    assert f"left out of train.tsv: {TOLD}" in shown.out
    assert f"INFO mgpu_nb.tracin: {small['train']}: 3 triples, 1 of them repeated;" in shown.err
    said = {"batch": "[triple-0] test triple 0: 3 training", "train": "[train] epoch 1 of 1: loss "}
    assert (
        f"DEBUG mgpu_nb.tracin: {said.get(''.join(verb), '[train-0-1] 3 training triples, 256 at')}"
        in shown.err
    )


def test_files_that_are_wrong_end_the_command_before_a_run(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small["train"] += "x"
    words = [word for name, value in small.items() for word in (f"--{name}", value)]
    for verb in (["train"], ["--model_path", "model.pt"], ["batch", "--model_path", "model.pt"]):
        assert main(["tracin", *verb, *words, "--output_dir", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert f"--train {small['train']}: there is no such file; did you mean 'train.tsv'?" in said
        assert not (tmp_path / "run").exists()
