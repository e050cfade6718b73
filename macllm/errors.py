"""User-facing errors: message, cause, remedy, exit code.

Every error a user can cause is a `MacllmError`: one sentence, its cause and its remedy. The command
line prints the three and exits with `exit_code`. Any other exception is a bug in macllm and keeps its
traceback.
"""

from __future__ import annotations


class MacllmError(Exception):
    """A failure with a cause and a remedy.

    `message` says what failed, `cause` why (one line), `remedy` what to try: a command where one helps.
    """

    exit_code = 1

    def __init__(self, message: str, *, cause: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        """Message, cause and remedy, one line each."""
        lines = [self.message]
        if self.cause:
            lines.append(f"cause: {self.cause}")
        if self.remedy:
            lines.append(f"try: {self.remedy}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep cause and remedy when the error crosses a process boundary."""
        return (_rebuild, (type(self), self.message, self.cause, self.remedy))


def _rebuild(kind: type[MacllmError], message: str, cause: str | None, remedy: str | None) -> MacllmError:
    return kind(message, cause=cause, remedy=remedy)


class UsageError(MacllmError):
    """An invalid flag, config value or argument."""

    exit_code = 2


class ModelNotFoundError(MacllmError):
    """A model, revision or file that does not exist."""

    exit_code = 3


class DoesNotFitError(MacllmError):
    """Not enough memory, disk space or context for the request."""

    exit_code = 4


class NetworkError(MacllmError):
    """The hub is unreachable, refused the request, or sent invalid data."""

    exit_code = 5


class UnsupportedMachineError(MacllmError):
    """Hardware, operating system or packages that macllm cannot run on."""

    exit_code = 6


class EngineCrashedError(MacllmError):
    """The process that runs the model ended unexpectedly."""

    exit_code = 7


class CheckpointError(MacllmError):
    """A damaged or inconsistent checkpoint."""


class DataError(MacllmError):
    """Training data that cannot be read; names the file and the line."""

    exit_code = 2
