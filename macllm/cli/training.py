"""Reports of a training run: events on stderr, its folder on stdout at the end."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from itertools import chain
from logging.handlers import MemoryHandler
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from macllm.errors import MacllmError
from macllm.files import read_json
from macllm.units import bytes_text

from .fetch import fetch_rows
from .output import say, working
from .run_display import changes, display

if TYPE_CHECKING:
    from macllm.train.config import TrainConfig
    from macllm.train.events import Prepared, TrainEvent
_WEIGHTS = "*.safetensors"
_MOST_KEPT = 1000  # messages before a run has begun
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
        say(f"goes on with {changes(changed)}: sums are rounded in another order, so the last bits may differ")
    module = f"macllm.train.{'finetune' if isinstance(config, FinetuneConfig) else 'pretrain'}"
    if restarts:
        return _measured(supervised(f"{module}:events", config, restarts), config)
    return _measured(_logged_once(import_module(module).events(config)), config)


def _logged_once(events: Generator[TrainEvent]) -> Generator[TrainEvent]:
    """The events of a run in this process, with its log.

    What is logged before `Prepared` waits for it, and is left out if it is among the notes there.
    """
    from macllm.train.events import Prepared

    log, kept = logging.getLogger("macllm"), MemoryHandler(_MOST_KEPT, logging.CRITICAL, logging.lastResort)
    kept.setLevel(logging.WARNING)
    log.addHandler(kept)
    try:
        with closing(events):
            for event in events:
                if isinstance(event, Prepared):
                    kept.buffer = [record for record in kept.buffer if record.getMessage() not in event.notes]
                    kept.flush()
                    kept.flushLevel = logging.WARNING  # at once from now on
                yield event
    finally:
        log.removeHandler(kept)
        kept.close()


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
            if isinstance(event, Prepared) and (needed := _needed(config, event)) > (limit := memory_limit()):
                say(f"this takes at least {bytes_text(needed)} of memory, and this machine has {bytes_text(limit)}")
                say("  try a smaller --batch-size with more --grad-accumulation-steps, or --grad-checkpoint")


def _needed(config: TrainConfig, event: Prepared) -> int:
    """The least memory of a run; 0 if the model's files do not tell it."""
    from macllm.hub import resolve
    from macllm.train.config import FinetuneConfig, PretrainConfig
    from macllm.train.memory import least_bytes

    try:
        if isinstance(config, FinetuneConfig):
            folder = resolve(config.model, offline=True)
            shape, frozen = read_json(folder / "config.json"), sum(f.stat().st_size for f in folder.glob(_WEIGHTS))
            if config.method == "full":
                frozen = frozen * (event.parameters - event.trained_parameters) // max(1, event.parameters)
        elif isinstance(config, PretrainConfig):
            shape, frozen = read_json(Path(config.config)), 0
        else:
            return 0
    except (OSError, ValueError, MacllmError):
        return 0
    return least_bytes(config, event, shape, frozen) if isinstance(shape, dict) else 0


def check(config: TrainConfig) -> None:
    """Validate the config and its folder before kernels or a model are loaded. Raises: MacllmError."""
    from macllm.train import run

    fetch_rows(config)
    run.check(Path(config.folder), config)


def narrate(events: Generator[TrainEvent], folder: str, *, as_json: bool = False, prints_path: bool = True) -> str:
    """Run to the end, report each event, and return the path of the result.

    On stdout appears the path if `prints_path`, or with `as_json` every event but progress, as JSON objects.
    """
    from macllm.train.events import Finished, Prepared

    path, is_begun = folder, False
    shown = display(shares_stdout=as_json and sys.stdout.isatty())
    with closing(events) as stream, closing(shown), _interrupts(shown.stop):
        try:
            for event in chain(_first(stream), stream):
                shown.show(event)
                if as_json:
                    _print_json(event)
                is_begun = is_begun or isinstance(event, Prepared)
                path = event.path if isinstance(event, Finished) else path
        except KeyboardInterrupt:
            stream.close()
            shown.close()
            if is_begun:
                say(f"stopped; {continues(folder)}")
            raise
    if prints_path and not as_json:
        click.echo(path)
    return path


def continues(run: str) -> str:
    """The command that goes on with a run, named by its folder or id."""
    return f"macllm runs resume {shlex.quote(run)} continues it"


@contextmanager
def _interrupts(stopping: Callable[[], None]) -> Generator[None]:
    """Call `stopping` at the first Ctrl-C, which then interrupts as ever; a second one does so at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        stopping()
        if callable(before):
            before(number, frame)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print_json(event: TrainEvent) -> None:
    from macllm.train.events import Advanced, Working, record

    if not isinstance(event, Advanced | Working):
        click.echo(json.dumps(record(event), allow_nan=False))


def _first(events: Generator[TrainEvent]) -> Iterator[TrainEvent]:
    """The first event, after the model is loaded."""
    from macllm.train.events import Working

    with working("loading the model"):
        first = next((event for event in events if not isinstance(event, Working)), None)
    if first is not None:
        yield first
