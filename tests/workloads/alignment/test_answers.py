"""Final answers of word problems in what models write."""

import time
from fractions import Fraction

import pytest

from mgpu_nb.workloads.alignment.answers import final_answer, same_answer

LINES = [
    ("#### 42", 42),
    ("####42", 42),
    ("6 * 7 = 42\n#### 42", 42),
    ("#### 1,234", 1234),
    ("#### 1,234,567.50", Fraction("1234567.5")),
    ("#### $18", 18),
    ("#### -18", -18),
    ("#### - 18", -18),
    ("#### -$18", -18),
    ("#### $-18", -18),
    ("#### \u2212 18", -18),
    ("#### 18 dollars", 18),
    ("#### 18 m^2", 18),
    ("#### 25%", 25),
    ("#### 25 %", 25),
    ("#### 3/4", Fraction(3, 4)),
    ("#### 1 3/4", Fraction(7, 4)),
    ("#### .5", Fraction(1, 2)),
    ("#### 6*7 = 42", 42),
    ("#### The answer is 42.", 42),
    ("#### 42\n\nQuestion: 3 + 4?\nAnswer: 7\n#### 7", 42),
    ("So it is 5.\n#### \n", 5),
    ("#### none, though he has 3", 3),
    (r"\boxed{42}", 42),
    (r"so $\boxed{42}$.", 42),
    (r"\boxed{1{,}234}", 1234),
    (r"\boxed{1\,234}", 1234),
    (r"\boxed{\$1,234.50}", Fraction("1234.5")),
    (r"\boxed{50\%}", 50),
    (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
    (r"\boxed{-\dfrac{3}{4}}", Fraction(-3, 4)),
    (r"\boxed{\tfrac34}", Fraction(3, 4)),
    (r"\boxed{1\frac{1}{2}}", Fraction(3, 2)),
    (r"\boxed{\text{42 apples}}", 42),
    (r"\boxed{\text{Answer: } {42}}", 42),
    (r"\boxed{42\text{ cm}^2}", 42),
    (r"\boxed{42\ \mathrm{m}^{2}}", 42),
    (r"\boxed{x_1 = 42}", 42),
    (r"\boxed{x = {\left(42\right)}}", 42),
    (r"\boxed{1} and then \boxed{2}", 2),
    (r"\boxed{\boxed{42}}", 42),
    (r"\boxed 42 done 7", 42),
    (r"\fbox{42} after 3 tries", 42),
    (r"\boxed{42", 42),
    (r"\boxed{} so 7", 7),
    (r"\boxed{4.2 \times 10^{3}}", 4200),
    (r"\boxed{5} #### 6", 6),
    ("She has 3 cats and 14 dogs.", 14),
    ("That makes $1,234.", 1234),
    ("It costs 12.50 euros", Fraction("12.5")),
    ("He owes -5", -5),
    ("10-5 is 5", 5),
    ("between 5-10", 10),
    ("between 5\u201310 of them", 10),
    ("the area is 12 m^2", 12),
    ("the area is 12 m^{2}", 12),
    ("the area is 12 cm2", 12),
    ("he takes x_2 and H2O: 9", 9),
    ("9 on the 2nd", 9),
    ("9 on the 42nd", 9),
    ("1.5e3", 1500),
    ("the answer is...42", 42),
    ("see No.42", 42),
    ("**42**", 42),
    ("1, 2, 3", 3),
    ("1,2,3", 3),
    ("3.0", 3),
    ("007", 7),
    ("USD 42 and EUR 43", 43),
    ("Rs. 500", 500),
    ("", None),
    ("none", None),
    ("#### ", None),
    ("1/0", None),
    ("9" * 5000, None),
    ("1e999", None),
    ("x2", None),
    ("__import__('os').system('true')", None),
]


def test_the_number_that_a_text_ends_with() -> None:
    assert [(text, value, final_answer(text)) for text, value in LINES if final_answer(text) != value] == []


def test_answers_are_the_same_whatever_their_form() -> None:
    assert same_answer("... <<16-3-4=9>>9\n#### 9", "She makes $9.00 every day")
    assert same_answer("#### 1,080", r"\boxed{1080}")
    assert same_answer("#### 0.5", r"\boxed{\frac{1}{2}}")
    assert not same_answer("#### 9", "19")
    assert not same_answer("#### 9", "")
    assert not same_answer("nothing", "nothing")


HOSTILE = [
    "1" * 50_000,
    "1 " * 25_000,
    r"\frac{" * 10_000,
    "- " * 25_000,
    "1," * 25_000,
    "#### " + "= " * 25_000,
]


@pytest.mark.parametrize("text", [*HOSTILE, "{" * 25_000 + r"\boxed{" * 5_000])
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    final_answer(text)
    assert time.process_time() - began < 20  # tenths of a second; minutes if the time grew with the square
