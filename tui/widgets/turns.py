"""Blocks of a conversation: user messages, answers, notices and errors."""

from __future__ import annotations

import asyncio
import time

from textual.app import ComposeResult
from textual.containers import VerticalGroup
from textual.content import Content
from textual.widgets import Static

from macllm.chat.conversation import Attachment, Turn
from macllm.errors import MacllmError
from macllm.generation.request import CallLines, Delta
from macllm.units import duration_text, tokens_text

from ..text.folds import shown
from ..text.summary import summarize
from ..text.visible import visible
from .stream_markdown import StreamMarkdown

_SHORTEST_PAUSE_SECONDS = 0.04
_LONGEST_PAUSE_SECONDS = 1.0
_DUTY = 3  # drawing takes at most 1 / (1 + _DUTY) of the time, so that typing stays responsive
_LIVE_REASONING = 1200  # characters of the newest reasoning that are shown while it grows


class Welcome(Static):
    """The first lines, until the conversation begins."""

    def __init__(self, *, id: str) -> None:
        text = Content.assemble(
            ("macllm", "bold $accent"),
            "\n\nAsk anything. The model runs on this machine; nothing leaves it.\n\n",
            "Enter sends, Ctrl+J starts a new line, Esc stops an answer.\n",
            "/help lists commands and keys.",
        )
        super().__init__(text, id=id, markup=False)


class UserTurn(Static):
    """A message of the user, as typed; a long one is cut. CSS class -queued: not sent yet."""

    def __init__(self, text: str, attachments: tuple[Attachment, ...] = (), *, queued: bool = False) -> None:
        content = Content(visible(shown(text, attachments)))
        super().__init__(content, classes="-queued" if queued else "", markup=False)
        self.text = text
        self.attachments = attachments


class Notice(Static):
    """A notice of the app, outside the conversation."""

    def __init__(self, text: str | Content) -> None:
        super().__init__(text if isinstance(text, Content) else Content(text), markup=False)


class Failure(Static):
    """An error with its cause and remedy."""

    def __init__(self, error: MacllmError) -> None:
        lines = [Content.styled(error.message, "bold")]
        if error.cause:
            lines.append(Content(f"cause: {error.cause}"))
        if error.remedy:
            lines.append(Content(f"try: {error.remedy}"))
        super().__init__(Content("\n").join(lines), markup=False)
        self.error = error


class ReasoningTitle(Static):
    """The title line of the reasoning."""


class Reasoning(VerticalGroup):
    """Reasoning of the model: open while it grows, then folded unless the user has toggled it."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._tokens = 0
        self._started = time.monotonic()
        self._seconds: float | None = None
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
        if self._seconds is None:
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
        done = self._seconds is not None
        label = f"thought for {duration_text(self._seconds, fine=True)}" if self._seconds is not None else "thinking…"
        counted = f" · {tokens_text(self._tokens)}" if self._tokens else ""
        self.query_one(ReasoningTitle).update(Content(f"{'▸' if folded else '▾'} {label}{counted}"))
        shown = self.text.strip()
        if not done and len(shown) > _LIVE_REASONING:
            shown = "…" + shown[-_LIVE_REASONING:]
        self.query_one(".thoughts", Static).update(Content("" if folded else shown))


class AnswerTurn(VerticalGroup):
    """An answer, streaming or finished. `feed` collects text; paced drawing keeps typing responsive."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[Delta] = []
        self._lines = CallLines()
        self._drawing = asyncio.Lock()
        self._timer_set = False
        self._reasoning: Reasoning | None = None
        self._body: StreamMarkdown | None = None

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

    async def finish(self, turn: Turn | None) -> None:
        """Draw the rest, parse the whole document once more, and add a summary line."""
        async with self._drawing:
            await self._draw_waiting()
            if self._reasoning:
                self._reasoning.finish()
            if self._body:
                self._body.finish()
        if turn is not None and (summary := summarize(turn)):
            await self.mount(Static(Content(summary), classes="summary", markup=False))

    def toggle_reasoning(self) -> None:
        """Fold or unfold the reasoning, if there is any."""
        if self._reasoning:
            self._reasoning.toggle()

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
                await self.mount(self._reasoning, before=0)
            self._reasoning.write(visible("".join(d.text for d in thought)), sum(len(d.tokens) for d in thought))
        if text:
            if self._reasoning and text.strip():
                self._reasoning.finish()
            if self._body is None:
                self._body = StreamMarkdown()
                await self.mount(self._body)
            self._body.write(text)
