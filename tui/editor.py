"""The user's editor for a text. No Textual in here."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from macllm.errors import MacllmError, UsageError

_USUAL = ("nano", "vim", "vi")


def command() -> list[str]:
    """The words of $VISUAL, else of $EDITOR, else a usual editor.

    Raises: UsageError if they cannot be split, or there is no editor.
    """
    for name in ("VISUAL", "EDITOR"):
        line = os.environ.get(name, "").strip()
        if line:
            try:
                return shlex.split(line)
            except ValueError as error:
                raise UsageError(f"${name} is not a command.", cause=str(error), remedy=f"export {name}=vim") from error
    if (found := next(filter(shutil.which, _USUAL), None)) is not None:
        return [found]
    cause = f"$VISUAL and $EDITOR are empty, and {', '.join(_USUAL[:-1])} and {_USUAL[-1]} are missing"
    raise UsageError("There is no editor.", cause=cause, remedy="export EDITOR=PROGRAM")


def edit(text: str, words: list[str]) -> str:
    """The text as it is after the editor has ended. The terminal must be free for it.

    Raises: MacllmError if the editor cannot be started, fails or is killed, or its text is not UTF-8; a file that
    it has changed is then kept and named.
    """
    handle, name = tempfile.mkstemp(prefix="macllm-", suffix=".md")  # readable by its owner alone
    path = Path(name)
    with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    before = path.read_bytes()
    try:
        with _interrupts_ignored():
            code = subprocess.run([*words, name]).returncode
        if code != 0:
            cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            raise MacllmError(f"The editor {words[0]} failed.", cause=cause, remedy=_kept(path, before))
        after = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise MacllmError(
            f"The editor {words[0]} cannot be used.", cause=error.strerror, remedy=_kept(path, before)
        ) from error
    except UnicodeDecodeError as error:
        raise MacllmError("The edited text is not UTF-8.", remedy=_kept(path, before)) from error
    finally:
        with contextlib.suppress(OSError):
            if path.read_bytes() == before:
                path.unlink()
    with contextlib.suppress(OSError):
        path.unlink()
    return after if text.endswith("\n") else after.removesuffix("\n")  # editors end the last line


def _kept(path: Path, before: bytes) -> str:
    with contextlib.suppress(OSError):
        if path.read_bytes() != before:
            return f"the text is as before; the edited one is in {path}"
    return "the text is as before; $VISUAL or $EDITOR names another editor"


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C, which the terminal sends to the editor and to this process."""
    # A handler, because the editor would inherit SIG_IGN
    former = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
