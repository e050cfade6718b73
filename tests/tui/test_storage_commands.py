"""Slash commands for stored conversations, without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from macllm.chat.archive import read_export
from macllm.chat.conversation import Conversation
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm.errors import MacllmError, UsageError
from macllm_tui import outcomes, slash
from macllm_tui.commands.storage import chats_question
from tests.chat.scripted_engine import ScriptedEngine
from tests.chat.test_conversation import talk, user


def run(chat: Session, line: str) -> outcomes.Outcome:
    parsed = slash.parse(line)
    assert parsed is not None
    command, argument = parsed
    return command(chat, argument)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "macllm.db")
    yield store
    store.close()


@pytest.fixture
def chat(store: Store) -> Session:
    """A chat with one exchange, in a store with another conversation."""
    store.save(talk("An older question", "an older answer"))
    store.flush()
    session = Session(ScriptedEngine(), journal=store)
    list(session.reply("A question"))
    return session


def older(store: Store) -> Conversation:
    return store.load(next(each.id for each in store.list() if each.name == "An older question"))


def test_chats_are_chosen_by_number_or_found_by_their_words(chat: Session, store: Store) -> None:
    assert run(chat, "/chats rope") == outcomes.Open("chats", "rope")
    assert run(chat, "/resume") == outcomes.Open("chats", "")
    question = chats_question(chat)
    assert [choice.label.split("  ")[1] for choice in question.choices] == ["A question", "An older question"]
    [found] = chats_question(chat, "older answer").choices
    assert found.line == f"/resume {older(store).id}"
    with pytest.raises(UsageError, match="No conversation has camels"):
        chats_question(chat, "camels")


def test_another_conversation_is_resumed_and_the_old_one_stays_stored(chat: Session, store: Store) -> None:
    first = chat.conversation
    assert run(chat, f"/resume {older(store).id[:6]}") == outcomes.Redraw("Resumed: An older question")
    assert chat.conversation == older(store)
    assert isinstance(run(chat, f"/resume {older(store).id}"), outcomes.Say)
    list(chat.reply("more"))
    store.flush()
    assert len(older(store).nodes) == 4
    assert store.load(first.id) == first


def test_an_unknown_conversation_changes_nothing(chat: Session) -> None:
    before = chat.conversation
    with pytest.raises(UsageError, match="no conversation zzz"):
        run(chat, "/resume zzz")
    assert chat.conversation is before


def test_a_fork_is_a_stored_copy_of_the_path_or_its_beginning(chat: Session, store: Store) -> None:
    first = chat.conversation
    assert isinstance(run(chat, "/fork 1"), outcomes.Redraw)
    assert [turn.content for turn in chat.turns] == ["A question"]
    run(chat, "/fork")
    store.flush()
    assert len(store.list()) == 4
    assert store.load(first.id) == first
    with pytest.raises(UsageError, match="no message 9"):
        run(chat, "/fork 9")
    with pytest.raises(UsageError, match="no message yet"):
        run(Session(ScriptedEngine()), "/fork")


def test_a_conversation_is_renamed(chat: Session, store: Store) -> None:
    assert run(chat, "/rename") == outcomes.Say("This conversation is: A question")
    run(chat, "/rename About  llamas")
    store.flush()
    assert store.load(chat.conversation.id).title == "About  llamas"


def test_a_new_conversation_goes_into_the_same_store(chat: Session, store: Store) -> None:
    run(chat, "/clear")
    list(chat.reply("Something new"))
    store.flush()
    assert [each.name for each in store.list()] == ["Something new", "A question", "An older question"]


@pytest.mark.parametrize(
    ("arguments", "name", "start"),
    [
        ("a chat.md", "a chat.md", "# Chat with scripted\n"),
        ("chat.html", "chat.html", "<!doctype html>"),
        ("html chat", "chat", "<!doctype html>"),
        ("chat.json", "chat.json", '{"format":'),
        ("--force chat", "chat", "# Chat"),
        ("json --force chat.md", "chat.md", '{"format":'),
        ("--force json chat.md", "chat.md", '{"format":'),
        ("md", "md", "# Chat"),
    ],
)
def test_an_export_is_in_the_named_format_or_that_of_the_file(
    arguments: str, name: str, start: str, chat: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(chat, f"/export {arguments}") == outcomes.Say(f"Exported to {name}.")
    assert (tmp_path / name).read_text().startswith(start)
    if start.startswith("{"):
        assert read_export(tmp_path / name) == chat.conversation


def test_an_existing_file_is_replaced_only_by_force(chat: Session, tmp_path: Path) -> None:
    path = tmp_path / "chat.md"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        run(chat, f"/export {path}")
    assert path.read_text() == "mine"
    run(chat, f"/export --force {path}")
    assert "A question" in path.read_text()
    for line in ("/export", "/export --force", "/export json "):
        with pytest.raises(MacllmError):
            run(replace_session(chat), line)


def replace_session(chat: Session) -> Session:
    return Session(ScriptedEngine(), conversation=replace(chat.conversation, nodes={}, head=None))


def test_a_temporary_chat_goes_on_with_a_stored_conversation_and_stores_nothing() -> None:
    with closing(Store()) as store:
        store.save(one := talk("q", "a"))
    chat = Session(ScriptedEngine(), conversation=Conversation.begin().added(user("a")))
    assert chats_question(chat).choices[0].line == f"/resume {one.id}"
    outcome = run(chat, f"/resume {one.id[:6]}")
    assert isinstance(outcome, outcomes.Redraw)
    assert "not stored" in outcome.text
    list(chat.reply("more"))
    assert Store().load(one.id) == one


def test_resuming_is_completed_with_the_stored_conversations(chat: Session, store: Store) -> None:
    command, _ = slash.parse("/resume x") or pytest.fail("no command")
    assert command.values is not None
    store.flush()
    assert list(command.values(chat, "").values()) == ["A question", "An older question"]
