"""Limits of a template's time, text and nesting; costs are estimated before operations run."""

from __future__ import annotations

import gc
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeGuard, cast

MAX_TEXT = 8_000_000  # characters of one string
MAX_WEIGHT = 300_000  # elements of one value on all levels; a string counts as 1 plus its length / CHARS_PER_ELEMENT
CHARS_PER_ELEMENT = 64
MAX_DEPTH = 100  # containers inside one another, and macros that call one another
MAX_BITS = 8192  # of an integer
MAX_WORK = 500_000  # characters for filters that loop over a string in Python
MAX_INDENT = 100
MAX_NEEDLE = 100  # characters of the search string where the time is the product of both lengths
TOTAL_TEXT = 64_000_000  # characters created by all operations together
_SCALARS = frozenset({int, float, bool, type(None)})
_PRECISE = re.compile(r"\d+")


_Container = list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any] | dict[Any, Any]


class LimitError(Exception):
    """A template exceeded a limit; the message names it."""


@dataclass
class Limits:
    """Processor seconds and output characters allowed for one rendering."""

    seconds: float = 1.0
    output_chars: int = MAX_TEXT


class _Collector(threading.local):
    """Processor seconds that Python's garbage collector has taken in this thread.

    A collection visits all objects of the program, seconds of them beside the rows of a large dataset, and begins in
    whatever code creates the next object.
    """

    seconds = 0.0
    _began = 0.0
    _clock = staticmethod(time.thread_time)

    def count(self, phase: str, info: Mapping[str, int]) -> None:
        """Take the beginning or the end of a collection; see `gc.callbacks`."""
        if phase == "start":
            self._began = self._clock()
        else:
            self.seconds += self._clock() - self._began


_collector = _Collector()
gc.callbacks.append(_collector.count)


def _processor_time() -> float:
    """Processor seconds of this thread without those of the garbage collector."""
    return time.thread_time() - _collector.seconds


class Budget:
    """Remaining resources of one rendering."""

    def __init__(self, limits: Limits, input_chars: int, now: datetime | None = None) -> None:
        self.now = now  # the time for `strftime_now`; None: the clock's
        self._limits = limits
        self._deadline = _processor_time() + limits.seconds
        self._next_look = time.monotonic() + limits.seconds
        self._text_left = TOTAL_TEXT + 8 * input_chars
        self._depth = 0
        self._known: dict[int, tuple[int, int, Any]] = {}
        self.written = 0
        self.spans: list[tuple[int, int]] = []
        self.authors: list[int | None] = []
        self._marked: list[str] = []
        self._numbers: dict[int, int] = {}

    def begin(self, messages: Sequence[Any] = ()) -> None:
        """Reset the output for another attempt on the same or other messages; spent resources stay spent."""
        self.written = 0
        self.spans, self.authors, self._marked = [], [], []
        self._numbers = {id(message): at for at, message in enumerate(messages)}

    def mark(self, text: str, visible: Iterable[Any]) -> None:
        """Record that the next characters, `text`, are the assistant's.

        They are of the one message among the values that are visible there, None if there is not just one.
        """
        numbers = {self._numbers[id(value)] for value in visible if id(value) in self._numbers}
        self.spans.append((self.written, self.written + len(text)))
        self._marked.append(text)
        self.authors.append(numbers.pop() if len(numbers) == 1 else None)

    def step(self, text: int = 0) -> None:
        """Charge one operation that creates `text` characters."""
        self._text_left -= text
        if self._text_left < 0:
            raise LimitError(f"it makes more than {TOTAL_TEXT:,} characters of text")
        if time.monotonic() > self._next_look:
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        """Raise LimitError after the allowed processor time.

        Reading that is a system call, ten times as dear as reading the clock. A thread gets no more processor time than
        passes on the clock, so the rest of what is allowed cannot be spent before it has passed there.
        """
        left = self._deadline - _processor_time()
        if left < 0:
            raise LimitError(f"it runs longer than {self._limits.seconds:g} s of processor time")
        self._next_look = time.monotonic() + left

    def check_spans(self, text: str) -> None:
        """Raise LimitError if a span of the rendering, `text`, has not the text of its block.

        The place of a block in a macro or a filter is known only if it is the first that is written there.
        """
        if any(text[start:stop] != own for (start, stop), own in zip(self.spans, self._marked, strict=True)):
            raise LimitError("its generation blocks lie in a macro or a filter, where their place is not known")

    def write(self, chunk: str) -> None:
        """Charge a chunk of the output."""
        self.written += len(chunk)
        self.step()
        if self.written > self._limits.output_chars:
            raise LimitError(f"it writes more than {self._limits.output_chars:,} characters")

    @contextmanager
    def deeper(self) -> Generator[None]:
        """Count the depth of nested calls."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise LimitError(f"its macros call one another more than {MAX_DEPTH} deep")
        try:
            yield
        finally:
            self._depth -= 1

    def admit(self, value: Any) -> Any:
        """Return `value` if it is small enough to be printed, compared or sorted; raise LimitError otherwise."""
        if isinstance(value, str):
            self.allow_text(len(value))
            self.step(len(value))
        elif isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise LimitError(f"it makes an integer of more than {MAX_BITS} bits")
        elif _is_container(value):
            self.weigh(value)
            self.step(len(value))
        return value

    def allow_text(self, chars: int) -> None:
        """Raise LimitError for a string longer than MAX_TEXT."""
        if chars > MAX_TEXT:
            raise LimitError(f"it makes a string of {chars:,} characters")

    def weigh(self, value: Any, level: int = 0) -> tuple[int, int]:
        """Number of elements on all levels, shared ones counted at each place, and nesting depth.

        Containers are immutable in the sandbox, so each is measured once and kept alive to keep its id unique.
        """
        if isinstance(value, str):
            return 1 + len(value) // CHARS_PER_ELEMENT, 0
        if not _is_container(value):
            return 1, 0
        if id(value) in self._known:
            return self._known[id(value)][:2]
        if level > MAX_DEPTH:
            raise LimitError(f"it nests containers more than {MAX_DEPTH} deep")
        self.step()
        inside = [*value, *value.values()] if isinstance(value, Mapping) else value
        weight, depth = 1, 0
        for element in inside:
            if type(element) in _SCALARS:
                weight += 1
            else:
                more, below = self.weigh(element, level + 1)
                weight, depth = weight + more, max(depth, below)
            if weight > MAX_WEIGHT:
                raise LimitError(f"it makes a value of more than {MAX_WEIGHT:,} elements")
        if depth >= MAX_DEPTH:
            raise LimitError(f"it nests containers more than {MAX_DEPTH} deep")
        self._known[id(value)] = (weight, depth + 1, value)
        return weight, depth + 1


def _is_container(value: object) -> TypeGuard[_Container]:
    return isinstance(value, list | tuple | dict | set | frozenset)


_current: ContextVar[Budget | None] = ContextVar("macllm_template_budget", default=None)


def budget() -> Budget:
    """The budget of the current rendering."""
    current = _current.get()
    if current is None:
        raise LimitError("it runs outside a rendering")
    return current


@contextmanager
def spending(spent: Budget) -> Generator[Budget]:
    """Context in which `spent` is the current budget."""
    token = _current.set(spent)
    try:
        yield spent
    finally:
        _current.reset(token)


def operator_limits(operator: str, left: Any, right: Any) -> None:
    """Raise LimitError for an operator with a too large result."""
    spent = budget()
    spent.step()
    if operator == "*":
        _product_limits(spent, left, right)
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        spent.allow_text(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        format_limits(left, _values(right), "%")
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _allow(left.bit_length() * max(right, 1), MAX_BITS, "bits of an integer")


def _values(value: Any) -> tuple[Any, ...]:
    return tuple(cast("Iterable[Any]", value)) if isinstance(value, tuple | list) else (value,)


def _product_limits(spent: Budget, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _allow(left.bit_length() + right.bit_length(), 2 * MAX_BITS, "bits of an integer")
        return
    times, value = (left, right) if isinstance(left, int) else (right, left)
    if isinstance(times, int) and isinstance(value, str | bytes):
        spent.allow_text(len(value) * max(times, 0))
    elif isinstance(times, int):
        _allow(spent.weigh(value)[0] * max(times, 0), MAX_WEIGHT, "elements")


def _allow(amount: float, limit: int, what: str) -> None:
    if amount > limit:
        raise LimitError(f"it needs {amount:,} {what}, more than {limit:,}")


def format_limits(text: str, values: tuple[Any, ...], mark: str) -> None:
    """Raise LimitError for a format string whose result could be too long."""
    spent = budget()
    fields = text.count(mark)
    widest = max((_written(spent, value) for value in values), default=0)
    starred = (
        sum(value for value in values if isinstance(value, int) and value > 0) if "*" in text or "{" in text else 0
    )
    widths = sum(int(number) if len(number) < 10 else MAX_TEXT + 1 for number in _PRECISE.findall(text))
    spent.allow_text(len(text) + fields * widest + widths + (starred if _has_computed_width(text, mark) else 0))


def _written(spent: Budget, value: Any) -> int:
    """Approximate upper bound of a value's printed length in characters."""
    return len(value) if isinstance(value, str) else CHARS_PER_ELEMENT * spent.weigh(value)[0]


def _has_computed_width(text: str, mark: str) -> bool:
    return "*" in text if mark == "%" else re.search(r"\{[^{}]*\{", text) is not None


def method_limits(text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check a string method's cost; returns its arguments with iterators read into lists."""
    spent = budget()
    first: Any = args[0] if args else None
    if name in ("center", "ljust", "rjust", "zfill"):
        spent.allow_text(_number(first))
    elif name == "expandtabs":
        spent.allow_text(len(text) + text.count("\t") * (first if isinstance(first, int) else 8))
    elif name == "replace" and len(args) > 1:
        spent.allow_text(len(text) + text.count(str(first)) * len(str(args[1])))
    elif name == "join" and args:
        parts = _read(first)
        spent.allow_text(len(text) * _size(parts))
        args = (parts, *args[1:])
    elif name in ("split", "rsplit", "splitlines"):
        parts = text.count(first) if isinstance(first, str) and first else len(text) // 2
        _allow(parts, MAX_WEIGHT, "elements")
    if name in ("rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip") and isinstance(first, str):
        _allow(len(first), MAX_NEEDLE, "characters to look for")
    return args


def _read(values: Any) -> Any:
    """Read an iterator into a list; other values are returned unchanged."""
    if hasattr(values, "__len__") or not isinstance(values, Iterable):
        return values
    return budget().admit(list(cast("Iterable[Any]", values)))


def _size(values: Any) -> int:
    return len(values) if hasattr(values, "__len__") else 0


def filter_limits(name: str, values: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Check a filter's cost; returns its value and arguments with iterators read into lists."""

    def argument(index: int, keyword: str, default: Any) -> Any:
        return values[index] if len(values) > index else kwargs.get(keyword, default)

    value: Any = values[0] if values else None
    if name in ("center", "indent", "format", "replace"):
        _text_filter_limits(name, str(value), argument, (*values[1:], *kwargs.values()))
    elif name in ("batch", "slice"):
        _allow(_number(argument(1, "linecount" if name == "batch" else "slices", 0)), MAX_WEIGHT // 3, "elements")
    elif name == "join":
        parts = _read(value)
        budget().allow_text(_size(parts) * len(str(argument(1, "d", ""))))
        values = [parts, *values[1:]]
    elif name in ("title", "urlencode", "list", "unique", "sort"):
        _allow(len(value) if isinstance(value, str) else 0, MAX_WORK, "characters")
    elif name == "tojson":
        _json_limits(value, argument(2, "indent", None), argument(3, "separators", None))
    elif name == "sum" and not isinstance(argument(2, "start", 0), int | float):
        raise LimitError("it sums values that are not numbers")
    elif name == "trim":
        _allow(len(str(argument(1, "chars", ""))), MAX_NEEDLE, "characters to look for")
    return values, kwargs


def _text_filter_limits(
    name: str, text: str, argument: Callable[[int, str, Any], Any], inserted: tuple[Any, ...]
) -> None:
    spent = budget()
    if name == "center":
        spent.allow_text(_number(argument(1, "width", 80)))
    elif name == "indent":
        width = argument(1, "width", 4)
        spent.allow_text((text.count("\n") + 1) * (len(width) if isinstance(width, str) else _number(width)))
    elif name == "format":
        format_limits(text, inserted, "%")
    elif name == "replace":
        spent.allow_text(len(text) + text.count(str(argument(1, "old", ""))) * len(str(argument(2, "new", ""))))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _json_limits(value: Any, indent: Any, separators: Any) -> None:
    spent = budget()
    weight, depth = spent.weigh(value)
    width = len(indent) if isinstance(indent, str) else _number(indent)
    _allow(width, MAX_INDENT, "characters of indent")
    extra = sum(len(str(separator)) for separator in _values(separators) if separators)
    spent.allow_text(weight * (max(width, 0) * depth + extra))
