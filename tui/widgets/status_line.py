"""The status line: model, activity, context, memory and a key hint."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.widgets import Static

from macllm.chat.session import ContextUse
from macllm.units import bytes_text, count_text, short_count_text
from macllm.visible import one_line

_BAR_CELLS = 8


@dataclass
class StatusValues:
    """Contents of the status line; None and empty fields are left out."""

    model: str
    activity: str = ""
    remark: str = ""  # engine status about background work; shown only without activity
    context: ContextUse | None = None
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    hint: str = ""


class StatusLine(Static):
    """Shows `StatusValues`; in a narrow terminal the least important are dropped first."""

    def __init__(self, status: StatusValues) -> None:
        super().__init__(markup=False)
        self.status = status

    def on_mount(self) -> None:
        """Draw for the first time."""
        self.redraw()

    def on_resize(self) -> None:
        """Draw for the new width."""
        self.redraw()

    def redraw(self) -> None:
        """Draw the current values."""
        self.update(render(self.status, self.content_size.width or 80))


def render(status: StatusValues, width: int) -> Content:
    """The line in `width` cells: items get shorter, then fewer, until they fit; the hint on the right."""
    hint = status.hint
    forms = [Content("  ·  ").stylize("$foreground 30%").join(items) for items in _forms(status)]
    for left in forms:
        room = width - left.cell_length
        if hint and len(hint) + 2 <= room:
            return Content.assemble(left, " " * (room - len(hint)), (hint, "$foreground 45%"))
        if not hint and room >= 0:
            return left
    return next((left for left in forms if left.cell_length <= width), forms[-1].truncate(width, ellipsis=True))


def _forms(status: StatusValues) -> list[list[Content]]:
    """The items, in forms from long to short."""
    model = Content.styled(one_line(status.model), "$foreground 80%")
    activity = [Content.styled(one_line(status.activity), "$accent")] if status.activity else []
    remark = [Content.styled(one_line(status.remark), "$foreground 45%")] if status.remark and not activity else []
    context, short_context = _context(status.context)
    memory = _memory(status)
    return [
        [model, *activity, *remark, *context, *memory],
        [model, *activity, *remark, *short_context, *memory],
        *([[model, *remark, *short_context]] if remark else []),
        [model, *activity, *short_context],
        [*activity, *short_context] if activity else [model, *short_context],
        activity or [model],
    ]


def _context(context: ContextUse | None) -> tuple[list[Content], list[Content]]:
    if context is None:
        return [], []
    used, limit = context.used_tokens, context.limit_tokens
    if not limit:
        text = f"context {count_text(used)}"
        return [Content(text)], [Content(f"ctx {short_count_text(used)}")]
    share = min(used / limit, 1.0)
    style = "$error" if share >= 0.9 else "$warning" if context.fills_up else "$foreground 60%"
    filled = min(round(share * _BAR_CELLS + 0.49), _BAR_CELLS) if used else 0
    bar = Content.assemble(("━" * filled, style), ("━" * (_BAR_CELLS - filled), "$foreground 20%"))
    long = Content.assemble(("context ", style), bar, (f" {count_text(used)}/{count_text(limit)}", style))
    percent = "<1" if 0 < share < 0.01 else f"{share:.0%}"[:-1]
    return [long], [Content.styled(f"ctx {percent} %", style)]


def _memory(status: StatusValues) -> list[Content]:
    if not status.memory_bytes:
        return []
    limit = f"/{bytes_text(status.memory_limit_bytes)}" if status.memory_limit_bytes else ""
    return [Content.styled(f"memory {bytes_text(status.memory_bytes)}{limit}", "$foreground 60%")]
