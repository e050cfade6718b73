"""The place where the user writes: menu, sign and prompt."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalGroup
from textual.widgets import Static

from macllm.chat.conversation import Attachment, Conversation, Node
from macllm.chat.session import Session

from .. import slash
from .completion_menu import CompletionMenu, MenuItemClicked
from .prompt import Prompt, PromptMenu


class PromptArea(VerticalGroup):
    """The prompt with its menu above it; its sign is a pencil while an earlier message is edited.

    `session` gives commands the values of their arguments.
    """

    def __init__(self, session: Callable[[], Session | None]) -> None:
        super().__init__()
        self._session = session
        self._edited: Node | None = None

    def compose(self) -> ComposeResult:
        """Menu, sign, prompt."""
        yield CompletionMenu()
        with Horizontal(id="entry"):
            yield Static("❯", id="sign", markup=False)
            yield Prompt(self._session)

    def on_prompt_menu(self, message: PromptMenu) -> None:
        """Show the menu."""
        message.stop()
        self.query_one(CompletionMenu).show(message.menu)

    def on_menu_item_clicked(self, message: MenuItemClicked) -> None:
        """Take the choice."""
        message.stop()
        self.query_one(Prompt).choose(message.index)

    # Editing an earlier message

    @property
    def edited(self) -> Node | None:
        """The earlier message that is edited in the prompt."""
        return self._edited

    def edit(self, node: Node, text: str | None = None, attachments: tuple[Attachment, ...] = ()) -> None:
        """Edit an earlier message; `text` and `attachments` are the new ones so far."""
        self._edited = node
        self.query_one("#sign", Static).update("✎")
        prompt = self.query_one(Prompt)
        if text is None:
            text, attachments = node.turn.content, node.turn.attachments
        prompt.put_message(slash.as_typed(text), attachments)
        prompt.focus()

    def keep_editing(self, conversation: Conversation) -> None:
        """Write a new message if the edited one is not in the conversation."""
        if self._edited is not None and self._edited.id not in conversation.nodes:
            self.leave_editing()

    def leave_editing(self) -> Node | None:
        """Write a new message again. Returns the message that was edited, if any."""
        edited, self._edited = self._edited, None
        self.query_one("#sign", Static).update("❯")
        return edited
