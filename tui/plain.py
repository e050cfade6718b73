"""The chat in lines of text: for pipes, screen readers and simple terminals. No Textual in here.

stdout gets the answer and nothing else (in a conversation: the labels too); all narration is on stderr.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from macllm.chat.options import ChatOptions
from macllm.chat.session import ContextUse, Session, Turn
from macllm.errors import MacllmError, UsageError
from macllm.generation.contract import News, Tell
from macllm.generation.request import CallLines, Delta, Events, Prefill
from macllm.units import count_text

from . import clipboard, slash
from .opening import Opening
from .text.summary import summarize
from .text.visible import visible
from .turn import TurnThread

_STOPPING_SECONDS = 3.0  # what an engine gets to acknowledge a stop
_LISTEN_SECONDS = 0.2
_LOADING_SECONDS = 1.5  # after which a log is told that a model is being loaded
INTERRUPTED = 130
TERMINATED = 143


class LineChat:
    """A chat without a screen: `answer_once` for pipes, `converse` for a terminal. Both return the exit code."""

    def __init__(self, options: ChatOptions, open_session: Callable[[Tell], Session]) -> None:
        self.options = options
        self._opening = Opening(open_session)
        self._narrator = Narrator()
        self._printer = Printer()
        self._waiting = False
        self._opened = False
        self._inbox: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()

    def answer_once(self) -> int:
        """Answer the prompt and what is piped in. Raises: MacllmError of whatever kept the answer from being whole."""
        with _terminable(), contextlib.closing(self._opening):
            try:
                self._start_opening()
                text = message(self.options.prompt, piped_text())
                session = self._wait_until_open()
                before = session.last_answer
                return self._answer(session, session.reply(text), before)
            except KeyboardInterrupt:
                return INTERRUPTED
            except BrokenPipeError:
                return self._leave_closed_pipe()
            finally:
                self._narrator.clear()

    def converse(self) -> int:
        """Ask and answer in turns until the input ends."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # input() edits lines and remembers them once this is loaded
        with _terminable(), contextlib.closing(self._opening):
            try:
                self._start_opening()
                session = self._wait_until_open()
            except KeyboardInterrupt:
                return INTERRUPTED
            name = session.engine.info.model_name
            self._narrator.say(f"model: {name}. Ctrl-C stops an answer, Ctrl-D ends, /help lists the commands.")
            first = self.options.prompt
            try:
                while (line := first or _ask()) is not None:
                    if first:
                        print(f"you: {first}", flush=True)
                    first = None
                    if line.strip() and not self._take(session, line):
                        break
            except BrokenPipeError:
                return self._leave_closed_pipe()
        return 0

    # One turn

    def _take(self, session: Session, line: str) -> bool:
        """Run a command or answer a text; False to end the conversation."""
        try:
            found = slash.parse(line)
            if found is None:
                self._converse_once(session, session.reply(slash.plain_text(line)))
                return True
            command, argument = found
            outcome = command.run(session, argument) if command.run else slash.Outcome(argument, command.effect)
            if outcome.effect == "quit":
                return False
            if outcome.effect == "regenerate":
                self._converse_once(session, session.regenerate())
            else:
                self._tell(outcome)
        except MacllmError as error:
            self._narrator.say(f"error: {error}")
        return True

    def _tell(self, outcome: slash.Outcome) -> None:
        if outcome.effect == "help":
            for command in slash.COMMANDS.values():
                self._narrator.say(f"{command.usage}: {command.help}")
        elif outcome.effect == "theme":
            raise UsageError("/theme needs the full screen.", remedy="macllm chat without --plain")
        elif outcome.effect == "copy":
            if not clipboard.copy_natively(outcome.text):
                self._printer.raw(clipboard.terminal_sequence(outcome.text))
            self._narrator.say("Copied.")
        else:
            self._narrator.say(outcome.text)

    def _converse_once(self, session: Session, events: Events) -> None:
        before = session.last_answer
        try:
            if self._answer(session, events, before, label="macllm: ") == INTERRUPTED:
                said = session.last_answer is not before
                self._narrator.say("stopped." if said else "stopped before the first word; the message is not kept.")
            elif (warning := session.take_warning()) is not None:
                self._narrator.say(warning)
        except KeyboardInterrupt:
            self._narrator.say("stopped.")

    def _answer(self, session: Session, events: Events, before: Turn | None, label: str = "") -> int:
        """Print one answer as it comes and return 0, or 130 when Ctrl-C stopped it. Raises: MacllmError."""
        self._printer.begin(label)
        thread = TurnThread(events, lambda event: self._inbox.put(("event", event)), self._put_end)
        thread.start()
        error: object = None
        stopped = False
        try:
            error = self._print_until_end()
        except (KeyboardInterrupt, SystemExit, BrokenPipeError) as interruption:
            stopped = True
            session.stop()
            if not isinstance(interruption, BrokenPipeError):
                self._print_until_end(_STOPPING_SECONDS)
                self._printer.end()
            thread.join(_STOPPING_SECONDS)
            if not isinstance(interruption, KeyboardInterrupt):
                raise
        self._narrator.clear()
        if not stopped:
            self._printer.end()
        if isinstance(error, MacllmError):
            raise error
        latest = session.last_answer
        self._conclude(None if latest is before else latest, session.context)
        return INTERRUPTED if stopped else 0

    def _conclude(self, turn: Turn | None, context: ContextUse) -> None:
        if turn is None:
            return
        if self.options.verbose:
            self._narrator.say(f"stats: {summarize(turn)}")
        elif turn.finish == "length":
            where = "end of the context" if context.is_full else "token limit (--max-tokens)"
            self._narrator.say(f"The answer is cut at the {where}.")

    def _print_until_end(self, patience_seconds: float | None = None) -> object:
        """Print what comes until the turn ends, or until nothing has come for `patience_seconds`; return its error."""
        lines = CallLines()
        while (received := self._receive(patience_seconds)) is not None:
            kind, item = received
            if kind == "end":
                return item
            if isinstance(item, Prefill) and item.total > 1000:
                self._narrator.show(f"reading {count_text(item.done)}/{count_text(item.total)}")
            elif isinstance(item, Delta) and item.kind == "reasoning":
                self._narrator.show("thinking…")
            elif isinstance(item, Delta):
                self._narrator.clear()
                self._printer.write(lines.text(item))
        return None

    def _receive(self, patience_seconds: float | None = None) -> tuple[str, object] | None:
        """What a thread says next; None when it says nothing for `patience_seconds`."""
        waited = 0.0
        while patience_seconds is None or waited < patience_seconds:
            with contextlib.suppress(queue.Empty):
                # Not for ever: a signal that comes just before the wait would not be heard until the wait ends.
                kind, item = self._inbox.get(timeout=_LISTEN_SECONDS)
                if not isinstance(item, News):
                    return kind, item
                self._tell_news(item)
                continue
            waited += _LISTEN_SECONDS
        return None

    def _put_end(self, error: MacllmError | None) -> None:
        self._inbox.put(("end", error))

    # The model

    def _start_opening(self) -> None:
        self._narrator.show(f"loading {self.options.model_name}…")
        self._opening.start(
            lambda session: self._inbox.put(("ready", session)),
            lambda error: self._inbox.put(("failed", error)),
            lambda news: self._inbox.put(("news", news)),
        )

    def _tell_news(self, news: News) -> None:
        if not news.passing:
            self._narrator.say(news.text)
        elif self._opened:
            return  # there is one line for the answer and for what passes: it is the answer's
        elif not news.text:
            self._narrator.clear()
        elif self._narrator.terminal:
            self._narrator.show(news.text)
        elif not self._waiting:
            self._waiting = True  # a log gets the first remark only
            self._narrator.say(news.text)

    def _wait_until_open(self) -> Session:
        try:
            received = self._receive(_LOADING_SECONDS)
            if received is None and not self._narrator.terminal:
                self._narrator.say(f"loading {self.options.model_name}")
            received = received or self._receive()
        finally:
            self._narrator.clear()
        assert received is not None
        item = received[1]
        if isinstance(item, Session):
            self._opened = True
            return item
        assert isinstance(item, MacllmError)
        raise item

    def _leave_closed_pipe(self) -> int:
        """The reader has had enough, as `head` does: no error. What Python still holds for stdout goes nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return 0


class Printer:
    """Writes an answer to stdout at once, without empty lines around it and with one newline at its end."""

    def __init__(self) -> None:
        self._held = ""  # newlines that are written only if more follows
        self._begun = False
        self._label = ""
        self._terminal = sys.stdout.isatty()
        if not self._terminal and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")

    def begin(self, label: str = "") -> None:
        """Start an answer; the label is written with its first text."""
        self._held, self._begun, self._label = "", False, label

    def write(self, text: str) -> None:
        """Write a piece. To a terminal no control character goes."""
        text = self._held + (visible(text) if self._terminal else text)
        kept = text.rstrip("\n")
        self._held = text[len(kept) :]
        if not self._begun:
            kept = kept.lstrip("\n")
            if not kept:
                self._held = ""
                return
            self._begun = True
            kept = self._label + kept
        if kept:
            self.raw(kept)

    def end(self) -> None:
        """End the line, if there is one."""
        if self._begun:
            self.raw("\n")
        self._begun = False

    def raw(self, text: str) -> None:
        """Write as it is. Raises: BrokenPipeError when nobody reads."""
        sys.stdout.write(text)
        sys.stdout.flush()


class Narrator:
    """Tells on stderr; passing remarks only on a terminal, where they are wiped again."""

    def __init__(self) -> None:
        self.terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = ""

    def show(self, text: str) -> None:
        """A passing remark."""
        if self.terminal and text != self._shown:
            self._shown = text
            self._put(f"\r\x1b[K{text}")

    def clear(self) -> None:
        """Wipe the passing remark."""
        if self._shown:
            self._shown = ""
            self._put("\r\x1b[K")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._put(f"{text}\n")

    def _put(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def message(prompt: str | None, attachment: str) -> str:
    """The text to send: the prompt, and below it what was piped in, between tags that the attachment does not hold.

    Raises: UsageError when there is neither.
    """
    prompt = (prompt or "").strip()
    if not attachment.strip():
        if not prompt:
            raise UsageError(
                "There is nothing to answer.", cause="no prompt and no input", remedy='macllm chat "Hello"'
            )
        return prompt
    if not prompt:
        return attachment.strip("\n")
    tag, number = "stdin", 1
    while f"</{tag}>" in attachment:
        number += 1
        tag = f"stdin-{number}"
    closing = "" if attachment.endswith("\n") else "\n"
    return f"{prompt}\n\n<{tag}>\n{attachment}{closing}</{tag}>"


def piped_text() -> str:
    """All of stdin as text; empty where there is none or it is a terminal.

    Raises: UsageError when it is not UTF-8.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("The input is not text.", cause=f"not UTF-8 at byte {error.start}", remedy="iconv") from error
    except OSError as error:
        raise UsageError("The input cannot be read.", cause=error.strerror) from error


def _ask() -> str | None:
    """The next line of the user, backslash-continued lines joined; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = input("...: " if lines else "you: ")
        except EOFError:
            print(flush=True)
            return None
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the conversation)", file=sys.stderr, flush=True)
            lines.clear()
            continue
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what runs inside like Ctrl-C does, with exit code 143."""

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
