"""The input field."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.actions import SkipAction
from textual.app import SuspendNotSupported
from textual.binding import Binding
from textual.message import Message
from textual.widgets import TextArea

from macllm.chat.attachments import read, referenced, shortened
from macllm.chat.conversation import Attachment
from macllm.chat.session import Session
from macllm.errors import MacllmError, UsageError
from macllm.visible import visible

from .. import editor, slash
from ..completion import Menu, MenuItem, complete
from ..keymap import Keymap, keymap_of
from ..keys import KEYS
from ..outcomes import Attach, OpenEditor, Shorten
from ..text.folds import pasted, with_newlines
from ..text.history import History, PromptStore, stored
from .folding_area import FoldingArea

_PLACEHOLDER = "Ask anything   (/help)"
_SEARCH_PLACEHOLDER = "Search the history"
_LABEL = 300  # characters of an earlier message in the menu


@dataclass
class PromptSubmitted(Message):
    """The user sent a message or a command: the text of the prompt, with markers."""

    text: str


@dataclass
class PromptMenu(Message):
    """The menu of the prompt changed; None: it is closed."""

    menu: Menu | None


@dataclass
class PromptFailed(Message):
    """A file cannot be attached, or the editor failed."""

    error: MacllmError


def _actions(keymap: Keymap) -> dict[str, str]:
    """The action of each key in the prompt: our bindings, then those of TextArea."""
    bindings = [(binding.key, binding.action) for binding in TextArea.BINDINGS if isinstance(binding, Binding)]
    return {key: action for keys, action in bindings for key in keys.split(",")} | keymap.actions("prompt")


class Prompt(FoldingArea):
    """Multi-line input with completion, history, folded pastes and attachments.

    Enter sends; Up on the first line and Down on the last walk through the history.
    """

    BINDINGS: ClassVar = [
        Binding(key.keys, key.action, key.help, id=f"prompt.{key.id}", show=False) for key in KEYS["prompt"]
    ]

    def __init__(self, session: Callable[[], Session | None] = lambda: None) -> None:
        super().__init__(
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            compact=True,
            highlight_cursor_line=False,
            placeholder=_PLACEHOLDER,
        )
        self._session = session
        self._actions: dict[str, str] = {}
        self._of_chat: dict[str, str] = {}  # keys of TextArea that the user has given to the chat
        self._history = History()
        self._store: PromptStore | None = None
        self._menu: Menu | None = None
        self._menu_is_for: tuple[str, int] | None = None  # text and cursor
        self._typing = False  # False: the text was put or pasted, and no menu opens before the next key
        self._closed_at: int | None = None  # beginning of the text whose menu the user has closed
        self._draft: str | None = None  # while the history is searched

    def on_mount(self) -> None:
        """Take the keys in effect."""
        keymap = keymap_of(self.app)
        self._actions = _actions(keymap)
        self._of_chat = {key: keymap.actions("chat")[key] for key in keymap.taken("chat")}

    # The text, for the screen

    def put(self, text: str) -> None:
        """Replace the text and put the cursor at its end."""
        self._typing = False
        text = with_newlines(text)
        if text and self.text:
            self.replace(text, (0, 0), self.document.end)  # can be undone
        else:
            self.load_text(text)
        self.move_cursor(self.document.end)

    def put_message(self, text: str, attachments: Iterable[Attachment] = ()) -> None:
        """Replace the text by a message and its attachments, as it was before it was sent."""
        self.leave_search()
        self.put(self.folds.restore(text, attachments))

    def put_back(self, messages: Iterable[tuple[str, tuple[Attachment, ...]]]) -> None:
        """Put messages that were not sent before the text."""
        if texts := [self.folds.restore(slash.as_typed(text), attachments) for text, attachments in messages]:
            self.leave_search()
            self.put("\n\n".join(texts + [self.text] * bool(self.text)))

    def message(self, text: str) -> tuple[str, tuple[Attachment, ...]]:
        """The message of a text in the prompt. Raises: UsageError for a file that cannot be attached."""
        return self.folds.expand(text, referenced)

    def attach(self, attachment: Attachment) -> None:
        """Insert the marker of an attachment."""
        self._insert(self.folds.attach(attachment) + " ")

    def apply(self, outcome: Attach | Shorten | OpenEditor) -> None:
        """Carry out the outcome of a command for the prompt."""
        if isinstance(outcome, Attach):
            self.attach(outcome.attachment)
        elif isinstance(outcome, Shorten):
            text, attachments = shortened(*self.message(slash.plain_text(self.text)), outcome.most)
            self.put_message(slash.as_typed(text), attachments)
        else:
            self.action_editor()

    def remember(self, text: str) -> None:
        """Add a text of the prompt to the history; it is stored with its pastes in full."""
        if self._history.add(text) and self._store is not None:
            self._store.remember(self._whole(text))

    def use_history(self, store: object) -> None:
        """Begin with the messages in a store, if it has a history, and store new ones there."""
        if self._store is None and isinstance(store, PromptStore):
            for text in self._history.begin_with(stored(store)):
                store.remember(self._whole(text))
        self._store = store if isinstance(store, PromptStore) else None

    def _whole(self, text: str) -> str:
        return self.folds.expand(text, lambda piece: (piece, ()))[0]

    def leave_search(self) -> bool:
        """End the search in the history and return to the draft. Returns False if there is no search."""
        draft, self._draft = self._draft, None
        if draft is None:
            return False
        self.placeholder = _PLACEHOLDER
        self.put(draft)
        return True

    def choose(self, index: int) -> None:
        """Take a choice of the menu."""
        if (menu := self._menu_now()) is not None and index < len(menu.items):
            self._take(menu, menu.items[index])

    # Keys

    def edits(self, key: str) -> bool:
        """True for a key that the prompt, as it is now, has a use for."""
        keymap = keymap_of(self.app)
        of_prompt, of_chat = key in keymap.actions("prompt"), key in keymap.actions("chat")
        return key in self._actions and (not of_chat or (of_prompt and bool(self.text)))

    async def on_key(self, event: events.Key) -> None:
        """Handle a key at once; a binding would act after the key has bubbled up, maybe after later keys."""
        of_chat = self._of_chat.get(event.key)
        action = of_chat or self._actions.get(event.key)
        namespace = self.screen if of_chat else self
        if action is not None and await self.app.run_action(action, default_namespace=namespace):
            event.prevent_default()
            event.stop()
        elif event.is_printable:
            self._typing = True

    def on_paste(self, event: events.Paste) -> None:
        """Insert pasted text; a long one is folded to a marker."""
        event.prevent_default()
        event.stop()
        self._paste(event.text)

    def action_paste(self) -> None:
        """Insert the text that was copied or cut in the app."""
        self._paste(self.app.clipboard)

    def action_send(self) -> None:
        """Take the choice of the menu, or send; after a trailing backslash, break the line instead."""
        menu = self._menu_now()
        if self._draft is not None or (menu is not None and menu.takes_enter):
            if menu is not None and menu.item is not None:
                self._take(menu, menu.item)
        elif self.text.endswith("\\") and self.cursor_at_end_of_text:
            self.action_delete_left()
            self.action_newline()
        elif self.text.strip():
            self.post_message(PromptSubmitted(self.text.strip()))

    def action_newline(self) -> None:
        """Break the line."""
        if self._draft is None:
            self._insert("\n")

    def action_complete(self) -> None:
        """Take the choice of the menu; open it first if it is closed."""
        if self._menu_now() is None:
            self._typing, self._closed_at, self._menu_is_for = True, None, None
        if (menu := self._menu_now()) is not None and menu.item is not None:
            self._take(menu, menu.item)

    def action_close(self) -> None:
        """End the search or close the menu; without both, leave the key to the conversation."""
        if self.leave_search():
            return
        if (menu := self._menu_now()) is None:
            raise SkipAction
        self._closed_at, self._menu_is_for = menu.start, None
        self._show_menu()

    def action_up(self) -> None:
        """Move one choice or line up, or to the previous message."""
        if self._move_in_menu(-1):
            return
        if not self.cursor_at_first_line:
            self.action_cursor_up()
        elif (entry := self._history.older(self.text)) is not None:
            self.put(entry)

    def action_down(self) -> None:
        """Move one choice or line down, or to the next message."""
        if self._move_in_menu(1):
            return
        if not self.cursor_at_last_line:
            self.action_cursor_down()
        elif (entry := self._history.newer(self.text)) is not None:
            self.put(entry)

    def action_search(self) -> None:
        """Search the history for what is typed next; again: the next older message."""
        if self._draft is not None:
            self._move_in_menu(1)
            return
        draft = self.text
        self.put("")
        self._draft, self.placeholder, self._menu_is_for = draft, _SEARCH_PLACEHOLDER, None
        self._show_menu()

    def action_editor(self) -> None:
        """Write on in the user's editor; pastes are in full there."""
        if self.leave_search():
            return
        try:
            words = editor.command()
            text = self._edited(words)
        except MacllmError as error:
            self.post_message(PromptFailed(error))
        else:
            self.put(self.folds.fold(pasted(text)))

    def _edited(self, words: list[str]) -> str:
        """The text after the editor. Raises: MacllmError, when the screen is back."""
        result: str | MacllmError = UsageError("An editor needs a terminal.", remedy="write here")
        with contextlib.suppress(SuspendNotSupported), self.app.suspend():
            try:  # in here, because Textual does not return to the screen after an exception
                result = editor.edit(self.folds.unfold(self.text), words)
            except MacllmError as error:
                result = error
        if isinstance(result, MacllmError):
            raise result
        return result

    def action_suspend(self) -> None:
        """Stop the program; the shell's fg goes on."""
        self.app.action_suspend_process()

    def action_end(self) -> None:
        """Move to the end of the line; at the end of the text, scroll the conversation to its end."""
        if self.cursor_at_end_of_text:
            raise SkipAction
        self.action_cursor_line_end()

    def action_delete_or_leave(self) -> None:
        """Delete to the right; in an empty prompt, end the search, else let the app quit."""
        if self.text:
            self.action_delete_right()
        elif not self.leave_search():
            raise SkipAction

    def action_cursor_page_up(self) -> None:
        """Leave the key to the conversation, which scrolls."""
        raise SkipAction

    def action_cursor_page_down(self) -> None:
        """Leave the key to the conversation, which scrolls."""
        raise SkipAction

    def action_cursor_up(self, select: bool = False) -> None:
        """Move one line up. In an empty prompt, Shift+Up scrolls the conversation."""
        if select and not self.text:
            raise SkipAction
        super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Move one line down. In an empty prompt, Shift+Down scrolls the conversation."""
        if select and not self.text:
            raise SkipAction
        super().action_cursor_down(select)

    # The menu

    def action_delete_left(self) -> None:
        """Delete to the left, which counts as typing."""
        self._typing = True
        super().action_delete_left()

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """Show the menu for the new text."""
        event.stop()
        self._show_menu()

    def on_text_area_selection_changed(self, event: TextArea.SelectionChanged) -> None:
        """Show the menu for the place of the cursor."""
        event.stop()
        self._show_menu()

    def _menu_now(self) -> Menu | None:
        """The menu for text and cursor. Its messages come later than keys that act on it, so keys ask for it."""
        state = (self.text, self.cursor_index)
        if state != self._menu_is_for:
            self._menu, self._menu_is_for = self._menu_for(*state), state
        return self._menu

    def _menu_for(self, text: str, cursor: int) -> Menu | None:
        if self._draft is not None:
            found = self._history.search(text)
            items = tuple(MenuItem(entry, " ↵ ".join(visible(entry[:_LABEL]).split("\n"))) for entry in found)
            return Menu(items, 0, len(text), title=self._search_title if items else "history: no message matches")
        menu = complete(text, cursor, self._session()) if self._typing and self.selection.is_empty else None
        if menu is not None and menu.start == self._closed_at:
            return None
        self._closed_at = None
        return menu

    @property
    def _search_title(self) -> str:
        older, take, leave = (keymap_of(self.app).shown("prompt", name) for name in ("history_search", "send", "close"))
        return f"history: {older} older, {take} takes it, {leave} returns"

    def _show_menu(self) -> None:
        self.post_message(PromptMenu(self._menu_now()))

    def _move_in_menu(self, steps: int) -> bool:
        """Move the selection. Returns False if no menu is open."""
        if (menu := self._menu_now()) is None:
            return False
        self._menu = menu.moved(steps)
        self._show_menu()
        return True

    def _take(self, menu: Menu, item: MenuItem) -> None:
        if self._draft is not None:
            self._draft, self.placeholder = None, _PLACEHOLDER
            self.put(item.text)
            return
        text = item.text
        if item.path:
            try:
                text = self.folds.attach(read(item.path)) + " "
            except UsageError as error:
                self.post_message(PromptFailed(error))
                return
        start, end = map(self.location, (menu.start, menu.end))
        self.replace(text, start, end, maintain_selection_offset=False)
        self.move_cursor(self.location(menu.start + len(text)))

    def _paste(self, text: str) -> None:
        text = pasted(text)
        if self._draft is not None:
            text = " ".join(text.split())
        self._insert(text if self._draft is not None else self.folds.paste(text))
        self._typing = False

    def _insert(self, text: str) -> None:
        start, end = self.selection
        self.replace(text, start, end, maintain_selection_offset=False)
        self.scroll_cursor_visible()
