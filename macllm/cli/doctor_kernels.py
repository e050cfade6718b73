"""`macllm doctor --kernels`: every Metal kernel tried on this Mac, what is decided of it, and a report to share."""

from __future__ import annotations

import getpass
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import doctor_decoding, doctor_trials
from .doctor_machine import machine
from .output import bytes_text, say

if TYPE_CHECKING:
    from macllm.ops.metal.approved import Kept
    from macllm.ops.metal.trial import Verdict

    from .doctor_decoding import Decoding

SIMULATOR = "python -m tests.simulator FILE"
DECODES = ("qkv_post", "qkv_post_packed", "kv_decode", "kv_decode_packed", "qmv", "qmv_gated", "lora", "moe", "sample")
"""Ops of a decoding step."""
COLUMNS = ("kernel", "type", "error", "speed", "of memory", "used", "case")


@dataclass(frozen=True)
class Report:
    """What was found. Without Metal nothing is tried or timed: `lacking` says why."""

    machine: Mapping[str, Any]
    texts: Mapping[str, int | str]
    lacking: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    decided: Kept | None = None
    decoding: Decoding | None = None
    read_bytes_per_second: float | None = None
    hidden: tuple[tuple[str, str], ...] = field(default_factory=lambda: hidden())

    def facts(self) -> dict[str, Any]:
        """All of it, for programs."""
        found: dict[str, Any] = {
            "machine": dict(self.machine),
            "texts": dict(self.texts),
            "metal": self.lacking is None,
        }
        if self.decided is None:
            found |= {"lacking": self.lacking, "simulator": SIMULATOR}
        else:
            found |= {
                "read_bytes_per_second": self.read_bytes_per_second,
                "verdicts": [verdict.facts() for verdict in self.verdicts],
                "decisions": dict(self.decided.decisions),
                "reasons": dict(self.decided.reasons),
                "decoding": asdict(self.decoding) if self.decoding else None,
            }
        return self._without_names(found)

    def text(self) -> str:
        """All of it, for people."""
        lines = ["macllm doctor --kernels", ""]
        lines += [f"  {name.removesuffix('_bytes'):<14} {_plain(name, value)}" for name, value in self.machine.items()]
        lines += [f"  {name.replace('_', ' '):<14} {value}" for name, value in self.texts.items()]
        lines += ["", *(self._tried() if self.decided is not None else self._untried())]
        return self._without_names("\n".join(lines) + "\n")

    def _untried(self) -> list[str]:
        return [
            f"Nothing was tried, timed or decided: {self.lacking}.",
            "In a checkout, the simulator runs the same texts on any machine and finds what is wrong with them:",
            f"  {SIMULATOR}     a .metal file is looked through, a Python script's kernels are run",
            "  python -m pytest tests/ops/metal tests/simulator",
        ]

    def _tried(self) -> list[str]:
        assert self.decided is not None
        decided = self.decided
        rows = [COLUMNS, *(self._row(verdict) for verdict in self.verdicts)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]
        lines = ["  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
        lines += ["", "error: of what is allowed. speed: times that of MLX's own operations, the worse of two rounds."]
        if self.read_bytes_per_second:
            bandwidth = bytes_text(self.read_bytes_per_second)
            lines.append(
                f"of memory: the least bytes that must move, of the {bandwidth}/s that were measured, roughly."
            )
        serving = [name for name, used in decided.decisions.items() if used]
        lines += ["", f"Kernels serve {len(serving)} of {len(decided.decisions)} kinds of work; MLX serves the others."]
        lines += [f"  used      {name}" for name in serving]
        lines += [
            f"  not used  {name}: {decided.reasons.get(name)}" for name in decided.decisions if name not in serving
        ]
        return [*lines, "", *(self.decoding.lines() if self.decoding else ["No kernel serves: decoding is MLX's."])]

    def _row(self, verdict: Verdict) -> tuple[str, ...]:
        assert self.decided is not None
        worst = min(verdict.timings, key=lambda timing: timing.speedup, default=None)
        rate = verdict.bytes_per_second
        share = f"{rate / self.read_bytes_per_second:.0%}" if rate and self.read_bytes_per_second else "-"
        used = {True: "yes", False: "no", None: "-"}[self.decided.decisions.get(verdict.key) if verdict.timed else None]
        return (
            verdict.op,
            verdict.dtype,
            "-" if verdict.apart is None else f"{verdict.apart:.2g}",
            f"{worst.speedup:.2f}x" if worst else "-",
            share,
            used,
            verdict.label + (f": {verdict.objection}" if verdict.objection else ""),
        )

    def _without_names(self, told: Any) -> Any:
        """The same without what tells whose machine it is."""
        if isinstance(told, str):
            for pattern, instead in self.hidden:
                told = re.sub(pattern, instead, told)
            return told
        if isinstance(told, dict):
            return {key: self._without_names(value) for key, value in told.items()}
        return [self._without_names(one) for one in told] if isinstance(told, list | tuple) else told


def examine() -> Report:
    """Try all kernels and keep what is decided, at the end and at once."""
    import mlx.core as mx

    from macllm.evaluate.machine import read_bytes_per_second
    from macllm.ops.metal import approved
    from macllm.ops.metal.cases import cases
    from macllm.ops.metal.trial import decisions

    if not mx.metal.is_available():
        why = "Metal kernels need a Mac with Apple silicon" if sys.platform != "darwin" else "MLX finds no Metal here"
        return Report(machine(), _texts(), why)
    known = list(cases())
    say(f"trying {len(known)} pieces of work; nothing is kept before the end")
    verdicts = doctor_trials.trials(known, doctor_trials.try_cases)
    decided, found = decisions(verdicts), None
    if any(decided.decisions.values()):
        say("decoding with the bundled model, with kernels and without")
        with approved.supposing(decided):
            found = doctor_decoding.decoding()
        decided = withdrawn(decided, found)
    bandwidth = read_bytes_per_second()
    say(f"kept in {approved.remember(decided)}")
    ours = approved.machine()
    about = {"chip": ours["chip"], **machine(), "system": ours["system"], "mlx": ours["mlx"]}
    return Report(about, _texts(), None, tuple(verdicts), decided, found, bandwidth)


def withdrawn(decided: Kept, found: Decoding) -> Kept:
    """Decisions without the kernels of decoding, in the model's type, where they make a whole model slower."""
    if found.timing.highest >= 1:
        return decided
    names = {f"{op} {found.dtype}" for op in DECODES}
    keys = [
        key for key, used in decided.decisions.items() if used and key.split(" ", 2)[:2] in [n.split() for n in names]
    ]
    reasons = dict.fromkeys(keys, f"faster alone, but a whole model with it is {found.timing}")
    return replace(
        decided,
        decisions={**decided.decisions, **dict.fromkeys(keys, False)},
        reasons={**decided.reasons, **reasons},
    )


def _texts() -> dict[str, int | str]:
    """How many kernels there are, and which: all of their texts have been read."""
    from macllm.ops.metal import HERE, approved, text

    names = sorted(path.stem for path in HERE.glob("*.metal"))
    kernels = [name for name in names if text(name).source]
    return {"kernels": len(kernels), "hash_of_kernels": approved.kernels_hash()}


def hidden() -> tuple[tuple[str, str], ...]:
    """What of paths tells whose machine this is, as patterns, and what stands for it."""
    found = [(rf"{re.escape(str(Path.home()))}(?![\w.-])", "~")] if len(Path.home().parts) > 1 else []
    with suppress(OSError, KeyError):
        found.append((rf"(?<=[/\\]){re.escape(getpass.getuser())}(?![\w.-])", "user"))
    return tuple(found)


def _plain(name: str, value: Any) -> str:
    return bytes_text(value) if name.endswith("_bytes") else str(value)
