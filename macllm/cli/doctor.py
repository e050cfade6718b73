"""`macllm doctor`: system and kernel diagnostics."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from typing import Any

import click

from macllm.errors import UnsupportedMachineError, UsageError
from macllm.units import bytes_text, duration_text

from .native import announced
from .output import Progress, say


@click.command("doctor")
@click.option("--build", is_flag=True, help="Compile the CPU kernels now and print their path (Linux).")
@click.option(
    "--kernels",
    is_flag=True,
    help="Check each Metal kernel on this Mac against MLX for correctness and speed, and enable those that pass. "
    "Takes some minutes; leave the Mac idle meanwhile. Prints a report to share, without names or paths.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(build: bool, kernels: bool, as_json: bool) -> int | None:
    """Show system and kernel diagnostics, for a bug report.

    Without options: versions, memory, disk, terminal, caches, the kernels in use, and checks of the stored
    conversations and the settings. The exit code is 1 if one of them has a problem.
    """
    if kernels:
        if build:
            raise UsageError("--kernels (Metal) and --build (Linux) cannot be combined", remedy="one of the two")
        from macllm.doctor.kernels import examine

        with closing(_ProgressNarrator()) as narrator:
            report = examine(narrator)
        click.echo(json.dumps(report.facts(), indent=2, allow_nan=False) if as_json else report.text(), nl=as_json)
        return None
    if build:
        path = _build()
        if not as_json:
            click.echo(path)
            return None
    found = _facts()
    failed = any("problem" in group for group in found.values())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return int(failed)
    for title, group in found.items():
        click.echo(title)
        for name, value in group.items():
            click.echo(f"  {name.removesuffix('_bytes').replace('_', ' '):<18} {_shown(name, value)}")
    return int(failed)


def _facts() -> dict[str, dict[str, Any]]:
    """All facts, by title."""
    from macllm.doctor.machine import facts

    from . import checks

    found = facts()
    found["terminal"] |= checks.terminal()
    return found | {"conversations": checks.conversations(), "settings": checks.settings()}


class _ProgressNarrator:
    """Narration on stderr: a progress line for each stage, and text between stages."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        self.close()
        say(text)

    def progress(self, stage: str, done: int, total: int) -> None:
        if self._progress is None or self._progress.label != stage:
            self.close()
            self._progress = Progress(stage, unit="steps")
        self._progress.update(done, total)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None


def _build() -> str:
    """Compile the kernels unless they are cached. Returns their path."""
    from macllm.ops.cpu import build
    from macllm.ops.cpu.compilation import ensure
    from macllm.ops.cpu.machine import wanted

    if sys.platform != "linux":
        raise UnsupportedMachineError(
            "the CPU kernels are for Linux only", remedy="nothing to do: on a Mac, MLX uses Metal"
        )
    if not wanted():
        raise UsageError("MACLLM_NATIVE=0 disables the CPU kernels", remedy="unset MACLLM_NATIVE")
    try:
        is_cached = build.whole(build.library())
        start = time.monotonic()
        with Progress("compiling", unit="steps") as progress:
            path = ensure(announced(progress))
        took = "already compiled" if is_cached else f"compiled in {duration_text(time.monotonic() - start)}"
        say(f"{took}, for {build.instruction_set()}")
    except build.BuildError as error:
        raise UnsupportedMachineError(
            "the CPU kernels cannot be compiled", cause=str(error), remedy=error.remedy
        ) from error
    return str(path)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        return "".join(f"\n    {each}: {why}" if why else f"\n    {each}" for each, why in value.items()) or "nothing"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "nothing"
    return bytes_text(value) if name.endswith("_bytes") and isinstance(value, int | float) else str(value)
