"""Slash commands: parsing, completion and effects, without a screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from macllm.chat.conversation import Conversation, Turn
from macllm.chat.session import Session
from macllm.errors import UsageError
from macllm_tui import outcomes, slash
from tests.chat.scripted_engine import ScriptedEngine


def session(*answers: str) -> Session:
    conversation = Conversation.begin()
    for text in answers:
        conversation = conversation.added(Turn(role="user", content="q")).added(Turn(role="assistant", content=text))
    return Session(ScriptedEngine(), conversation=conversation)


def run(chat: Session, line: str) -> outcomes.Outcome:
    parsed = slash.parse(line)
    assert parsed is not None
    command, argument = parsed
    return command(chat, argument)


def output(chat: Session, line: str) -> str:
    """The text shown by a command."""
    outcome = run(chat, line)
    assert isinstance(outcome, outcomes.Say)
    return outcome.text


@pytest.mark.parametrize(
    ("line", "name", "argument"),
    [
        ("/help", "help", ""),
        ("/clear  ", "clear", ""),
        ("/CLEAR", "clear", ""),
        ("/new", "clear", ""),
        ("/retry", "regen", ""),
        ("/set  top_k   3 ", "set", "top_k   3"),
        ("/save my chat.md\n", "export", "my chat.md"),
        ("/save /tmp/chat.md", "export", "/tmp/chat.md"),
    ],
)
def test_a_line_with_one_slash_is_a_command_and_its_argument(line: str, name: str, argument: str) -> None:
    parsed = slash.parse(line)
    assert parsed is not None
    assert (parsed[0].name, parsed[1]) == (name, argument)


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("hello", "hello"),
        (" /help", " /help"),
        ("//help", "/help"),
        ("///", "//"),
        ("/usr/lib/x.py crashes", "/usr/lib/x.py crashes"),
        ("/clear\nthe table", "/clear\nthe table"),
        ("a // b", "a // b"),
        ("q", "q"),
    ],
)
def test_other_lines_are_messages_and_two_slashes_send_one(line: str, sent: str) -> None:
    assert slash.parse(line) is None
    assert slash.plain_text(line) == sent


@pytest.mark.parametrize(
    ("line", "near"), [("/sve x", "/export"), ("/Quti", "/quit"), ("/xyzzy", "/help"), ("/", "/help")]
)
def test_an_unknown_command_is_an_error_that_suggests_the_nearest(line: str, near: str) -> None:
    with pytest.raises(UsageError, match="Unknown command") as caught:
        slash.parse(line)
    assert near in (caught.value.remedy or "")


CODE = "Run\n```sh\nls\n```\nor\n~~~~\n```\nx\n~~~\n~~~~\nand, open:\n  ```py\n  y = 1"


@pytest.mark.parametrize(("argument", "copied"), [("", CODE), ("1", "ls\n"), ("2", "```\nx\n~~~\n"), ("3", "y = 1\n")])
def test_the_answer_or_one_of_its_code_blocks_is_copied(argument: str, copied: str) -> None:
    outcome = run(session("an older answer", CODE), f"/copy {argument}")
    assert outcome == outcomes.Copy(copied)


def test_the_whole_conversation_is_copied() -> None:
    outcome = run(session("one", "two"), "/copy all")
    assert isinstance(outcome, outcomes.Copy)
    assert outcome.text.startswith("# Chat with scripted\n")
    assert outcome.text.index("one") < outcome.text.index("two")


@pytest.mark.parametrize("argument", ["0", "4", "-1", "x", "²"])
def test_copying_a_missing_code_block_is_an_error_with_their_number(argument: str) -> None:
    with pytest.raises(UsageError, match="No code block") as caught:
        run(session(CODE), f"/copy {argument}")
    assert "3 code blocks" in (caught.value.cause or "")
    with pytest.raises(UsageError, match="No answer"):
        run(session(), "/copy")


def test_a_saved_conversation_is_replaced_only_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CHATS", str(tmp_path))
    path = tmp_path / "my chat.md"
    run(session("first"), "/save ~/my chat.md")
    assert "first" in path.read_text()
    with pytest.raises(UsageError, match="exists"):
        run(session("second"), "/save $CHATS/my chat.md")
    assert "first" in path.read_text()
    run(session("second"), f"/save --force {path}")
    assert "second" in path.read_text()
    for line in ("/save", "/save --force", "/save --force  "):
        with pytest.raises(UsageError, match="file name"):
            run(session("third"), line)
    with pytest.raises(UsageError, match="No conversation to export"):
        run(session(), f"/save {tmp_path / 'empty.md'}")
    assert list(tmp_path.iterdir()) == [path]


def test_the_system_prompt_is_set_shown_and_removed() -> None:
    chat = session("x")
    assert "No system prompt" in output(chat, "/system")
    run(chat, "/system Answer in rhyme.  Always.")
    assert chat.system == "Answer in rhyme.  Always."
    assert "Answer in rhyme.  Always." in output(chat, "/system")
    run(chat, "/system none")
    assert chat.system is None


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("temperature 0.25", "temperature", 0.25),
        ("temperature=1", "temperature", 1.0),
        ("top_k = 7", "top_k", 7),
        ("top_p   0.5", "top_p", 0.5),
        ("seed 0", "seed", 0),
        ("seed none", "seed", None),
    ],
)
def test_a_setting_takes_its_value_with_and_without_an_equals_sign(argument: str, name: str, value: object) -> None:
    chat = session("x")
    shown = output(chat, f"/set {argument}")
    assert getattr(chat.sampling, name) == value
    assert shown == output(chat, f"/set {name}")
    assert shown in output(chat, "/set").splitlines()


def test_max_tokens_is_set_and_removed() -> None:
    chat = session("x")
    assert output(chat, "/set max_tokens 12") == "max_tokens = 12"
    assert chat.max_tokens == 12
    assert output(chat, "/set max_tokens none") == "max_tokens = none"
    assert chat.max_tokens is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("temperatur 1", "'temperatur'"),
        ("temperature -1", "temperature is -1"),
        ("temperature none", "a number"),
        ("temperature nan", "temperature is nan"),
        ("top_k 1.5", "a whole number"),
        ("top_k 1 2", "a whole number"),
        ("max_tokens 0", "max_tokens is 0"),
        ("seed 4294967296", "seed is 4294967296"),
    ],
)
def test_an_invalid_setting_is_refused_and_changes_nothing(argument: str, message: str) -> None:
    chat = session("x")
    before = chat.sampling, chat.max_tokens
    with pytest.raises(UsageError, match=message):
        run(chat, f"/set {argument}")
    assert (chat.sampling, chat.max_tokens) == before
