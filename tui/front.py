"""Choice of the interface: full screen, lines on a terminal, or one answer through pipes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO, Protocol

from macllm.chat import transcript
from macllm.chat.conversation import Attachment
from macllm.chat.options import ChatOptions, open_session, short_name
from macllm.chat.session import Session
from macllm.generation.contract import OnStatus
from macllm.generation.sampling import defaults

from .lines.piped import piped_text
from .turn import TurnThread

Opener = Callable[[ChatOptions, OnStatus], Session]
_LAST_WORDS_SECONDS = 1.0  # longest wait for the text of an answer that the end of the chat has stopped


class Interface(Protocol):
    """An interface for a conversation on a terminal."""

    @property
    def last_session(self) -> Session | None:
        """The conversation, once a model was loaded, also after its model was closed."""
        ...

    def converse(self) -> int:
        """Chat until the user quits. Returns the exit code."""
        ...


def run_chat(options: ChatOptions, opener: Opener = open_session) -> int:
    """Chat and return the exit code.

    With a terminal on stdin and stdout: a conversation, in the full screen or in lines. The same with a terminal on
    stdin and stderr if there is no prompt; the conversation then goes to stdout as Markdown when it ends. Without a
    prompt, piped text is attached to a conversation if stdout and stderr are a terminal. Everything else is one
    answer on stdout.

    Raises: MacllmError if a chat without the full screen fails; BrokenPipeError if the reader of stdout is gone.
    """
    defaults.check(options.request())
    stdin, stdout, stderr = map(_is_terminal, (sys.stdin, sys.stdout, sys.stderr))
    if stdin and stdout:
        return _conversation(options, opener).converse()
    if stdin and stderr and not options.prompt:
        conversation = None
        try:
            with _terminal_on_stdout():
                conversation = _conversation(options, opener)
                return conversation.converse()
        finally:
            if conversation is not None:
                _write_transcript(conversation.last_session)
    if stdout and stderr and not options.prompt and (text := piped_text()).strip():
        if _type_on_the_terminal():
            return _conversation(options, opener, Attachment("stdin", text)).converse()
        options = replace(options, prompt=text)
    from .plain import answer_once

    return answer_once(options, opener)


def _conversation(options: ChatOptions, opener: Opener, attached: Attachment | None = None) -> Interface:
    """The full screen, or lines where it is not wanted or cannot be drawn."""
    if not options.plain and _is_terminal(sys.stderr) and os.environ.get("TERM", "dumb") != "dumb":
        from .app import ChatApp
        from .keymap import Keymap

        stored = options.conversation
        app = ChatApp(
            lambda on_status: opener(options, on_status),
            model_name=options.model_name,
            prompt=options.prompt,
            conversation=options.conversation,
            open_model=lambda model, adapter, on_status: opener(
                # A former session hands its conversation over
                replace(options, model=model, adapter=adapter, conversation=None if app.last_session else stored),
                on_status,
            ),
            theme=options.theme,
            keymap=Keymap.of(options.config),
        )
        app.attached = attached
        app.chat.set_class(options.sidebar, "-sidebar")
        return app
    from .plain import LineChat

    return LineChat(options, opener, (attached,) if attached else ())


def _type_on_the_terminal() -> bool:
    """Make stdin the terminal, in place of a pipe read to its end; False if there is none."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        return False
    os.dup2(terminal, sys.stdin.fileno())
    os.close(terminal)
    return True


@contextlib.contextmanager
def _terminal_on_stdout() -> Iterator[None]:
    """Make stdout the terminal of stderr inside the block; the full screen measures it."""
    sys.stdout.flush()
    number = sys.stdout.fileno()
    kept = os.dup(number)
    os.dup2(sys.stderr.fileno(), number)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the terminal may be gone
            sys.stdout.flush()
        os.dup2(kept, number)
        os.close(kept)


def _write_transcript(session: Session | None) -> None:
    """Write the conversation to stdout as Markdown, its text unchanged."""
    for thread in threading.enumerate():
        if isinstance(thread, TurnThread):
            thread.join(_LAST_WORDS_SECONDS)
    if session is None or not session.turns:
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    name = short_name(session.engine.info.model_name)
    sys.stdout.write(transcript.as_markdown(session.turns, model_name=name, system=session.system))
    sys.stdout.flush()


def _is_terminal(stream: IO[str] | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
