"""The status line: model, activity, context, memory and a key hint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from macllm.chat.context import ContextUse
from macllm.chat.options import short_name
from macllm.chat.session import Session
from macllm.generation.forecast import fitting_tokens
from macllm.units import bytes_text, count_text, duration_text, short_count_text
from macllm.visible import one_line

if TYPE_CHECKING:
    from ..pending_answer import PendingAnswer

_BAR_CELLS = 8
_HIGH, _NEARLY_FULL = 0.7, 0.9  # shares of context and memory from which the line says so


@dataclass
class StatusValues:
    """Contents of the status line; None and empty fields are left out."""

    model: str
    activity: str = ""
    remark: str = ""  # engine status about background work; shown only without activity
    adapter: str = ""
    preset: str = ""  # whose values are in effect
    reading: tuple[int, int] | None = None  # tokens of the prompt read so far, and all of them
    reused_tokens: int = 0  # of the prompt, which were read for an earlier answer
    first_token_seconds: float | None = None  # of the answer that is being written
    context: ContextUse | None = None
    fitting_tokens: int | None = None  # the context that fits into memory
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    queued: int = 0  # messages
    hint: str = ""

    def observe(self, session: Session | None, pending: PendingAnswer | None, queued: int) -> None:
        """Take the values of a session and of the answer that is being written."""
        self.queued = queued
        self.reading = self.first_token_seconds = None
        self.reused_tokens = 0
        self.context = session.context if session else None
        self.adapter = short_name(session.adapter) if session and session.adapter else ""
        self.preset = session.preset_in_effect if session else ""
        if pending is None:
            return
        if not pending.stopping:
            self.reading, self.first_token_seconds = pending.reading, pending.first_token_seconds
            self.reused_tokens = pending.reused_tokens
        if (memory := pending.memory) is not None:
            self.memory_bytes, self.memory_limit_bytes = memory.active_bytes, memory.limit_bytes
            used = self.context.used_tokens if self.context else 0
            self.fitting_tokens = fitting_tokens(pending.session.engine.info, memory, used)


class StatusLine(Static):
    """Shows `StatusValues`; in a narrow terminal the least important are dropped first."""

    def __init__(self, status: StatusValues) -> None:
        super().__init__(markup=False)
        self.status = status
        self._drawn = Content()

    def on_mount(self) -> None:
        """Draw for the first time."""
        self.redraw()

    def on_resize(self) -> None:
        """Draw for the new width."""
        self.redraw()

    def redraw(self) -> None:
        """Draw the current values, if they look different."""
        content = render(self.status, self.content_size.width or 80)
        if not content.is_same(self._drawn):
            self._drawn = content
            self.update(content, layout=False)  # its size stays, so nothing else moves


def render(status: StatusValues, width: int) -> Content:
    """The line in `width` cells: items get shorter, then fewer, until they fit; the hint on the right."""
    hint = status.hint
    forms = [Content("  ·  ").stylize("$faint").join(items) for items in _forms(status)]
    for left in forms:
        room = width - left.cell_length
        if hint and len(hint) + 2 <= room:
            return Content.assemble(left, " " * (room - len(hint)), (hint, "$muted"))
        if not hint and room >= 0:
            return left
    return next((left for left in forms if left.cell_length <= width), forms[-1].truncate(width, ellipsis=True))


def _forms(status: StatusValues) -> list[list[Content]]:
    """The items, in forms from long to short."""
    adapter = Content.styled(f" + {one_line(status.adapter)}", "$muted") if status.adapter else Content("")
    model = Content.styled(one_line(status.model), "$foreground")
    preset = [Content.styled(f"preset {one_line(status.preset)}", "$muted")] if status.preset else []
    activity, short_activity = _activity(status)
    timing = _timing(status)
    queued = [Content.styled(f"{count_text(status.queued)} queued", "$muted")] if status.queued else []
    remark = [Content.styled(one_line(status.remark), "$muted")] if status.remark and not activity else []
    context, fits, short_context = _context(status)
    memory, short_memory = _memory(status)
    return [
        [model + adapter, *preset, *activity, *timing, *queued, *remark, *_with(context, fits), *memory],
        [model + adapter, *preset, *activity, *timing, *queued, *remark, *context, *short_memory],
        [model + adapter, *preset, *short_activity, *timing, *queued, *remark, *short_context, *short_memory],
        *([[model + adapter, *preset, *short_activity, *queued, *remark, *short_context]] if preset else []),
        [model + adapter, *short_activity, *queued, *remark, *short_context, *short_memory],
        *([[model, *remark, *short_context]] if remark else []),
        [model, *short_activity, *timing, *queued, *short_context],
        [model, *short_activity, *queued, *short_context],
        [*short_activity, *queued, *short_context] if activity else [model, *short_context],
        short_activity or [model],
    ]


def _with(items: list[Content], more: Content) -> list[Content]:
    return [item + more for item in items]


def _activity(status: StatusValues) -> tuple[list[Content], list[Content]]:
    """The activity, long with a bar of the prompt read so far."""
    if status.reading is None or not status.activity:
        short = [Content.styled(one_line(status.activity), "$accent")] if status.activity else []
        return short, short
    done, total = status.reading
    numbers = Content.styled(f"{count_text(done)}/{count_text(total)}", "$accent")
    reading = Content.styled("reading ", "$accent")
    return [reading + bar(done / max(total, 1), "$accent") + " " + numbers], [reading + numbers]


def _timing(status: StatusValues) -> list[Content]:
    """Time to the first token, and the tokens of the prompt that were not read again."""
    items: list[str] = []
    if status.first_token_seconds is not None:
        items.append(f"first {duration_text(status.first_token_seconds, fine=True)}")
    if status.reused_tokens:
        items.append(f"reused {short_count_text(status.reused_tokens)}")
    return [Content.styled(item, "$muted") for item in items]


def _context(status: StatusValues) -> tuple[list[Content], Content, list[Content]]:
    """The context long and short, and how much of it fits into memory, if that is less than the limit."""
    context, none = status.context, Content("")
    if context is None:
        return [], none, []
    used, limit, fitting = context.used_tokens, context.limit_tokens, status.fitting_tokens
    fits = none
    if fitting is not None and (limit is None or fitting < limit):
        fits = Content.styled(f" (fits to {short_count_text(fitting)})", "$muted")
    if not limit:
        return [Content(f"context {count_text(used)}")], fits, [Content(f"ctx {short_count_text(used)}")]
    share = min(used / limit, 1.0)
    style = _style(share)
    long = Content.assemble(
        ("context ", style), bar(share, style), (f" {count_text(used)}/{count_text(limit)}{_level(share)}", style)
    )
    percent = "<1" if 0 < share < 0.01 else f"{share:.0%}"[:-1]
    return [long], fits, [Content.styled(f"ctx {percent} %{_warning(share)}", style)]


def _memory(status: StatusValues) -> tuple[list[Content], list[Content]]:
    """The memory with a bar and without."""
    used, limit = status.memory_bytes, status.memory_limit_bytes
    if not used:
        return [], []
    share = used / limit if limit else 0.0
    style = _style(share)
    numbers = f"{bytes_text(used)}/{bytes_text(limit)}{_level(share)}" if limit else bytes_text(used)
    short = Content.styled(f"memory {numbers}", style)
    long = Content.assemble(("memory ", style), bar(share, style), (f" {numbers}", style)) if limit else short
    return [long], [short]


def bar(share: float, style: str) -> Content:
    """A bar of eight cells; a cell begins to fill with its first part."""
    filled = max(int(min(share, 1) * _BAR_CELLS), share > 0)
    return Content.assemble(("━" * filled, style), ("─" * (_BAR_CELLS - filled), "$faint"))


def _level(share: float) -> str:
    """The share in words, where the colour alone would say that it is high."""
    if share < _HIGH:
        return ""
    return f", {min(share, 1):.0%}{_warning(share)}"


def _warning(share: float) -> str:
    if share < _NEARLY_FULL:
        return ""
    return ", nearly full" if share < 1 else ", full"


def _style(share: float) -> str:
    return "$error" if share >= _NEARLY_FULL else "$warning" if share >= _HIGH else "$muted"
