"""The judge, the controls and the verdict of the script that shows Constitutional AI."""

from __future__ import annotations

import pytest

from tests.learning import _judge as judge
from tests.learning._everyday import KEPT_BACK, TRAINING, VALIDATION, questions
from tests.learning.constitution import pair, shuffled, verdict, wilson


def test_kept_back_questions_share_no_subject_with_the_others() -> None:
    parts = [questions(subjects) for subjects in (TRAINING, VALIDATION, KEPT_BACK)]
    assert [len(each) for each in parts] == [100, 100, 100]
    assert len({question for each in parts for question in each}) == 300
    assert len({*TRAINING, *VALIDATION, *KEPT_BACK}) == len(TRAINING) + len(VALIDATION) + len(KEPT_BACK)


def test_the_noisy_judge_is_right_in_four_of_five_cases_whatever_the_order() -> None:
    brief, long = "word " * judge.MOST_WORDS, "word " * (judge.MOST_WORDS + 1)
    asked = [f"What is {n}?" for n in range(400)]
    said = [judge.noisy(question, brief, long, "") for question in asked]
    assert {abs(each) for each in said} == {1.0}
    assert sum(each > 0 for each in said) / len(said) == pytest.approx(judge.RIGHT, abs=0.05)
    assert [-judge.noisy(question, long, brief, "") for question in asked] == said
    assert judge.noisy("What?", "short", brief, "") == 0


def test_shuffled_pairs_are_the_same_pairs_half_of_them_in_the_other_order() -> None:
    pairs = [pair([], f"better {n}", f"worse {n}") for n in range(100)]
    found = shuffled(pairs)
    same = sum(each == other for each, other in zip(pairs, found, strict=True))
    assert same == 50
    for each, other in zip(pairs, found, strict=True):
        texts = [{side[name][0]["content"] for name in ("chosen", "rejected")} for side in (each, other)]
        assert texts[0] == texts[1]


def test_the_interval_is_that_of_wilson() -> None:
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Newcombe 1998, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # the same, table I


@pytest.mark.parametrize(
    ("changed", "held"),
    [({}, True), ({"noisy": 0.41}, False), ({"shuffled": 0.4}, False), ({"whole": 0.41}, False)],
)  # fmt: skip
def test_violations_must_halve_and_shuffled_labels_must_not_halve_them(changed: dict[str, float], held: bool) -> None:
    rates = {"base": 0.8, "noisy": 0.4, "shuffled": 0.7, "own": 0.8, "revised": 0.6, "whole": 0.3, **changed}
    judgement = {"right": 20, "pairs": 40, "interval": wilson(20, 40)}
    found = verdict({name: {"violations": rate} for name, rate in rates.items()}, judgement)
    assert found["held"] is held
    assert "right in 20 of 40, at chance" in found["shown"]
