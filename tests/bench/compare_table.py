"""Tables of compare.py, the work of each peer, and the goals of macllm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from timing import Series

PEERS = ("macllm", "mlx-lm", "torch", "llama.cpp")
WIDTHS = ("f32", "bf16", "q8", "q4")
TASKS = ("inference", "lora", "full", "growth")

PROMPT, DECODE, TRAIN, PEAK = "prompt tokens/s", "decode tokens/s", "tokens/s", "peak MB"
WEIGHTS, SHORT, LONG, CACHE = "weights MB", "ms at 256", "ms at 8192", "cache bytes over formula"

Rows = Mapping[str, Mapping[str, Series]]  # by peer and measure


class Table(NamedTuple):
    """Shape, format and task of one table."""

    shape: str
    width: str
    task: str

    @property
    def title(self) -> str:
        """Name in the output and in JSON."""
        return " ".join(self)

    @property
    def exists(self) -> bool:
        """True if the table is measured. Full training of L needs 8 GB for weights and optimizer."""
        match self.task:
            case "lora":
                return self.width in ("f32", "bf16")
            case "full":
                return self.width == "f32" and self.shape != "L"
            case "growth":
                return self.shape == "M" and self.width != "q8"
        return True


@dataclass(frozen=True)
class Load:
    """Work of one measurement: tokens of prompt and completion, rows of a batch and their tokens.

    It is repeated until `seconds` are over, after a first time to warm up; with 0 seconds the first time counts.
    """

    prompt: int = 512
    new: int = 64
    batch: int = 4
    length: int = 256
    seconds: float = 3.0


# Stock MLX's products are 50 to 1000 times slower: a load that takes some seconds.
_STOCK_DENSE = {"S": (64, 16), "M": (32, 8), "L": (16, 4)}
_STOCK_OTHER = {"S": (16, 4), "M": (8, 3), "L": (4, 3)}
_STOCK_LENGTH = {"S": 32, "M": 16, "L": 8}


def load_of(peer: str, table: Table, whole: Load) -> Load:
    """The load, reduced for mlx-lm."""
    if peer != "mlx-lm":
        return whole
    amounts = _STOCK_DENSE if table.width == "f32" else _STOCK_OTHER
    prompt, new = amounts.get(table.shape, amounts["M"])
    length = _STOCK_LENGTH.get(table.shape, _STOCK_LENGTH["M"])
    return replace(
        whole,
        prompt=min(prompt, whole.prompt),
        new=min(new, whole.new),
        batch=1,
        length=min(length, whole.length),
        seconds=0.0,
    )


class Goal(NamedTuple):
    """A ratio and its bound."""

    name: str
    value: float
    spread: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """True if the value is within the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        wanted = f"at {'least' if self.at_least else 'most'} {self.bound:g}"
        return f"{'met   ' if self.met else 'MISSED'}  {self.name:<58} {self.value:8.2f} ±{self.spread:3.0%}  {wanted}"


def _over(name: str, ours: Series, theirs: Series, bound: float, at_least: bool = True) -> Goal:
    return Goal(name, ours.median / theirs.median, ours.spread + theirs.spread, bound, at_least)


def goals(table: Table, rows: Rows, bandwidth: float | None = None) -> Iterator[Goal]:
    """Goals of a table against the peers present; `bandwidth` in bytes a second."""
    ours = rows.get("macllm")
    if ours is None:
        return
    if table.task == "inference":
        yield from _inference(table, rows, bandwidth)
    elif table.task == "growth":
        yield _over(f"{table.title}: step at 8192 over 256", ours[LONG], ours[SHORT], 1.5, at_least=False)
        yield Goal(f"{table.title}: {CACHE}", ours[CACHE].median, ours[CACHE].spread, 1.001, at_least=False)
    else:
        for peer, least in (("torch", 1.0), ("mlx-lm", 10.0)):
            theirs = rows.get(peer, {})
            if TRAIN in theirs:
                yield _over(f"{table.title}: over {peer}", ours[TRAIN], theirs[TRAIN], least)
            if PEAK in theirs:
                yield _over(f"{table.title}: memory over {peer}", ours[PEAK], theirs[PEAK], 1.0, at_least=False)


def _inference(table: Table, rows: Rows, bandwidth: float | None) -> Iterator[Goal]:
    ours = rows["macllm"]
    if table.width == "q4" and "mlx-lm" in rows:
        for measure in (DECODE, PROMPT):
            yield _over(f"{table.title}: {measure} over mlx-lm", ours[measure], rows["mlx-lm"][measure], 100.0)
    for measure, peers in ((DECODE, ("torch", "llama.cpp")), (PROMPT, ("llama.cpp",))):
        present = [peer for peer in peers if peer in rows]
        if present:
            best = max(present, key=lambda peer: rows[peer][measure].median)
            yield _over(f"{table.title}: {measure} over {best}", ours[measure], rows[best][measure], 1.0)
    if table.shape == "L" and bandwidth:
        share = ours[DECODE].median * ours[WEIGHTS].median * 1e6 / bandwidth
        yield Goal(f"{table.title}: share of the read bandwidth", share, ours[DECODE].spread, 0.7)


def ratios(table: Table, rows: Rows) -> dict[str, float]:
    """macllm over each peer, by measure."""
    found = {}
    for peer, theirs in rows.items():
        for measure in (PROMPT, DECODE, TRAIN, PEAK):
            ours = rows.get("macllm", {}).get(measure)
            if peer != "macllm" and ours and measure in theirs:
                found[f"{table.title}, {measure}, macllm over {peer}"] = ours.median / theirs[measure].median
    return found


def line(peer: str, series: Mapping[str, Series], note: str) -> str:
    """One printed row."""
    shown = (f"{measure} {one.median:9.1f} ±{one.spread:3.0%}" for measure, one in series.items() if measure != WEIGHTS)
    return f"{peer:<10} {'   '.join(shown)}   {note}".rstrip()
