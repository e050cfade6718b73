"""Line mode of the chat, for pipes, screen readers and simple terminals. No Textual in here.

stdout gets only the answer (in a conversation also the labels); all narration goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
from collections.abc import Callable

from macllm.chat.conversation import Turn
from macllm.chat.options import ChatOptions
from macllm.chat.session import ContextUse, Session
from macllm.errors import MacllmError, UsageError
from macllm.generation.contract import OnStatus, Status
from macllm.generation.request import CallLines, Delta, Events, Prefill
from macllm.units import count_text

from . import clipboard, outcomes, questions, slash
from .lines.entry import ask
from .lines.narrator import Narrator
from .lines.piped import message, piped_text
from .lines.printer import Printer
from .lines.signals import terminable
from .messages import EngineStatus, ModelFailed, ModelReady, ThreadMessage, TurnEnded, TurnEvent
from .session_loader import SessionLoader
from .text.summary import summarize
from .turn import TurnThread

_STOPPING_SECONDS = 3.0  # longest wait for the engine to acknowledge a stop
_LISTEN_SECONDS = 0.2
_LOADING_SECONDS = 1.5  # loading is reported in a log only if it takes longer
INTERRUPTED = 130


class LineChat:
    """The line-mode chat: `answer_once` for pipes, `converse` for a terminal. Both return the exit code."""

    def __init__(self, options: ChatOptions, open_session: Callable[[OnStatus], Session]) -> None:
        self.options = options
        self._loader = SessionLoader(open_session)
        self._narrator = Narrator()
        self._printer = Printer()
        self._status_logged = False
        self._loaded = False
        self._inbox: queue.SimpleQueue[ThreadMessage] = queue.SimpleQueue()

    def answer_once(self) -> int:
        """Answer the prompt with the piped text attached. Raises: MacllmError if the answer is incomplete."""
        with terminable(), contextlib.closing(self._loader):
            try:
                self._start_loading()
                text = message(self.options.prompt, piped_text())
                session = self._wait_for_session()
                before = session.last_answer
                return self._print_answer(session, session.reply(text), before)
            except KeyboardInterrupt:
                return INTERRUPTED
            except BrokenPipeError:
                return self._discard_output()
            finally:
                self._narrator.clear()

    def converse(self) -> int:
        """Read messages and answer them until the input ends."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() line editing and history
        with terminable(), contextlib.closing(self._loader):
            try:
                self._start_loading()
                session = self._wait_for_session()
            except KeyboardInterrupt:
                return INTERRUPTED
            name = session.engine.info.model_name
            self._narrator.say(f"model: {name}. Ctrl-C stops an answer, Ctrl-D ends, /help lists the commands.")
            first = self.options.prompt
            try:
                while (line := first or ask()) is not None:
                    if first:
                        print(f"you: {first}", flush=True)
                    first = None
                    if line.strip() and not self._handle_line(session, line):
                        break
            except BrokenPipeError:
                return self._discard_output()
        return 0

    # One turn

    def _handle_line(self, session: Session, line: str) -> bool:
        """Run a command or answer a message. Returns False to end the conversation."""
        try:
            found = slash.parse(line)
            if found is None:
                self._answer_in_conversation(session, session.reply(slash.plain_text(line)))
                return True
            command, argument = found
            return self._apply(session, command(session, argument))
        except MacllmError as error:
            self._narrator.say(f"error: {error}")
        return True

    def _apply(self, session: Session, outcome: outcomes.Outcome) -> bool:
        """Carry out the outcome of a command. Returns False to end the conversation."""
        match outcome:
            case outcomes.Say(text) | outcomes.Redraw(text):
                self._narrator.say(text)
            case outcomes.Ask(question):
                self._narrator.say(questions.as_text(question))
            case outcomes.Copy(text):
                if not clipboard.copy_natively(text):
                    self._printer.raw(clipboard.terminal_sequence(text))
                self._narrator.say("Copied.")
            case outcomes.Answer(events):
                self._answer_in_conversation(session, events)
            case outcomes.Open(screen):
                raise UsageError(f"/{screen} needs the full screen.", remedy="macllm chat without --plain")
            case outcomes.SwitchModel(model):
                raise UsageError("Another model needs a new chat here.", remedy=f"macllm chat --model {model}")
            case outcomes.ShowHelp():
                for command in slash.COMMANDS.values():
                    self._narrator.say(f"{command.usage}: {command.help}")
            case outcomes.SwitchTheme():
                raise UsageError("/theme needs the full screen.", remedy="macllm chat without --plain")
            case outcomes.Quit():
                return False
        return True

    def _answer_in_conversation(self, session: Session, events: Events) -> None:
        before = session.last_answer
        try:
            if self._print_answer(session, events, before, label="macllm: ") == INTERRUPTED:
                has_text = session.last_answer is not before
                self._narrator.say("stopped." if has_text else "stopped before the first word; the message is dropped.")
            elif (warning := session.take_warning()) is not None:
                self._narrator.say(warning)
        except KeyboardInterrupt:
            self._narrator.say("stopped.")

    def _print_answer(self, session: Session, events: Events, before: Turn | None, label: str = "") -> int:
        """Print one answer as it streams. Returns 0, or 130 after Ctrl-C. Raises: MacllmError."""
        self._printer.begin(label)
        thread = TurnThread(
            events, lambda event: self._inbox.put(TurnEvent(event)), lambda error: self._inbox.put(TurnEnded(error))
        )
        thread.start()
        error: MacllmError | None = None
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
        if error is not None:
            raise error
        latest = session.last_answer
        self._report_end(None if latest is before else latest, session.context)
        return INTERRUPTED if stopped else 0

    def _report_end(self, turn: Turn | None, context: ContextUse) -> None:
        if turn is None:
            return
        if self.options.verbose:
            self._narrator.say(f"stats: {summarize(turn)}")
        elif turn.finish == "length":
            where = "end of the context" if context.is_full else "token limit (--max-tokens)"
            self._narrator.say(f"The answer is cut off at the {where}.")

    def _print_until_end(self, timeout_seconds: float | None = None) -> MacllmError | None:
        """Print events until the turn ends, or none arrives for `timeout_seconds`. Returns the turn's error."""
        lines = CallLines()
        while (message := self._receive(timeout_seconds)) is not None:
            match message:
                case TurnEnded(error):
                    return error
                case TurnEvent(Prefill(done, total)) if total > 1000:
                    self._narrator.show(f"reading {count_text(done)}/{count_text(total)}")
                case TurnEvent(Delta(kind="reasoning")):
                    self._narrator.show("thinking…")
                case TurnEvent(Delta() as delta):
                    self._narrator.clear()
                    self._printer.write(lines.text(delta))
        return None

    def _receive(self, timeout_seconds: float | None = None) -> ThreadMessage | None:
        """The next message other than engine status, which is shown; None after `timeout_seconds`."""
        waited = 0.0
        while timeout_seconds is None or waited < timeout_seconds:
            with contextlib.suppress(queue.Empty):
                # With a timeout, because a signal that arrives just before `get` is handled only after `get` returns.
                message = self._inbox.get(timeout=_LISTEN_SECONDS)
                if not isinstance(message, EngineStatus):
                    return message
                self._show_engine_status(message.status)
                continue
            waited += _LISTEN_SECONDS
        return None

    # The model

    def _start_loading(self) -> None:
        self._narrator.show(f"loading {self.options.model_name}…")
        self._loader.start(self._inbox.put)

    def _show_engine_status(self, status: Status) -> None:
        if not status.transient:
            self._narrator.say(status.text)
        elif self._loaded:
            return  # the answer is being written to the only line
        elif not status.text:
            self._narrator.clear()
        elif self._narrator.terminal:
            self._narrator.show(status.text)
        elif not self._status_logged:
            self._status_logged = True  # a log gets only the first transient status
            self._narrator.say(status.text)

    def _wait_for_session(self) -> Session:
        try:
            message = self._receive(_LOADING_SECONDS)
            if message is None and not self._narrator.terminal:
                self._narrator.say(f"loading {self.options.model_name}")
            message = message or self._receive()
        finally:
            self._narrator.clear()
        if isinstance(message, ModelFailed):
            raise message.error
        assert isinstance(message, ModelReady)
        self._loaded = True
        return message.session

    def _discard_output(self) -> int:
        """Send buffered output to /dev/null and return 0: the reader of stdout (`head`) has closed it."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        return 0
