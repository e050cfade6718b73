"""The store: saving while answers stream, kills, damage, and several processes at once."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from macllm.chat import database, rows
from macllm.chat import store as store_module
from macllm.chat.archive import read_export
from macllm.chat.condition import condition
from macllm.chat.conversation import Attachment, Conversation, Turn
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm.errors import MacllmError, UsageError
from tests.chat.scripted_engine import ScriptedEngine
from tests.chat.test_conversation import answer, talk, user

STORING = Path(__file__).parent / "storing.py"
NAME = "macllm.db"


@pytest.fixture
def opened() -> Iterator[Callable[..., Store]]:
    """Open stores that are closed after the test."""
    stores: list[Store] = []

    def make(path: Path, **options: Any) -> Store:
        stores.append(Store(path, **options))
        return stores[-1]

    yield make
    for each in stores:
        each.close()


@pytest.fixture
def store(tmp_path: Path, opened: Callable[..., Store]) -> Store:
    return opened(tmp_path / NAME)


def stored(store: Store, *conversations: Conversation) -> None:
    for conversation in conversations:
        store.save(conversation)
        assert store.flush(5)


def test_a_stored_conversation_is_loaded_as_it_was(store: Store, tmp_path: Path) -> None:
    tree = talk("a", "b", "c", "d")
    tree = replace(tree.at(tree.path[1].id).added(user("e")), title="Letters", system="Spell.")
    tree = tree.added(Turn(role="cut", content="", kept=tree.path[1].id)).at(tree.path[2].id)
    stored(store, tree)
    loaded = Store(tmp_path / NAME).load(tree.id)
    assert loaded == tree
    assert list(loaded.nodes) == list(tree.nodes)


def test_changed_and_removed_messages_are_written(store: Store) -> None:
    old = talk("a", "b")
    stored(store, old)
    new = old.changed(old.path[1].id, answer("B")).added(user("c"))
    stored(store, new)
    assert store.load(old.id) == new
    stored(store, old)
    assert store.load(old.id) == old


def test_a_conversation_without_messages_is_not_stored_or_removed(store: Store, tmp_path: Path) -> None:
    empty = Conversation.begin("S")
    store.save(empty)
    assert store.flush(5)
    assert not (tmp_path / NAME).exists()
    stored(store, empty.added(user("a")))
    stored(store, empty)
    assert store.list() == []


def test_only_the_newest_waiting_state_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    goes_on, write = threading.Event(), rows.write

    def slowly(db: Any, conversation: Conversation, before: Any) -> None:
        goes_on.wait(5)
        written.append(len(conversation.nodes))
        write(db, conversation, before)

    monkeypatch.setattr(rows, "write", slowly)
    conversation = Conversation.begin()
    for text in "abcdefgh":
        conversation = conversation.added(user(text))
        store.save(conversation)
    goes_on.set()
    assert store.flush(5)
    assert (written[-1], len(written) <= 2) == (8, True)
    assert store.load(conversation.id) == conversation


def test_an_id_may_be_shortened_as_long_as_it_is_unique(store: Store) -> None:
    one, two = (Conversation(chat, 1.0).added(user(chat)) for chat in ("abcdef111111", "abcdef222222"))
    stored(store, one, two)
    assert store.load("abcdef1") == one
    assert (store.short(one.id), store.find(two.id)) == ("abcdef1", two.id)
    for prefix in ("abcdef", ""):
        with pytest.raises(UsageError):
            store.load(prefix)
    with pytest.raises(UsageError, match="no conversation x"):
        store.load("x")


def test_a_listing_has_the_newest_change_first(store: Store) -> None:
    one, two = talk("one", "1"), talk("two")
    stored(store, one, two, one.added(user("again")))
    first, second = store.list()
    assert (first.id, first.name, first.messages, second.name) == (one.id, "one", 3, "two")
    assert store.list(1) == [first]
    assert first.updated >= second.updated > 0


def test_a_removed_conversation_is_gone_until_it_is_saved_again(store: Store) -> None:
    one = talk("some text", "b")
    stored(store, one)
    assert store.remove(one.id[:8]) == one.id
    assert (store.list(), store.search("some")) == ([], [])
    stored(store, one.added(user("c")))
    assert len(store.load(one.id).nodes) == 3


# Search


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["trigram", "unicode61", "like"])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("rotary", True),
        ("ROTARY position", True),
        ("position rotary", True),
        ('"rotary position"', True),
        ('"position rotary"', False),
        ("absent", False),
        ("rotary absent", False),
        ('said "hello', True),
        ('he said: "hello" AND', True),
        ("AND", True),
        ("NOT zebra", False),
        ("100%", True),
        ("100_", False),
        ("x*y", True),
        ("text:", True),
        ("ä", True),
        ('"', True),
        ("' OR 1=1 --", False),
        ("notes.txt", True),
        ("pasted", True),
        ("", False),
    ],
)
def test_a_search_finds_the_conversations_with_all_words_and_takes_no_operators(
    kind: int, text: str, found: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SEARCH_TABLES", database.SEARCH_TABLES[kind:])
    content = 'Rotary position embeddings; he said: "hello" AND 100% x*y text: größer ä'
    one = Conversation.begin().added(
        Turn(role="user", content=content, attachments=(Attachment("notes.txt", "pasted words"),))
    )
    stored(store, talk("something else"), one)
    hits = store.search(text)
    assert [hit.chat.id for hit in hits] == [one.id] * found
    if found:
        assert hits[0].message == one.head


def test_a_search_shows_the_newest_matching_message_and_finds_titles(store: Store) -> None:
    one = talk("a llama " + "x " * 100, "no", "the second llama\nof two " + "y " * 100)
    titled = replace(talk("b"), title="About llamas")
    stored(store, one, titled)
    hits = {hit.chat.id: hit for hit in store.search("llama")}
    assert hits[one.id].message == one.head
    assert hits[one.id].snippet.startswith("the second llama of two y")
    assert hits[one.id].snippet.endswith("…")
    assert (hits[titled.id].message, hits[titled.id].snippet) == (None, "")
    assert len(store.search("llama", 1)) == 1


def test_a_changed_message_is_found_by_its_new_text_only(store: Store) -> None:
    one = talk("first text")
    stored(store, one, one.changed(one.path[0].id, user("second words")))
    assert [bool(store.search(text)) for text in ("first", "second")] == [False, True]


# Prompts


def test_prompts_are_remembered_across_sessions_without_repetition(
    store: Store, opened: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MOST_PROMPTS", 3)
    assert store.prompts() == []
    for text in ("a", "b\nc", "b\nc", "a", "\ud800"):
        store.remember(text)
    assert store.flush(5)
    other = opened(tmp_path / NAME)
    assert other.prompts() == ["b\nc", "a", "?"]


# Kills and other processes


def test_fifty_kills_during_writes_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    path, log = tmp_path / NAME, tmp_path / "log"
    subprocess.run([sys.executable, str(STORING), str(path), str(log)], check=True, timeout=60)
    assert database.repaired(path) is None
    found = {chat.id: chat.messages for chat in Store(path).list()}
    flushed = [line.split() for line in log.read_text().splitlines()]
    assert len(flushed) >= 25
    for chat, number in flushed:
        assert found[chat] >= int(number)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []


def test_a_killed_chat_leaves_the_question_and_the_partial_answer(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "tui" / "scripted_cli.py"
    answers = '[["The first half", 0.6, " and more", 0.1, "", null]]'
    environment = os.environ | {"MACLLM_HOME": str(tmp_path)}
    command = [sys.executable, str(script), answers, "chat", "A question"]
    store = Store(tmp_path / NAME)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        end = time.monotonic() + 20
        while not (found := store.search("more")):
            assert time.monotonic() < end
            time.sleep(0.02)
        process.kill()
    turns = store.load(found[0].chat.id).turns
    assert [(turn.content, turn.finish) for turn in turns] == [
        ("A question", None),
        ("The first half and more", "cancelled"),
    ]


def test_two_processes_add_to_one_conversation_without_loss(tmp_path: Path, opened: Callable[..., Store]) -> None:
    one, two = opened(tmp_path / NAME), opened(tmp_path / NAME)
    start = talk("a", "b")
    stored(one, start)
    theirs = two.load(start.id).added(user("theirs"))
    stored(two, theirs)
    ours = start.added(user("ours")).added(answer("yes"))
    stored(one, ours)
    assert set(one.load(start.id).nodes) == set(ours.nodes) | set(theirs.nodes)
    stored(one, ours.at(start.head).added(user("third")))
    assert len(Store(tmp_path / NAME).load(start.id).nodes) == 6


def test_a_title_that_another_process_gave_stays(tmp_path: Path, opened: Callable[..., Store]) -> None:
    one, two = opened(tmp_path / NAME), opened(tmp_path / NAME)
    start = talk("a", "b")
    stored(one, start)
    stored(two, replace(two.load(start.id), title="Theirs", system="Be kind."))
    stored(one, longer := start.added(user("c")))
    assert one.load(start.id) == replace(longer, title="Theirs", system="Be kind.")
    assert one.list()[0].name == "Theirs"
    stored(one, replace(longer, title="Ours"))
    assert [chat.name for chat in two.list()] == ["Ours"]


def test_a_message_that_another_process_answered_is_not_removed(tmp_path: Path, opened: Callable[..., Store]) -> None:
    one, two = opened(tmp_path / NAME), opened(tmp_path / NAME)
    start = talk("a", "b", "c")
    stored(one, start)
    stored(two, two.load(start.id).added(answer("d")))
    stored(one, replace(start, nodes=dict(list(start.nodes.items())[:2]), head=start.path[1].id))
    assert len(two.load(start.id).nodes) == 4


def test_a_lock_that_another_process_holds_long_only_delays_writing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.02)
    monkeypatch.setattr(store_module, "_RETRY_SECONDS", 0.01)
    errors: list[MacllmError] = []
    store._on_error = errors.append
    store.open()
    other = sqlite3.connect(tmp_path / NAME, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    conversation = talk("a")
    store.save(conversation)
    assert not store.flush(0.2)
    other.execute("COMMIT")
    assert store.flush(5)
    assert store.load(conversation.id) == conversation
    assert len(errors) == 1
    assert "locked" in (errors[0].cause or "")
    other.close()


def test_a_conversation_that_cannot_be_stored_at_the_end_is_in_a_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.02)
    monkeypatch.setattr(store_module, "_CLOSING_SECONDS", 0.1)
    store.open()
    other = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    conversation = talk("a", "b")
    store.save(conversation)
    store.close()
    assert store.unsaved is not None
    path = tmp_path / f"unsaved-{conversation.id}.json"
    assert (store.unsaved.remedy, read_export(path)) == (f"macllm chats import {path}", conversation)
    assert path.stat().st_mode & 0o777 == 0o600
    other.close()


@pytest.mark.parametrize(
    ("pragma", "cause"), [("max_page_count = 1", "full"), ("query_only = ON", "readonly")], ids=["full", "readonly"]
)
def test_a_full_or_write_protected_disk_is_reported_once_and_the_answer_goes_on(
    pragma: str, cause: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_RETRY_SECONDS", 0.01)
    errors: list[MacllmError] = []
    store._on_error = errors.append
    store.open()
    connect, broken = database.connect, True

    def limited(path: Path) -> sqlite3.Connection:
        db = connect(path)
        if broken:
            db.execute(f"PRAGMA {pragma}")
        return db

    monkeypatch.setattr(database, "connect", limited)
    session = Session(ScriptedEngine(["one ", "two"]), journal=store)
    list(session.reply("long" * 9000))
    assert not store.flush(0.1)
    assert len(errors) == 1
    assert cause in (errors[0].cause or "")
    assert errors[0].remedy
    broken = False
    assert store.flush(5)
    assert store.load(session.conversation.id).turns[-1].content == "one two"


def test_a_save_after_the_end_is_written_too(store: Store) -> None:
    store.close()
    stored(store, one := talk("a"))
    store.close()
    store.close()
    store.save(two := one.added(user("b")))
    store.close()
    assert store.load(one.id) == two


# Wrong files


def test_the_file_and_its_new_folder_are_for_their_owner_alone(tmp_path: Path, opened: Callable[..., Store]) -> None:
    path = tmp_path / "new" / "folder" / NAME
    store = opened(path)
    stored(store, talk("a"))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {
        NAME: 0o600,
        f"{NAME}-wal": 0o600,
        f"{NAME}-shm": 0o600,
    }


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({"MACLLM_HOME": "/h", "XDG_DATA_HOME": "/x"}, "/h/macllm.db"),
        ({"XDG_DATA_HOME": "/x"}, "/x/macllm/macllm.db"),
        ({"HOME": "/u"}, "/u/.local/share/macllm/macllm.db"),
    ],
)
def test_the_file_is_in_the_home_of_macllm_else_with_the_users_data(
    variables: dict[str, str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MACLLM_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(Store().path) == path


def damaged_page(content: bytes) -> bytes:
    return content[:4096] + bytes(random.Random(1).randbytes(len(content) - 4096))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda _: b"this is not a database\n" * 100,
    "header": lambda content: b"\0" * 100 + content[100:],
    "truncated": lambda content: content[:5000],
    "pages": damaged_page,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_an_error_until_a_chat_moves_it_aside(
    kind: str, tmp_path: Path, opened: Callable[..., Store]
) -> None:
    path = tmp_path / NAME
    first = opened(path)
    stored(first, talk("a" * 20_000))
    first.close()
    path.write_bytes(damaged := DAMAGES[kind](path.read_bytes()))
    with pytest.raises(MacllmError) as caught:
        Store(path).load(Store(path).list()[0].id)
    assert caught.value.cause
    assert "macllm chat" in (caught.value.remedy or "") or kind == "pages"
    assert [each.name for each in tmp_path.iterdir() if "damaged" in each.name] == []
    notices: list[MacllmError] = []
    store = opened(path, on_error=notices.append)
    store.open()
    [moved] = [each for each in tmp_path.iterdir() if "damaged" in each.name]
    assert moved.read_bytes() == damaged
    assert len(notices) == 1
    assert str(moved) in notices[0].message
    stored(store, one := talk("b"))
    assert store.load(one.id) == one


def test_a_file_that_is_damaged_during_a_chat_is_moved_aside_and_the_conversation_is_whole(
    tmp_path: Path, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_RETRY_SECONDS", 0.01)
    notices: list[MacllmError] = []
    store = opened(tmp_path / NAME, on_error=notices.append)
    store.open()
    stored(store, one := talk("a", "b"))
    store.close()
    (tmp_path / NAME).write_bytes(b"overwritten " * 1000)
    stored(store, two := one.added(user("c")))
    assert store.load(one.id) == two
    assert len(notices) == 1


def test_a_damaged_file_that_cannot_be_moved_is_an_error_and_the_conversation_is_not_lost(
    tmp_path: Path, opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    def fail(_: MacllmError) -> None:
        raise RuntimeError("the screen has ended")

    store = opened(tmp_path / NAME, on_error=fail)
    store.open()
    (tmp_path / NAME).write_bytes(b"overwritten " * 1000)
    monkeypatch.setattr(database, "_set_aside", refuse)
    with pytest.raises(MacllmError, match="cannot be used") as caught:
        store.open()
    assert caught.value.cause == "Permission denied"
    store.save(one := talk("a"))
    store.close()
    assert read_export(tmp_path / f"unsaved-{one.id}.json") == one


def test_a_second_damaged_file_replaces_no_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database.time, "strftime", lambda *_: "now")
    for content in (b"one " * 1000, b"two " * 1000):
        (tmp_path / NAME).write_bytes(content)
        Store(tmp_path / NAME).open()
    kept = sorted(each.read_bytes()[:3] for each in tmp_path.iterdir() if "damaged" in each.name)
    assert kept == [b"one", b"two"]


def test_a_sound_or_missing_or_empty_file_is_not_moved(tmp_path: Path) -> None:
    path = tmp_path / NAME
    Store(path).open()
    Store(path).open()
    path.unlink()
    path.touch()
    Store(path).open()
    assert Store(path).list() == []
    assert [each.name for each in tmp_path.iterdir() if "damaged" in each.name] == []


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path / NAME).open()
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = (tmp_path / NAME).read_bytes()
    for use in (Store.open, Store.list):
        with pytest.raises(MacllmError, match="newer version") as caught:
            use(Store(tmp_path / NAME))
        assert "99" in (caught.value.cause or "")
        assert "--temporary" in (caught.value.remedy or "")
    assert (tmp_path / NAME).read_bytes() == before


def test_the_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(MacllmError, match="another program"):
        Store(tmp_path / NAME).open()


def test_a_file_on_a_read_only_medium_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / NAME
    with closing(Store(path)) as store:
        stored(store, one := talk("a"))
    monkeypatch.setattr(database.os, "access", lambda path, mode: mode != os.W_OK)
    (tmp_path / f"{NAME}-wal").mkdir()  # SQLite cannot make its file, as on such a medium
    assert Store(path).load(one.id[:4]) == one
    assert [hit.chat.id for hit in Store(path).search("a")] == [one.id]
    assert condition(path)["state"] == "ok"
    with pytest.raises(MacllmError, match="cannot be used"):
        Store(path).open()


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(MacllmError, match="is a folder"):
        Store(tmp_path / NAME).open()
    (tmp_path / "file").touch()
    with pytest.raises(MacllmError, match="cannot be used"):
        Store(tmp_path / "file" / NAME).open()


def test_a_file_is_copied_before_it_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / NAME
    store = Store(path)
    stored(store, one := talk("a"))
    store.close()
    fails = True

    def migrate(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE chat ADD COLUMN extra TEXT")
        if fails:
            raise sqlite3.OperationalError("no room")

    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, migrate))
    with pytest.raises(MacllmError, match="cannot be used"):
        Store(path).list()
    fails = False
    assert Store(path).load(one.id) == one
    backup = path.with_name(f"{NAME}.version-1")
    monkeypatch.undo()
    assert Store(backup).load(one.id) == one
    assert backup.stat().st_mode & 0o777 == 0o600


# Speed


def test_a_save_costs_as_much_as_its_change_and_2000_messages_load_fast(store: Store) -> None:
    conversation = talk(*(f"message {number}: " + "lorem ipsum " * 30 for number in range(2000)))
    stored(store, conversation)
    changes: list[int] = []
    for number in range(20):
        conversation = conversation.added(user(f"more {number}"))
        before = time.perf_counter()
        stored(store, conversation)
        changes.append(round((time.perf_counter() - before) * 1000))
    assert sorted(changes)[10] < 100
    begun = time.perf_counter()
    assert store.load(conversation.id) == conversation
    assert time.perf_counter() - begun < 1


def test_a_save_writes_only_the_changed_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write_node = rows._write_node
    monkeypatch.setattr(
        rows, "_write_node", lambda db, chat, node: written.append(node.id) or write_node(db, chat, node)
    )
    old = talk("a", "b", "c")
    stored(store, old, old, new := old.changed(old.path[1].id, answer("B")), again := new.added(user("d")))
    assert written == [*old.nodes, old.path[1].id, again.head]


def test_opening_a_chat_does_not_write_a_stored_conversation_again(
    tmp_path: Path, opened: Callable[..., Store]
) -> None:
    first, second = opened(tmp_path / NAME), opened(tmp_path / NAME)
    stored(first, one := talk("a", "b"))
    [before] = first.list()
    stored(second, Store(tmp_path / NAME).load(one.id))
    stored(second, one.at(one.path[0].id))
    assert second.list() == [before]
    assert second.load(one.id).head == one.path[0].id


def test_the_store_is_imported_without_sqlite() -> None:
    program = "import sys, macllm.chat.store, macllm.chat.options, macllm_tui.front, macllm.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"sqlite3", "mlx.core", "textual"} & set(done.stdout.split()) == set()


STEPS = strategies.lists(strategies.tuples(strategies.sampled_from("achdtfe"), strategies.integers(0, 9)), max_size=25)


@given(STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_steps_the_newest_state_is_loaded(store: Store, steps: list[tuple[str, int]]) -> None:
    state = talk("first")
    store.save(state)
    for step, number in steps:
        nodes = list(state.nodes)
        node = nodes[number % len(nodes)]
        match step:
            case "a":
                state = state.added(user(f"text {number}"))
            case "c":
                state = state.changed(node, answer(f"changed {number}"))
            case "h":
                state = state.at(node)
            case "d" if len(nodes) > 1 and state.head != nodes[-1]:
                state = replace(state, nodes={each: state.nodes[each] for each in nodes[:-1]})
            case "t":
                state = replace(state, title=f"title {number}", system=f"system {number}")
            case "f":
                assert store.flush(5)
            case "e":
                state = state.forked()
        store.save(state)
    assert store.flush(5)
    loaded = Store(store.path).load(state.id)
    assert loaded == state
    assert list(loaded.nodes) == list(state.nodes)
    assert [hit.chat.id for hit in store.search(state.turns[-1].content)].count(state.id) == 1
