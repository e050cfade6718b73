"""Short texts of the screen."""

from __future__ import annotations

import pytest

from macllm.chat.conversation import Origin, Turn
from macllm.generation.request import Timing, Usage
from macllm_tui.text.markdown import parse
from macllm_tui.text.speed import SpeedMeter
from macllm_tui.text.summary import summarize


def test_the_speed_counts_the_tokens_of_the_last_two_seconds() -> None:
    speed = SpeedMeter()
    speed.add(100, 10.0)
    assert speed.tokens_per_second is None
    speed.add(1, 10.01)
    assert speed.tokens_per_second is None  # too short a time to measure
    speed.add(29, 11.0)
    assert speed.tokens_per_second == pytest.approx(30.0)  # the first 100 start the measurement
    speed.add(10, 12.5)
    assert speed.tokens_per_second == pytest.approx(10 / 1.5)


@pytest.mark.parametrize(
    ("turn", "shown"),
    [
        (Turn(role="assistant", content="x"), ""),
        (Turn(role="assistant", content="x", finish="failed"), "cut short by an error"),
        (
            Turn(role="assistant", content="x", finish="cancelled", origin=Origin(model="m", adapter="runs/notes")),
            "with notes · stopped",
        ),
        (
            Turn(role="assistant", content="x", finish="stop", usage=Usage(2000, 1, 1500), timing=Timing(0.5, 0.0, 1)),
            "1 token · first after 0.50 s · reused 1,500 of 2,000",
        ),
        (
            Turn(role="assistant", content="x", finish="length", usage=Usage(9, 5, 0), timing=Timing(2, 2.0, 1)),
            "5 tokens · 2.0 tok/s · first after 2.0 s · cut at the token limit",
        ),
    ],
)
def test_an_answer_is_summarized_in_one_line(turn: Turn, shown: str) -> None:
    assert summarize(turn) == shown


def test_each_run_of_text_has_all_marks_that_cover_it() -> None:
    (block,) = parse("a **b *c [d](http://x/?q) e* f** `g` ~~h~~ i\n")
    runs = [(run.text, set(run.marks), run.href) for run in block.runs if run.text.strip()]
    assert runs == [
        ("a ", set(), ""),
        ("b ", {"strong"}, ""),
        ("c ", {"strong", "em"}, ""),
        ("d", {"strong", "em", "link"}, "http://x/?q"),
        (" e", {"strong", "em"}, ""),
        (" f", {"strong"}, ""),
        ("g", {"code"}, ""),
        ("h", {"s"}, ""),
        (" i", set(), ""),
    ]
