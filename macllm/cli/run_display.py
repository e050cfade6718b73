"""Displays of a training run: lines that stay, and progress below them, on a terminal or in a log."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from macllm.units import bytes_text, duration_text
from macllm.visible import one_line

from .dashboard import MOST_CELLS, Dashboard, metrics_text
from .live import LiveArea, has_blocks, is_live
from .output import Progress, columns, say

if TYPE_CHECKING:
    from macllm.train.events import Advanced, Finished, Prepared, Step, TrainEvent

UNITS = {
    "reading": "rows",
    "encoding": "rows",
    "asking the teacher": "rows",
    "preparing": "rows",
    "training": "steps",
    "evaluating": "batches",
    "saving": "snapshots",
}
MIN_DECREASE = 0.1  # relative decrease of the loss below which a hint is printed
FITTED_LOSS = 0.1  # loss below which the data is already fitted, so no hint
# Texts for rows that were changed, dropped or not read whole, by the names of their counts in Prepared.
CHANGED_ROWS = {
    "truncated_rows": "truncated: cut to the longest length",
    "split_rows": "split",
    "dropped_rows": "dropped as too long",
    "unsupervised_rows": "without supervised tokens",
    "expanded_rows": "expanded to one example per turn",
    "unused_column_rows": "with tools or variables for a template, which are ignored: their text is made without one",
    "unwritten_rows": "with calls or reasoning that the template does not write, which are not learned",
    "shared_rows": "among the training rows too",
}


class Display(Protocol):
    """A place for the events of a run."""

    def show(self, event: TrainEvent) -> None:
        """Show an event."""
        ...

    def stop(self) -> None:
        """Show that the run was asked to stop. Called in the middle of anything, by the handler of a signal."""
        ...

    def close(self) -> None:
        """Erase what does not stay."""
        ...


def display(*, shares_stdout: bool = False) -> Display:
    """The display on stderr: a screen if its lines can be redrawn and nothing else is written there."""
    return Screen() if is_live(sys.stderr) and not shares_stdout else Log()


class RunLines:
    """The lines of a run that stay."""

    def __init__(self) -> None:
        self.steps = 0
        self._resumed = False
        self._losses: list[float] = []
        self._notes: list[str] = []  # that were said

    def show(self, event: TrainEvent) -> None:
        """Say what an event tells."""
        from macllm.train.events import (
            Continued,
            Evaluated,
            Finished,
            Paused,
            Prepared,
            Restarted,
            Saved,
            Skipped,
            Step,
            TrackerFailed,
        )

        if isinstance(event, Prepared):
            self.steps, self._resumed = event.steps, event.first_step > 0
            self._say_notes(event.notes)
            _say_prepared(event)
        elif isinstance(event, Step):
            self._losses.append(event.loss)
            say(_step_line(event, self.steps))
        elif isinstance(event, Evaluated):
            best = "  (best)" if event.best else ""
            loss = _with_metrics(f"validation loss {event.loss:.4f}", event.metrics)
            say(f"step {event.step}/{self.steps}  {loss}{best}")
        elif isinstance(event, Saved):
            say(f"step {event.step}/{self.steps}  saved {event.path}")
        elif isinstance(event, Skipped):
            say(f"{event.cause}: steps {event.first} to {event.step} are given up, and their rows skipped")
        elif isinstance(event, Paused):
            say(f"step {event.step}/{self.steps}  paused {event.cause}, saved")
        elif isinstance(event, Continued):
            say(f"step {event.step}/{self.steps}  continued after {duration_text(event.seconds)}")
        elif isinstance(event, Restarted) and event.changed:
            same = ": the same rows in each step" if "batch_size" in event.changed else ""
            said = f"goes on from step {event.step} with {changes(event.changed)}{same}"
            say(f"out of memory ({one_line(event.cause)}); {said}")
        elif isinstance(event, Restarted):
            said = f"restarted from step {event.step}, {event.attempt} of at most {event.most} times without progress"
            say(f"{event.cause}; {said}")
        elif isinstance(event, TrackerFailed):
            say(f"reports to {event.name} have ended, the run goes on: {one_line(event.cause)}")
        elif isinstance(event, Finished):
            _say_finished(event, [] if self._resumed else self._losses)

    def _say_notes(self, notes: Sequence[str]) -> None:
        """Say those that no earlier start of the run had."""
        new = [note for note in notes if note not in self._notes]
        self._notes += new
        for note in new:
            say(one_line(note))

    def count(self, event: Step) -> None:
        """Take a step that is not said."""
        self._losses.append(event.loss)


class Screen:
    """A run on a terminal: two lines below those that stay, which are fewer than in a log."""

    def __init__(self) -> None:
        from macllm.hub.fit import memory_limit

        self._lines, self._last = RunLines(), None
        self._dashboard = Dashboard(memory_limit(), has_blocks(sys.stderr))
        self._area = LiveArea(self._dashboard.lines)
        self._area.open()

    def show(self, event: TrainEvent) -> None:
        """Show an event in the area, above it, or both."""
        from macllm.train.events import Advanced, Finished, Saved, Step, Working

        if isinstance(event, Working):  # the area has clocks
            return
        with self._area.lock:
            self._dashboard.take(event)
        if isinstance(event, Step):
            self._last: Step | None = event
            self._lines.count(event)
        elif isinstance(event, Finished):
            self._end()
            self._lines.show(event)
        elif not isinstance(event, Advanced | Saved):
            self._lines.show(event)
        self._area.changed()

    def stop(self) -> None:
        """Show that the run was asked to stop, at the next redraw."""
        self._dashboard.stopping = True

    def close(self) -> None:
        """Erase the area."""
        self._area.close()

    def _end(self) -> None:
        self._area.close()
        if self._last is not None:
            line = _step_line(self._last, self._lines.steps)
            room = columns(sys.stderr) - len(line) - 3
            curve = self._dashboard.curve.blocks(min(MOST_CELLS, room)) if has_blocks(sys.stderr) else ""
            say(f"{line}  {curve}".rstrip())


class Log:
    """A run in a log: a line for every report, and progress between them where it takes long."""

    def __init__(self) -> None:
        self._lines, self._work, self._progress = RunLines(), "", Progress("")
        self._last: Advanced | None = None  # None while a run waits

    def show(self, event: TrainEvent) -> None:
        """Write an event."""
        from macllm.train.events import Advanced, Paused, Restarted, Working

        if isinstance(event, Working):
            if self._last is not None:
                say(_long_line(self._last, event.seconds))
            return
        if not isinstance(event, Advanced):
            self._progress.close()
            self._lines.show(event)
            self._last = None if isinstance(event, Paused | Restarted) else self._last
            return
        self._last = event
        if event.work != self._work:
            self._progress.close()
            self._work, self._progress = event.work, Progress(event.work, UNITS[event.work], before=event.done)
        self._progress.update(event.done, event.total)

    def stop(self) -> None:
        """Write nothing: the lines of the end follow."""

    def close(self) -> None:
        """Erase progress."""
        self._progress.close()


def _say_finished(event: Finished, losses: list[float]) -> None:
    loss = "no steps left" if math.isnan(event.loss) else f"loss {event.loss:.4f}"
    say(f"done in {duration_text(event.seconds)}, {loss}")
    if len(losses) > 1 and losses[-1] > max(FITTED_LOSS, (1 - MIN_DECREASE) * losses[0]):
        fell = 1 - losses[-1] / losses[0] if losses[0] else 0
        changed = f"fell by only {fell:.0%}" if fell > 0 else "did not fall"
        say(f"the loss {changed}: try more --epochs or another --learning-rate")


def _say_prepared(event: Prepared) -> None:
    checked = f"; {event.valid_rows} validation examples" if event.valid_rows else ""
    if 0 < event.sampled_rows < event.valid_rows:
        checked += f", {event.sampled_rows} of them in each evaluation"
    say(f"{event.rows} examples, {event.supervised_tokens} of {event.tokens} tokens supervised{checked}")
    if event.bins:
        full = event.tokens / (event.bins * event.bin_tokens)
        each = f"{event.binned / event.bins:.1f} in each, {full:.0%} full"
        say(f"  packed into {event.bins} rows of {event.bin_tokens} tokens: {each}")
    for counts, kind in ((event, "rows"), (event.valid, "validation rows")):
        for name, what in CHANGED_ROWS.items():
            if count := getattr(counts, name):
                say(f"  {count} {kind} {what}")
    if len(event.kinds) > 1:
        say(f"  rows of several kinds: {', '.join(f'{count} {kind}' for kind, count in event.kinds.items())}")
    untaught = event.unsupervised_rows + event.dropped_rows
    if event.unended_rows and event.unended_rows + untaught >= sum(event.kinds.values()):
        say("  no end of an answer is learned: the model will not learn to stop")
    elif event.unended_rows:
        say(f"  {event.unended_rows} rows where no end of an answer is learned")
    if event.valid.rows and not event.sampled_rows:
        left = "val_batches is 0" if event.valid_rows else "no validation row is left"
        say(f"  {left}: nothing to check with, so the last weights are exported")
    share = f"{event.trained_parameters / max(1, event.parameters):.2%}"
    say(f"{event.trained_parameters} of {event.parameters} parameters trainable ({share}), {event.steps} steps")
    if event.first_step:
        say(f"resuming from step {event.first_step}")


def changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Settings with their values now and before."""
    values = {name: [json.dumps(value) for value in pair] for name, pair in changed.items()}
    return ", ".join(f"{name} {now} in place of {before}" for name, (before, now) in values.items())


def _long_line(last: Advanced, seconds: float) -> str:
    done = f"{last.done} of {last.total}" if last.total else str(last.done)
    return f"{last.work} {done} {UNITS[last.work]}, the next takes {duration_text(seconds)} so far"


def _with_metrics(loss: str, metrics: Mapping[str, float]) -> str:
    return "  ".join(filter(None, (loss, metrics_text(metrics))))


def _step_line(event: Step, steps: int) -> str:
    loss = _with_metrics(f"loss {event.loss:.4f}", event.metrics)
    return (
        f"step {event.step}/{steps}  {loss}  lr {event.learning_rate:.2e}  "
        f"grad {event.grad_norm:.2g}  {event.tokens_per_second:.0f} tokens/s  {bytes_text(event.peak_bytes)}"
    )
