"""Reports of a training run: events on stderr, its folder on stdout at the end."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from macllm.errors import MacllmError
from macllm.files import read_json
from macllm.units import bytes_text, duration_text
from macllm.visible import one_line

from .dashboard import MOST_CELLS, Dashboard
from .fetch import fetch_rows
from .live import LiveArea, has_blocks, is_live
from .output import Progress, say, working

if TYPE_CHECKING:
    from macllm.train.config import TrainConfig
    from macllm.train.events import Advanced, Finished, Prepared, Step, TrainEvent

UNITS = {"reading": "rows", "encoding": "rows", "training": "steps", "evaluating": "batches", "saving": "snapshots"}
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


_WEIGHTS = "*.safetensors"
RESTARTS = 3
restarts_option = click.option(
    "--restarts",
    type=click.IntRange(min=0),
    default=RESTARTS,
    metavar="N",
    help="Restarts after an abort without a new snapshot in between; 0: train without a child process. [default: 3]",
)


def events(config: TrainConfig, restarts: int) -> Generator[TrainEvent]:
    """The events of a run in a child process, or in this one if nothing is to be restarted."""
    from macllm.train.config import FinetuneConfig
    from macllm.train.runs.supervisor import supervised

    if changed := config.rounding_changes():
        values = ", ".join(f"{name} {now} in place of {before}" for name, (before, now) in changed.items())
        say(f"goes on with {values}: sums are rounded in another order, so the last bits may differ")
    module = f"macllm.train.{'finetune' if isinstance(config, FinetuneConfig) else 'pretrain'}"
    if restarts:
        return _measured(supervised(f"{module}:events", config, restarts), config)
    return _measured(import_module(module).events(config), config)


def _measured(events: Generator[TrainEvent], config: TrainConfig) -> Generator[TrainEvent]:
    """The events; before the first step, say if the run cannot fit into memory, or is not listed."""
    from macllm.hub.fit import memory_limit
    from macllm.train.events import Prepared
    from macllm.train.runs.registry import is_registered, registry_folder

    with closing(events):
        for event in events:
            yield event
            if isinstance(event, Prepared) and not is_registered(Path(config.folder)):
                say(f"the run is not listed by macllm runs ls: cannot write {registry_folder()}")
            if isinstance(event, Prepared) and (needed := _needed(config, event)) > (there := memory_limit()):
                say(f"this takes at least {bytes_text(needed)} of memory, and this machine has {bytes_text(there)}")
                say("  try a smaller --batch-size with more --grad-accumulation-steps, or --grad-checkpoint")


def _needed(config: TrainConfig, event: Prepared) -> int:
    """The least memory of a run; 0 if the model's files do not tell it."""
    from macllm.hub import resolve
    from macllm.train.config import FinetuneConfig, PretrainConfig
    from macllm.train.memory import least_bytes

    try:
        if isinstance(config, FinetuneConfig):
            folder = resolve(config.model, offline=True)
            shape, weights = read_json(folder / "config.json"), sum(f.stat().st_size for f in folder.glob(_WEIGHTS))
        elif isinstance(config, PretrainConfig):
            shape, weights = read_json(Path(config.config)), 4 * event.parameters
        else:
            return 0
    except (OSError, ValueError, MacllmError):
        return 0
    return least_bytes(config, event, shape, weights) if isinstance(shape, dict) else 0


def check(config: TrainConfig) -> None:
    """Validate the config and its folder before kernels or a model are loaded. Raises: MacllmError."""
    from macllm.train import run

    fetch_rows(config)
    run.check(Path(config.folder), config)


def narrate(events: Generator[TrainEvent], folder: str, *, as_json: bool = False) -> str:
    """Run to the end, report each event, and return the path of the result.

    On stdout appears the path, or with `as_json` every event but progress, as JSON objects.
    """
    from macllm.train.events import Finished

    path, report = folder, RunReport()
    with closing(events) as stream, display() as shown:
        try:
            for event in chain(_first(stream), stream):
                shown.show(event, report)
                if as_json:
                    _print_json(event)
                if isinstance(event, Finished):
                    path = event.path
        except KeyboardInterrupt:
            stream.close()
            shown.close()
            if report.steps:
                say(f"stopped; {continues(folder)}")
            raise
    if not as_json:
        click.echo(path)
    return path


def continues(run: str) -> str:
    """The command that goes on with a run, named by its folder or id."""
    return f"macllm runs resume {shlex.quote(run)} continues it"


def _print_json(event: TrainEvent) -> None:
    from macllm.train.events import Advanced, record

    if not isinstance(event, Advanced):
        click.echo(json.dumps(record(event), allow_nan=False))


def _first(events: Generator[TrainEvent]) -> Iterator[TrainEvent]:
    """The first event, after the model is loaded."""
    with working("loading the model"):
        first = next(events, None)
    if first is not None:
        yield first


class RunReport:
    """The lines of a run that stay."""

    def __init__(self) -> None:
        self.steps = 0
        self._resumed = False
        self._losses: list[float] = []

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
            _say_prepared(event)
        elif isinstance(event, Step):
            self._losses.append(event.loss)
            say(_step_line(event, self.steps))
        elif isinstance(event, Evaluated):
            best = "  (best)" if event.best else ""
            say(f"step {event.step}/{self.steps}  validation loss {event.loss:.4f}{best}")
        elif isinstance(event, Saved):
            say(f"step {event.step}/{self.steps}  saved {event.path}")
        elif isinstance(event, Skipped):
            say(f"{event.cause}: steps {event.first} to {event.step} are given up, and their rows skipped")
        elif isinstance(event, Paused):
            say(f"step {event.step}/{self.steps}  paused {event.cause}, saved")
        elif isinstance(event, Continued):
            say(f"step {event.step}/{self.steps}  continued after {duration_text(event.seconds)}")
        elif isinstance(event, Restarted):
            said = f"restarted from step {event.step}, {event.attempt} of at most {event.most} times without progress"
            say(f"{event.cause}; {said}")
        elif isinstance(event, TrackerFailed):
            say(f"reports to {event.name} have ended, the run goes on: {one_line(event.cause)}")
        elif isinstance(event, Finished):
            _say_finished(event, [] if self._resumed else self._losses)

    def count(self, event: Step) -> None:
        """Take a step that is not said."""
        self._losses.append(event.loss)


def display() -> _Lines | _Screen:
    """The display of a run for this stderr."""
    return _Screen() if is_live(sys.stderr) else _Lines()


class _Screen:
    """A run on a terminal: two lines below those that stay, which are fewer than in a log."""

    def __init__(self) -> None:
        from macllm.hub.fit import memory_limit

        self._dashboard = Dashboard(memory_limit(), has_blocks(sys.stderr))
        self._area = LiveArea(self._dashboard.lines)
        self._last: Step | None = None

    def __enter__(self) -> _Screen:
        self._area.__enter__()
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def show(self, event: TrainEvent, report: RunReport) -> None:
        """Show an event in the area, above it, or both."""
        from macllm.train.events import Advanced, Finished, Saved, Step

        with self._area.lock:
            self._dashboard.take(event)
        if isinstance(event, Step):
            self._last = event
            report.count(event)
        elif isinstance(event, Finished):
            self._end(report)
            report.show(event)
        elif not isinstance(event, Advanced | Saved):
            report.show(event)
        self._area.changed()

    def close(self) -> None:
        """Erase the area."""
        self._area.close()

    def _end(self, report: RunReport) -> None:
        self._area.close()
        if self._last is not None:
            room = shutil.get_terminal_size().columns - len(_step_line(self._last, report.steps)) - 3
            curve = self._dashboard.curve.blocks(min(MOST_CELLS, room)) if has_blocks(sys.stderr) else ""
            say(f"{_step_line(self._last, report.steps)}  {curve}".rstrip())


class _Lines:
    """A run in a log: a line for every report, and progress between them where it takes long."""

    def __init__(self) -> None:
        self._progress = _ProgressLine()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def show(self, event: TrainEvent, report: RunReport) -> None:
        """Write an event."""
        from macllm.train.events import Advanced

        if isinstance(event, Advanced):
            self._progress.update(event)
        else:
            self._progress.close()
            report.show(event)

    def close(self) -> None:
        """Erase progress."""
        self._progress.close()


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


def _step_line(event: Step, steps: int) -> str:
    return (
        f"step {event.step}/{steps}  loss {event.loss:.4f}  lr {event.learning_rate:.2e}  "
        f"grad {event.grad_norm:.2g}  {event.tokens_per_second:.0f} tokens/s  {bytes_text(event.peak_bytes)}"
    )
