"""The chat screen: conversation, prompt and status line."""

from __future__ import annotations

import time
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalGroup, VerticalScroll
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget

from macllm.chat.conversation import Attachment
from macllm.chat.options import short_name
from macllm.chat.session import Session
from macllm.errors import MacllmError, UsageError
from macllm.generation.contract import Status
from macllm.generation.request import Delta, Done, Event, Events, Prefill
from macllm.units import count_text, speed_text

from .. import clipboard, outcomes, questions, slash
from ..commands.command import Command
from ..keys import KEYS
from ..messages import EngineStatus, ModelFailed, ModelReady, ThreadMessage, TurnEnded, TurnEvent
from ..pending_answer import PendingAnswer
from ..session_loader import SessionLoader
from ..widgets.prompt import Prompt, PromptFailed, PromptSubmitted
from ..widgets.prompt_area import PromptArea
from ..widgets.status_line import StatusLine, StatusValues
from ..widgets.turns import AnswerTurn, Failure, Notice, UserTurn, Welcome
from .registry import SCREENS

_AGAIN_SECONDS = 1.5  # a second Ctrl+C within this time quits


class FromThread(Message):
    """Wraps a message of the model's threads for the screen."""

    def __init__(self, message: ThreadMessage) -> None:
        super().__init__()
        self.message = message


class Transcript(VerticalScroll, can_focus=False):
    """The scrolling conversation; follows its end until the user scrolls up."""


class ChatScreen(Screen[None]):
    """One conversation. Messages sent while the model loads or answers are queued."""

    BINDINGS: ClassVar = [
        Binding(key.keys, key.action, key.help, id=f"chat.{key.id}", show=False, priority=key.id == "interrupt")
        for key in KEYS["chat"]
    ]

    def __init__(self, loader: SessionLoader, *, model_name: str, prompt: str | None = None) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-normal")]
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (16, "-tall")]
        self.loader = loader
        self.session: Session | None = None
        self.failure: MacllmError | None = None  # of loading the model
        self._first_prompt = prompt
        self._status = StatusValues(model_name, activity="loading…")
        self._queue: list[UserTurn] = []
        self._pending: PendingAnswer | None = None
        self._interrupted = -_AGAIN_SECONDS

    def compose(self) -> ComposeResult:
        """Conversation, prompt, status."""
        with Transcript(id="transcript"), VerticalGroup(id="turns"):
            yield Welcome(id="welcome")
        yield PromptArea(lambda: self.session)
        yield StatusLine(self._status)

    def on_mount(self) -> None:
        """Paint, then load the model."""
        self.transcript.anchor()
        self.watch(self.transcript, "scroll_y", self._refresh_status, init=False)
        self.prompt.focus()
        self._clock = self.set_interval(0.1, self._refresh_status, pause=True)
        self._load_model()
        if self._first_prompt:
            self._enqueue(self._first_prompt)

    @property
    def transcript(self) -> Transcript:
        """The scrolling conversation."""
        return self.query_one(Transcript)

    @property
    def turns(self) -> VerticalGroup:
        """The blocks of the conversation."""
        return self.query_one("#turns", VerticalGroup)

    @property
    def prompt(self) -> Prompt:
        """The input field."""
        return self.query_one(Prompt)

    # The model

    @property
    def _loading(self) -> str:
        return f"loading {self._status.model}…"

    def _load_model(self) -> None:
        self.failure = None
        self._show_activity(self._loading)
        self.loader.start(self._post)

    def _post(self, message: ThreadMessage) -> None:
        self.post_message(FromThread(message))

    async def on_from_thread(self, event: FromThread) -> None:
        """Handle a message of the thread that loads the model, runs the engine or iterates the answer."""
        match event.message:
            case EngineStatus(status):
                self._show_engine_status(status)
            case ModelReady(session):
                self._use_model(session)
            case ModelFailed(error):
                self._show_load_failure(error)
            case TurnEvent(item):
                self._show_event(item)
            case TurnEnded(error):
                await self._finish_answer(error)

    def _show_engine_status(self, status: Status) -> None:
        if not status.transient:
            self.turns.mount(Notice(status.text))  # leaves the welcome in place
            return
        self._status.remark = status.text
        if self.session is None and self.failure is None:
            self._show_activity(status.text or self._loading)
        else:
            self._refresh_status()

    def _use_model(self, session: Session) -> None:
        self.session = session
        self._status.model = short_name(self.session.engine.info.model_name)
        self._show_activity("")
        self._send_next()

    def _show_load_failure(self, error: MacllmError) -> None:
        self.failure = error
        self._show_activity("no model")
        self._append(Failure(error))
        self._return_queue_to_prompt()

    def on_prompt_submitted(self, message: PromptSubmitted) -> None:
        """Run a command or enqueue the message. An unknown command or a wrong file stays in the prompt."""
        try:
            found = slash.parse(message.text)
            text, attachments = self.prompt.message(slash.plain_text(message.text)) if found is None else ("", ())
        except UsageError as error:
            self._append(Failure(error))
            return
        self._interrupted = -_AGAIN_SECONDS  # the next Ctrl+C is a first one
        self.prompt.remember(message.text)
        self.prompt.put("")
        if found is None:
            self._enqueue(text, attachments)
        else:
            self._run_command(*found)

    def on_prompt_failed(self, message: PromptFailed) -> None:
        """Show an error of the prompt, which keeps its text."""
        self._append(Failure(message.error))

    def _enqueue(self, text: str, attachments: tuple[Attachment, ...] = ()) -> None:
        turn = UserTurn(text, attachments, queued=True)
        self._queue.append(turn)
        self._append(turn)
        self.transcript.anchor()
        if self.session is None and self.failure is not None:
            self._load_model()
        self._send_next()

    def _send_next(self) -> None:
        if self.session is None or self._pending is not None or not self._queue or self._status.activity:
            return
        turn = self._queue.pop(0)
        turn.remove_class("-queued")
        events = self.session.reply(turn.text, turn.attachments)
        self._start_answer(PendingAnswer(self.session, events, AnswerTurn(), user_turn=turn), after=turn)

    def _start_answer(self, pending: PendingAnswer, after: Widget) -> None:
        self._pending = pending
        self.turns.mount(pending.answer, after=after)
        self._show_activity("thinking…")
        self._clock.resume()
        pending.start(self._post)

    def _show_event(self, event: Event) -> None:
        if (pending := self._pending) is None:
            return
        match event:
            case Prefill(done, total) if not pending.stopping:
                self._status.activity = f"reading {count_text(done)}/{count_text(total)}"
            case Delta() as delta:
                pending.answer.feed(delta)
                pending.speed.add(max(len(delta.tokens), 1), time.monotonic())
                if not pending.stopping:
                    speed = pending.speed.tokens_per_second
                    self._status.activity = speed_text(speed) if speed else "answering…"
            case Done():
                pass

    async def _finish_answer(self, error: MacllmError | None) -> None:
        """Finish the answer. A partial answer stays; a message without an answer returns to the prompt."""
        if (pending := self._pending) is None:
            return
        turn = pending.outcome()
        await pending.finish(turn)
        self._refresh_status()
        self._pending = None
        self._clock.pause()
        if error is not None:
            self._status.remark = ""  # a crashed engine does not clear its status
        self._show_activity("")
        if error is not None:
            self._append(Failure(error), after=pending.answer if pending.answer.is_attached else None)
        elif self.session is not None and (warning := self.session.take_warning()) is not None:
            self._append(Notice(warning), after=pending.answer)
        if turn is None and pending.user_turn is not None:
            self._queue.insert(0, pending.user_turn)
        if error is not None or turn is None or turn.finish == "cancelled":
            self._return_queue_to_prompt()
        self._send_next()

    def _return_queue_to_prompt(self) -> None:
        """Move the queued messages into the prompt, before the text in it."""
        if self._queue:
            self.prompt.put_back([(turn.text, turn.attachments) for turn in self._queue])
            for turn in self._queue:
                turn.remove()
            self._queue.clear()

    # Commands and keys

    def _run_command(self, command: Command, argument: str) -> None:
        try:
            if command.idle and self._pending is not None:
                raise UsageError(f"/{command.name} cannot run during an answer.", remedy="Esc stops the answer")
            self._apply(command(self.session, argument))
        except MacllmError as error:
            self._append(Failure(error))

    def _apply(self, outcome: outcomes.Outcome) -> None:
        match outcome:
            case outcomes.Say(text):
                self._show_notice(text)
            case outcomes.Redraw(text):
                self.turns.remove_children()
                self._show_notice(text)
            case outcomes.Copy(text):
                self._copy(text)
            case outcomes.Ask(question):
                self._show_notice(questions.as_text(question))
            case outcomes.Answer(events):
                self._regenerate(events)
            case outcomes.Open(screen, argument):
                self._open(screen, argument)
            case outcomes.ShowReasoning():
                self.action_toggle_reasoning()
            case outcomes.Attach() | outcomes.OpenEditor():
                self.prompt.apply(outcome)
            case outcomes.ShowHelp():
                self.action_help()
            case outcomes.SwitchTheme(name):
                self._switch_theme(name)
            case outcomes.Quit():
                self.action_leave()

    def _show_notice(self, text: str) -> None:
        self._append(Notice(text))
        self._refresh_status()

    def _switch_theme(self, name: str) -> None:
        theme = name or ("light" if self.app.current_theme.dark else "dark")
        if theme not in ("dark", "light"):
            raise UsageError(f"Unknown theme {name!r}.", remedy="/theme dark or /theme light")
        self.app.theme = f"macllm-{theme}"

    def _open(self, name: str, argument: str) -> None:
        """Open a screen; the slash command with which it is dismissed is run, or waits in the prompt."""
        self.app.push_screen(SCREENS[name](self.session, argument), self.run_line)

    def run_line(self, line: str | None) -> None:
        """Run a slash command as if it were typed; one that ends with a space is put into the prompt."""
        if line and line.endswith(" "):
            self.prompt.put(line)
        elif line and (found := slash.parse(line)) is not None:
            self._run_command(*found)

    def _copy(self, text: str) -> None:
        if clipboard.copy_natively(text):
            self._append(Notice("Copied."))
        else:
            self.app.copy_to_clipboard(text)
            self._append(Notice("Sent to the terminal's clipboard (OSC 52; some terminals do not allow it)."))

    def _regenerate(self, events: Events) -> None:
        assert self.session is not None
        former = self.transcript.query(AnswerTurn).last()
        former.display = False
        self._start_answer(PendingAnswer(self.session, events, AnswerTurn(), former=former), after=former)

    def action_stop(self) -> None:
        """Stop the answer and keep its text so far; without one, return queued messages to the prompt."""
        if self._pending is not None:
            self._pending.stop()
            self._status.activity = "stopping…"
        else:
            self._return_queue_to_prompt()

    def action_interrupt(self) -> None:
        """Copy the selection, else stop the answer or clear the prompt; a second time within 1.5 s, quit."""
        if selected := self.prompt.selected_text or self.get_selected_text():
            self._copy(selected)
            self.clear_selection()
            return
        if self.prompt.leave_search():
            return
        now = time.monotonic()
        if now - self._interrupted < _AGAIN_SECONDS:
            self.action_leave()
            return
        self._interrupted = now
        if self._pending is not None or self._queue:
            self.action_stop()
        elif self.prompt.text:
            self.prompt.remember(self.prompt.text)
            self.prompt.put("")
        self._refresh_status()
        self.set_timer(_AGAIN_SECONDS, self._refresh_status)

    def action_leave(self) -> None:
        """Quit."""
        if self._pending is not None:
            self._pending.stop()
        unloaded = self.session is None and self.failure is not None
        self.app.exit(return_code=self.failure.exit_code if unloaded and self.failure else 0)

    def action_help(self) -> None:
        """Show commands and keys over the chat."""
        self._open("help", "")

    def action_toggle_reasoning(self) -> None:
        """Fold or unfold the reasoning of the newest answer."""
        if answers := self.transcript.query(AnswerTurn):
            answers.last().toggle_reasoning()

    def action_page(self, direction: int) -> None:
        """Scroll by a page."""
        self.transcript.scroll_relative(y=direction * max(self.transcript.size.height - 2, 1), animate=False)

    def action_line(self, direction: int) -> None:
        """Scroll by a line."""
        self.transcript.scroll_relative(y=direction, animate=False)

    def action_newest(self) -> None:
        """Scroll to the end and follow it."""
        self.transcript.anchor()

    def _append(self, widget: Widget, after: Widget | None = None) -> None:
        for welcome in self.query("#welcome"):
            welcome.remove()
        self.turns.mount(widget, after=after)

    def _show_activity(self, activity: str) -> None:
        self._status.activity = activity
        self._refresh_status()

    def _refresh_status(self) -> None:
        status = self._status
        status.context = self.session.context if self.session else None
        if self._pending is not None and (memory := self._pending.memory) is not None:
            status.memory_bytes, status.memory_limit_bytes = memory.active_bytes, memory.limit_bytes
        if time.monotonic() - self._interrupted < _AGAIN_SECONDS:
            status.hint = "Ctrl+C again quits"
        elif self.transcript.max_scroll_y - self.transcript.scroll_y >= 1:
            status.hint = "↓ more (End)"
        else:
            status.hint = "Esc stops" if self._pending else ""
        self.query_one(StatusLine).redraw()
