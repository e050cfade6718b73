"""The display of a run in another process, from what it writes into its folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from macllm.visible import one_line

from .output import say

if TYPE_CHECKING:
    from macllm.train.events import TrainEvent


def show_followed(folder: Path) -> None:
    """Show a run to its end as the command that trains does. Raises: KeyboardInterrupt."""
    from macllm.train.events import Finished, Prepared
    from macllm.train.runs.history import follow

    from .run_display import display

    pace, steps, path = ReportPace(), 0, str(folder)
    with closing(display()) as shown:
        for event in advanced(follow(folder, pace.wait), pace):
            shown.show(event)
            steps = event.steps if isinstance(event, Prepared) else steps
            _say_end(event, steps)
            if isinstance(event, Finished):
                path = event.path
    click.echo(path)


def _say_end(event: TrainEvent, steps: int) -> None:
    """Say how a run ended that did not finish."""
    from macllm.train.events import RunFailed, Stopped

    if isinstance(event, RunFailed):
        cause = f" ({one_line(event.cause)})" if event.cause else ""
        say(f"step {event.step}/{steps}  failed: {one_line(event.error)}{cause}")
    elif isinstance(event, Stopped):
        say(f"step {event.step}/{steps}  stopped")


class ReportPace:
    """The seconds of a step, from the times between reports; those found at first have none."""

    def __init__(self) -> None:
        self._follows = False
        self._first: tuple[int, float] | None = None  # the first report that was waited for: step, time

    def wait(self, seconds: float) -> None:
        """Wait for more reports."""
        self._follows = True
        time.sleep(seconds)

    def seconds(self, step: int, clock: float) -> float:
        """Mean seconds of a step up to a report at this time; 0 if not known yet."""
        if self._follows and (self._first is None or step <= self._first[0]):
            self._first = step, clock
        if self._first is None or step <= self._first[0]:
            return 0.0
        return (clock - self._first[1]) / (step - self._first[0])


def advanced(events: Iterable[TrainEvent], pace: ReportPace) -> Iterator[TrainEvent]:
    """The events of a run's folder, with the progress that the reports of steps tell."""
    from macllm.train.events import Advanced, Prepared, Step

    steps = 0
    for event in events:
        if isinstance(event, Prepared):
            steps = event.steps
        elif isinstance(event, Step):
            seconds = pace.seconds(event.step, time.monotonic())
            yield Advanced(
                "training",
                event.step,
                steps,
                loss=event.loss,
                learning_rate=event.learning_rate,
                tokens=round(event.tokens_per_second * seconds),
                seconds=seconds,
                peak_bytes=event.peak_bytes,
            )
        yield event
