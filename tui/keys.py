"""Key bindings of the chat, its prompt and its messages. No Textual in here.

Never bound, because terminals cannot tell them from Tab, Enter, Backspace and Escape: Ctrl+I, Ctrl+M,
Ctrl+H, Ctrl+[. Nothing needs Cmd, Fn or an enhanced keyboard protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Key:
    """An action and its keys. `shown` is their name in the help; "" hides them."""

    id: str
    keys: str
    action: str
    help: str
    shown: str = ""


Scope = Literal["chat", "prompt", "blocks", "question"]

KEYS: dict[Scope, tuple[Key, ...]] = {
    "chat": (
        Key("stop", "escape", "stop", "stop the answer, keep its text; twice: edit the last message", "Esc"),
        Key("blocks", "alt+up,alt+down", "blocks", "select a message", "Alt+Up Alt+Down"),
        Key("reasoning", "ctrl+t", "toggle_reasoning", "fold or unfold the reasoning", "Ctrl+T"),
        Key("help", "f1", "open('help')", "commands and keys", "F1"),
        Key("palette", "ctrl+p", "open('palette')", "all commands, recent chats and models", "Ctrl+P"),
        Key("chats", "ctrl+s", "open('chats')", "stored conversations", "Ctrl+S"),
        Key("sidebar", "ctrl+b", "sidebar", "chats beside the conversation; again: hide them", "Ctrl+B"),
        Key("models", "ctrl+o", "open('models')", "models and adapters", "Ctrl+O"),
        Key("new", "ctrl+n", "run('/clear')", "new conversation", "Ctrl+N"),
        Key("page_up", "pageup", "page(-1)", "scroll the conversation", "PgUp PgDn"),
        Key("page_down", "pagedown", "page(1)", ""),
        Key("line_up", "shift+up", "line(-1)", ""),
        Key("line_down", "shift+down", "line(1)", ""),
        Key("newest", "end,ctrl+end", "newest", "follow the newest line again", "End"),
        Key("interrupt", "ctrl+c,super+c", "interrupt", "copy the selection, stop, clear; twice: quit", "Ctrl+C"),
        Key("leave", "ctrl+d,ctrl+q", "leave", "quit (Ctrl+D: on an empty line)", "Ctrl+D Ctrl+Q"),
        Key("suspend", "ctrl+z", "app.suspend_process", ""),
    ),
    "prompt": (
        Key("send", "enter", "send", "send", "Enter"),
        Key("newline", "shift+enter,alt+enter,ctrl+j", "newline", "new line", "Ctrl+J, Shift+Enter, Alt+Enter"),
        Key("complete", "tab", "complete", "complete a /command, its argument or an @file", "Tab"),
        Key("close", "escape", "close", ""),
        Key("history_back", "up", "up", "earlier messages (Up on the first line)", "Up Down"),
        Key("history_forward", "down", "down", ""),
        Key("history_search", "ctrl+r", "search", "search earlier messages", "Ctrl+R"),
        Key("editor", "ctrl+g", "editor", "write in $VISUAL or $EDITOR", "Ctrl+G"),
        # Ctrl+Z is undo in Textual's text area; a program in a terminal stops.
        Key("suspend", "ctrl+z", "suspend", "stop macllm; the shell's fg goes on", "Ctrl+Z"),
        Key("undo", "ctrl+underscore,ctrl+slash,super+z", "undo", "undo, redo", "Ctrl+_ Ctrl+Y"),
        Key("left", "left", "cursor_left", ""),
        Key("right", "right,ctrl+f", "cursor_right", ""),
        # macOS uses Ctrl+arrows to switch desktops, so Option moves by words.
        Key("word_left", "ctrl+left,alt+left,alt+b", "cursor_word_left", "move by words", "Alt+B Alt+F"),
        Key("word_right", "ctrl+right,alt+right,alt+f", "cursor_word_right", ""),
        Key("delete_word_right", "alt+d,alt+delete", "delete_word_right", ""),
        Key("end", "end", "end", ""),
        Key("delete_or_leave", "ctrl+d", "delete_or_leave", ""),
    ),
    # Block mode: a message of the conversation is selected.
    "blocks": (
        Key("previous", "alt+up,up,k", "select(-1)", "select a message", "Up Down, Home End"),
        Key("next", "alt+down,down,j", "select(1)", ""),
        Key("first", "home,g", "select_end(-1)", ""),
        Key("last", "end,G", "select_end(1)", ""),
        Key("copy", "y", "copy", "copy it", "y"),
        Key("copy_code", "c", "copy_code(0)", "copy its code; a digit: that code block", "c 1-9"),
        *(Key(f"copy_code_{n}", str(n), f"copy_code({n})", "") for n in range(1, 10)),
        Key("edit", "e", "edit", "edit the message; sending it begins a branch", "e"),
        Key("regenerate", "r", "regenerate", "answer it again", "r"),
        Key("previous_version", "left_square_bracket", "version(-1)", "other versions of it", "[ ]"),
        Key("next_version", "right_square_bracket", "version(1)", ""),
        Key("compare", "equals_sign", "compare", "compare it with the version before it", "="),
        Key("fold", "space", "fold", "fold or unfold it", "Space"),
        Key("leave", "escape,enter", "leave", "back to the prompt", "Esc"),
    ),
    # A question is open; digits choose, too.
    "question": (
        Key("previous", "up", "move(-1)", ""),
        Key("next", "down", "move(1)", ""),
        Key("choose", "enter", "choose", ""),
        Key("dismiss", "escape", "dismiss", ""),
    ),
}


def help_lines(keys: Mapping[Scope, tuple[Key, ...]] = KEYS) -> list[tuple[str, str]]:
    """(keys, description) pairs for the help, those of the prompt first."""
    scopes: list[Scope] = ["prompt", *(scope for scope in keys if scope != "prompt")]
    return [(key.shown, key.help) for scope in scopes for key in keys[scope] if key.shown and key.help]
