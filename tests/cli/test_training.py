"""A training run told line by line."""

from __future__ import annotations

import math
from collections.abc import Generator

import pytest

from macllm.cli.training import tell
from macllm.train.events import Advanced, Finished, Step, TrainEvent


def run(losses: list[float], end: float) -> Generator[TrainEvent]:
    yield Advanced("reading", 0, 4)
    for number, loss in enumerate(losses, 1):
        yield Advanced("training", number, len(losses))
        yield Step(number, loss, 1e-3, 1.0, 100.0, 1_000)
    yield Finished(len(losses), end, 2.0, "folder")


@pytest.mark.parametrize(
    ("losses", "end", "said"),
    [
        ([3.0, 2.9], 2.9, "fell by 3% only, so little was learnt: try more --epochs"),
        ([3.0, 3.1], 3.1, "did not fall, so little was learnt"),
        ([3.0, 1.0], 1.0, "done in 2 s, loss 1.0000"),
        ([3.0], 3.0, "done in 2 s, loss 3.0000"),
        ([], math.nan, "done in 2 s, nothing was left to train"),
    ],
)
def test_the_end_of_a_run_says_what_came_of_it(
    losses: list[float], end: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tell(run(losses, end), "elsewhere") == "folder"
    told = capsys.readouterr()
    assert said in told.err
    assert ("little was learnt" in told.err) == ("little was learnt" in said)
    assert told.out == "folder\n"
