"""Examples of the embedded task and of files that users have, and what is said of files that do not fit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest

from mgpu_nb.workloads.alignment.config import Config
from mgpu_nb.workloads.alignment.counts import Counts, count_split
from mgpu_nb.workloads.alignment.datasets import load_examples, place_of
from mgpu_nb.workloads.alignment.inputs import check_inputs
from mgpu_nb.workloads.alignment.job import Example
from mgpu_nb.workloads.alignment.settings import Gsm8kData, ImdbData, SumsData, TableData, load_settings

PROBLEMS = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}", "id": n} for n in range(20)]
REVIEWS = [{"text": f"One two  three\nfour five {n}", "label": n % 2} for n in range(6)]


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    frame = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return str(path)


def gsm8k(path: str | Path) -> Gsm8kData:
    return Gsm8kData(train=str(path), test=str(path))


def test_the_embedded_task_needs_no_files() -> None:
    sums = SumsData(train_examples=30)
    assert len(load_examples(sums, "train")) == 30
    assert load_examples(sums, "train", 5) == load_examples(sums, "train")[:5]
    assert [example.question for example in load_examples(sums, "test", 100)] == [str(n) for n in range(19)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_file_of_any_kind_gives_the_same_examples(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"problems{suffix}", PROBLEMS)
    found = load_examples(gsm8k(path), "train")
    assert len(found) == 20
    assert found[3] == Example(3, "3 + 1?", "It is 4.\n#### 4", "Question: 3 + 1?\nAnswer:")
    reviews = write(tmp_path / f"reviews{suffix}", REVIEWS)
    data = ImdbData(train=reviews, test=reviews, reward_model="x", prompt_words=3)
    assert load_examples(data, "test")[1] == Example(1, "One two three", "1", "One two three")


def test_a_table_has_columns_and_a_prompt_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", [{"q": "a {b}?", "a": 3.5}])
    data = TableData(train=path, test=path, reward="m:f", question="q", answer="a", prompt="<{question}>")
    assert load_examples(data, "train") == [Example(0, "a {b}?", "3.5", "<a {b}?>")]


def test_a_table_may_have_no_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "own.parquet", [{"question": "q"}])
    data = TableData(train=path, test=path, reward="m:f", answer=None)
    assert load_examples(data, "train") == [Example(0, "q", "", "q")]


def test_a_limit_takes_the_same_examples_from_all_over_the_file(tmp_path: Path) -> None:
    data = gsm8k(write(tmp_path / "problems.jsonl", PROBLEMS))
    few, more = load_examples(data, "train", 5), load_examples(data, "train", 10)
    assert len(few) == 5
    assert set(few) <= set(more) < set(load_examples(data, "train", 20))
    assert [example.index for example in few] == sorted(example.index for example in few)
    assert all(example.question == PROBLEMS[example.index]["question"] for example in few)
    assert max(example.index for example in more) > 10
    assert load_examples(data, "train", 99) == load_examples(data, "train")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "", "a.jsonl has no rows"),
        ("a.jsonl", "\n\n", "a.jsonl has no rows"),
        ("a.jsonl", '{"question": "q", "answer": "#### 1"}\n{"question": ', "a.jsonl, line 2: no valid JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: no valid JSON"),
        ("a.jsonl", "3", "a.jsonl, line 1: it must be a JSON object, got"),
        ("a.jsonl", '{"question": "q"}', "a.jsonl, line 1, has no column answer; it has question. Rename"),
        ("a.jsonl", '{"\\u001b[31mq": 1}', "line 1, has no column question; it has q. Rename"),
        ("a.jsonl", "\n" + '{"question": "q",\n"answer": "#### 1"}', "line 2: no valid JSON: Expecting"),
        ("a.jsonl", '{"question": null, "answer": "#### 1"}', "line 1: question must be a text or a number, got None"),
        ("a.jsonl", '{"question": ["q"], "answer": "#### 1"}', "line 1: question must be a text or a number"),
        ("a.jsonl", '{"question": NaN, "answer": "#### 1"}', "line 1: question must be a text or a number"),
        ("a.jsonl", '{"question": " ", "answer": "#### 1"}', "line 1: question is empty"),
        ("a.jsonl", '{"question": "q", "answer": "1"}', "line 1: answer must end with '#### NUMBER', got '1'"),
        ("a.jsonl", '{"question": "q", "answer": "#### x"}', "line 1: answer must end with"),
        ("a.jsonl", '{"question": "q", "answer": "#### 1"}\n\n{"question": "q", "answer": "1"}', "line 3: answer must"),
        ("a.jsonl", '{"question": "q\\ud800", "answer": "#### 1"}', "line 1: question has half a character"),
        ("a.csv", "question,answer\nx,q,#### 1\nx,q,#### 2\n", "a.csv, line 2: no valid CSV: it has 3 cells"),
        ("a.csv", "question,answer\nq\n", "a.csv, line 2: answer is empty; fill it in"),
        ("a.csv", "", "a.csv has no rows"),
        ("a.csv", "question,answer\n", "a.csv has no rows"),
        ("a.csv", "question,reply\nq,#### 1\n", "a.csv, line 1, has no column answer; it has question, reply"),
        ("a.csv", "question;answer\nq;#### 1\n", "a.csv, line 1, has no column question; it has question;answer"),
        ("a.csv", "question,answer,question\nq,#### 1,r\n", "a.csv, line 1, has the column question twice"),
        ("a.csv", "question,answer\nq,#### 1\n,#### 2\n", "a.csv, line 3: question is empty"),
        ("a.csv", 'question,answer\n"q\n\nr",#### 1\n\n,#### 2\n', "a.csv, line 6: question is empty"),
        ("a.csv", 'question,answer\nq,#### 1\n"r,#### 1\n', "a.csv, line 3: no valid CSV: unexpected end of data"),
        ("a.csv", 'question,answer\n"q" r,#### 1\n', "a.csv, line 2: no valid CSV: ',' expected after"),
        ("a.csv", "question,answer\nq,#### 1\nq,r,s,t\n", "a.csv, line 3: no valid CSV: it has 4 cells"),
        ("a.parquet", "no parquet", "a.parquet: no valid Parquet"),
        ("a.txt", "q", "data must be .jsonl, .csv or .parquet: save it as one of these"),
        ("a.json", "[]", "data must be .jsonl, .csv or .parquet: write an object a line: pandas.read_json('a.json')"),
        ("a.csv.gz", "", "data must be .jsonl, .csv or .parquet: unpack it: gunzip 'a.csv.gz'"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(name: str, content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        load_examples(gsm8k(path), "train")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_must_be_there_and_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no such file; give the path of a .jsonl, .csv or"):
        load_examples(gsm8k(tmp_path / "none.jsonl"), "train")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(FileNotFoundError, match=r"it is a folder, give one of its files; .*load_from_disk"):
        load_examples(gsm8k(tmp_path / "folder.jsonl"), "train")
    for name in ("latin.jsonl", "latin.csv"):
        row = "question,answer" if name.endswith("csv") else json.dumps(PROBLEMS[0])
        (tmp_path / name).write_bytes(f"{row}\nä,#### 2\n".encode("latin-1"))
        with pytest.raises(ValueError, match=rf"{name}, line 2: it is not text in UTF-8, .*: save the file"):
            load_examples(gsm8k(tmp_path / name), "train")
    write(tmp_path / "lacks.parquet", [{"question": "q"}])
    with pytest.raises(ValueError, match="has no column answer; it has question"):
        load_examples(gsm8k(tmp_path / "lacks.parquet"), "train")
    (tmp_path / "marked.jsonl").write_text(json.dumps(PROBLEMS[0]), encoding="utf-8-sig")
    assert len(load_examples(gsm8k(tmp_path / "marked.jsonl"), "train")) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_an_example_is_found_again_in_its_file(suffix: str, tmp_path: Path) -> None:
    data = gsm8k(write(tmp_path / f"problems{suffix}", PROBLEMS))
    wanted = {".jsonl": "line 4", ".csv": "line 8", ".parquet": "row 4"}[
        suffix
    ]  # in CSV answers have two lines
    assert place_of(data, "train", load_examples(data, "train")[3]) == f"{data.train}, {wanted}"


def test_what_is_used_and_left_out_is_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": f"{n % 4}=", "answer": f"#### {n}"} for n in range(10)]
    path = write(tmp_path / "own.jsonl", rows)
    counts, used = count_split(gsm8k(path), "train", None)
    assert counts == Counts(path, 10, 10, 6)
    assert used == load_examples(gsm8k(path), "train")
    assert counts.words("train") == "10 of 10 train examples, 6 with the prompt of another"
    words = f"datasets.own={{kind: table, train: {path}, test: {path}, reward: 'operator:mul', prompt: '{{question}}'}}"
    with caplog.at_level("INFO", "mgpu_nb.alignment"):
        check_inputs(Config((words, "datasets.sums=null", "evaluation.max_examples=1")))
    assert "models.gpt2: reference embedded, guide embedded" in caplog.text
    assert f"datasets.own: 10 of 10 train examples, 6 with the prompt of another, {path}" in caplog.text
    assert f"datasets.own: 1 of 10 test examples, 9 left out by max_examples, {path}" in caplog.text


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(f'question,answer\n"{"q" * 200_000}",#### 1\n')
    assert len(load_examples(gsm8k(path), "train")[0].question) == 200_000


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'test'"):
        load_examples(SumsData(), "tset")  # type: ignore[arg-type]


def test_a_data_set_of_the_users_own_comes_from_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", [{"question": "q", "answer": "a"}])
    words = f"datasets.mine={{kind: table, train: {path}, test: {path}, reward: 'mine:reward'}}"
    settings = load_settings(Config(overrides=(words, "datasets.sums=null")))
    assert load_examples(settings.datasets["mine"], "test") == [Example(0, "q", "a", "q")]
