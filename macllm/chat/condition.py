"""The condition of the file of conversations, read without changing it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from macllm.errors import MacllmError

from .database import (
    MIGRATIONS,
    REPAIR,
    SEARCH_TABLES,
    DamagedFileError,
    default_path,
    described,
    read_only,
    schema_version,
)

_BUSY_SECONDS = 1.0
_SEARCHES = ("parts of words (FTS5 with trigrams)", "words (FTS5)", "parts of words, slowly (without FTS5)")


def condition(path: Path | None = None) -> dict[str, Any]:
    """File, size, numbers, schema, search and integrity; `problem` is the first failure, with its remedy."""
    path = path or default_path()
    found: dict[str, Any] = {"file": str(path), "sqlite": sqlite3.sqlite_version, "search": _SEARCHES[_best_search()]}
    aside = [*path.parent.glob(f"{path.name}.damaged-*"), *path.parent.glob("unsaved-*.json")]
    if aside := sorted(each.name for each in aside if not each.name.endswith(("-wal", "-shm"))):
        found["set_aside"] = aside
    if not path.exists():
        return {**found, "state": "none yet: macllm chat makes it"}
    found["size_bytes"] = path.stat().st_size
    try:
        found |= _read(path)
    except (MacllmError, sqlite3.Error, OSError) as error:
        failure = error if isinstance(error, MacllmError) else described(error, path)
        reasons = [failure.message, failure.cause, failure.remedy and f"try: {failure.remedy}"]
        found |= {"state": "failed", "problem": " ".join(filter(None, reasons))}
    return found


def _read(path: Path) -> dict[str, Any]:
    db = read_only(path, _BUSY_SECONDS)
    try:
        has = schema_version(db, path)
        [state] = db.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise DamagedFileError(f"{path} is damaged.", cause=" ".join(state.split()), remedy=REPAIR)
        if has == 0:
            return {"state": "empty"}
        [chats] = db.execute("SELECT count(*) FROM chat").fetchone()
        [messages] = db.execute("SELECT count(*) FROM message").fetchone()
        [sql] = db.execute("SELECT sql FROM sqlite_master WHERE name = 'search'").fetchone()
        return {
            "state": "ok",
            "schema": f"version {has} of {len(MIGRATIONS)}",
            "chats": chats,
            "messages": messages,
            "search": _SEARCHES[0 if "trigram" in sql else 1 if "fts5" in sql else 2],
        }
    finally:
        db.close()


def _best_search() -> int:
    """The index of the first kind of search table that this SQLite can make."""
    db = sqlite3.connect(":memory:")
    try:
        for number, statement in enumerate(SEARCH_TABLES):
            try:
                db.execute(statement)
            except sqlite3.OperationalError:
                continue
            return number
    finally:
        db.close()
    raise AssertionError("a plain table can always be made")
