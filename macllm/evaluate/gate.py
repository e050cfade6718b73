"""Gates: bounds for a changed model beside its base, such as "kl<=0.02 bpb<=+0.5% task:mine>=-1pt".

A bound is passed or failed if the whole 95% interval of the paired comparison satisfies or violates it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from macllm.errors import UsageError

from . import bootstrap
from .bootstrap import Interval, Resampling

Verdict = Literal["pass", "fail", "undecided"]
Operator = Literal["<=", ">="]
Unit = Literal["", "%", "pt"]

EXAMPLE = "kl<=0.02 top1>=0.95 bpb<=+0.5% task:mine>=-1pt"
_TASK = "task:"
_METRICS = "kl, top1, ppl, bpb or task:NAME"
_UNITS: Mapping[str, tuple[Unit, ...]] = {
    "kl": ("",),
    "top1": ("",),
    "ppl": ("", "%"),
    "bpb": ("", "%"),
    "task": ("", "%", "pt"),
}
_FORMS: Mapping[Unit, str] = {"": "a bound such as 0.9", "%": "a change such as -1%", "pt": "points such as -1pt"}
_SHARES = ("top1", "task")  # their absolute bounds lie in [0, 1]
_METRIC = re.compile(r"[^\s<>=]+")
_OPERATOR = re.compile(r"<=|>=")
_NUMBER = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)((?:[eE][+-]?[0-9]+)?)(%|pt)?(?!\S)")
_SPACE = re.compile(r"\s*")
_SHOWN_CHARS = 20
_LARGEST_EXPONENT = 709  # of exp in float64
_STANDARD = Resampling()


@dataclass(frozen=True)
class Condition:
    """A bound of a metric: of its value, or of its change from the base, in percent or percentage points."""

    metric: str
    operator: Operator
    bound: float
    unit: Unit = ""

    def __str__(self) -> str:
        """The condition in the language of gates."""
        return f"{self.metric}{self.operator}{_number(self.bound, signed=bool(self.unit))}{self.unit}"

    @property
    def task(self) -> str | None:
        """The name of a task, None for metrics of texts."""
        return self.metric.removeprefix(_TASK) if self.metric.startswith(_TASK) else None

    @property
    def scale(self) -> float:
        """Size of one `unit`."""
        return 0.01 if self.unit else 1.0

    def verdict(self, interval: Interval) -> Verdict:
        """The verdict on an interval, whose ends are shares and not percent."""
        # Divided as the means of scores are, so that equal shares compare as equal.
        limit = self.bound / 100 if self.unit else self.bound
        best, worst = (interval.low, interval.high) if self.operator == "<=" else (-interval.high, -interval.low)
        limit = limit if self.operator == "<=" else -limit
        if math.isnan(best) or math.isnan(worst):
            return "undecided"
        return "pass" if worst <= limit else "fail" if best > limit else "undecided"


@dataclass(frozen=True)
class PairedTexts:
    """Sums over the scored tokens of G documents, under the base model and the changed one: (G,) each.

    `nll_before` and `nll_after` are in nats. `kl` sums the divergences KL(base || changed), `top1` counts the tokens
    with the same most probable token; both are None if they were not measured.
    """

    tokens: np.ndarray
    bytes: np.ndarray
    nll_before: np.ndarray
    nll_after: np.ndarray
    kl: np.ndarray | None = None
    top1: np.ndarray | None = None


@dataclass(frozen=True)
class PairedMeasurements:
    """Measurements of a changed model and its base on the same data.

    `tasks` has the scores of each task's M items, in [0, 1]: (M,) of the base and (M,) of the changed model.
    """

    texts: PairedTexts | None = None
    tasks: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict[str, "tuple[np.ndarray, np.ndarray]"]
    )


@dataclass(frozen=True)
class GateFinding:
    """The verdict on a condition, and the interval behind it, whose ends are shares and not percent."""

    condition: Condition
    interval: Interval
    verdict: Verdict
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The finding for JSON, values in the condition's unit."""
        shown = self.interval.mapped(lambda value: value / self.condition.scale)
        return {
            "condition": str(self.condition),
            "metric": self.condition.metric,
            "operator": self.condition.operator,
            "bound": self.condition.bound,
            "unit": self.condition.unit or None,
            **{name: _finite(value) for name, value in shown.as_dict().items()},
            "verdict": self.verdict,
            "note": self.note,
        }


@dataclass(frozen=True)
class GateReport:
    """The findings of a gate, one for each condition."""

    findings: tuple[GateFinding, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict on the whole: fail if one condition fails, pass if all pass."""
        verdicts = {finding.verdict for finding in self.findings}
        return "fail" if "fail" in verdicts else "undecided" if "undecided" in verdicts else "pass"

    def exit_code(self, *, lenient: bool = False) -> int:
        """0 for pass, 1 for fail; 1 for undecided unless `lenient`."""
        return 0 if self.verdict == "pass" or (lenient and self.verdict == "undecided") else 1

    def as_dict(self, *, lenient: bool = False) -> dict[str, Any]:
        """The report for JSON."""
        return {
            "verdict": self.verdict,
            "passed": self.exit_code(lenient=lenient) == 0,
            "conditions": [finding.as_dict() for finding in self.findings],
        }

    def lines(self, *, lenient: bool = False) -> Iterator[str]:
        """A table of the findings, their notes, and the verdict."""
        head = ("condition", "value", "95% interval", "n", "verdict")
        rows = [head, *map(_row, self.findings)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
        for row in rows:
            cells = [text.rjust(width) if at in (1, 3) else text.ljust(width) for at, (text, width) in
                     enumerate(zip(row, widths, strict=True))]  # fmt: skip
            yield "  ".join(cells).rstrip()
        for finding in self.findings:
            if finding.note:
                yield f"{finding.condition}: {finding.note}"
        admitted = ", which --lenient admits" if lenient and self.verdict == "undecided" else ""
        yield f"gate: {self.verdict}{admitted}"


def parse(text: str) -> tuple[Condition, ...]:
    """The conditions of a gate, separated by white space.

    A bound without a sign is absolute; with a sign it is a change from the base and ends in % or pt. Raises
    UsageError with the position of the first error.
    """
    found, position = list[Condition](), _after(_SPACE, text, 0)
    while position < len(text):
        condition, position = _condition(text, position)
        found.append(condition)
        position = _after(_SPACE, text, position)
    if not found:
        raise _error(text, position, _METRICS)
    return tuple(found)


def judge(
    conditions: Sequence[Condition], measured: PairedMeasurements, settings: Resampling = _STANDARD
) -> GateReport:
    """The verdict on each condition by the interval of the paired bootstrap over documents or items.

    Raises UsageError if `measured` lacks a metric, MacllmError for values that are not finite.
    """
    check_available(conditions, measured)
    return GateReport(tuple(_finding(condition, measured, settings) for condition in conditions))


def check_available(conditions: Iterable[Condition], measured: PairedMeasurements) -> None:
    """Raise UsageError for the first condition whose metric was not measured."""
    for condition in conditions:
        name = condition.task
        if name is not None and name not in measured.tasks:
            known = ", ".join(measured.tasks) or "none"
            raise UsageError(
                f"the gate needs the task {name!r}, which was not evaluated",
                cause=f"evaluated tasks: {known}",
                remedy="evaluate this task with both models, or leave the condition out",
            )
        texts = measured.texts
        if name is None and (texts is None or getattr(texts, condition.metric, True) is None):
            raise UsageError(
                f"the gate needs {condition.metric}, which was not measured",
                cause=f"{condition.metric} is measured on texts under both models",
                remedy="evaluate texts with both models, or leave the condition out",
            )


def _condition(text: str, position: int) -> tuple[Condition, int]:
    """The condition at a position, and the position after it."""
    metric = _METRIC.match(text, position)
    name = metric.group() if metric else ""
    kind = "task" if name.startswith(_TASK) and name != _TASK else name
    if metric is None or kind not in _UNITS or name == "task":
        raise _error(text, position, _METRICS)
    start = _after(_SPACE, text, metric.end())
    operator = _OPERATOR.match(text, start)
    if operator is None:
        raise _error(text, start, "<= or >=")
    start = _after(_SPACE, text, operator.end())
    number = _NUMBER.match(text, start)
    expected = " or ".join(_FORMS[unit] for unit in _UNITS[kind])
    if number is None:
        raise _error(text, start, expected)
    sign, digits, power, unit = number.groups(default="")
    bound = float(sign + digits + power)
    if bool(sign) != bool(unit):
        cause = f"{sign}{digits}{power} needs the unit % or pt" if sign else "a change needs a sign, + or -"
        raise _error(text, start, expected, cause)
    if unit not in _UNITS[kind]:
        raise _error(text, start, expected, f"{kind} has no bounds in {unit}")
    if math.isinf(bound) or (kind in _SHARES and not unit and bound > 1):
        raise _error(text, start, expected, f"{bound:g} is beyond the values of {kind}")
    return Condition(name, operator.group(), bound, unit), number.end()  # type: ignore[arg-type]


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position


def _error(text: str, position: int, expected: str, cause: str | None = None) -> UsageError:
    """The error at a position, counted from 1."""
    rest = text[position:]
    shown = rest[:_SHOWN_CHARS] + ("..." if len(rest) > _SHOWN_CHARS else "")
    found = repr(shown) if rest else "the end"
    return UsageError(
        f"gate, character {position + 1}: expected {expected}, found {found}",
        cause=cause,
        remedy=f'conditions such as "{EXAMPLE}"',
    )


def _finding(condition: Condition, measured: PairedMeasurements, settings: Resampling) -> GateFinding:
    name = condition.task
    if name is None:
        assert measured.texts is not None
        interval, unit = _of_texts(condition, measured.texts, settings), "documents"
    else:
        interval, unit = _of_task(condition, *measured.tasks[name], settings), "items"
    verdict = condition.verdict(interval)
    note = None
    if interval.method == "none":
        few = interval.n < bootstrap.FEWEST_UNITS
        least = f"an interval needs {bootstrap.FEWEST_UNITS} {unit} or more"
        note = least if few else "the base is 0 in some of the resamples"
    elif name is not None and condition.unit and interval.low == interval.high:
        unseen = 100 * (1 - ((1 - settings.level) / 2) ** (1 / interval.n))  # Clopper and Pearson 1934, for 0 of n
        note = f"all {interval.n} items changed alike; a change in up to {unseen:.1f}% of such items would not show"
    return GateFinding(condition, interval, verdict, note)


def _of_task(condition: Condition, before: np.ndarray, after: np.ndarray, settings: Resampling) -> Interval:
    if condition.unit == "pt":
        return bootstrap.mean_difference(before, after, settings)
    if condition.unit == "%":
        return bootstrap.relative_change(before, after, settings)
    return bootstrap.score(after, settings)


def _of_texts(condition: Condition, texts: PairedTexts, settings: Resampling) -> Interval:
    match condition.metric, condition.unit:
        case "bpb", "%":
            used = texts.bytes > 0  # the ratio of the values, as both divide by the same bytes
            return bootstrap.relative_change(texts.nll_before[used], texts.nll_after[used], settings)
        case "ppl", "%":
            change = bootstrap.ratio_difference(texts.nll_before, texts.nll_after, texts.tokens, settings)
            return change.mapped(lambda nats: _exp(nats) - 1)
        case "bpb", _:
            nats = bootstrap.ratio(texts.nll_after, texts.bytes, settings)
            return nats.mapped(lambda value: value / math.log(2))
        case "ppl", _:
            return bootstrap.ratio(texts.nll_after, texts.tokens, settings).mapped(_exp)
        case _:
            sums = texts.kl if condition.metric == "kl" else texts.top1
            assert sums is not None
            return bootstrap.ratio(sums, texts.tokens, settings)


def _exp(value: float) -> float:
    return math.exp(value) if value <= _LARGEST_EXPONENT else math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(finding: GateFinding) -> tuple[str, ...]:
    condition, interval = finding.condition, finding.interval
    show = partial(_shown, condition)
    ends = "none" if interval.method == "none" else f"{show(interval.low)} to {show(interval.high)}"
    return str(condition), show(interval.value), ends, str(interval.n), finding.verdict


def _shown(condition: Condition, value: float) -> str:
    if condition.unit:
        return f"{value / condition.scale:+.2f}{condition.unit}"
    return f"{value:.4g}"


def _number(value: float, *, signed: bool) -> str:
    """The shortest text that `float` reads as the value, with its sign if `signed`."""
    text = repr(abs(value)).removesuffix(".0")
    return ("-" if math.copysign(1, value) < 0 else "+") + text if signed else text
