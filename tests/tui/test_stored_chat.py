"""Stored conversations of the app in a real terminal: kills, and going on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import macllm.generation.engines.process
from macllm.chat.conversation import Conversation
from macllm.chat.options import ChatOptions, open_session
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm_tui import front
from macllm_tui.app import ChatApp
from tests.chat.scripted_engine import ScriptedEngine
from tests.chat.test_conversation import talk
from tests.compiling import wait_for
from tests.tui.test_terminal import Tmux, chat


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    window = Tmux(tmp_path)
    yield window
    window("kill-server")


def test_a_killed_chat_loses_nothing_and_the_next_one_goes_on(tmux: Tmux) -> None:
    first = chat([["The first half", 0.6, " and more", 0.05, " x", None]], "Question")
    second = chat([["Second answer"]], "-c", "-m", "maclet", "Again")
    tmux.start(f"export MACLLM_HOME={Store().path.parent}; {first}; stty sane; {second}")
    tmux.until("and more")
    wait_for(lambda: Store().search("more"))
    pid = int(tmux("display-message", "-p", "#{pane_pid}"))
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["kill", "-KILL", *children], check=True)
    tmux.until("Second answer")
    tmux("send-keys", "C-d")
    screen = tmux.until("resume: macllm chat --resume")
    assert tmux.exit_code() == 0
    [stored] = Store().list()
    assert f"--resume {stored.id[:6]}" in screen
    question, partial, again, answer = [turn.content for turn in Store().load(stored.id).turns]
    assert (question, again, answer) == ("Question", "Again", "Second answer")
    assert partial.startswith("The first half and more")


def test_another_model_does_not_turn_the_resumed_conversation_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(macllm.generation.engines.process, "ProcessEngine", lambda *_, **__: ScriptedEngine())
    store = Store()
    store.save(start := talk("a", "b"))
    store.close()
    options = ChatOptions(conversation=start)
    session = open_session(options)
    list(session.reply("c"))
    longer = session.conversation
    session.clear()
    list(session.reply("new"))
    session.close()
    other = open_session(options)
    other.take_over(session)
    other.close()
    assert Store().load(start.id) == longer
    assert len(Store().list()) == 2


def test_a_fork_is_stored_before_its_first_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(macllm.generation.engines.process, "ProcessEngine", lambda *_, **__: ScriptedEngine())
    fork = talk("a", "b").forked()
    open_session(ChatOptions(conversation=fork)).close()
    assert Store().load(fork.id) == fork


def test_another_model_goes_on_with_the_stored_conversation_until_a_session_hands_its_own_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(front, "_is_terminal", lambda stream: True)
    opened: list[Conversation | None] = []

    def opener(options: ChatOptions, on_status: object) -> Session:
        opened.append(options.conversation)
        return Session(ScriptedEngine())

    app = front._conversation(ChatOptions(conversation=(start := talk("a", "b"))), opener)
    assert isinstance(app, ChatApp)
    open_model = app.chat.model._open_model
    assert open_model is not None
    open_model("other", None, lambda status: None)
    app.chat.model.former = Session(ScriptedEngine())
    open_model("other", None, lambda status: None)
    assert opened == [start, None]
    assert app.last_session is app.chat.model.former
