"""Notes of a run: what macllm warns of in its log while it prepares one."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

_LOG = logging.getLogger("macllm")


@contextmanager
def collected() -> Generator[list[str]]:
    """The warnings that macllm logs within the block, each once. They reach the log as well."""
    notes = _Notes()
    # Where nobody handles the log, Python writes warnings to stderr, which one handler alone would end.
    added = [notes] if logging.lastResort is None or _LOG.hasHandlers() else [notes, logging.lastResort]
    for handler in added:
        _LOG.addHandler(handler)
    try:
        yield notes.texts
    finally:
        for handler in added:
            _LOG.removeHandler(handler)


class _Notes(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of `record`."""
        if (text := record.getMessage()) not in self.texts:
            self.texts.append(text)
