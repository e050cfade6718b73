"""Blocks of a conversation: user messages, answers and marks."""

from __future__ import annotations

import asyncio
import time

from textual.app import ComposeResult
from textual.containers import VerticalGroup
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from macllm.chat.conversation import Attachment, Node
from macllm.generation.request import CallLines, Delta
from macllm.units import duration_text, tokens_text
from macllm.visible import visible

from ..text.folds import shown
from ..text.summary import summarize
from .blank import Blank
from .stream_markdown import StreamMarkdown

_SHORTEST_PAUSE_SECONDS = 0.04
_LONGEST_PAUSE_SECONDS = 1.0
_DUTY = 3  # drawing takes at most 1 / (1 + _DUTY) of the time, so that typing stays responsive
_LIVE_REASONING = 1200  # characters of the newest reasoning that are shown while it grows


class TurnBlock(Widget):
    """A message of the conversation on the screen; CSS class -selected in block mode."""

    node: Node | None = None  # its place in the conversation; None: not in it yet

    @property
    def text(self) -> str:
        """The text to copy."""
        return self.node.turn.content if self.node else ""

    def show_place(self, number: int, count: int) -> None:
        """Say that it is version `number` of `count`."""

    def fold(self) -> None:
        """Fold or unfold."""


class UserTurn(Static, TurnBlock):
    """A message of the user, as typed; a long one is folded. CSS class -queued: not sent yet."""

    def __init__(
        self,
        text: str,
        attachments: tuple[Attachment, ...] = (),
        *,
        node: Node | None = None,
        queued: bool = False,
    ) -> None:
        super().__init__(classes="-queued" if queued else "", markup=False)
        self.node = node
        self.message = text
        self.attachments = attachments
        self._place = ""
        self._folded = True
        self._draw()

    @property
    def text(self) -> str:
        """The message as typed."""
        return self.message

    def show_place(self, number: int, count: int) -> None:
        """Say that it is version `number` of `count`."""
        place = place_text(number, count)
        if place != self._place:
            self._place = place
            self._draw()

    def fold(self) -> None:
        """Fold or unfold a long message."""
        self._folded = not self._folded
        self._draw()

    def _draw(self) -> None:
        text = shown(self.message, self.attachments, whole=not self._folded)
        self.update(Content.assemble(visible(text), (f"  {self._place}" if self._place else "", "$muted")))


class CutMark(Static, TurnBlock):
    """The mark where the oldest messages were left out, with their summary if there is one."""

    def __init__(self, node: Node, dropped: int) -> None:
        super().__init__(markup=False)
        self.node = node
        self._dropped = dropped
        self._folded = True
        self._draw()

    def fold(self) -> None:
        """Fold or unfold the summary."""
        self._folded = not self._folded
        self._draw()

    def on_click(self) -> None:
        """Fold or unfold the summary."""
        self.fold()

    def _draw(self) -> None:
        many = self._dropped != 1
        line = f"{self._dropped} earlier message{'s are' if many else ' is'} no longer read"
        if not self.text:
            self.update(Content(f"── {line}"))
            return
        title = f"{'▸' if self._folded else '▾'} {line}, but summarized"
        self.update(Content(title if self._folded else f"{title}\n{visible(self.text)}"))


def place_text(number: int, count: int) -> str:
    """The place among versions, such as ‹2/3›; empty for the only one."""
    return f"‹{number}/{count}›" if count > 1 else ""


class ReasoningTitle(Static):
    """The title line of the reasoning."""


class Reasoning(VerticalGroup):
    """Reasoning of the model: open while it grows, then folded unless the user has toggled it."""

    def __init__(self, stored: str = "") -> None:
        super().__init__(classes="-folded" if stored else "")
        self.text = stored
        self._tokens = 0
        self._started: float | None = None if stored else time.monotonic()
        self._seconds: float | None = None
        self._done = bool(stored)
        self._toggled = False

    def compose(self) -> ComposeResult:
        """Title and text."""
        yield ReasoningTitle(markup=False)
        yield Static(classes="thoughts", markup=False)

    def on_mount(self) -> None:
        """Draw the text that arrived before the widget was mounted."""
        self._draw()

    def write(self, text: str, tokens: int) -> None:
        """Append text."""
        self.text += text
        self._tokens += tokens
        self._draw()

    def finish(self) -> None:
        """Stop the clock, and fold unless the user has toggled it."""
        if not self._done and self._started is not None:
            self._done = True
            self._seconds = time.monotonic() - self._started
            if not self._toggled:
                self.add_class("-folded")
            self._draw()

    def toggle(self) -> None:
        """Fold or unfold."""
        self._toggled = True
        self.toggle_class("-folded")
        self._draw()

    def on_click(self) -> None:
        """Fold or unfold."""
        self.toggle()

    def _draw(self) -> None:
        folded = self.has_class("-folded")
        label = "thought" if self._done else "thinking…"
        if self._seconds is not None:
            label += f" for {duration_text(self._seconds, fine=True)}"
        counted = f" · {tokens_text(self._tokens)}" if self._tokens else ""
        self.query_one(ReasoningTitle).update(Content(f"{'▸' if folded else '▾'} {label}{counted}"))
        shown = self.text.strip()
        if not self._done and len(shown) > _LIVE_REASONING:
            shown = "…" + shown[-_LIVE_REASONING:]
        self.query_one(".thoughts", Static).update(Content("" if folded else shown))


class AnswerTurn(VerticalGroup, TurnBlock, Blank):
    """An answer, streaming or finished. `feed` collects text; paced drawing keeps typing responsive."""

    def __init__(self, node: Node | None = None, *, title: str = "") -> None:
        super().__init__()
        self.node = node
        self._title = title
        self._place = ""
        self._waiting: list[Delta] = []
        self._lines = CallLines()
        self._drawing = asyncio.Lock()
        self._timer_set = False
        self._reasoning: Reasoning | None = None
        self._body: StreamMarkdown | None = None
        self._summary = Static(classes="summary", markup=False)

    def compose(self) -> ComposeResult:
        """Title, reasoning, body and summary of a stored answer; while it streams, the rest is mounted later."""
        if self._title:
            yield Static(Content(self._title), classes="summary", markup=False)
        if self.node is not None:
            if self.node.turn.reasoning:
                self._reasoning = Reasoning(visible(self.node.turn.reasoning))
                yield self._reasoning
            if self.node.turn.content:
                self._body = StreamMarkdown(visible(self.node.turn.content))
                yield self._body
        yield self._summary

    def on_mount(self) -> None:
        """Draw the summary."""
        self._draw_summary()

    @property
    def source(self) -> str:
        """The Markdown drawn so far."""
        return self._body.source if self._body else ""

    def feed(self, delta: Delta) -> None:
        """Add a delta; it is drawn soon."""
        self._waiting.append(delta)
        if not self._timer_set:
            self._timer_set = True
            self.call_later(self._draw)

    async def draw_now(self) -> None:
        """Draw the text that waits."""
        async with self._drawing:
            await self._draw_waiting()

    async def finish(self, node: Node | None) -> None:
        """Draw the rest, parse the whole document once more, and add a summary line."""
        async with self._drawing:
            await self._draw_waiting()
            if self._reasoning:
                self._reasoning.finish()
            if self._body:
                self._body.finish()
        self.node = node
        self._draw_summary()

    def show_place(self, number: int, count: int) -> None:
        """Say that it is version `number` of `count`."""
        place = place_text(number, count)
        if place != self._place:
            self._place = place
            self._draw_summary()

    def fold(self) -> None:
        """Fold or unfold the reasoning, or an answer without reasoning."""
        if self._reasoning:
            self._reasoning.toggle()
        elif self._body:
            self.toggle_class("-folded")
            self._draw_summary()

    def toggle_reasoning(self) -> None:
        """Fold or unfold the reasoning, if there is any."""
        if self._reasoning:
            self._reasoning.toggle()

    def _draw_summary(self) -> None:
        folded = "▸ folded" if self.has_class("-folded") else ""
        summary = " · ".join(filter(None, (self._place, folded, summarize(self.node.turn) if self.node else "")))
        self._summary.display = bool(summary)
        self._summary.update(Content(summary))

    async def _draw(self) -> None:
        started = time.monotonic()
        async with self._drawing:
            await self._draw_waiting()
        # Timed until after the refresh: layout and painting cost more than changing the widgets.
        self.call_after_refresh(self._drawn, started)

    def _drawn(self, started: float) -> None:
        pause = min(max(_SHORTEST_PAUSE_SECONDS, _DUTY * (time.monotonic() - started)), _LONGEST_PAUSE_SECONDS)
        self.set_timer(pause, self._draw_if_waiting)

    async def _draw_if_waiting(self) -> None:
        if self._waiting:
            await self._draw()
        else:
            self._timer_set = False

    async def _draw_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        thought = [delta for delta in waiting if delta.kind == "reasoning"]
        text = visible("".join(self._lines.text(delta) for delta in waiting if delta.kind != "reasoning"))
        if thought:
            if self._reasoning is None:
                self._reasoning = Reasoning()
                await self.mount(self._reasoning, before=self._body or self._summary)
            self._reasoning.write(visible("".join(d.text for d in thought)), sum(len(d.tokens) for d in thought))
        if text:
            if self._reasoning and text.strip():
                self._reasoning.finish()
            if self._body is None:
                self._body = StreamMarkdown()
                await self.mount(self._body, before=self._summary)
            self._body.write(text)
