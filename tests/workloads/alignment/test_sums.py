"""The embedded task: its examples, its reward, its tokenizer."""

from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mgpu_nb.workloads.alignment import sums


@pytest.mark.parametrize(
    ("question", "text", "expected"),
    [
        ("7", "3+4", 1.0),
        ("18", "9+9", 1.0),
        ("0", "0+0", 1.0),
        ("7", "3+5", 0.0),
        ("7", "7", 0.0),
        ("10", "10+0", 0.0),  # three tokens are left for it
        ("7", "+7", 0.0),
        ("7", "3+4=", 0.0),
        ("7", "3+4+", 0.0),
        ("7", "3 + 4", 0.0),
        ("7", "3+٤", 0.0),
        ("7", "3+4\n", 0.0),
        ("7", "", 0.0),
    ],
)
def test_two_digits_that_add_up_are_right(question: str, text: str, expected: float) -> None:
    assert sums.reward(question, text) == expected


def test_an_answer_is_what_a_completion_adds_up_to() -> None:
    assert [sums.answer(text) for text in ("3+4", "5+2", "0+0", "3+", "=")] == ["7", "7", "0", None, None]


def test_the_test_split_has_each_number_once() -> None:
    examples = sums.examples("test")
    assert [example.question for example in examples] == [str(n) for n in range(19)]
    assert [example.index for example in examples] == [*range(19)]
    assert examples[12].prompt == "12="
    assert all(sums.reward(example.question, example.answer) == 1 for example in examples)
    assert sums.examples("test", 3) == examples[:3]


def test_the_train_split_is_drawn_evenly_and_begins_alike_at_any_size() -> None:
    examples = sums.examples("train", 1900, seed=3)
    assert examples[:50] == sums.examples("train", 50, seed=3)
    assert examples[:50] != sums.examples("train", 50, seed=4)
    counts = Counter(example.question for example in examples)
    assert len(counts) == 19
    assert all(60 <= count <= 140 for count in counts.values())  # 100 +- 4 sigma


def test_splits_and_sizes_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'test', not 'valid'"):
        sums.examples("valid", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="19 examples, not 20"):
        sums.examples("test", 20)
    with pytest.raises(ValueError, match="give the number of examples"):
        sums.examples("train")


def test_the_shipped_tokenizer_is_the_one_that_is_written(tmp_path: Path) -> None:
    sums.save_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (sums.REFERENCE / name).read_text()


def test_a_token_is_a_character() -> None:
    tokenizer = Tokenizer.from_file(str(sums.REFERENCE / "tokenizer.json"))
    assert tokenizer.encode("12=").ids == sums.encode("12=") == [1, 2, 11]
    assert tokenizer.decode([3, 10, 4, sums.TOKENS.index(sums.END)]) == "3+4"
    assert tokenizer.get_vocab() == {token: place for place, token in enumerate(sums.TOKENS)}
    assert tokenizer.get_vocab_size() == 14
    with pytest.raises(Exception, match="UNK"):
        tokenizer.encode("x=")


def test_every_prompt_fits() -> None:
    assert max(len(sums.encode(sums.prompt(number))) for number in sums.NUMBERS) == 3
    assert len([*sums.encode("3+4"), sums.TOKENS.index(sums.END)]) == sums.MAX_NEW_TOKENS
