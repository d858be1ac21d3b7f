"""What answers are taken to say, rule by rule."""

import pytest

from trol_jax.evals import mmmu_rules, parsing
from trol_jax.evals.evalai import leave_one_out, normalize
from trol_jax.evals.rouge import rouge_l, rouge_n
from trol_jax.evals.scoring import relaxed

OPTIONS = {"A": "robin", "B": "pelican", "C": "red kite"}


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("B. pelican", "B"),
        ("(B)", None),
        ("The answer is B.", "B"),
        ("The answer is B", None),
        ("Be. it", "B"),
        ("", None),
        ("b", None),
        ("The answer is B. The answer is C.", None),
        ("F. it", None),
    ],
)
def test_the_original_rule_for_letters(answer, letter):
    assert parsing.trol_letter(answer) == letter


def test_the_first_capital_is_no_letter_of_a_sentence():
    assert parsing.first_capital("The answer is B") == "T" and parsing.first_capital("b") is None
    assert parsing.first_character("") is None and parsing.first_character(" B") == " "


@pytest.mark.parametrize(
    "answer, letter",
    [("b", "B"), ("(C) x", "C"), ("Option D", "D"), ("the answer is a", "A"), ("", None), ("(", None), (" A\n", "A")],
)
def test_the_rule_of_mmstar(answer, letter):
    assert parsing.mmstar_letter(answer) == letter


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B) it", "B"),
        ("The answer is B.", "B"),
        ("I think it is B", "B"),
        ("pelican", "B"),
        ("It is the Red Kite!", "C"),
        ("A or B", None),
        ("robin or pelican", None),
        ("", None),
        ("D", None),
        ("A pelican is what I see here", "B"),  # by its text, where the article is too far from the end
        ("A or B, so a pelican", "B"),
        ("A bird that I have never seen", None),
        ("The correct answer is B because its beak holds more fish than a robin", "B"),
        ("A robin is small, so the answer is (C), which has a forked tail", "C"),
        ("The answer is A or B, I cannot tell which of these two it is", None),
        ("The answer is A if it is small, else the answer is C by its tail", None),
        ("The answer is D because none of these has the right beak", None),
        ("The correct answer is A pelican because it holds many fish", None),  # an article
        ("If the answer is A, its tail is short; this one is a red kite", None),
        ("I do not think that the answer is C because it is a pelican", None),
        ("It isn't true that the answer is C because of what its tail is like", None),
        ("The answer is A because its beak is the smallest of all of these", "A"),
        ("B. a bird with a large beak that it fills with fish", "B"),
    ],
)
def test_one_choice_is_named(answer, letter):
    assert parsing.choice(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("d", "D"),
        ("F", "F"),
        ("7", None),
        ("", None),
        ("C. it", "C"),
        ("(A), or rather (D)", "D"),
        ("it is B", "B"),
        ("no", None),
    ],
)
def test_the_rule_of_visualwebbench(answer, letter):
    assert parsing.web_letter(answer) == letter


def test_yes_and_no():
    assert parsing.pope_yes_no("NO dog", lower=True) == "no" and parsing.pope_yes_no("NO dog", lower=False) is None
    assert parsing.pope_yes_no("Yes, there is. No doubt", lower=False) == "yes"
    assert parsing.pope_yes_no("there is not", lower=False) == "no"
    assert [parsing.mme_yes_no(text) for text in ("Yes.", "I no", "know", "Well, yes", "")] == [
        "yes",
        "no",
        "no",
        None,
        None,
    ]
    assert [parsing.yes_no_word(text) for text in ("Yes!", "there is no", "yes and no", "eyes", "")] == [
        "yes", "no", None, None, None,
    ]  # fmt: skip


def test_what_follows_the_last_mark():
    assert parsing.after_last('So the answer is "two dogs".', "answer is", "answer:") == "two dogs"
    assert parsing.after_last("Answer: 3 Answer: 4.", "answer is", "answer:") == "4"
    assert parsing.after_last(" 5. ", "=") == "5"


def test_numbers_in_a_text():
    assert parsing.numbers_in("1,200 dogs, 3.5 and -4e2") == ["1,200", "-4e2", "200", "3.5", "2"]  # as theirs do
    assert parsing.numbers_in("x" * 10 + "9" * 100_000 + "z") == []  # in no time


def test_relaxed_numbers():
    standard = dict(percents=100, relative_to_gold=True)
    assert relaxed("105", "100", **standard) and not relaxed("105.1", "100", **standard)
    assert relaxed("12%", "0.12", **standard) and not relaxed("12", "12%", **standard)
    assert relaxed("0", "0", **standard) and not relaxed("0.0", "0", **standard)  # a gold of 0 is compared as text
    assert relaxed("norway", "Norway", **standard) and not relaxed("1,000", "1000", **standard)
    trol = dict(percents=1, relative_to_gold=False)
    assert relaxed("12", "12%", **trol) and relaxed("105.2", "100", **trol)  # 5.2 are less than 5% of 105.2


def test_vqa_answers_are_normalised():
    said = {
        "The Two dogs.": "2 dogs", "dont know": "don't know", "red-blue": "red blue", "red - blue": "red blue",
        "1,000": "1000", "3.5": "3.5", "an apple's": "apple 's", "none": "0", "Is it? ": "is it", "a\nb": "b",
    }  # fmt: skip
    assert {text: normalize(text) for text in said} == said


def test_leaving_one_out_by_hand():
    golds = ["cat", "cat", "cat", "dog", "dog", "bird", "x", "y", "z", "w"]
    # Of three who said so, each leaves two: 2/3; the seven others leave three: 1.
    assert leave_one_out("A cat.", golds) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert leave_one_out("dog", golds) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert leave_one_out("cow", golds) == 0 and leave_one_out("cat", ["cat"] * 10) == 1


def test_rouge_by_hand():
    assert rouge_n("the red dog", "the dog", 1) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1), abs=1e-7)
    assert rouge_n("the red dog", "the dog", 2) == 0
    assert rouge_l("dog the", "the dog") == pytest.approx(0.5, abs=1e-7)
    assert rouge_l("...", "the dog") == rouge_n(" ", "the dog", 1) == 0


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("(A) or (C)", "C"),
        ("it is B, not C!", "C"),
        ("red kite", None),
        ("", None),
        ("what I see there is a red kite", "C"),
    ],
)
def test_the_rule_of_mmmu_for_choices(answer, letter):
    assert mmmu_rules.choice(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    "answer, golds, right",
    [
        ("The answer is 77.", "77", True),
        ("so x = 3.504", "3.5", True),
        ("1,200", ["x", "1200"], True),
        ("7", "77", False),
        ("it is a red kite", "kite", True),
        ("abc", "b", False),
        ("", "a", False),
    ],
)
def test_the_rule_of_mmmu_for_open_answers(answer, golds, right):
    assert mmmu_rules.is_right(mmmu_rules.open_answers(answer), golds) is right
