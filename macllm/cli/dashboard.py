"""A training run on a terminal: progress, time left, loss, speed and memory in two lines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

from macllm.units import bytes_text, duration_text, short_count_text

from .live import Line

if TYPE_CHECKING:
    from macllm.train.events import Advanced, Prepared, TrainEvent

WINDOW = 50  # last steps from which speed and time left are computed
MOST_CELLS = 24  # of the curve
_SHORTEST_CURVE = 8
_MOST_POINTS = 512  # kept of the curve; then neighbours are joined
_SMOOTHING = 0.8
_OUTLIER = 3.0  # times the median, to which longer steps are cut
_NEARLY_FULL = 0.9  # of the memory
_BLOCKS = "▁▂▃▄▅▆▇█"
_DONE, _LEFT, _PLAIN_DONE, _PLAIN_LEFT = "━", "─", "#", "-"
_ACCENT, _DIM, _WARNING = "36", "2", "33"
_SHORTEST_BAR = 6
_GAP = "  "


@dataclass
class Curve:
    """The losses of all steps, as the mean of the last ones and as a line of blocks."""

    points: list[float] = field(default_factory=list[float])  # means of `_each` losses each
    _each: int = 1
    _waiting: list[float] = field(default_factory=list[float])
    _mean: float = 0.0
    _weight: float = 0.0

    def add(self, loss: float) -> None:
        """Append the loss of a step."""
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * loss
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self._waiting.append(loss)
        if len(self._waiting) >= self._each:
            self.points.append(fmean(self._waiting))
            self._waiting.clear()
        if len(self.points) >= _MOST_POINTS:
            self.points = [fmean(self.points[i : i + 2]) for i in range(0, len(self.points), 2)]
            self._each *= 2

    @property
    def loss(self) -> float | None:
        """Exponentially weighted mean of the losses, None without any."""
        return self._mean / self._weight if self._weight else None

    def blocks(self, cells: int) -> str:
        """At most `cells` blocks for the whole run, the highest for the highest mean."""
        count = min(cells, len(self.points))
        if count < 2:
            return ""
        edges = [len(self.points) * i // count for i in range(count + 1)]
        means = [fmean(self.points[a:b]) for a, b in pairwise(edges)]
        low, high = min(means), max(means)
        span = (high - low) or 1.0
        return "".join(_BLOCKS[round((mean - low) / span * (len(_BLOCKS) - 1))] for mean in means)


@dataclass
class Pace:
    """Time that a run still takes, from its last steps, its last evaluation and its saves so far."""

    steps: deque[float] = field(default_factory=lambda: deque[float](maxlen=WINDOW))  # seconds
    evaluation: float = 0.0  # seconds of the last one
    saves: float = 0.0  # seconds of all
    done: int = 0

    def step(self, seconds: float) -> None:
        """Count a step. The first one of a process also compiles kernels."""
        if len(self.steps) == 1 and self.steps[0] > _OUTLIER * seconds:
            self.steps.clear()
        self.steps.append(seconds)
        self.done += 1

    def left(self, steps: int, evaluations: int) -> float | None:
        """Seconds for this number of steps and evaluations; None before the first step."""
        if not self.steps:
            return None
        most = _OUTLIER * median(self.steps)
        each = fmean(min(seconds, most) for seconds in self.steps) + self.saves / self.done
        return steps * each + evaluations * self.evaluation


class Dashboard:
    """The state of a run that its events tell, and its lines."""

    def __init__(self, memory: int, blocks: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.curve, self.pace = Curve(), Pace()
        self._memory, self._blocks, self._clock = memory, blocks, clock
        self._work: Advanced | None = None
        self._began = clock()  # of the work
        self._step: Advanced | None = None  # of training
        self._state = ""  # what is done instead of work that tells its progress
        self._checked = 0  # step of the last evaluation
        self.stopping = False  # an interruption waits for the step and the snapshot
        self._tokens: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._prepared: Prepared | None = None
        self._validation: float | None = None
        self._metrics = ""  # of the last report
        self._left: tuple[float, float] | None = None  # seconds left, and the time when it was so

    def take(self, event: TrainEvent) -> None:
        """Take an event."""
        from macllm.train.events import Advanced, Continued, Evaluated, Paused, Prepared, Restarted, Saved, Step

        self._state = ""
        if isinstance(event, Prepared):
            self._begin(event)
        elif isinstance(event, Advanced):
            self._advance(event)
        elif isinstance(event, Evaluated):
            self._validation, self._checked = event.loss, event.step
            self.pace.evaluation = self._clock() - self._began
            self._work = None
        elif isinstance(event, Saved) and self._work is not None and self._work.work == "saving":
            self.pace.saves += self._clock() - self._began
            self._work = None
        elif isinstance(event, Restarted):
            self._step, self._work, self._state = None, None, "restarting"
        elif isinstance(event, Step):
            self._metrics = metrics_text(event.metrics)
        elif isinstance(event, Paused):
            self._state = "paused"
        elif isinstance(event, Continued):
            self._work = None
        if not isinstance(event, Advanced) or event.work == "training":
            self._estimate()

    def _begin(self, event: Prepared) -> None:
        from macllm.train.events import Advanced

        self._prepared, self._work, self._checked = event, None, event.first_step
        self._step = Advanced("training", event.first_step, event.steps)
        self.pace.steps.clear()

    def _advance(self, event: Advanced) -> None:
        if self._work is None or event.work != self._work.work:
            self._began = self._clock()
        self._work = event
        if event.work == "training":
            self._step = event
            if event.seconds:
                self.pace.step(event.seconds)
            self._tokens.append((event.tokens, event.seconds))
            if event.loss is not None:
                self.curve.add(event.loss)

    def lines(self, width: int) -> list[Line]:
        """One or two lines shorter than `width`; none before there is something to tell."""
        begun = self._step is not None and self.pace.steps
        shown = self._step if begun or self._work is None else self._work
        if self.stopping:
            lines: list[Line] = [[("stopping after this step; Ctrl-C again: at once, without saving it", _WARNING)]]
        elif shown is None or self._state == "restarting":
            lines = [[(self._state, "")]] if self._state else []
        else:
            lines = [self._progress(shown, width - 1)]
        return [*lines, facts] if lines and (facts := self._facts(width - 1)) else lines

    def _estimate(self) -> None:
        if (step := self._step) is None:
            return
        left = self.pace.left(step.total - step.done, self._evaluations(step))
        self._left = None if left is None else (left, self._clock())

    def _evaluations(self, step: Advanced) -> int:
        """The number of evaluations to come, that of the last step included."""
        if self._prepared is None or not self._prepared.sampled_rows:
            return 0
        every, done = self._prepared.steps_per_eval, max(step.done, 1)
        due = 1 + ((step.total - 1) // every - (done - 1) // every if every else 0)
        return due - (self._checked == done and bool(done == step.total or (every and done % every == 0)))

    def _progress(self, shown: Advanced, width: int) -> Line:
        is_last = shown.work == "training" and shown.done >= shown.total and not self._evaluations(shown)
        label = self._state or (self._work or shown).work
        label = "saving" if is_last and label == "training" else label
        count = f"{shown.done}/{shown.total}"
        if len(label) + 1 + len(_GAP) + len(count) > width:
            return [(count, "")]
        share = shown.done / shown.total if shown.total else 0.0
        tail = [count, f"{int(100 * share)} %", "" if self._state else self._time_left(shown)]
        room = width - len(label) - 1 - len(_GAP) * 3
        for dropped in (1, 2):
            if room - sum(map(len, tail)) < _SHORTEST_BAR:
                tail[dropped] = ""
        ends = _GAP.join(filter(None, tail))
        cells = max(0, min(40, width - len(label) - 1 - len(_GAP) - len(ends)))
        done, left = (_DONE, _LEFT) if self._blocks else (_PLAIN_DONE, _PLAIN_LEFT)
        filled = int(share * cells)
        return [
            (f"{label} ", ""),
            (done * filled, _ACCENT),
            (left * (cells - filled), _DIM),
            (f"{_GAP}{ends}", ""),
        ]

    def _time_left(self, shown: Advanced) -> str:
        if shown.work != "training":
            elapsed = self._clock() - self._began
            seconds = elapsed / shown.done * (shown.total - shown.done) if shown.done and elapsed > 1 else None
        elif self._left is None:
            seconds = None
        else:
            seconds = max(0.0, self._left[0] - (self._clock() - self._left[1]))
        return "" if seconds is None else f"{duration_text(seconds)} left"

    def _facts(self, width: int) -> Line:
        """Loss, curve, validation loss, speed, memory and learning rate, as far as there is room."""
        if (step := self._step) is None:
            return []
        facts = list(self._told(step))
        reserved = len(_GAP) + _SHORTEST_CURVE if self._blocks and len(self.curve.points) > 1 else 0
        if _length(facts) + reserved > width:
            facts = [_Fact(each.rank, each.short or each.text, each.colour) for each in facts]
        while len(facts) > 1 and _length(facts) + reserved > width:
            facts.remove(max(facts, key=lambda each: each.rank))
        if reserved and (room := width - _length(facts) - len(_GAP)) >= _SHORTEST_CURVE:
            after = [each.rank for each in facts].index(0) + 1
            facts.insert(after, _Fact(0, self.curve.blocks(min(MOST_CELLS, room)), _ACCENT))
        line: Line = []
        for each in facts:
            line += [(_GAP, ""), (each.text, each.colour)] if line else [(each.text, each.colour)]
        return line

    def _told(self, step: Advanced) -> Iterator[_Fact]:
        if self._work is not None and self._work.work == "evaluating":
            yield _Fact(1, f"batch {self._work.done}/{self._work.total}")
        if self.curve.loss is not None:
            yield _Fact(0, f"loss {self.curve.loss:.4f}")
        if self._metrics:
            yield _Fact(4, self._metrics)
        if (checked := self._validation) is not None:
            yield _Fact(4, f"validation {checked:.4f}", short=f"valid {checked:.4f}")
        seconds = sum(each for _, each in self._tokens)
        if seconds > 0:
            speed = round(sum(tokens for tokens, _ in self._tokens) / seconds)
            yield _Fact(2, f"{short_count_text(speed)} tokens/s")
        if step.peak_bytes:
            colour = _WARNING if step.peak_bytes > _NEARLY_FULL * self._memory else ""
            now, peak, most = map(bytes_text, (step.active_bytes, step.peak_bytes, self._memory))
            short = now.removesuffix(peak[peak.index(" ") :])  # one unit for both
            whole, short = f"{now}, peak {peak} of {most}", f"{short}/{peak} of {most}"
            if not step.active_bytes:  # as in the reports of a run of another process
                whole = short = f"peak {peak} of {most}"
            yield _Fact(3, whole, colour, short=short)
        if step.learning_rate:
            yield _Fact(5, f"lr {step.learning_rate:.1e}", _DIM)


@dataclass(frozen=True)
class _Fact:
    """A piece of a line. Those of the highest rank go first where there is no room."""

    rank: int
    text: str
    colour: str = ""
    short: str = ""


def metrics_text(metrics: Mapping[str, float], most: int = 2) -> str:
    """The first of an objective's metrics."""
    shown = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in metrics.items()]
    return _GAP.join(shown[:most])


def _length(facts: list[_Fact]) -> int:
    return sum(len(each.text) + len(_GAP) for each in facts) - len(_GAP)
