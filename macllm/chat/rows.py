"""Conversations as rows of the database: writing what changed, reading, listing and searching."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macllm.errors import DataError, MacllmError
from macllm.files import json_text

from .conversation import Conversation, Node, Turn
from .turn_json import from_json, to_json

if TYPE_CHECKING:
    import sqlite3

MOST_PROMPTS = 1_000
_SHORT_ID = 6
_GRAM = 3  # characters of the shortest word in a trigram index
_SNIPPET_BEFORE, _SNIPPET_AFTER = 30, 70  # characters around the first hit
_NO_NODES: Mapping[str, Node] = {}
_SUMMARY = """SELECT chat.id, chat.name, chat.created, chat.updated, chat.model,
    (SELECT count(*) FROM message WHERE message.chat = chat.id)"""


@dataclass(frozen=True)
class StoredChat:
    """A conversation in a listing; times in seconds since 1970."""

    id: str
    name: str  # its title, else the beginning of its first message
    created: float
    updated: float
    model: str | None  # of the newest answer
    messages: int  # in all branches


@dataclass(frozen=True)
class SearchHit:
    """A conversation that a search found: its newest matching message, or None if only its title matches."""

    chat: StoredChat
    message: str | None
    snippet: str


def write(db: sqlite3.Connection, conversation: Conversation, before: Conversation | None) -> None:
    """Write what differs from `before`, the state that this process wrote last, in one transaction.

    Without `before` all of it is compared with the rows. Messages of another process are kept.
    """
    with _transaction(db):
        _write(db, conversation, before)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            db.execute("ROLLBACK")
        raise


def _write(db: sqlite3.Connection, new: Conversation, before: Conversation | None) -> None:
    if db.execute("SELECT 1 FROM chat WHERE id = ?", (new.id,)).fetchone() is None:
        old, removed = _NO_NODES, []
    elif before is None:
        old, removed = read(db, new.id).nodes, []
    else:
        old, removed = before.nodes, [each for each in before.nodes if each not in new.nodes]
    changed = [node for node in new.nodes.values() if (former := old.get(node.id)) is not node and former != node]
    for each in reversed(removed):
        if not _is_parent(db, new.id, each):  # of a message that another process added
            db.execute("DELETE FROM message WHERE chat = ? AND id = ?", (new.id, each))
    if not new.nodes:
        db.execute(
            "DELETE FROM chat WHERE id = ? AND NOT EXISTS (SELECT 1 FROM message WHERE chat = ?)", (new.id, new.id)
        )
        return
    _write_chat(db, new, before, touched=bool(changed or removed))
    for node in changed:
        _write_node(db, new.id, node)


def _is_parent(db: sqlite3.Connection, chat: str, node: str) -> bool:
    return db.execute("SELECT 1 FROM message WHERE chat = ? AND parent = ?", (chat, node)).fetchone() is not None


def _write_chat(db: sqlite3.Connection, new: Conversation, before: Conversation | None, *, touched: bool) -> None:
    """Write the conversation's own row. What is as in `before` stays as another process left it."""
    renamed, moved = before is None or new.title != before.title, before is None or new.head != before.head
    changes = (renamed, renamed, before is None or new.system != before.system, moved)
    answers = (node.turn.origin for node in reversed(list(new.nodes.values())) if node.turn.origin)
    origin = next(answers, None)
    values = (new.id, _clean(new.title), _clean(new.name), new.system and _clean(new.system), new.head)
    db.execute(
        """INSERT INTO chat (id, title, name, system, head, model, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (id) DO UPDATE SET
            title = iif(?, excluded.title, title), name = iif(? OR title = '', excluded.name, name),
            system = iif(?, excluded.system, system), head = iif(?, excluded.head, head), model = excluded.model,
            updated = iif(?, excluded.updated, updated)""",
        (*values, origin.model if origin else None, new.created, time.time(), *changes, touched),
    )


def _write_node(db: sqlite3.Connection, chat: str, node: Node) -> None:
    db.execute(
        """INSERT INTO message (chat, id, parent, created, turn) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT (chat, id) DO UPDATE SET turn = excluded.turn""",
        (chat, node.id, node.parent, node.created, json_text(to_json(node.turn), compact=True)),
    )
    [number] = db.execute("SELECT number FROM message WHERE chat = ? AND id = ?", (chat, node.id)).fetchone()
    texts = [node.turn.content, *(part for each in node.turn.attachments for part in (each.name, each.text))]
    db.execute(
        "INSERT OR REPLACE INTO search (rowid, text) VALUES (?, ?)", (number, _clean("\n".join(filter(None, texts))))
    )


def read(db: sqlite3.Connection, chat: str) -> Conversation:
    """A conversation by its full id. Raises: MacllmError if a row cannot be read."""
    row = db.execute("SELECT title, system, head, created FROM chat WHERE id = ?", (chat,)).fetchone()
    if row is None:
        raise MacllmError(f"The conversation {chat} was removed.", remedy="macllm chats ls")
    title, system, head, created = row
    nodes: dict[str, Node] = {}
    rows = db.execute("SELECT id, parent, created, turn FROM message WHERE chat = ? ORDER BY number", (chat,))
    for node, parent, at, turn in rows:
        try:
            nodes[node] = Node(node, parent, from_json(Turn, json.loads(turn)), at)
        except (DataError, ValueError) as error:
            message = f"The message {node} of {chat} cannot be read."
            raise MacllmError(message, cause=str(error), remedy="macllm doctor checks the file") from error
    return Conversation(chat, created, title, system, nodes, head if head in nodes else next(reversed(nodes), None))


def listed(db: sqlite3.Connection, limit: int | None) -> list[StoredChat]:
    """The conversations, newest change first."""
    rows = db.execute(f"{_SUMMARY} FROM chat ORDER BY updated DESC, rowid DESC LIMIT ?", (_limit(limit),))
    return [StoredChat(*row) for row in rows]


def matching(db: sqlite3.Connection, prefix: str) -> list[str]:
    """The ids that begin with `prefix`, at most a few."""
    rows = db.execute("SELECT id FROM chat WHERE substr(id, 1, ?) = ? ORDER BY id LIMIT 5", (len(prefix), prefix))
    return [chat for (chat,) in rows]


def short_ids(db: sqlite3.Connection) -> dict[str, str]:
    """For each id its beginning, from six characters on, that no other id has."""
    ids = [chat for (chat,) in db.execute("SELECT id FROM chat ORDER BY id")]
    short: dict[str, str] = {}
    for before, chat, after in zip(["", *ids], ids, [*ids[1:], ""], strict=False):
        length = _SHORT_ID
        while length < len(chat) and chat[:length] in (before[:length], after[:length]):
            length += 1
        short[chat] = chat[:length]
    return short


def search(db: sqlite3.Connection, text: str, limit: int | None) -> list[SearchHit]:
    """The conversations with a message or a title that has all words of `text`.

    "Quoted words" stay together.
    """
    words = [quoted or word for quoted, word in re.findall(r'"([^"]+)"|(\S+)', _clean(text))]
    if not words:
        return []
    clause, values = _condition(db, words)
    rows = db.execute(
        f"""{_SUMMARY}, max(message.number), message.id, search.text
        FROM search JOIN message ON message.number = search.rowid JOIN chat ON chat.id = message.chat
        WHERE {clause} GROUP BY chat.id ORDER BY chat.updated DESC LIMIT ?""",
        (*values, _limit(limit)),
    ).fetchall()
    hits = {row[0]: SearchHit(StoredChat(*row[:6]), row[7], snippet(row[8], words)) for row in rows}
    likes = " AND ".join(["title LIKE ? ESCAPE '\\'"] * len(words))
    rows = db.execute(
        f"{_SUMMARY} FROM chat WHERE {likes} ORDER BY updated DESC LIMIT ?", (*map(_pattern, words), _limit(limit))
    )
    for row in rows.fetchall():
        hits.setdefault(row[0], SearchHit(StoredChat(*row), None, ""))
    return sorted(hits.values(), key=lambda hit: -hit.chat.updated)[:limit]


def _condition(db: sqlite3.Connection, words: list[str]) -> tuple[str, list[str]]:
    """A condition on the table `search` with its values; LIKE for words that the index has not."""
    [schema] = db.execute("SELECT sql FROM sqlite_master WHERE name = 'search'").fetchone()
    if "trigram" in schema:
        indexed, form = [word for word in words if len(word) >= _GRAM], '"{}"'
    elif "fts5" in schema:
        indexed, form = [word for word in words if word.isalnum()], '"{}"*'
    else:
        indexed, form = [], ""
    others = [word for word in words if word not in indexed]
    clauses = ["search.text LIKE ? ESCAPE '\\'"] * len(others)
    values = [_pattern(word) for word in others]
    if indexed:
        clauses.insert(0, "search MATCH ?")
        values.insert(0, " AND ".join(form.format(word.replace('"', '""')) for word in indexed))
    return " AND ".join(clauses), values


def snippet(text: str, words: list[str]) -> str:
    """One line of `text` around the first of the words."""
    places = [match.start() for word in words if (match := re.search(re.escape(word), text, re.IGNORECASE))]
    start = max(min(places, default=0) - _SNIPPET_BEFORE, 0)
    end = min(places, default=0) + _SNIPPET_AFTER
    line = " ".join(text[start:end].split())
    return "…" * (start > 0) + line + "…" * (end < len(text))


def prompts(db: sqlite3.Connection) -> list[str]:
    """The prompts of all sessions, newest last."""
    return [text for (text,) in db.execute("SELECT text FROM prompt ORDER BY number")]


def add_prompt(db: sqlite3.Connection, text: str) -> None:
    """Add a prompt unless it is the newest, and drop those beyond the newest 1,000."""
    text = _clean(text)
    with _transaction(db):
        newest = db.execute("SELECT text FROM prompt ORDER BY number DESC LIMIT 1").fetchone()
        if newest != (text,):
            db.execute("INSERT INTO prompt (text, created) VALUES (?, ?)", (text, time.time()))
            db.execute("DELETE FROM prompt WHERE number <= (SELECT max(number) FROM prompt) - ?", (MOST_PROMPTS,))


def _clean(text: str) -> str:
    """`text` without what a column or the index cannot hold: lone surrogates and zero characters."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _pattern(word: str) -> str:
    return "%" + re.sub(r"([\\%_])", r"\\\1", word) + "%"


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit
