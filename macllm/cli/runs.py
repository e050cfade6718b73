"""`macllm runs`: list, watch, stop, resume, fork and compare training runs."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from macllm.errors import MacllmError, UsageError
from macllm.units import bytes_text, date_text, duration_text
from macllm.visible import one_line, visible

from . import names
from .output import say, working

if TYPE_CHECKING:
    from macllm.train.events import TrainEvent
    from macllm.train.runs.history import RunStatus
    from macllm.train.runs.registry import RegisteredRun

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_RUN = click.argument("run", metavar="RUN", shell_complete=names.runs)
_POLL_SECONDS = 0.2
_CURVE_CHARS = 60


@click.group("runs", epilog="RUN is the path of a run's folder, its name, or at least four characters of an id.")
def command() -> None:
    """List, show, watch, stop, resume, fork and compare training runs."""


@command.command("ls")
@_JSON
def ls(as_json: bool) -> None:
    """List the runs, newest first."""
    from macllm.train.runs.history import status
    from macllm.train.runs.registry import damaged, entries, short_ids

    if unread := damaged():
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        say(f"the list of runs is not whole: cannot read {one_line(str(unread[0]))}{more}")
    runs = [(entry, status(entry)) for entry in entries()]
    if as_json:
        _print_json([asdict(entry) | asdict(found) for entry, found in runs])
        return
    if not runs and not unread:
        say("no run yet; macllm finetune and macllm train begin one")
    ids = short_ids([entry for entry, _ in runs])
    for entry, found in runs:
        age = duration_text(max(0.0, time.time() - (found.changed or entry.started)))
        numbers = [f"{found.step}/{found.steps}".rjust(11), _loss(found.loss), f"best {_loss(found.best_loss)}"]
        _print(
            "  ".join([ids[entry.id], found.state.ljust(8), *numbers, f"{age} ago".rjust(16), one_line(entry.folder)])
        )


@command.command("show")
@_RUN
@_JSON
def show(run: str, as_json: bool) -> None:
    """Show a run: state, base, data, environment, snapshots, last numbers and settings."""
    from macllm.train.events import Prepared, Restarted
    from macllm.train.runs.history import events_of, snapshots_of, status
    from macllm.train.runs.registry import find, read_about, read_settings

    from .run_display import changes

    entry = find(run)
    found, about, settings = status(entry), read_about(entry.path), read_settings(entry.path)
    kept = snapshots_of(entry.path)
    events = events_of(entry.path)
    prepared = next((event for event in reversed(events) if isinstance(event, Prepared)), None)
    full = [event for event in events if isinstance(event, Restarted) and event.changed]
    base = next(
        (one["run"]["base"] for one in reversed(kept) if isinstance(one["run"], dict) and "base" in one["run"]), None
    )
    snapshots = [{name: value for name, value in one.items() if name != "run"} for one in kept]
    if as_json:
        data = asdict(prepared) if prepared else None
        _print_json(
            asdict(entry)
            | {"status": asdict(found), "base_fingerprint": base, "data": data, "snapshots": snapshots}
            | {"out_of_memory": [{"step": one.step, "cause": one.cause, "changed": one.changed} for one in full]}
            | {"environment": about, "settings": settings}
        )
        return
    _print(f"{entry.id or 'not registered'}  {found.state}{_process(found)}  {one_line(entry.folder)}")
    _print(f"macllm {entry.command} of {one_line(entry.base)}, begun {date_text(entry.started)}")
    _print(f"step {found.step}/{found.steps}  {_last(found)}")
    if found.error:
        _print(f"error: {one_line(found.error)}")
    if base:
        _print(f"base  {json.dumps(base)}")
    if isinstance(parent := about.get("parent"), dict):
        _print(f"forked from step {parent.get('step')} of {one_line(str(parent.get('folder')))}")
    if prepared:
        _print(f"data  {prepared.rows} examples, {prepared.tokens} tokens, {prepared.valid_rows} validation examples")
        for note in prepared.notes:
            _print(f"note  {one_line(note)}")
    for event in full:
        _print(f"out of memory  goes on from step {event.step} with {changes(event.changed)}")
    for one in snapshots:
        loss = f"  validation loss {one['valid_loss']:.4f}" if one["valid_loss"] is not None else ""
        _print(f"snapshot  step {one['step']}  {bytes_text(one['bytes'])}{loss}")
    _print_values("environment", about, skipped=("run", "started", "parent"))
    _print_values("settings", settings)


@command.command("watch")
@_RUN
@_JSON
def watch(run: str, as_json: bool) -> None:
    """Follow a run as it is trained, or print a finished one; Ctrl-C leaves the run alone."""
    from macllm.train.events import record
    from macllm.train.runs.history import events_of, follow, status
    from macllm.train.runs.registry import find

    from .training import continues
    from .watching import show_followed

    entry = _existing(find(run))
    if as_json:
        for event in follow(entry.path):
            _print(json.dumps(record(event), ensure_ascii=False))
        return
    show_followed(entry.path)
    for line in _curves(events_of(entry.path)):
        say(line)
    found = status(entry)
    if found.state == "crashed":
        say(f"the run crashed, or was killed, after step {found.step}; {continues(_name(entry))}")
    elif found.state in ("failed", "stopped"):
        say(continues(_name(entry)))


@command.command("stop")
@_RUN
@click.option("--timeout", type=click.FloatRange(min=0), default=120.0, metavar="SECONDS", help="[default: 120]")
@_JSON
def stop(run: str, timeout: float, as_json: bool) -> None:
    """Ask the process of a run to save and end; macllm runs resume continues it."""
    from macllm.train.runs.folder import holder
    from macllm.train.runs.history import status
    from macllm.train.runs.registry import find

    from .training import continues

    entry = _existing(find(run))
    held = holder(entry.path)
    if held is None:
        raise UsageError(f"{entry.folder} is not running", cause=f"it is {status(entry).state}")
    pid = held.pid
    if not pid:
        raise MacllmError("the process of the run is not known", remedy="Ctrl-C where it runs")
    if not held.stop:
        raise MacllmError(
            f"process {pid} cannot be asked to stop",
            cause="the run is in a thread of a program, which no signal reaches",
            remedy="close its generator of events in that program",
        )
    with suppress(ProcessLookupError):
        os.kill(pid, held.stop)
    with working("waiting for the run to save"):
        end = time.monotonic() + timeout
        while (alive := holder(entry.path) is not None) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
    if alive:
        raise MacllmError(
            f"process {pid} has not ended after {duration_text(timeout)}",
            cause="it is in a long step, or saves",
            remedy=f"wait for it, or kill -9 {pid}: the snapshots stay whole",
        )
    found = status(entry)
    if as_json:
        _print_json(asdict(entry) | asdict(found))
    else:
        more = "" if found.state == "finished" else f"; {continues(_name(entry))}"
        say(f"{found.state} after step {found.step}/{found.steps}{more}")


@command.command("resume")
@_RUN
def resume(run: str) -> None:
    """Continue a run with its own settings."""
    from macllm.train.runs.registry import find

    start(_existing(find(run)))


@command.command("fork")
@click.argument("run", metavar="RUN[@STEP]", shell_complete=names.runs)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="The new run.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one setting; may be repeated.")
@click.option("--no-start", is_flag=True, help="Write the folder only; macllm runs resume FOLDER trains.")
def fork_run(run: str, output: Path, sets: tuple[str, ...], no_start: bool) -> None:
    """Begin a run at a snapshot of another, the newest or that of STEP, with changed settings.

    Weights, step and, if the optimizer is the same, its state are those of the snapshot.
    """
    from macllm.train.run import check
    from macllm.train.runs.fork import changed_config, fork, snapshot_of
    from macllm.train.runs.registry import find

    name, at, number = run.rpartition("@")
    is_numbered = bool(at) and number.isdigit()
    parent = _existing(find(name if is_numbered else run))
    snapshot = snapshot_of(parent, int(number) if is_numbered else None)
    output = output.resolve()
    config = changed_config(parent, output, sets)
    _enter(parent)
    check(output, config)
    fork(parent, snapshot, config)
    say(f"forked from step {snapshot['step']} of {parent.folder}")
    if no_start:
        click.echo(output)
    else:
        start(replace(parent, folder=str(output)))


@command.command("compare")
@click.argument("first", metavar="RUN", shell_complete=names.runs)
@click.argument("second", metavar="RUN", shell_complete=names.runs)
@_JSON
def compare_runs(first: str, second: str, as_json: bool) -> None:
    """Show the settings in which two runs differ, and their losses side by side."""
    from macllm.train.runs.compare import compare
    from macllm.train.runs.registry import find

    from .comparison import lines

    runs = (_existing(find(first)), _existing(find(second)))
    found = compare(*runs)
    if as_json:
        _print_json({"runs": [asdict(run) for run in runs], **asdict(found)})
        return
    titles = (runs[0].name, runs[1].name) if runs[0].name != runs[1].name else (runs[0].id, runs[1].id)
    for line in lines(found, titles):
        _print(line)


@command.command("forget")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=names.runs)
@click.option("--delete", is_flag=True, help="Delete the folders too, with snapshots and adapters.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before folders are deleted.")
def forget(runs: tuple[str, ...], delete: bool, yes: bool) -> None:
    """Take runs off the list; their folders stay unless --delete is given."""
    import shutil

    from macllm.train.runs import registry
    from macllm.train.runs.folder import holder

    found = list(dict.fromkeys(registry.find(run) for run in runs))
    for entry in found:
        if holder(entry.path) is not None:
            raise UsageError(f"{entry.folder} is running", remedy=f"macllm runs stop {shlex.quote(_name(entry))}")
        if not entry.id and not delete:
            raise UsageError(f"{entry.folder} is not on the list", remedy="--delete to delete the folder")
    if delete and not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(
                "deleting asks on a terminal", remedy=f"macllm runs forget --delete --yes {shlex.join(runs)}"
            )
        for entry in found:
            say(one_line(entry.folder))
        click.confirm("delete with everything in it?", abort=True, err=True)
    for entry in found:
        if delete and not entry.is_missing:
            shutil.rmtree(entry.path)
        registry.forget(entry)
    say(f"{'deleted' if delete else 'forgot'} {len(found)}")


def start(entry: RegisteredRun) -> None:
    """Train in a run's folder with its own settings, from its newest snapshot."""
    _enter(entry)
    if entry.command == "finetune":
        from macllm.train.config import FinetuneConfig

        from . import finetune

        finetune.start(FinetuneConfig.load(resume=True, adapter_path=entry.folder))
    elif entry.command == "train":
        from macllm.train.config import PretrainConfig

        from . import train

        train.start(PretrainConfig.load(resume=True, output=entry.folder))
    else:
        raise UsageError(f"cannot read the settings of the run in {entry.folder}")


def _enter(entry: RegisteredRun) -> None:
    """Go to the directory to which paths in the settings are relative."""
    if entry.directory and Path(entry.directory).is_dir():
        os.chdir(entry.directory)


def _existing(entry: RegisteredRun) -> RegisteredRun:
    """The run. Raises: UsageError if its folder is missing."""
    if entry.is_missing:
        raise UsageError(
            f"the folder of run {entry.id} is missing",
            cause=f"{entry.folder} was moved or deleted",
            remedy=f"the new path of the folder in place of the id, or macllm runs forget {entry.id}",
        )
    return entry


def _name(entry: RegisteredRun) -> str:
    """The argument of a command that names the run."""
    return entry.id or entry.folder


def _process(found: RunStatus) -> str:
    return f" as process {found.pid}" if found.pid else ""


def _last(found: RunStatus) -> str:
    parts = [f"loss {_loss(found.loss)}"] * (found.loss is not None)
    parts += [f"validation loss {_loss(found.valid_loss)}"] * (found.valid_loss is not None)
    parts += [f"best {_loss(found.best_loss)} at step {found.best_step}"] * (found.best_loss is not None)
    return "  ".join(parts)


def _loss(loss: float | None) -> str:
    return "-".rjust(6) if loss is None else f"{loss:.4f}"


def _curves(events: list[TrainEvent]) -> list[str]:
    """Curves of the losses over the steps, a line each."""
    from macllm.train.events import Evaluated, Step

    from .dashboard import Curve

    lines: list[str] = []
    for title, kind in (("loss", Step), ("validation loss", Evaluated)):
        losses = [event.loss for event in events if isinstance(event, kind) and math.isfinite(event.loss)]
        if len(losses) > 1:
            curve = Curve()
            for loss in losses:
                curve.add(loss)
            ends = (f"{title:<16} {losses[0]:.4f}", f"{losses[-1]:.4f}  lowest {min(losses):.4f}")
            lines.append(f" {curve.blocks(_CURVE_CHARS)} ".join(ends))
    return lines


def _print_values(title: str, values: dict[str, Any], skipped: tuple[str, ...] = ()) -> None:
    _print(f"\n{title}")
    for name, value in values.items():
        if name not in skipped:
            _print(f"  {name} = {one_line(json.dumps(value, ensure_ascii=False))}")


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(text: str) -> None:
    click.echo(visible(text) if sys.stdout.isatty() else text.encode("utf-8", "replace").decode())


def _print_json(value: Any) -> None:
    _print(json.dumps(_finite(value), indent=2, ensure_ascii=False))
