"""`macllm chats` and the flags of `macllm chat` that go on with a stored conversation."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import macllm.generation.engines.process
from macllm import cli
from macllm.chat.conversation import Conversation, Origin, Turn
from macllm.chat.options import ChatOptions
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm.cli.resuming import resumed, say_resume_line
from macllm.errors import UsageError
from tests.chat.scripted_engine import ScriptedEngine
from tests.chat.test_conversation import answer, talk, user
from tests.cli.test_commands import Outcome

SCRIPT = Path(__file__).parents[1] / "tui" / "scripted_cli.py"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.main(["chats", *map(str, arguments)])
        return Outcome(code, *capsys.readouterr())

    return run


class Stream(io.StringIO):
    """A stream that says what it is."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def stored(*conversations: Conversation) -> Store:
    store = Store()
    for conversation in conversations:
        store.save(conversation)
        store.flush(5)
    store.close()
    return store


def scripted(answers: list[list[Any]], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), json.dumps(answers), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)


def test_a_listing_is_text_or_json_and_an_empty_one_creates_no_file(run: Callable[..., Outcome]) -> None:
    empty = run("ls")
    assert (empty.code, empty.out) == (0, "")
    assert "macllm chat" in empty.err
    assert run("ls", "--json").out == "[]\n"
    assert not Store().path.exists()
    one, two = talk("About llamas", "yes"), talk("Other")
    stored(one, two)
    lines = run("ls").out.splitlines()
    assert [line.split()[0] for line in lines] == [two.id[:6], one.id[:6]]
    assert lines[1].endswith("2  About llamas")
    [first] = json.loads(run("ls", "-n", 1, "--json").out)
    assert (first["id"], first["name"], first["messages"]) == (two.id, "Other", 1)


def test_a_search_prints_the_conversations_and_exits_with_1_without_any(run: Callable[..., Outcome]) -> None:
    one = talk("About llamas", "they spit")
    stored(one, talk("Other"))
    found = run("search", "llamas")
    assert (found.code, found.out.splitlines()[1]) == (0, "    About llamas")
    [hit] = json.loads(run("search", "spit", "--json").out)
    assert (hit["id"], hit["message"], hit["snippet"]) == (one.id, one.head, "they spit")
    nothing = run("search", "camels")
    assert (nothing.code, nothing.out, nothing.err) == (1, "", "nothing found\n")


def test_a_conversation_is_shown_with_the_numbers_and_branches_of_its_messages(run: Callable[..., Outcome]) -> None:
    one = replace(talk("first", "an answer"), system="Be kind.")
    one = one.at(one.path[0].id).added(Turn(role="assistant", content="another", finish="cancelled"))
    stored(one)
    shown = run("show", one.id[:6]).out
    assert shown == ("first\n\nsystem\nBe kind.\n\n1  you\nfirst\n\n2  the model  ‹2/2›\nanother\n(stopped)\n")
    assert json.loads(run("show", one.id, "--json").out)["head"] == one.head


def test_an_export_goes_to_stdout_or_a_file_and_its_import_makes_no_duplicates(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    one = talk("first", "answer")
    stored(one)
    assert run("export", one.id[:6]).out.startswith("# Chat with the model\n\n## You\n\nfirst\n")
    path = tmp_path / "chat.json"
    written = run("export", one.id, "-o", path)
    assert (written.code, written.out, written.err) == (0, "", f"exported to {path}\n")
    assert run("export", one.id, "-f", "json").out == path.read_text()
    again = run("export", one.id, "-o", path)
    assert (again.code, "--force" in again.err) == (2, True)
    assert run("export", one.id, "-o", path, "--force").code == 0
    run("rm", "--yes", one.id)
    assert "2 new of 2" in run("import", path).err
    assert "0 new of 2" in run("import", path, path).err
    assert Store().load(one.id) == one
    assert len(Store().list()) == 1


def test_an_old_export_changes_no_newer_conversation(run: Callable[..., Outcome], tmp_path: Path) -> None:
    old = talk("first", "answer")
    stored(old)
    run("export", old.id, "-o", tmp_path / "old.json")
    new = replace(old.changed(old.path[1].id, answer("longer answer")).added(user("more")), title="T")
    stored(new)
    assert run("import", tmp_path / "old.json").code == 0
    assert Store().load(old.id) == new


def test_another_file_is_not_imported(run: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    refused = run("import", tmp_path / "x.json")
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 3)
    assert run("import", tmp_path / "missing.json").code == 2


def test_removing_needs_yes_without_a_terminal(run: Callable[..., Outcome]) -> None:
    one, two, three = talk("a"), talk("b"), talk("c")
    stored(one, two, three)
    refused = run("rm", one.id[:6], two.id[:6])
    assert refused.code == 2
    assert f"try: macllm chats rm --yes {one.id[:6]} {two.id[:6]}\n" in refused.err
    assert run("rm", "--yes", one.id[:6], "nope").code == 2
    assert len(Store().list()) == 3
    assert run("rm", "--yes", one.id[:6], two.id[:6], one.id).code == 0
    assert [chat.id for chat in Store().list()] == [three.id]


def test_removing_asks_on_a_terminal() -> None:
    one = talk("a question")
    stored(one)
    for reply, left in ((b"n\n", 1), (b"y\n", 0)):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "macllm", "chats", "rm", one.id]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            seen = b""
            while b"for good?" not in seen:
                seen += os.read(ours, 1000)
            os.write(ours, reply)
            process.wait(20)
        os.close(ours)
        assert b"a question" in seen
        assert len(Store().list()) == left


@pytest.mark.parametrize("arguments", [("show",), ("export",), ("rm", "--yes"), ("replay",)])
def test_an_unknown_conversation_is_an_error(arguments: tuple[str, ...], run: Callable[..., Outcome]) -> None:
    outcome = run(*arguments, "abc")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: There is no conversation abc.\n")


def test_a_damaged_store_is_an_error_that_says_how_it_is_repaired(run: Callable[..., Outcome]) -> None:
    Store().path.parent.mkdir(parents=True)
    Store().path.write_bytes(b"junk " * 1000)
    outcome = run("ls")
    assert (outcome.code, outcome.out) == (1, "")
    assert "is damaged" in outcome.err
    assert "try: macllm chat" in outcome.err
    assert Store().path.read_bytes() == b"junk " * 1000


# Replay


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedEngine]:
    """The engines that replay starts; each takes the next of `answers`."""
    made: list[ScriptedEngine] = []

    def make(model: str, adapter: str | None = None, on_status: Any = None) -> ScriptedEngine:
        made.append(ScriptedEngine(["one ", "two"], ["three"]))
        return made[-1]

    monkeypatch.setattr(macllm.generation.engines.process, "ProcessEngine", make)
    return made


def recorded(*texts: str, model: str = "maclet") -> Conversation:
    conversation = Conversation.begin("Now")
    for text in texts:
        origin = Origin(model=model, system="Then", max_tokens=99)
        turn = Turn(
            role="assistant", content=text, finish="stop", seed=3, tokens=tuple(range(len(text.split()))), origin=origin
        )
        conversation = conversation.added(user("q")).added(turn)
    return conversation


def test_a_replay_asks_with_the_recorded_settings_and_compares_the_tokens(
    run: Callable[..., Outcome], engines: list[ScriptedEngine]
) -> None:
    one = recorded("one two", "three")
    stored(one)
    outcome = run("replay", one.id, "--verify")
    assert outcome == Outcome(0, "2  equal  2 tokens\n4  equal  1 tokens\n", "2 of 2 answers are equal\n")
    [engine] = engines
    assert engine.closed
    assert [request.sampling.seed for request in engine.requests] == [3, 3]
    assert engine.rendered[1] == [
        {"role": "system", "content": "Then"}, {"role": "user", "content": "q"},
        {"role": "assistant", "content": "one two"}, {"role": "user", "content": "q"},
    ]  # fmt: skip


def test_a_replay_makes_each_answer_with_its_adapter(
    run: Callable[..., Outcome], engines: list[ScriptedEngine]
) -> None:
    conversation = Conversation.begin()
    for text, adapter in (("one two", None), ("three", "a + b:0.5")):
        origin = Origin(model="maclet", adapter=adapter)
        turn = Turn(
            role="assistant", content=text, finish="stop", tokens=tuple(range(len(text.split()))), origin=origin
        )
        conversation = conversation.added(user("q")).added(turn)
    stored(conversation)
    assert run("replay", conversation.id, "--verify").code == 0
    [engine] = engines
    assert engine.activated == ["a + b:0.5"]


def test_a_difference_is_shown_and_fails_only_a_verification(
    run: Callable[..., Outcome], engines: list[ScriptedEngine]
) -> None:
    one = recorded("one two and more", "three")
    stored(one)
    verified = run("replay", one.id, "--verify")
    assert (verified.code, verified.err) == (1, "1 of 2 answers are equal\n")
    shown = "2  different from token 3 on: recorded 'one two and more', now 'one two'"
    assert verified.out.splitlines()[0] == shown
    repeated = run("replay", one.id)
    assert (repeated.code, repeated.out) == (0, "2  one two\n\n4  three\n\n")
    assert repeated.err.splitlines()[0] == shown
    first, _ = json.loads(run("replay", one.id, "--json").out)
    assert (first["equal"], first["first_difference"], first["now"]["text"]) == (False, 2, "one two")


def test_a_stopped_answer_is_made_again_up_to_its_length(
    run: Callable[..., Outcome], engines: list[ScriptedEngine]
) -> None:
    one = recorded("one")
    stopped = one.changed(one.path[1].id, replace(one.turns[1], content="one ", finish="cancelled"))
    stored(stopped)
    assert run("replay", one.id, "--verify").code == 0
    assert engines[0].requests[0].max_tokens == 1


@pytest.mark.parametrize(("finish", "most"), [("stop", 3), ("length", 2)])
def test_a_continued_answer_is_made_again_at_once(
    finish: Any, most: int, run: Callable[..., Outcome], engines: list[ScriptedEngine]
) -> None:
    one = recorded("one two")
    assert one.turns[1].origin
    origin = replace(one.turns[1].origin, max_tokens=1)
    stored(one := one.changed(one.path[1].id, replace(one.turns[1], origin=origin, finish=finish)))
    assert run("replay", one.id, "--verify").code == 0
    assert engines[0].requests[0].max_tokens == most


def test_a_missing_model_is_named_with_a_remedy(run: Callable[..., Outcome], engines: list[ScriptedEngine]) -> None:
    one = recorded("one", model="nobody/nothing")
    stored(one)
    outcome = run("replay", one.id)
    assert (outcome.code, outcome.out, engines) == (3, "", [])
    assert "message 2 was made by nobody/nothing" in outcome.err
    assert "try: macllm models get nobody/nothing" in outcome.err
    stored(two := talk("only a question"))
    assert run("replay", two.id).code == 2


# macllm chat


def test_a_piped_chat_is_stored_and_continued_with_its_model_and_system_prompt() -> None:
    first = scripted([["first"]], "chat", "Hello", "--system", "Be brief.")
    assert (first.returncode, first.stdout) == (0, "first\n")
    assert "resume" not in first.stderr
    [chat] = Store().list()
    second = scripted([["second"]], "chat", "-c", "Again", "-m", "maclet")
    assert (second.returncode, second.stdout) == (0, "second\n")
    conversation = Store().load(chat.id)
    assert [turn.content for turn in conversation.turns] == ["Hello", "first", "Again", "second"]
    assert conversation.system == "Be brief."
    assert len(Store().list()) == 1
    fork = scripted([["third"]], "chat", "Instead", "-m", "maclet", "--fork", f"{chat.id[:6]}:2")
    assert fork.returncode == 0
    [newest, _] = Store().list()
    contents = [turn.content for turn in Store().load(newest.id).turns]
    assert contents == ["Hello", "first", "Instead", "third"]


def test_a_temporary_chat_stores_nothing() -> None:
    assert scripted([["first"]], "chat", "Hello", "--temporary").stdout == "first\n"
    assert not Store().path.exists()


def test_a_chat_goes_on_unstored_with_the_file_of_a_newer_version() -> None:
    import sqlite3

    Store().open()
    with sqlite3.connect(Store().path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    done = scripted([["first"]], "chat", "Hello")
    assert (done.returncode, done.stdout) == (0, "first\n")
    assert "This chat is not stored." in done.stderr
    assert "newer version" in done.stderr


def test_a_chat_with_a_damaged_store_says_so_and_begins_a_new_one() -> None:
    Store().path.parent.mkdir(parents=True, exist_ok=True)
    Store().path.write_bytes(b"junk " * 1000)
    done = scripted([["first"]], "chat", "Hello")
    assert (done.returncode, done.stdout) == (0, "first\n")
    assert "macllm.db.damaged-" in done.stderr
    assert len(Store().list()) == 1


def choose(**flags: Any) -> ChatOptions:
    return resumed(ChatOptions(), **({"goes_on": False, "resume": None, "fork": None} | flags))


def test_a_resumed_conversation_brings_its_model_unless_another_is_given() -> None:
    origin = Origin(model="org/name", adapter="mine")
    one = talk("q").added(Turn(role="assistant", content="a", origin=origin))
    stored(one)
    chosen = choose(resume=one.id[:6])
    assert (chosen.conversation, chosen.model, chosen.adapter) == (one, "org/name", "mine")
    given = resumed(ChatOptions(model="other"), True, None, None)
    assert (given.conversation, given.model, given.adapter) == (one, "other", None)
    assert choose() == ChatOptions()


@pytest.mark.parametrize(
    "flags",
    [{"goes_on": True}, {"resume": ""}, {"resume": "abc"}, {"fork": "abc"}, {"goes_on": True, "resume": "abc"}],
)
def test_a_conversation_that_cannot_be_chosen_is_an_error(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        choose(**flags)
    assert caught.value.remedy


def test_resuming_without_an_id_needs_a_terminal() -> None:
    stored(one := talk("q"))
    with pytest.raises(UsageError, match="needs an ID") as caught:
        choose(resume="")
    assert caught.value.remedy == f"macllm chat --resume {one.id}"


def test_stored_text_cannot_control_the_terminal() -> None:
    evil = "\x1b]0;owned\x07 \x9b31m"
    one = replace(talk(evil, evil), title=f"{evil}\nsecond line")
    stored(one)
    for arguments in (["ls"], ["export", one.id], ["show", one.id, "--json"]):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "macllm", "chats", *arguments]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            seen = b""
            with contextlib.suppress(OSError):
                while part := os.read(ours, 10_000):
                    seen += part
            assert process.wait(20) == 0
        os.close(ours)
        assert b"owned" in seen
        assert not {"\x1b", "\x07", "\x9b"} & set(seen.decode())


@pytest.mark.slow
def test_answers_of_the_bundled_model_are_the_same_again(run: Callable[..., Outcome]) -> None:
    for question in ("What is RoPE?", "And what is GQA?"):
        command = [sys.executable, "-m", "macllm", "chat", question, "-c"][: 6 if Store().path.exists() else 5]
        subprocess.run([*command, "--temperature", "0.9"], check=True, capture_output=True, timeout=100)
    [chat] = Store().list()
    verified = run("replay", chat.id, "--verify")
    assert (verified.code, verified.err) == (0, "2 of 2 answers are equal\n")


@pytest.mark.parametrize(
    ("terminals", "prompt", "says"),
    [
        ((True, True, True), "Hi", True),
        ((True, False, True), None, True),  # macllm chat > chat.md
        ((True, False, True), "Hi", False),  # macllm chat "Hi" | less
        ((False, True, True), "Hi", False),  # macllm chat "Hi" < notes.txt
        ((True, True, False), "Hi", False),
        ((False, False, False), "Hi", False),
    ],
)
def test_only_a_conversation_on_a_terminal_says_how_it_is_resumed(
    terminals: tuple[bool, ...], prompt: str | None, says: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = talk("a", "b")
    session = Session(ScriptedEngine(), conversation=chat, journal=stored(chat))
    for name, is_terminal in zip(("stdin", "stdout", "stderr"), terminals, strict=True):
        monkeypatch.setattr(sys, name, Stream(is_terminal))
    say_resume_line([session], prompt)
    said = sys.stderr.getvalue()  # type: ignore[union-attr]
    assert said == (f"resume: macllm chat --resume {session.journal.short(chat.id)}\n" if says else "")


def test_an_adapter_or_a_model_chosen_after_the_last_answer_is_resumed() -> None:
    engine, store = ScriptedEngine(["one"], ["two"], ["three"], ["four"]), Store()
    session = Session(engine, journal=store)
    session.activate("/x/notes")  # before the first message: the answer records it
    list(session.reply("q"))

    def found() -> tuple[str | None, str | None]:
        assert store.flush(5)
        options = resumed(ChatOptions(), True, None, None)
        return options.model, options.adapter

    assert found() == ("scripted", "/x/notes")
    session.activate(None)
    assert found() == ("scripted", None)
    session.activate("/x/style")
    assert found() == ("scripted", "/x/style")
    engine.activate(None)  # as a chat that is resumed with another adapter
    list(session.reply("q"))
    assert found() == ("scripted", None)
    session.activate("/x/style")
    for adapter in ("/x/style", None):
        list(session.compare())
        assert session.turns[-1].origin is not None
        assert session.turns[-1].origin.adapter == adapter
    assert found() == ("scripted", "/x/style")
    other = ScriptedEngine()
    other.info = replace(other.info, model_name="other")
    Session(other, journal=store).take_over(session)
    assert found() == ("other", None)
    store.close()
