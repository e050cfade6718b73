"""Reports of a training run: events on stderr, its folder on stdout at the end."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from macllm.units import bytes_text, duration_text

from .output import Progress, say, working

if TYPE_CHECKING:
    from macllm.train.config import TrainConfig
    from macllm.train.events import Advanced, Finished, Prepared, Step, TrainEvent

UNITS = {"reading": "rows", "training": "steps", "evaluating": "batches", "saving": "snapshots"}
MIN_DECREASE = 0.1  # relative decrease of the loss below which a hint is printed
FITTED_LOSS = 0.1  # loss below which the data is already fitted, so no hint
# Texts for rows that were changed or dropped, in the order of their counts in Prepared.
CHANGED_ROWS = {
    "truncated_rows": "truncated: cut to the longest length",
    "split_rows": "split",
    "dropped_rows": "dropped as too long",
    "unsupervised_rows": "without supervised tokens",
    "expanded_rows": "expanded to one example per turn",
    "shared_rows": "among the training rows too",
}


def check(config: TrainConfig) -> None:
    """Validate the config and its folder before kernels or a model are loaded. Raises: MacllmError."""
    from macllm.train import run

    run.check(Path(config.folder), config)


def narrate(events: Generator[TrainEvent], folder: str) -> str:
    """Run to the end, report each event, and return the path of the result."""
    from macllm.train.events import Advanced, Evaluated, Finished, Prepared, Saved, Step

    steps, path, resumed = 0, folder, False
    losses: list[float] = []
    with closing(events) as stream, _ProgressLine() as progress:
        try:
            for event in chain(_first(stream), stream):
                if isinstance(event, Advanced):
                    progress.update(event)
                    continue
                progress.close()
                if isinstance(event, Prepared):
                    steps, resumed = event.steps, event.first_step > 0
                    _say_prepared(event)
                elif isinstance(event, Step):
                    losses.append(event.loss)
                    _say_step(event, steps)
                elif isinstance(event, Evaluated):
                    say(
                        f"step {event.step}/{steps}  validation loss {event.loss:.4f}{'  (best)' if event.best else ''}"
                    )
                elif isinstance(event, Saved):
                    say(f"step {event.step}/{steps}  saved {event.path}")
                elif isinstance(event, Finished):
                    path = event.path
                    _say_finished(event, [] if resumed else losses)
        except KeyboardInterrupt:
            stream.close()
            if steps:
                say("stopped; run the same command with --resume to continue")
            raise
    click.echo(path)
    return path


def _first(events: Generator[TrainEvent]) -> Iterator[TrainEvent]:
    """The first event, after the model is loaded."""
    with working("loading the model"):
        first = next(events, None)
    if first is not None:
        yield first


class _ProgressLine:
    """The progress of the work between two events."""

    def __init__(self) -> None:
        self._work: str | None = None
        self._line = Progress("")

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def update(self, event: Advanced) -> None:
        """Show progress, on a separate line for each kind of work."""
        if event.work != self._work:
            self.close()
            self._work, self._line = event.work, Progress(event.work, unit=UNITS[event.work])
        self._line.update(event.done, event.total)

    def close(self) -> None:
        """Erase the line."""
        self._line.close()


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
    for counts, kind in ((event, "rows"), (event.valid, "validation rows")):
        for name, what in CHANGED_ROWS.items():
            if count := getattr(counts, name):
                say(f"  {count} {kind} {what}")
    if len(event.kinds) > 1:
        say(f"  rows of several kinds: {', '.join(f'{count} {kind}' for kind, count in event.kinds.items())}")
    if event.unended_rows and event.unended_rows >= sum(event.kinds.values()):
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


def _say_step(event: Step, steps: int) -> None:
    say(
        f"step {event.step}/{steps}  loss {event.loss:.4f}  lr {event.learning_rate:.2e}  "
        f"grad {event.grad_norm:.2g}  {event.tokens_per_second:.0f} tokens/s  {bytes_text(event.peak_bytes)}"
    )
