"""Ctrl+Z and the user's editor in a real terminal, driven by tmux."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.tui.test_terminal import Tmux, chat, tmux

__all__ = ["tmux"]  # a fixture

EDITOR = """#!/bin/sh
printf 'in the editor\\n'
read -r line
printf ' and %s' "$line" >> "$1"
"""


def test_control_z_stops_the_chat_and_fg_brings_it_back(tmux: Tmux) -> None:
    tmux.start(f"PS1='shell> ' {shlex.join(['bash', '--norc', '--noprofile', '-i'])}")
    tmux.until("shell>")
    tmux.type(chat([["The first ", "half", None]]))
    tmux.until("Ask anything")
    tmux.type("Hello")
    tmux.until("The first half")
    tmux("send-keys", "-l", "a draft")
    tmux.until("❯ a draft")
    before = tmux.screen()
    tmux("send-keys", "C-z")
    tmux.until_format("#{alternate_on} #{mouse_any_flag} #{cursor_flag}", "0 0 1")
    tmux.until("Stopped")
    tmux.type("echo still $((1 + 1)) here")
    tmux.until("still 2 here")
    tmux.type("fg")
    screen = tmux.until("❯ a draft")
    assert screen.splitlines()[:-2] == before.splitlines()[:-2]  # the status line has moved on
    tmux("send-keys", "-l", " goes on")
    tmux.until("❯ a draft goes on")
    tmux("send-keys", "C-c")
    tmux.until("stopped")
    tmux("send-keys", "C-q")
    tmux.until_format("#{alternate_on}", "0")


def test_the_editor_has_the_terminal_and_its_text_returns_to_the_prompt(tmux: Tmux, tmp_path: Path) -> None:
    editor = tmp_path / "my editor"
    editor.write_text(EDITOR)
    editor.chmod(0o755)
    tmux.start(f"export VISUAL={shlex.quote(shlex.quote(str(editor)))}; {chat([['Fine.']])}")
    tmux.until("Ask anything")
    tmux("send-keys", "-l", "First")
    tmux.until("❯ First")
    tmux("send-keys", "C-g")
    tmux.until("in the editor")
    tmux.until_format("#{alternate_on}", "0")
    tmux.type("second")
    tmux.until("❯ First and second")
    tmux("send-keys", "C-g")
    tmux.until("in the editor")
    tmux("send-keys", "C-c")
    tmux.until("killed by signal 2")
    assert "❯ First and second" in tmux.screen()
    tmux("send-keys", "Enter")
    tmux.until("Fine.")
    tmux("send-keys", "C-q")
    assert tmux.exit_code() == 0
