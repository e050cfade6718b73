"""The whole test of Metal kernels: every one tried on this Mac, decisions, and a report to share."""

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
APART = ("flash_", "linear_attention")
"""Prefixes of ops that are not used when the bundled model decodes."""
COLUMNS = ("kernel", "type", "error", "speed", "of memory", "used", "case")


@dataclass(frozen=True)
class Report:
    """Findings of an examination; `lacking` says why nothing is decided. Without Metal nothing is tried."""

    machine: Mapping[str, Any]
    texts: Mapping[str, Any]
    lacking: str | None = None
    verdicts: tuple[CaseResult, ...] = ()
    decided: Decisions | None = None
    decoding: Decoding | None = None
    read_bytes_per_second: float | None = None
    hidden: tuple[tuple[str, str], ...] = field(default_factory=lambda: hidden())

    def facts(self) -> dict[str, Any]:
        """The report for programs."""
        found: dict[str, Any] = {"machine": dict(self.machine), "texts": dict(self.texts), "lacking": self.lacking}
        if self.verdicts:
            found["verdicts"] = [verdict.facts() for verdict in self.verdicts]
        else:
            found["simulator"] = SIMULATOR
        if self.decided is not None:
            found["read_bytes_per_second"] = self.read_bytes_per_second
            found["decisions"], found["reasons"] = dict(self.decided.decisions), dict(self.decided.reasons)
            found["decoding"] = asdict(self.decoding) if self.decoding else None
        return self._without_names(found)

    def text(self) -> str:
        """The report for people."""
        lines = ["macllm doctor --kernels", ""]
        for name, value in [*self.machine.items(), *self.texts.items()]:
            lines.append(f"  {name.removesuffix('_bytes').replace('_', ' '):<16} {_plain(name, value)}")
        lines += ["", *self._table(), ""] if self.verdicts else [""]
        lines += self._decisions() if self.decided is not None else self._without_decisions()
        return self._without_names("\n".join(lines) + "\n")

    def _table(self) -> list[str]:
        ops = list(dict.fromkeys((verdict.dtype, verdict.op) for verdict in self.verdicts))
        ordered = sorted(self.verdicts, key=lambda verdict: ops.index((verdict.dtype, verdict.op)))
        rows = [COLUMNS, *(self._row(verdict) for verdict in ordered)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]
        lines = ["  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
        lines += ["", "error: of what is allowed. speed: times that of MLX's own operations, the worse of two rounds."]
        if self.read_bytes_per_second:
            measured = bytes_text(self.read_bytes_per_second)
            lines.append(f"of memory: the least that must move, of the {measured}/s that were measured, roughly.")
        return lines

    def _row(self, verdict: CaseResult) -> tuple[str, ...]:
        worst = min(verdict.timings, key=lambda timing: timing.speedup, default=None)
        rate = verdict.bytes_per_second
        share = f"{rate / self.read_bytes_per_second:.0%}" if rate and self.read_bytes_per_second else "-"
        decision = self.decided.decisions.get(verdict.key) if self.decided and verdict.timed else None
        return (
            verdict.op,
            verdict.dtype,
            "-" if verdict.apart is None else f"{verdict.apart:.2g}",
            f"{worst.speedup:.2f}x" if worst else "-",
            share,
            {True: "yes", False: "no", None: "-"}[decision],
            verdict.label + (f": {verdict.rejection}" if verdict.rejection else ""),
        )

    def _decisions(self) -> list[str]:
        assert self.decided is not None
        names, reasons = self.decided.decisions, self.decided.reasons
        serving = [name for name, used in names.items() if used]
        return [
            f"Kernels serve {len(serving)} of {len(names)} kinds of work; MLX serves the others.",
            *(f"  used      {name}" for name in serving),
            *(f"  not used  {name}: {reasons.get(name)}" for name in names if name not in serving),
            "",
            *(self.decoding.lines() if self.decoding else ["No kernel serves: decoding is MLX's."]),
        ]

    def _without_decisions(self) -> list[str]:
        if self.verdicts:
            wrong = sum(not verdict.is_right for verdict in self.verdicts)
            return [f"{wrong} of {len(self.verdicts)} are wrong. Nothing was timed, decided or kept: {self.lacking}."]
        return [
            f"Nothing was tried, timed or decided: {self.lacking}.",
            "In a checkout, the simulator runs the same texts on any machine and finds what is wrong with them:",
            f"  {SIMULATOR}     looks through a .metal file, runs a Python script's kernels",
            "  python -m pytest tests/ops/metal tests/simulator",
        ]

    def _without_names(self, told: Any) -> Any:
        """`told` without names and home folders."""
        if isinstance(told, str):
            for pattern, instead in self.hidden:
                told = re.sub(pattern, instead, told)
            return told
        if isinstance(told, dict):
            return {key: self._without_names(value) for key, value in told.items()}
        return [self._without_names(one) for one in told] if isinstance(told, list | tuple) else told


class Reporter(Protocol):
    """Receiver of status lines and progress during `examine`, which takes minutes."""

    def say(self, text: str) -> None:
        """Take one line of narration."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Take the number of steps done of a stage, and of all its steps."""


def examine(reporter: Reporter) -> Report:
    """Try all kernels and keep what is decided, at the end and at once."""
    import mlx.core as mx

    from macllm.ops.metal import approved

    from .cases import cases

    about: dict[str, Any] = {**machine(), "mlx": version("mlx")}
    if not mx.metal.is_available():
        why = "Metal kernels need a Mac with Apple silicon" if sys.platform != "darwin" else "MLX finds no Metal here"
        return Report(about, _texts(), why)
    about = {"chip": approved.machine()["chip"], **about, "system": approved.machine()["system"]}
    known = list(cases())
    with approved.alone(wait=False) as alone:
        if alone:
            return _examined(known, about, reporter)
    reporter.say("waiting for another trial of kernels on this machine")
    with approved.alone(wait=True):
        return _examined(known, about, reporter)


def _examined(known: Sequence[Case], about: Mapping[str, Any], reporter: Reporter) -> Report:
    from macllm.evaluate.machine import read_bytes_per_second
    from macllm.ops.metal import approved

    from .benchmark import WHOLE, decisions

    reporter.say(f"trying {len(known)} pieces of work; nothing is kept before the end")
    verdicts = subprocess.trials(known, WHOLE, partial(reporter.progress, "kernels"))
    if subprocess.is_validated():
        return Report(about, _texts(), "Metal checks what kernels do, which takes time", tuple(verdicts))
    decided, found = decisions(verdicts), None
    if any(decided.decisions.values()):
        reporter.say("decoding with the bundled model, with kernels and without")
        with approved.override(decided):
            found = decoding.decoding(partial(reporter.progress, "decoding"))
        decided = withdrawn(decided, found)
    bandwidth = read_bytes_per_second()
    reporter.say(f"kept in {approved.save(decided)}")
    return Report(about, _texts(), None, tuple(verdicts), decided, found, bandwidth)


def withdrawn(decided: Decisions, found: Decoding) -> Decisions:
    """Decisions without the decode kernels of the model's type, if they slow down the whole model."""
    if found.timing.highest >= 1:
        return decided
    keys = []
    for key, used in decided.decisions.items():
        op, dtype, _ = key.split(" ", 2)
        keys += [key] if used and dtype == found.dtype and not op.startswith(APART) else []
    reasons = dict.fromkeys(keys, f"faster alone, but a whole model with it is {found.timing}")
    return replace(
        decided,
        decisions={**decided.decisions, **dict.fromkeys(keys, False)},
        reasons={**decided.reasons, **reasons},
    )


def _texts() -> dict[str, Any]:
    """The number of kernels, their hash, and the names of texts that cannot be read."""
    from macllm.ops.metal import HERE, approved, kernel_source

    kernels, unreadable = 0, []
    for path in sorted(HERE.rglob("*.metal")):
        try:
            kernels += bool(kernel_source(path.stem).source)
        except (OSError, ValueError):
            unreadable.append(path.stem)
    found: dict[str, Any] = {"kernels": kernels, "hash_of_kernels": approved.kernels_hash()}
    return found | ({"unreadable": unreadable} if unreadable else {})


def hidden() -> tuple[tuple[str, str], ...]:
    """Patterns of names in paths, and what stands for them."""
    found = [(rf"{re.escape(str(Path.home()))}(?![\w.-])", "~")] if len(Path.home().parts) > 1 else []
    with suppress(OSError, KeyError):
        found.append((rf"(?<=[/\\]){re.escape(getpass.getuser())}(?![\w.-])", "user"))
    return tuple(found)


def _plain(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return bytes_text(value) if name.endswith("_bytes") else str(value)
