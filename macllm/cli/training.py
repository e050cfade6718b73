"""A training run told line by line on stderr, its folder on stdout at the end."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from macllm.units import bytes_text, duration_text

from .output import say

if TYPE_CHECKING:
    from macllm.train.events import Prepared, Step, TrainEvent

# What became of rows that did not go in as they were, in the order of their counts in Prepared.
ODD_ROWS = {
    "truncated_rows": "cut to the longest length",
    "split_rows": "split",
    "dropped_rows": "dropped as too long",
    "unsupervised_rows": "without anything to learn",
    "expanded_rows": "made of one conversation each",
}


def tell(events: Generator[TrainEvent], folder: str) -> str:
    """Run to the end, a line for each event, and return the path of what was made; an interrupt says how to go on."""
    from macllm.train.events import Evaluated, Finished, Prepared, Saved, Step

    steps, path = 0, folder
    with closing(events) as stream:
        try:
            for event in stream:
                if isinstance(event, Prepared):
                    steps = event.steps
                    _say_prepared(event)
                elif isinstance(event, Step):
                    _say_step(event, steps)
                elif isinstance(event, Evaluated):
                    say(
                        f"step {event.step}/{steps}  validation loss {event.loss:.4f}{'  (best)' if event.best else ''}"
                    )
                elif isinstance(event, Saved):
                    say(f"step {event.step}/{steps}  saved {event.path}")
                elif isinstance(event, Finished):
                    path = event.path
                    say(f"done in {duration_text(event.seconds)}, loss {event.loss:.4f}")
        except KeyboardInterrupt:
            stream.close()
            if steps:
                say("stopped; the same command with --resume goes on from there")
            raise
    click.echo(path)
    return path


def _say_prepared(event: Prepared) -> None:
    checked = f"; {event.valid_rows} rows to check with" if event.valid_rows else ""
    say(f"{event.rows} rows, {event.supervised_tokens} of {event.tokens} tokens to learn{checked}")
    for name, what in ODD_ROWS.items():
        if count := getattr(event, name):
            say(f"  {count} rows {what}")
    share = f"{event.trained_parameters / max(1, event.parameters):.2%}"
    say(f"{event.trained_parameters} of {event.parameters} parameters to train ({share}), {event.steps} steps")
    if event.first_step:
        say(f"going on after step {event.first_step}")


def _say_step(event: Step, steps: int) -> None:
    say(
        f"step {event.step}/{steps}  loss {event.loss:.4f}  lr {event.learning_rate:.2e}  "
        f"grad {event.grad_norm:.2g}  {event.tokens_per_second:.0f} tokens/s  {bytes_text(event.peak_bytes)}"
    )
