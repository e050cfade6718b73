"""Dispatches and device bytes of one decoded token: macllm's Metal kernels beside mlx-lm.

No GPU is needed: both steps are traced, not computed, and counted by the same rules (primitives.py, dispatches.py).
Weights of 4 bits in groups of 64; keys and values of 4 bits in groups of 64, or bfloat16. Bytes count once in each
dispatch. Attention has a second count, "asked": threadgroups that go over the same keys each count, as caches may keep
them and may not. `python tests/bench/traffic.py [Llama-3.2-1B Qwen3-4B Qwen3-30B-A3B]`; `--write` puts all of it into
models/METAL.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from decode_steps import CONFIGS, Step, macllm_step, mlx_lm_step
from timing import machine

CONTEXTS = (256, 8192, 32768)
BITS = (4, None)
MOST_OVER_LEAST = 1.05
LONG, TIMES_LESS = 8192, 3.0
PAGE = Path(__file__).resolve().parents[2] / "models" / "METAL.md"
BEGIN, END = "<!-- tests/bench/traffic.py writes this -->\n", "<!-- until here -->\n"


@dataclass(frozen=True)
class Count:
    """Dispatches and bytes of one step."""

    dispatches: int
    nbytes: int
    attention_bytes: int
    asked_bytes: int  # of attention
    kernels: dict[str, int]

    @classmethod
    def of(cls, step: Step) -> Count:
        """Totals of a step."""
        made = step.dispatches()
        attention = [one for one in made if one.attention]
        once = sum(one.nbytes for one in attention)
        kernels: dict[str, int] = {}
        for one in made:
            kernels[one.name] = kernels.get(one.name, 0) + 1
        asked = once + sum(one.again_bytes for one in attention)
        return cls(len(made), sum(one.nbytes for one in made), once, asked, kernels)


@dataclass(frozen=True)
class Row:
    """One model with one context and one kind of cache."""

    model: str
    context: int
    bits: int | None
    ours: Count
    theirs: Count
    least_bytes: int  # the weights of a token and the whole cache, once

    @property
    def title(self) -> str:
        """Label in the table."""
        return f"{self.model} {'dense' if self.bits is None else f'{self.bits} bit'} {self.context}"

    @property
    def over_least(self) -> float:
        """Our bytes relative to the least."""
        return self.ours.nbytes / self.least_bytes


@dataclass(frozen=True)
class Goal:
    """A requirement, and its verdict."""

    name: str
    missed: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {'met' if not self.missed else 'MISSED by ' + ', '.join(self.missed)}"


def main() -> None:
    """Count, print the table, the goals and a line of JSON."""
    models = [name for name in sys.argv[1:] if not name.startswith("-")]
    rows = []
    print(_HEAD)
    for row in measured(models or list(CONFIGS)):
        print(line(row), flush=True)
        rows.append(row)
    print()
    reached = goals(rows)
    print(*reached, sep="\n")
    if "--write" in sys.argv:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + page(rows) + END + rest.partition(END)[2], encoding="utf-8")
    named = {row.title: asdict(row) for row in rows}
    met = {goal.name: not goal.missed for goal in reached}
    print(json.dumps({"bench": "traffic", **machine(), "results": named, "goals": met}))


def page(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    head = "model|cache|context|dispatches|mlx-lm|MB|mlx-lm|least|attention asks for, MB|mlx-lm|touches, MB|mlx-lm"
    lines = [head.split("|"), ["---"] * 2 + ["--:"] * 10]
    for row in rows:
        cache = "bfloat16" if row.bits is None else f"{row.bits} bit"
        ours, theirs = row.ours, row.theirs
        sizes = (ours.nbytes, theirs.nbytes, row.least_bytes, ours.asked_bytes, theirs.asked_bytes)
        megabytes = [
            f"{size / 1e6:#.4g}".rstrip(".") for size in (*sizes, ours.attention_bytes, theirs.attention_bytes)
        ]
        counts = [str(row.context), str(ours.dispatches), str(theirs.dispatches)]
        lines.append([row.model, cache, *counts, *megabytes])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def measured(models: Sequence[str]) -> Iterator[Row]:
    """The table, row by row."""
    for bits in BITS:
        for model in models:
            for context in CONTEXTS:
                yield row_of(model, context, bits)


def row_of(model: str, context: int, bits: int | None) -> Row:
    """One row of the table."""
    ours, theirs = (make(CONFIGS[model], context, bits) for make in (macllm_step, mlx_lm_step))
    return Row(model, context, bits, Count.of(ours), Count.of(theirs), ours.weights_bytes + ours.cache_bytes)


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Goals for these rows."""
    long = [row for row in rows if row.bits is not None and row.context >= LONG]
    return [
        Goal(
            "fewer dispatches than mlx-lm everywhere",
            tuple(row.title for row in rows if row.ours.dispatches >= row.theirs.dispatches),
        ),
        Goal(
            f"bytes within {MOST_OVER_LEAST - 1:.0%} of weights and cache read once",
            tuple(f"{row.title} ({row.over_least - 1:+.1%})" for row in rows if row.over_least > MOST_OVER_LEAST),
        ),
        *(
            Goal(
                f"attention {kind} at {LONG} and above at least {TIMES_LESS:g} times less than mlx-lm's, packed",
                tuple(f"{row.title} ({times:.2f})" for row in long if (times := _times(row, kind)) < TIMES_LESS),
            )
            for kind in ("asks for", "touches")
        ),
    ]


def _times(row: Row, kind: str) -> float:
    if kind == "asks for":
        return row.theirs.asked_bytes / row.ours.asked_bytes
    return row.theirs.attention_bytes / row.ours.attention_bytes


_HEAD = f"{'':33}{'dispatches':^15}{'megabytes':^34}{'of attention':^23}{'asked for by attention':^23}\n" + (
    f"{'model, cache, context':33}{'ours':>7}{'mlx-lm':>8}{'ours':>10}{'mlx-lm':>9}{'least':>9}{'over':>6}"
    f"{'ours':>8}{'mlx-lm':>9}{'times':>6}{'ours':>8}{'mlx-lm':>9}{'times':>6}"
)


def line(row: Row) -> str:
    """A printed row."""
    ours, theirs = row.ours, row.theirs
    return (
        f"{row.title:33}{ours.dispatches:7}{theirs.dispatches:8}"
        f"{ours.nbytes / 1e6:10.1f}{theirs.nbytes / 1e6:9.1f}{row.least_bytes / 1e6:9.1f}{row.over_least - 1:6.1%}"
        f"{ours.attention_bytes / 1e6:8.1f}{theirs.attention_bytes / 1e6:9.1f}{_times(row, 'touches'):6.2f}"
        f"{ours.asked_bytes / 1e6:8.1f}{theirs.asked_bytes / 1e6:9.1f}{_times(row, 'asks for'):6.2f}"
    )


if __name__ == "__main__":
    main()
