"""The conversation on the screen, and block mode: one of its messages selected by keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalGroup, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from macllm.chat.conversation import Conversation, Node
from macllm.chat.session import Session
from macllm.errors import UsageError

from ..comparison import of_versions
from ..keymap import keymap_of
from ..keys import KEYS
from ..outcomes import Answer, Compare, Copy, Outcome, Redraw
from ..text.markdown import code_blocks
from .blank import Blank
from .notices import Earlier, Welcome
from .turns import AnswerTurn, CutMark, TurnBlock, UserTurn

NEWEST = 30  # messages of a long conversation that are drawn at first
MORE = 50  # messages drawn on demand
_NEWS_SECONDS = 2.0  # a line in place of the keys of block mode

IdleSession = Callable[[], Session]
"""The session. Raises: UsageError during an answer."""


class Turns(VerticalGroup, Blank):
    """The blocks, notices and queued messages."""


class Transcript(VerticalScroll, Blank, can_focus=False):
    """The scrolling conversation; follows its end until the user scrolls up.

    It draws the newest messages of the path; a line stands for the earlier ones until they are asked for. Notices
    stand between the messages. It can be focused in block mode alone, so that a click leaves the prompt as it is.
    """

    BINDINGS: ClassVar = [Binding(key.keys, key.action, key.help, id=f"blocks.{key.id}") for key in KEYS["blocks"]]

    @dataclass
    class Edit(Message):
        """A request to edit a message."""

        node: Node

    @dataclass
    class Requested(Message):
        """A request to act on a block. The action raises UsageError if that is not possible now."""

        action: Callable[[IdleSession], Outcome]

    class Left(Message):
        """The user goes back to the prompt."""

    @dataclass
    class Selected(Message):
        """A block is selected, or none any more."""

        block: TurnBlock | None

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._conversation: Conversation | None = None
        self._first = 0  # number of messages of the path that are not drawn
        self._blocks: list[TurnBlock] = []  # the drawn messages of the path, in order
        self._selected: TurnBlock | None = None
        self._later: Conversation | None = None  # what `show_now` draws

    def compose(self) -> ComposeResult:
        """The blocks, at the bottom."""
        with Turns(id="turns"):
            yield Earlier(id="earlier", markup=False)
            yield Welcome(id="welcome")

    def on_mount(self) -> None:
        """Begin with nothing above, and follow the end."""
        self._earlier.show_count(0)
        self.anchor()

    @property
    def turns(self) -> Turns:
        """The blocks, notices and queued messages."""
        return self.query_one(Turns)

    @property
    def _earlier(self) -> Earlier:
        return self.query_one(Earlier)

    @property
    def newest_answer(self) -> AnswerTurn | None:
        """The last answer, also one that is streaming."""
        return next((child for child in reversed(self._attached()) if isinstance(child, AnswerTurn)), None)

    # Drawing

    def add(self, widget: Widget) -> None:
        """Add a notice, a message or an answer: queued messages at the end, anything else before them."""
        for welcome in self.query(Welcome):
            welcome.remove()
        self.turns.mount(widget, before=None if _is_queued(widget) else self._queued())

    def adopt(self, block: TurnBlock, node: Node) -> None:
        """Take a drawn message as the next one of the path."""
        block.node = node
        if block not in self._blocks:
            self._blocks.append(block)

    def show_later(self, conversation: Conversation) -> bool:
        """Draw a path at `show_now`, if it is the beginning of the one on the screen; else now.

        Returns False if it is drawn now.
        """
        kept = self._kept(conversation)
        if kept == len(conversation.path) - self._first and 0 < kept < len(self._blocks):
            self._later = conversation
            return True
        self.show(conversation)
        return False

    def show_now(self, answer: AnswerTurn) -> None:
        """Draw the path of `show_later`, with an answer, hidden until now, in place of the end."""
        if self._later is not None:
            with self.app.batch_update():
                self.show(self._later, answer)
                answer.display = True

    def show(self, conversation: Conversation, answer: AnswerTurn | None = None) -> None:
        """Draw the path. Messages that are drawn already stay, with the notices before the first other one.

        An `answer` that is being written stays, too.
        """
        self._later = None
        path = conversation.path
        at = self._blocks.index(self._selected) if self._selected in self._blocks else None
        kept = self._kept(conversation)
        if len(path) - self._first - kept > NEWEST or not kept:
            kept, self._first = 0, max(len(path) - NEWEST, 0)
        with self.app.batch_update():
            attached = self._attached()
            begin = 1 if not kept else attached.index(self._blocks[kept]) if kept < len(self._blocks) else len(attached)
            for widget in attached[begin:]:
                if widget is not answer and not _is_queued(widget) and (path or not isinstance(widget, Welcome)):
                    widget.remove()
            self._conversation = conversation
            new = [self._drawn(node) for node in path[self._first + kept :]]
            self._blocks = self._blocks[:kept] + new
            if new:
                self.turns.mount(*new, before=self._queued())
            self._earlier.show_count(self._first)
            self._show_places()
        if at is not None:
            self._select(self._blocks[min(at, len(self._blocks) - 1)] if self._blocks else None)

    def show_earlier(self) -> bool:
        """Draw more of the earlier messages. Returns False if there are none."""
        if not self._first or self._conversation is None:
            return False
        end, self._first = self._first, max(self._first - MORE, 0)
        new = [self._drawn(node) for node in self._conversation.path[self._first : end]]
        self._blocks = new + self._blocks
        below = self.max_scroll_y - self.scroll_y
        with self.app.batch_update():
            self.turns.mount(*new, after=self._earlier)
            self._earlier.show_count(self._first)
            self._show_places()
        # the message at the top stays where it is
        self.call_after_refresh(lambda: self.scroll_to(y=self.max_scroll_y - below, animate=False))
        return True

    def on_earlier_asked(self, message: Earlier.Asked) -> None:
        """Draw more of the earlier messages."""
        message.stop()
        self.show_earlier()

    def _kept(self, conversation: Conversation) -> int:
        """The number of drawn messages, from the first one on, that the path has, too."""
        kept = 0
        for block, node in zip(self._blocks, conversation.path[self._first :], strict=False):
            if block.node is None or block.node.id != node.id or block.node.turn != node.turn:
                break
            kept += 1
        return kept

    def _drawn(self, node: Node) -> TurnBlock:
        if node.turn.role == "user":
            return UserTurn(node.turn.content, node.turn.attachments, node=node)
        if node.turn.role == "assistant":
            return AnswerTurn(node)
        assert self._conversation is not None
        return CutMark(node, _dropped(self._conversation, node))

    def _show_places(self) -> None:
        if self._conversation is None:
            return
        for block in self._blocks:
            if block.node is not None:
                versions = self._conversation.siblings(block.node.id)
                block.show_place(versions.index(block.node.id) + 1, len(versions))

    def _queued(self) -> Widget | None:
        """The first message that waits."""
        return next(filter(_is_queued, self._attached()), None)

    def _attached(self) -> list[Widget]:
        return [child for child in self.turns.children if child.is_attached]

    def page(self, direction: int) -> None:
        """Scroll by a page; at the top, draw earlier messages."""
        if direction < 0 and self.scroll_y <= 0 and self.show_earlier():
            return
        self.scroll_relative(y=direction * max(self.size.height - 2, 1), animate=False)

    # Block mode

    @property
    def selected(self) -> TurnBlock | None:
        """The selected block; None outside of block mode."""
        return self._selected

    def on_blur(self) -> None:
        """Leave block mode."""
        self.can_focus = False
        self._select(None)

    def move(self, direction: int) -> None:
        """Select the next block in a direction; the last one to begin with."""
        if not self._blocks:
            return
        if self._selected is None:
            self._select(self._blocks[-1])
        else:
            at = self._blocks.index(self._selected) + direction
            if at < 0 and self.show_earlier():
                at = self._blocks.index(self._selected) - 1
            self._select(self._blocks[min(max(at, 0), len(self._blocks) - 1)])
        self.can_focus = True
        self.focus(scroll_visible=False)

    def edit_last(self) -> None:
        """Ask to edit the user's last message."""
        self._edit(len(self._blocks))

    def _select(self, block: TurnBlock | None) -> None:
        if self._selected is not None:
            self._selected.remove_class("-selected")
        self._selected = block
        if block is not None:
            block.add_class("-selected")
            self.scroll_to_widget(block, animate=False)
        self.post_message(self.Selected(block))

    def action_select(self, direction: int) -> None:
        """Select the next block."""
        self.move(direction)

    def action_select_end(self, direction: int) -> None:
        """Select the first or the last block."""
        if self._blocks:
            self._select(self._blocks[0 if direction < 0 else -1])

    def action_copy(self) -> None:
        """Copy the message."""
        if (block := self._selected) is not None:
            text = block.text
            self.post_message(self.Requested(lambda _: Copy(text)))

    def action_copy_code(self, number: int) -> None:
        """Copy a code block of the message; 0: all of them."""
        if (block := self._selected) is not None:
            text = block.text
            self.post_message(self.Requested(lambda _: Copy(_code(text, number))))

    def action_edit(self) -> None:
        """Edit the message, or the one that the selected answer answers."""
        if self._selected is not None:
            self._edit(self._blocks.index(self._selected) + 1)

    def _edit(self, end: int) -> None:
        for block in reversed(self._blocks[:end]):
            if isinstance(block, UserTurn) and block.node is not None:
                self.post_message(self.Edit(block.node))
                return

    def action_regenerate(self) -> None:
        """Answer again."""
        if self._selected is not None and (node := self._selected.node) is not None:
            self.action_leave()
            self._select(None)
            self.post_message(self.Requested(lambda session: Answer(session().regenerate(node.id))))

    def action_version(self, direction: int) -> None:
        """Show the next version of the message, and the newest path through it."""
        if self._selected is None or (node := self._selected.node) is None or self._conversation is None:
            return
        versions = self._conversation.siblings(node.id)
        at = versions.index(node.id) + direction
        if 0 <= at < len(versions):
            self.post_message(self.Requested(lambda session: _show(session(), versions[at])))

    def action_compare(self) -> None:
        """Show the answer beside the version before it."""
        if self._selected is None or (node := self._selected.node) is None or (shown := self._conversation) is None:
            return
        self.post_message(self.Requested(lambda _: Compare(of_versions(shown, node.id))))

    def action_leave(self) -> None:
        """Go back to the prompt."""
        self.post_message(self.Left())

    def action_fold(self) -> None:
        """Fold or unfold the message."""
        if self._selected is not None:
            self._selected.fold()


class BlockKeys(Static):
    """The keys of block mode, while it lasts."""

    def __init__(self) -> None:
        super().__init__(id="block-keys", markup=False)
        self._keys = Content()
        self._timer: Timer | None = None

    def show(self, block: TurnBlock | None) -> None:
        """Show the keys of a block; None: none."""
        self.display = block is not None
        keymap = keymap_of(self.app)
        again = ("edit", "edit") if isinstance(block, UserTurn) else ("regenerate", "again")
        names = (("copy", "copy"), ("copy_code", "code"), again, ("fold", "fold"), ("leave", ""))
        keys = "  ".join(f"{keymap.shown('blocks', name)} {label}".rstrip() for name, label in names)
        versions = " ".join(keymap.shown("blocks", f"{name}_version") for name in ("previous", "next"))
        self._keys = Content(f"{versions} version  {keys}")
        self.update(self._keys)

    def tell(self, text: str) -> None:
        """Show a line in place of the keys for a while."""
        self.update(Content(text))
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(_NEWS_SECONDS, lambda: self.update(self._keys))


def _show(session: Session, node: str) -> Outcome:
    session.show(node)
    return Redraw()


def _code(text: str, number: int) -> str:
    """The code blocks of a message, or one of them. Raises: UsageError if it is missing."""
    blocks = code_blocks(text)
    if blocks and number <= len(blocks):
        return blocks[number - 1] if number else "\n".join(blocks)
    cause = f"the message has {len(blocks)} code block{'s' * (len(blocks) != 1)}"
    raise UsageError(f"No code block{f' {number}' if number else ''}.", cause=cause, remedy="copy the whole message")


def _is_queued(widget: Widget) -> bool:
    return isinstance(widget, UserTurn) and widget.has_class("-queued")


def _dropped(conversation: Conversation, cut: Node) -> int:
    """The number of messages that a cut leaves out."""
    count = 0
    for node in conversation.path:
        if node.id in (cut.turn.kept, cut.id):
            break
        count += node.turn.role != "cut"
    return count
