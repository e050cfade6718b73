"""The whole test of Metal kernels: every case run on this Mac, decisions, and a report to share."""

from __future__ import annotations

import getpass
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from macllm.units import bytes_text

from . import decoding, subprocess
from .machine import machine

if TYPE_CHECKING:
    from macllm.ops.metal.approved import Decisions

    from .benchmark import CaseResult
    from .case import Case
    from .decoding import Decoding

SIMULATOR = "python -m tests.simulator FILE"
NOT_IN_DECODE = ("flash_", "linear_attention")
"""Prefixes of ops that are not used when the bundled model decodes."""
COLUMNS = ("kernel", "type", "error", "speed", "of memory", "used", "case")


@dataclass(frozen=True)
class Report:
    """Findings of an examination. `skipped_because` is the reason if no decision was made."""

    machine: Mapping[str, Any]
    sources: Mapping[str, Any]
    skipped_because: str | None = None
    results: tuple[CaseResult, ...] = ()
    decided: Decisions | None = None
    decoding: Decoding | None = None
    read_bytes_per_second: float | None = None
    redactions: tuple[tuple[str, str], ...] = field(default_factory=lambda: redactions())

    def facts(self) -> dict[str, Any]:
        """The report for programs."""
        found: dict[str, Any] = {"machine": dict(self.machine), "texts": dict(self.sources)}
        found["lacking"] = self.skipped_because
        if self.results:
            found["verdicts"] = [result.facts() for result in self.results]
        else:
            found["simulator"] = SIMULATOR
        if self.decided is not None:
            found["read_bytes_per_second"] = self.read_bytes_per_second
            found["decisions"], found["reasons"] = dict(self.decided.decisions), dict(self.decided.reasons)
            found["decoding"] = asdict(self.decoding) if self.decoding else None
        return self._redacted(found)

    def text(self) -> str:
        """The report for people."""
        lines = ["macllm doctor --kernels", ""]
        for name, value in [*self.machine.items(), *self.sources.items()]:
            lines.append(f"  {name.removesuffix('_bytes').replace('_', ' '):<16} {_plain(name, value)}")
        lines += ["", *self._table(), ""] if self.results else [""]
        lines += self._decisions() if self.decided is not None else self._without_decisions()
        return self._redacted("\n".join(lines) + "\n")

    def _table(self) -> list[str]:
        ops = list(dict.fromkeys((result.dtype, result.op) for result in self.results))
        ordered = sorted(self.results, key=lambda result: ops.index((result.dtype, result.op)))
        rows = [COLUMNS, *(self._row(result) for result in ordered)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]
        lines = ["  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
        lines += ["", "error: relative to the tolerance. speed: relative to MLX's operations, the worse of two rounds."]
        if self.read_bytes_per_second:
            measured = bytes_text(self.read_bytes_per_second)
            lines.append(f"of memory: required bytes per second, relative to the measured {measured}/s, roughly.")
        return lines

    def _row(self, result: CaseResult) -> tuple[str, ...]:
        worst = min(result.timings, key=lambda timing: timing.speedup, default=None)
        rate = result.bytes_per_second
        share = f"{rate / self.read_bytes_per_second:.0%}" if rate and self.read_bytes_per_second else "-"
        decision = self.decided.decisions.get(result.key) if self.decided and result.timed else None
        return (
            result.op,
            result.dtype,
            "-" if result.relative_error is None else f"{result.relative_error:.2g}",
            f"{worst.speedup:.2f}x" if worst else "-",
            share,
            {True: "yes", False: "no", None: "-"}[decision],
            result.label + (f": {result.rejection}" if result.rejection else ""),
        )

    def _decisions(self) -> list[str]:
        assert self.decided is not None
        names, reasons = self.decided.decisions, self.decided.reasons
        used = [name for name, is_used in names.items() if is_used]
        return [
            f"Kernels are used for {len(used)} of {len(names)} combinations of operation, type and size.",
            *(f"  used      {name}" for name in used),
            *(f"  not used  {name}: {reasons.get(name)}" for name in names if name not in used),
            "",
            *(self.decoding.lines() if self.decoding else ["No kernel is used, so decoding was not measured."]),
        ]

    def _without_decisions(self) -> list[str]:
        if self.results:
            wrong = sum(not result.is_correct for result in self.results)
            failed = f"{wrong} of {len(self.results)} cases failed."
            return [f"{failed} Nothing was timed and no decision was saved: {self.skipped_because}."]
        return [
            f"No kernel was tested: {self.skipped_because}.",
            "In a checkout, the simulator runs the same kernels on any machine and finds their faults:",
            f"  {SIMULATOR}     checks a .metal file, or runs the kernels of a Python script",
            "  python -m pytest tests/ops/metal tests/simulator",
        ]

    def _redacted(self, content: Any) -> Any:
        """`content` without user names and home folders."""
        if isinstance(content, str):
            for pattern, instead in self.redactions:
                content = re.sub(pattern, instead, content)
            return content
        if isinstance(content, dict):
            return {key: self._redacted(value) for key, value in content.items()}
        return [self._redacted(one) for one in content] if isinstance(content, list | tuple) else content


class Reporter(Protocol):
    """Receiver of status lines and progress during `examine`, which takes minutes."""

    def say(self, text: str) -> None:
        """Show one status line."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show the number of steps done in a stage, of `total`."""


def examine(reporter: Reporter) -> Report:
    """Run all cases, and save all decisions at the end."""
    import mlx.core as mx

    from macllm.ops.metal import approved

    from .cases import cases

    about: dict[str, Any] = {**machine(), "mlx": version("mlx")}
    if not mx.metal.is_available():
        why = "Metal kernels need a Mac with Apple silicon" if sys.platform != "darwin" else "MLX finds no Metal here"
        return Report(about, _sources(), why)
    about = {"chip": approved.machine()["chip"], **about, "system": approved.machine()["system"]}
    known = list(cases())
    with approved.alone(wait=False) as alone:
        if alone:
            return _examined(known, about, reporter)
    reporter.say("waiting for another test of kernels on this machine")
    with approved.alone(wait=True):
        return _examined(known, about, reporter)


def _examined(known: Sequence[Case], about: Mapping[str, Any], reporter: Reporter) -> Report:
    from macllm.evaluate.machine import read_bytes_per_second
    from macllm.ops.metal import approved

    from .benchmark import WHOLE, decisions

    reporter.say(f"running {len(known)} test cases; decisions are saved at the end")
    results = subprocess.trials(known, WHOLE, partial(reporter.progress, "kernels"))
    if subprocess.is_validated():
        return Report(about, _sources(), "Metal's shader validation is on, which makes kernels slow", tuple(results))
    decided, found = decisions(results), None
    if any(decided.decisions.values()):
        reporter.say("decoding with the bundled model, with kernels and without")
        with approved.override(decided):
            found = decoding.decoding(partial(reporter.progress, "decoding"))
        decided = without_slow_kernels(decided, found)
    bandwidth = read_bytes_per_second()
    reporter.say(f"decisions saved in {approved.save(decided)}")
    return Report(about, _sources(), None, tuple(results), decided, found, bandwidth)


def without_slow_kernels(decided: Decisions, found: Decoding) -> Decisions:
    """Decisions without the decode kernels of the model's type, if they slow down the whole model."""
    if found.timing.highest >= 1:
        return decided
    keys = []
    for key, used in decided.decisions.items():
        op, dtype, _ = key.split(" ", 2)
        keys += [key] if used and dtype == found.dtype and not op.startswith(NOT_IN_DECODE) else []
    reasons = dict.fromkeys(keys, f"faster alone, but a whole model with it is {found.timing}")
    return replace(
        decided,
        decisions={**decided.decisions, **dict.fromkeys(keys, False)},
        reasons={**decided.reasons, **reasons},
    )


def _sources() -> dict[str, Any]:
    """The number of kernels, their hash, and the names of sources that cannot be read."""
    from macllm.ops.metal import HERE, approved, kernel_source

    kernels, unreadable = 0, []
    for path in sorted(HERE.rglob("*.metal")):
        try:
            kernels += bool(kernel_source(path.stem).source)
        except (OSError, ValueError):
            unreadable.append(path.stem)
    found: dict[str, Any] = {"kernels": kernels, "hash_of_kernels": approved.kernels_hash()}
    return found | ({"unreadable": unreadable} if unreadable else {})


def redactions() -> tuple[tuple[str, str], ...]:
    """Patterns of user names in paths, and their replacements."""
    found = [(rf"{re.escape(str(Path.home()))}(?![\w.-])", "~")] if len(Path.home().parts) > 1 else []
    with suppress(OSError, KeyError):
        found.append((rf"(?<=[/\\]){re.escape(getpass.getuser())}(?![\w.-])", "user"))
    return tuple(found)


def _plain(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return bytes_text(value) if name.endswith("_bytes") else str(value)
