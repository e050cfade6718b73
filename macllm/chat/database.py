"""The SQLite file of conversations: place, schema, migrations, and repair."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from macllm.errors import MacllmError

BUSY_SECONDS = 5.0  # longest wait for another process's transaction
_CHECK_SECONDS = 0.2  # longest check of a whole file at the start of a chat
_CHECK_STEPS = 10_000  # instructions of SQLite's machine between two looks at the clock
_APPLICATION = 0x6D61636C  # "macl", in the header of our files

_TABLES = (
    """CREATE TABLE chat (
        id TEXT PRIMARY KEY, title TEXT NOT NULL, name TEXT NOT NULL, system TEXT, head TEXT, model TEXT,
        created REAL NOT NULL, updated REAL NOT NULL
    )""",
    "CREATE INDEX chat_updated ON chat (updated)",
    """CREATE TABLE message (
        number INTEGER PRIMARY KEY, chat TEXT NOT NULL REFERENCES chat (id) ON DELETE CASCADE, id TEXT NOT NULL,
        parent TEXT, created REAL NOT NULL, turn TEXT NOT NULL,
        UNIQUE (chat, id),
        FOREIGN KEY (chat, parent) REFERENCES message (chat, id) DEFERRABLE INITIALLY DEFERRED
    )""",
    "CREATE INDEX message_parent ON message (chat, parent)",
    "CREATE TABLE prompt (number INTEGER PRIMARY KEY, text TEXT NOT NULL, created REAL NOT NULL)",
)
SEARCH_TABLES = (  # the first kind that this SQLite has
    "CREATE VIRTUAL TABLE search USING fts5 (text, tokenize = 'trigram')",
    "CREATE VIRTUAL TABLE search USING fts5 (text, tokenize = 'unicode61')",
    "CREATE TABLE search (number INTEGER PRIMARY KEY, text TEXT NOT NULL)",
)
_FORGET = """CREATE TRIGGER forget AFTER DELETE ON message BEGIN
    DELETE FROM search WHERE rowid = old.number;
END"""


def _begin(db: sqlite3.Connection) -> None:
    for statement in _TABLES:
        db.execute(statement)
    for statement in SEARCH_TABLES:
        with suppress(sqlite3.OperationalError):
            db.execute(statement)
            break
    db.execute(_FORGET)
    db.execute(f"PRAGMA application_id = {_APPLICATION}")


MIGRATIONS = (_begin,)
"""Steps from each version of the schema to the next; a file's `user_version` counts those it has had."""


REPAIR = "macllm chat keeps it as a backup and begins a new one"


class DamagedFileError(MacllmError):
    """A file that is no database any more, or one with a damaged structure."""


def default_path() -> Path:
    """$MACLLM_HOME/macllm.db, else in XDG's data folder."""
    if home := os.environ.get("MACLLM_HOME"):
        return Path(home) / "macllm.db"
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "macllm" / "macllm.db"


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the file, begun or migrated if needed. Threads may share it, one at a time.

    Raises: MacllmError for a file of a newer macllm or another program, or one that cannot be opened;
    DamagedFileError.
    """
    if path.is_dir():
        raise MacllmError(
            f"{path} is a folder.",
            cause="conversations are stored in a file of this name",
            remedy=f"mv {path} {path}.d",
        )
    try:
        make_private(path)
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except (sqlite3.Error, OSError) as error:
        raise described(error, path) from error
    with _closing_on_error(db, path):
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")  # a stored message survives a loss of power
        if schema_version(db, path) < len(MIGRATIONS):
            with _alone(path.parent):
                _migrate(db, path)
    return db


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection for reading, which changes nothing in a folder that cannot be written.

    Raises: as `connect`.
    """
    if os.access(path.parent, os.W_OK):
        return connect(path)
    db = read_only(path)
    with _closing_on_error(db, path):
        schema_version(db, path)
    return db


@contextmanager
def _closing_on_error(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Close the connection after an error, and describe an error of SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        db.close()
        raise described(error, path) from error
    except BaseException:
        db.close()
        raise


def read_only(path: Path, timeout_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """A connection that writes nothing."""
    # WAL needs a file beside the database, unless SQLite is told that nobody writes
    needs_files = os.access(path.parent, os.W_OK) or path.with_name(f"{path.name}-shm").exists()
    options = "mode=ro" if needs_files else "mode=ro&immutable=1"
    uri = f"{path.absolute().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=timeout_seconds, check_same_thread=False)


def repaired(path: Path) -> MacllmError | None:
    """Move a damaged file aside, so that `connect` begins a new one.

    Returns the notice; None for a sound file.
    """
    if not path.is_file():
        return None
    with _alone(path.parent):
        try:
            _check(path)
            return None
        except DamagedFileError as error:
            cause, moved = error.cause, _set_aside(path)
    return MacllmError(
        f"The stored conversations could not be read; they are now in {moved}, and a new file is begun.",
        cause=cause,
        remedy=f"sqlite3 {moved} .recover saves what can be read",
    )


def described(error: Exception, path: Path) -> MacllmError:
    """An error of SQLite or of the file system, with its cause and a remedy."""
    if isinstance(error, OSError):
        cause, code = error.strerror or str(error), 0
    else:
        cause, code = str(error), getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DamagedFileError(f"{path} is damaged.", cause=cause, remedy=REPAIR)
    remedies = {
        sqlite3.SQLITE_FULL: "free some space",
        sqlite3.SQLITE_IOERR: f"check the free space and the permissions of {path.parent}",
        sqlite3.SQLITE_BUSY: "end the other program that uses the file",
        sqlite3.SQLITE_LOCKED: "end the other program that uses the file",
    }
    remedy = remedies.get(code, f"check the permissions of {path.parent}")
    return MacllmError(f"The conversations in {path} cannot be used.", cause=cause, remedy=remedy)


def is_busy(error: Exception) -> bool:
    """True while another process holds the file."""
    error = error.__cause__ if isinstance(error.__cause__, sqlite3.Error) else error
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def make_private(path: Path) -> None:
    """Create a file for its owner alone; SQLite gives its companions the same permissions.

    Raises: OSError.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def schema_version(db: sqlite3.Connection, path: Path) -> int:
    """The version of the schema, 0 for a new file.

    Raises: MacllmError for a newer one, and for a file of another program.
    """
    [version] = db.execute("PRAGMA user_version").fetchone()
    [application] = db.execute("PRAGMA application_id").fetchone()
    [tables] = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (tables or version) and application != _APPLICATION:
        raise MacllmError(
            f"{path} belongs to another program.",
            cause="it is a database, but not of macllm",
            remedy="move it away, or set MACLLM_HOME to another folder",
        )
    if version > len(MIGRATIONS):
        raise MacllmError(
            f"{path} is of a newer version of macllm.",
            cause=f"its format is {version}, and this macllm knows those up to {len(MIGRATIONS)}",
            remedy="update macllm, or macllm chat --temporary",
        )
    return version


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    version = schema_version(db, path)  # another process may have been here
    if 0 < version < len(MIGRATIONS):
        _back_up(db, path.with_name(f"{path.name}.version-{version}"))
    db.execute("BEGIN IMMEDIATE")  # closing the connection after an error rolls all steps back
    for number in range(version, len(MIGRATIONS)):
        MIGRATIONS[number](db)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    db.execute("COMMIT")


def _back_up(db: sqlite3.Connection, path: Path) -> None:
    path.unlink(missing_ok=True)
    make_private(path)
    copy = sqlite3.connect(path)
    try:
        db.backup(copy)
    finally:
        copy.close()


def _check(path: Path) -> None:
    """Check the structure, for at most 0.2 seconds. Raises: DamagedFileError."""
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        end = time.monotonic() + _CHECK_SECONDS
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        db.set_progress_handler(lambda: time.monotonic() > end, _CHECK_STEPS)
        [found] = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise DamagedFileError(f"{path} is damaged.", cause=" ".join(found.split()))
    except sqlite3.Error as error:
        if isinstance(failure := described(error, path), DamagedFileError):
            raise failure from error
    finally:
        if db is not None:
            db.close()


def _set_aside(path: Path) -> Path:
    """Rename the file and its companions, to the first free name of this second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    moved, number = path.with_name(f"{path.name}.damaged-{stamp}"), 1
    while moved.exists():
        number += 1
        moved = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    path.rename(moved)
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(moved.with_name(moved.name + suffix))
    return moved


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from repairing and migrating a file of this folder at the same time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
