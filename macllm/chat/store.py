"""The store of conversations: an SQLite file, which one thread writes while answers stream."""

from __future__ import annotations

import atexit
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from macllm.errors import MacllmError, UsageError

from .conversation import Conversation

if TYPE_CHECKING:
    import sqlite3

    from .rows import SearchHit, StoredChat

OnError = Callable[[MacllmError], object]

_RETRY_SECONDS = 1.0
_CLOSING_SECONDS = 10.0  # longest wait of `close` for another process's transaction


class Store:
    """Conversations and prompts in one file, which several processes may use at once.

    `save` and `remember` return at once; a thread writes the newest state of each conversation. It calls `on_error`
    once when writing fails, tries again until it succeeds, and then may report a new failure. The other methods work
    in the caller's thread and raise MacllmError. All may be called from any thread.
    """

    def __init__(self, path: Path | None = None, *, on_error: OnError | None = None) -> None:
        """`path` is by default `database.default_path()`; the file is made by the first write."""
        self._path = path
        self._on_error = on_error
        self._changed = threading.Condition()
        self._pending: dict[str, Conversation] = {}
        self._prompts: list[str] = []
        self._saved: dict[str, Conversation] = {}  # states as this store wrote or read them
        self._thread: threading.Thread | None = None
        self._closing_at: float | None = None
        self._failing = False
        self._repairs = False
        self._registered = False
        self.unsaved: MacllmError | None = None
        """The error of a conversation that `close` could not store, with the file it is in."""

    @property
    def path(self) -> Path:
        """The file."""
        if self._path is None:
            from .database import default_path

            self._path = default_path()
        return self._path

    def open(self) -> None:
        """Check the file before a chat, and begin a new one if it is damaged; `on_error` gets the notice.

        Raises: MacllmError for a file of a newer macllm or another program, or one that cannot be opened.
        """
        self._repairs = True
        self._repair()
        with self._connection():
            pass

    # Writing

    def save(self, conversation: Conversation) -> None:
        """Queue the conversation for writing, in place of its last state. One without messages is not stored."""
        with self._changed:
            known = conversation.id in self._saved or conversation.id in self._pending
            if conversation.nodes or known:
                self._pending[conversation.id] = conversation
                self._wake()

    def remember(self, text: str) -> None:
        """Queue a prompt for the history."""
        with self._changed:
            self._prompts.append(text)
            self._wake()

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until all is on the disk. Returns False after the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waits, timeout_seconds)

    def close(self) -> None:
        """Write what waits, and end the thread.

        Conversations that cannot be written become files beside the store; see `unsaved`.
        """
        with self._changed:
            thread, self._closing_at = self._thread, time.monotonic()
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def _waits(self) -> bool:
        return bool(self._pending or self._prompts)

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._thread is None:
            if not self._registered:
                self._registered = True
                atexit.register(self.close)
            self._closing_at = None
            self._thread = threading.Thread(target=self._write_all, name="macllm-store", daemon=True)
            self._thread.start()

    def _write_all(self) -> None:
        db: sqlite3.Connection | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waits or self._closing_at is not None)
                if not self._waits:
                    self._thread = None
                    break
            try:
                if db is None:
                    from .database import connect

                    db = connect(self.path)
                self._write_waiting(db)
                self._failing = False
            except Exception as error:
                if db is not None:
                    db.close()
                    db = None
                self._recover(error)
        if db is not None:
            db.close()

    def _write_waiting(self, db: sqlite3.Connection) -> None:
        from .rows import add_prompt, write

        with self._changed:
            states, texts = list(self._pending.values()), list(self._prompts)
        for state in states:
            write(db, state, self._saved.get(state.id))
            with self._changed:
                if state.nodes:
                    self._saved[state.id] = state
                else:
                    self._saved.pop(state.id, None)
                if self._pending.get(state.id) is state:
                    del self._pending[state.id]
                self._changed.notify_all()
        for text in texts:
            add_prompt(db, text)
            with self._changed:
                self._prompts.remove(text)
                self._changed.notify_all()

    def _repair(self) -> bool:
        """Move a damaged file aside and report it. Returns True if it was damaged. Raises: MacllmError."""
        from .database import repaired

        try:
            notice = repaired(self.path)
        except OSError as error:
            raise self._described(error) from error
        if notice is not None:
            self._tell(notice)
        return notice is not None

    def _tell(self, error: MacllmError) -> None:
        if self._on_error is not None:
            with suppress(Exception):  # a screen that has ended; the writing goes on
                self._on_error(error)

    def _report(self, error: Exception) -> None:
        if self._failing:
            return
        self._failing = True
        failure = self._described(error)
        self._tell(
            MacllmError(
                "The conversation cannot be stored now; macllm keeps trying.",
                cause=f"{failure.message} {failure.cause or ''}".rstrip(),
                remedy=failure.remedy,
            )
        )

    def _recover(self, error: Exception) -> None:
        """Repair a damaged file, else wait; when closing, put what cannot be written into files of its own."""
        from .database import DamagedFileError, is_busy

        try:
            if self._repairs and isinstance(self._described(error), DamagedFileError) and self._repair():
                return
        except MacllmError as failure:
            error = failure
        self._report(error)
        with self._changed:
            if self._closing_at is None:
                self._changed.wait_for(lambda: self._closing_at is not None, _RETRY_SECONDS)
                return
            if is_busy(error) and time.monotonic() - self._closing_at < _CLOSING_SECONDS:
                return
            left = list(self._pending.values())
            self._pending.clear()
            self._prompts.clear()
            self._changed.notify_all()
        for conversation in left:
            self._put_beside(conversation)

    def _put_beside(self, conversation: Conversation) -> None:
        from .archive import write_export
        from .database import make_private

        path = self.path.with_name(f"unsaved-{conversation.id}.json")
        try:
            make_private(path)
            write_export(path, conversation)
        except OSError as error:
            self.unsaved = MacllmError(
                "A conversation could not be stored.",
                cause=error.strerror or str(error),
                remedy=f"check the free space and the permissions of {path.parent}",
            )
        else:
            self.unsaved = MacllmError(
                f"A conversation could not be stored; it is in {path}.",
                remedy=f"macllm chats import {shlex.quote(str(path))}",
            )

    # Reading

    def list(self, limit: int | None = None) -> list[StoredChat]:
        """The stored conversations, newest change first."""
        from .rows import listed

        with self._rows() as db:
            return [] if db is None else listed(db, limit)

    def search(self, text: str, limit: int | None = None) -> list[SearchHit]:
        """The conversations with a message or title that has all words of `text`, newest change first.

        "Words in quotation marks" stay together.
        """
        from .rows import search

        with self._rows() as db:
            return [] if db is None else search(db, text, limit)

    def find(self, prefix: str) -> str:
        """The id that begins with `prefix`. Raises: UsageError unless there is exactly one."""
        from .rows import matching

        with self._rows() as db:
            ids = [] if db is None or not prefix else matching(db, prefix)
        if len(ids) == 1 or prefix in ids:
            return prefix if prefix in ids else ids[0]
        if not ids:
            raise UsageError(f"There is no conversation {prefix}.", remedy="macllm chats ls lists them")
        raise UsageError(f"Several conversations begin with {prefix}.", cause=", ".join(ids), remedy="more of the id")

    def load(self, prefix: str) -> Conversation:
        """The conversation whose id begins with `prefix`. Raises: UsageError unless there is exactly one."""
        from .rows import read

        chat = self.find(prefix)
        with self._connection(to_read=True) as db:
            conversation = read(db, chat)
        with self._changed:
            # A known state stays: what another process has added since would look removed at the next save
            self._saved.setdefault(chat, conversation)
        return conversation

    def short(self, chat: str) -> str:
        """The beginning of an id, from six characters on, that no other stored conversation has."""
        return self.short_ids().get(chat, chat[:6])

    def short_ids(self) -> dict[str, str]:
        """The short id of each stored conversation."""
        from .rows import short_ids

        with self._rows() as db:
            return {} if db is None else short_ids(db)

    def remove(self, prefix: str) -> str:
        """Remove a conversation for good and return its id.

        Raises: UsageError unless exactly one id has the prefix.
        """
        chat = self.find(prefix)
        with self._changed:
            self._pending.pop(chat, None)
        with self._connection() as db:
            db.execute("DELETE FROM chat WHERE id = ?", (chat,))
        with self._changed:
            self._saved.pop(chat, None)
        return chat

    def prompts(self) -> list[str]:
        """The prompts of all sessions, newest last, at most 1,000 and the waiting ones."""
        from .rows import prompts

        with self._rows() as db:
            stored = [] if db is None else prompts(db)
        with self._changed:
            return stored + self._prompts

    def add(self, conversation: Conversation) -> int:
        """Store a conversation now, as of an export, and return the number of its messages that were not here.

        Stored messages of the same id win. Raises: MacllmError.
        """
        from .rows import matching, read, write

        with self._connection() as db:
            known = conversation.id in matching(db, conversation.id)
            stored = read(db, conversation.id) if known else Conversation(conversation.id, conversation.created)
            new = [node for node in conversation.nodes if node not in stored.nodes]
            if new:
                write(db, replace(conversation, nodes={**conversation.nodes, **stored.nodes}), None)
        return len(new)

    @contextmanager
    def _rows(self) -> Iterator[sqlite3.Connection | None]:
        """A connection for reading; None if nothing is stored yet."""
        if not self.path.exists():
            yield None
            return
        with self._connection(to_read=True) as db:
            yield db

    @contextmanager
    def _connection(self, *, to_read: bool = False) -> Iterator[sqlite3.Connection]:
        import sqlite3

        from .database import connect, connect_to_read

        db = connect_to_read(self.path) if to_read else connect(self.path)
        try:
            yield db
        except sqlite3.Error as error:
            raise self._described(error) from error
        finally:
            db.close()

    def _described(self, error: Exception) -> MacllmError:
        from .database import described

        return error if isinstance(error, MacllmError) else described(error, self.path)
