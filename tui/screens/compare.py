"""Two versions of an answer: columns in a wide terminal, one above the other in a narrow one."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from macllm.chat.conversation import Node
from macllm.generation.request import Delta
from macllm.visible import visible

from ..comparison import Comparison, Side
from ..widgets.turns import AnswerTurn

_BESIDE_FROM = 100  # cells


class Pane(Vertical):
    """One version with its label; it follows the end of an answer that is being written."""

    def __init__(self, side: Side, number: int) -> None:
        super().__init__()
        self.node = side.node
        self.answer = AnswerTurn(side.node)
        self._title = Content.assemble((f"{number}  ", "$accent"), (visible(side.label), "bold"))

    def compose(self) -> ComposeResult:
        """Label and answer."""
        yield Static(self._title, classes="pane-title", markup=False)
        with VerticalScroll(can_focus=False):
            yield self.answer

    @property
    def view(self) -> VerticalScroll:
        """The part that scrolls."""
        return self.query_one(VerticalScroll)

    def on_mount(self) -> None:
        """Follow the end."""
        if self.node is None:
            self.view.anchor()


class CompareScreen(Screen[str | None]):
    """Shows a comparison.

    A digit dismisses it with the command that goes on with that version, Esc with None. While one of the answers is
    being written, `feed` and `finish` draw it, and Esc calls `stop`.
    """

    BINDINGS: ClassVar = [
        Binding("escape,q,equals_sign,ctrl+c", "back", show=False),
        Binding("1", "choose(0)", show=False),
        Binding("2", "choose(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown,space", "page(1)", show=False),
        Binding("home,g", "end(-1)", show=False),
        Binding("end,G", "end(1)", show=False),
    ]

    def __init__(self, comparison: Comparison, stop: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-stacked"), (_BESIDE_FROM, "-beside")]
        self._comparison = comparison
        self._stop = stop
        self._panes = [Pane(side, number) for number, side in enumerate(comparison.sides, 1)]
        self._growing = next((pane for pane in self._panes if pane.node is None), None)
        self._early: list[Delta] = []  # events before the screen is there
        self._ended: tuple[Node | None] | None = None

    def compose(self) -> ComposeResult:
        """Question, panes, keys."""
        question = Content.styled(self._comparison.question, "bold").truncate(500, ellipsis=True)
        same = f"\n{self._comparison.same}" if self._comparison.same else ""
        yield Static(Content.assemble(question, (same, "$muted")), id="compared", markup=False)
        with Container(id="panes"):
            yield from self._panes
        yield Static(id="compare-keys", markup=False)

    def on_mount(self) -> None:
        """Draw the events that came before."""
        self._show_keys()
        self.call_after_refresh(self._catch_up)

    def feed(self, delta: Delta) -> None:
        """Add text to the answer that is being written."""
        if self._growing is not None and self._growing.answer.is_attached:
            self._growing.answer.feed(delta)
        else:
            self._early.append(delta)

    async def finish(self, node: Node | None) -> None:
        """Draw the end of the answer; without an answer, close."""
        self._ended = (node,)
        if self._growing is not None and self._growing.answer.is_attached:
            await self._catch_up()

    async def _catch_up(self) -> None:
        early, self._early = self._early, []
        for delta in early:
            self.feed(delta)
        if self._ended is None or self._growing is None or not self.is_current:
            return
        (node,), pane = self._ended, self._growing
        self._growing = None
        if node is None:
            self.dismiss(None)
            return
        pane.node = node
        await pane.answer.finish(node)
        self._show_keys()

    def _show_keys(self) -> None:
        keys = "being written · Esc stop" if self._growing else "1 or 2 go on with that version · Esc close"
        self.query_one("#compare-keys", Static).update(Content(f"↑ ↓ PgUp PgDn scroll · {keys}"))

    def action_back(self) -> None:
        """Stop the answer that is being written, else close."""
        if self._growing is not None and self._stop is not None:
            self._stop()
            self._stop = None  # the next time, close
        else:
            self.dismiss(None)

    def action_choose(self, number: int) -> None:
        """Go on with a version."""
        if self._growing is None and (node := self._panes[number].node) is not None:
            self.dismiss(f"/versions {node.id}")

    def action_scroll(self, lines: int) -> None:
        """Scroll both versions."""
        for pane in self._panes:
            pane.view.scroll_relative(y=lines, animate=False)

    def action_page(self, direction: int) -> None:
        """Scroll both versions by a page."""
        for pane in self._panes:
            pane.view.scroll_relative(y=direction * max(pane.view.size.height - 2, 1), animate=False)

    def action_end(self, direction: int) -> None:
        """Scroll both versions to the beginning or to the end."""
        for pane in self._panes:
            pane.view.scroll_to(y=0 if direction < 0 else pane.view.max_scroll_y, animate=False)
