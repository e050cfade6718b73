"""The chat screen: conversation, prompt and status line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding

from macllm.chat.conversation import Attachment, Conversation
from macllm.chat.session import Session
from macllm.errors import MacllmError, UsageError
from macllm.generation.contract import Status

from .. import first_start, outcomes, questions, slash
from ..commands.command import Command
from ..exchange import Exchange
from ..keymap import keymap_of, stop_remedy
from ..keys import KEYS
from ..messages import EngineStatus, ModelFailed, ModelReady, ThreadMessage, TurnEnded, TurnEvent
from ..model_slot import ModelSlot, OpenModel
from ..pending_answer import PendingAnswer
from ..session_loader import SessionLoader
from ..widgets.notices import Failure, Notice
from ..widgets.prompt import PromptFailed, PromptSubmitted
from ..widgets.prompt_area import PromptArea
from ..widgets.question import QuestionArea, QuestionBox
from ..widgets.sidebar import Sidebar
from ..widgets.status_line import StatusLine, StatusValues
from ..widgets.transcript import BlockKeys, Transcript
from .carry_out import carry_out
from .from_thread import FromThread
from .transcript_screen import WIDE, TranscriptScreen

_AGAIN_SECONDS = 1.5  # a second Ctrl+C within this time quits; a second Esc edits


class ChatScreen(TranscriptScreen):
    """One conversation. Messages sent while the model loads or answers are queued.

    `conversation` is drawn before the model is loaded; the session is to have the same. `open_model` loads another one.
    """

    BINDINGS: ClassVar = [
        Binding(key.keys, key.action, key.help, id=f"chat.{key.id}", show=False, priority=key.id == "interrupt")
        for key in KEYS["chat"]
    ]

    def __init__(
        self,
        loader: SessionLoader,
        *,
        model_name: str,
        prompt: str | None = None,
        conversation: Conversation | None = None,
        open_model: OpenModel | None = None,
    ) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-normal"), (WIDE, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (16, "-tall")]
        self.model = ModelSlot(loader, model_name, open_model)
        self._stored = conversation
        self._first_prompt = prompt
        self._status = StatusValues(model_name, activity="loading…")
        self._send_after = False  # send the prompt's text when the summary is there
        self._interrupted = self._escaped = -_AGAIN_SECONDS

    def compose(self) -> ComposeResult:
        """Chats, conversation, question, completions, prompt, status."""
        yield Sidebar()
        yield Transcript()
        yield QuestionArea(QuestionBox(lambda key: self.prompt.edits(key)))
        yield BlockKeys()
        yield PromptArea(lambda: self.session)
        yield StatusLine(self._status)

    def on_mount(self) -> None:
        """Paint, then load the model."""
        self.exchange = Exchange(self.transcript, self.model, self._post)
        self.watch(self.transcript, "scroll_y", self._refresh_status, init=False)
        self.watch(self.transcript, "virtual_size", self._refresh_status, init=False)
        self.prompt.focus()
        for note in keymap_of(self.app).notes:
            self.turns.mount(Notice(note))  # leaves the welcome in place
        self._clock = self.set_interval(0.1, self._refresh_status, pause=True)
        if self._stored is not None:
            self.transcript.show(self._stored)
        self.model.load(self._post)
        self._show_activity(self.model.activity)
        if self._first_prompt:
            self._enqueue(self._first_prompt)

    @property
    def session(self) -> Session | None:
        """The conversation, once the model is loaded."""
        return self.model.session

    @property
    def _pending(self) -> PendingAnswer | None:
        return self.exchange.pending

    @property
    def _entry(self) -> PromptArea:
        return self.query_one(PromptArea)

    # The model

    def _post(self, message: ThreadMessage) -> None:
        self.post_message(FromThread(message))

    async def on_from_thread(self, event: FromThread) -> None:
        """Handle a message of the thread that loads the model, runs the engine or iterates the answer."""
        match event.message:
            case EngineStatus(status):
                self._show_engine_status(status)
            case ModelReady(session, error):
                self._use_model(session, error)
            case ModelFailed(error):
                self._show_load_failure(error)
            case TurnEvent(item) if self._pending is not None:
                await self.exchange.show(item)
                self._status.activity = self._pending.activity
            case TurnEnded(error):
                await self._finish_answer(error)

    def _show_engine_status(self, status: Status) -> None:
        if not status.transient:
            self.turns.mount(Notice(status.text))  # leaves the welcome in place
            return
        self._status.remark = status.text
        if self.session is None and self.model.failure is None:
            self._show_activity(status.text or self.model.activity)
        else:
            self._refresh_status()

    def _use_model(self, session: Session, error: MacllmError | None) -> None:
        self.model.take(session)
        self._status.model = self.model.name
        self.prompt.use_history(session.journal)
        self._show_activity("")
        if session.turns:
            self.transcript.show(session.conversation)
        if error is not None:
            self.tell(Failure(error))
        self._go_on()
        self.ask(None if self._pending else first_start.question(session.engine.info.model_name), focus=False)

    def _show_load_failure(self, error: MacllmError) -> None:
        self.model.failure = error
        self._show_activity(self.model.activity)
        self.transcript.add(Failure(error))
        self.prompt.put_back(self.exchange.take_queue())
        self.ask(questions.after_loading(self.model.former))

    def _reload(self) -> None:
        if self.session is None and self.model.failure is not None:
            self.model.load(self._post)
            self._show_activity(self.model.activity)

    def switch_model(self, change: outcomes.SwitchModel | outcomes.Activate) -> None:
        """Load another model or adapter for the conversation. Raises: UsageError if that is not possible now."""
        if self._pending is not None:
            raise UsageError("An answer is being written.", remedy=stop_remedy(self.app))
        self.model.change(change, self._post)
        self._status.model = self.model.name
        self._show_activity(self.model.activity)

    # Sending messages

    def on_prompt_submitted(self, message: PromptSubmitted) -> None:
        """Choose, run a command or enqueue the message. An unknown command or file stays in the prompt."""
        question = self.query_one(QuestionBox).question
        choice = questions.chosen(question, message.text) if question else None
        try:
            found = slash.parse(message.text)
            text, attachments = self.prompt.message(slash.plain_text(message.text)) if found is None else ("", ())
        except UsageError as error:
            self.transcript.add(Failure(error))
            return
        self._interrupted = -_AGAIN_SECONDS  # the next Ctrl+C is a first one
        if choice is None:
            self.prompt.remember(message.text)
        self.prompt.put("")
        self.ask(None)
        if choice is not None:
            self._choose(choice, question)
        elif found is not None:
            self._run_command(*found)
        elif (edited := self._entry.leave_editing()) is not None:
            if not self._try(lambda: self.exchange.send_edited(edited, text, attachments)):
                self._entry.edit(edited, text, attachments)
            self._show_answering()
        else:
            self._enqueue(text, attachments)

    def on_prompt_failed(self, message: PromptFailed) -> None:
        """Show an error of the prompt, which keeps its text."""
        self.transcript.add(Failure(message.error))

    def _enqueue(self, text: str, attachments: tuple[Attachment, ...] = ()) -> None:
        self.exchange.enqueue(text, attachments)
        self._reload()
        self._show_answering()

    def _go_on(self) -> None:
        self.exchange.send_next()
        self._show_answering()

    # The answer

    def _show_answering(self) -> None:
        if self._pending is not None:
            self._show_activity(self._pending.activity)
            self._clock.resume()

    async def _finish_answer(self, error: MacllmError | None) -> None:
        """Finish the answer. A partial answer stays; a message without an answer returns to the prompt."""
        if (pending := self._pending) is None:
            return
        self._refresh_status()  # with the memory that the answer took
        node = await self.exchange.finish(pending)
        self._clock.pause()
        if error is not None:
            self._status.remark = ""  # a crashed engine does not clear its status
        self._show_activity("")
        returned = pending.returned if node is None else None
        question = pending.question(error, node, self._send_after)
        draft = self.prompt.text
        if error is not None:
            self.transcript.add(Failure(error))
        elif (warning := pending.session.take_warning()) is not None and question is None:
            self.transcript.add(Notice(warning))
        if error is not None or node is None or node.turn.finish == "cancelled":
            if returned is not None and pending.edited is not None and not draft:
                self._entry.edit(pending.edited, *returned)
                returned = None
            self.prompt.put_back([*filter(None, [returned]), *self.exchange.take_queue()])
            self._refresh_status()  # without the queue
        if question is not None:
            self.ask(question, focus=not draft or self._send_after)
        send_after, self._send_after = self._send_after, False
        if send_after and node is not None:
            self.prompt.action_send()
        self._go_on()

    # Questions

    def ask(self, question: outcomes.Question | None, *, focus: bool = True) -> None:
        """Ask a question; None closes the open one."""
        box = self.query_one(QuestionBox)
        box.ask(question)
        if question is None:
            self.prompt.focus()
        elif focus:
            box.focus()

    def on_question_box_chosen(self, message: QuestionBox.Chosen) -> None:
        """Run a choice, or go on in the prompt."""
        question = self.query_one(QuestionBox).question
        self.ask(None)
        if message.choice is not None:
            self._choose(message.choice, question)
        elif message.typed:
            self.prompt.insert(message.typed)
        elif message.key:
            self.prompt.post_message(events.Key(message.key, None))

    def _choose(self, choice: outcomes.Choice, question: outcomes.Question | None) -> None:
        if (found := slash.parse(choice.line)) is not None and not self._run_command(*found):
            self.ask(question)  # another choice may help
        elif choice.send and self._pending is not None:
            self._send_after = True
        elif choice.send and self.prompt.text.strip():
            self.prompt.action_send()
        elif choice.send:
            self._reload()

    # Commands and keys

    def _run_command(self, command: Command, argument: str) -> bool:
        """Run a command. Returns False if it fails."""
        if command.idle and self._pending is not None:
            error = UsageError(f"/{command.name} cannot run during an answer.", remedy=stop_remedy(self.app))
            self.transcript.add(Failure(error))
            return False
        return self._try(lambda: carry_out(command(self.session, argument), self))

    def _try(self, action: Callable[[], object]) -> bool:
        """Returns False if an action fails, and shows the error."""
        try:
            action()
        except MacllmError as error:
            self.tell(Failure(error))
            return False
        return True

    def action_run(self, line: str) -> None:
        """Run a slash command as if it were typed; one that ends with a space waits in the prompt."""
        if line.endswith(" "):
            self.prompt.put(line)
        elif line.startswith("action:"):
            self.call_next(self.run_action, line.removeprefix("action:"))
        elif line:
            self._try(lambda: (found := slash.parse(line)) and self._run_command(*found))

    def redraw(self) -> None:
        """Draw the current path of the conversation."""
        if self.session is not None:
            self._entry.keep_editing(self.session.conversation)
            self.transcript.show(self.session.conversation)

    def start_answer(self, answer: outcomes.Answer) -> None:
        """Show an answer as it comes."""
        self.exchange.start(answer)
        self._show_answering()

    def show_notice(self, text: str) -> None:
        """Show a line of text, unless it is empty."""
        if text:
            self.tell(Notice(text))
        self._refresh_status()

    def action_stop(self) -> None:
        """Stop the answer, leave editing or empty the queue; twice on an empty prompt: edit the last message."""
        now, escaped = time.monotonic(), self._escaped
        if self._pending is not None:
            self._pending.stop()
            self._show_activity(self._pending.activity)
        elif self._entry.leave_editing() is not None:
            self.prompt.put("")
        elif self.exchange.queued:
            self.prompt.put_back(self.exchange.take_queue())
        elif not self.prompt.text and now - escaped < _AGAIN_SECONDS:
            self.transcript.edit_last()
        else:
            self._escaped = now

    def action_interrupt(self) -> None:
        """Copy the selection, else stop the answer or clear the prompt; a second time within 1.5 s, quit."""
        if selected := self.prompt.selected_text or self.get_selected_text():
            carry_out(outcomes.Copy(selected), self)
            self.clear_selection()
            return
        if self.prompt.leave_search():
            return
        now = time.monotonic()
        if now - self._interrupted < _AGAIN_SECONDS and not self.prompt.text:
            self.action_leave()
            return
        self._interrupted = now
        if self._pending is not None or self.exchange.queued or self._entry.edited is not None:
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
        self.app.exit(return_code=self.model.exit_code)

    def action_open(self, name: str) -> None:
        """Open a screen over the chat."""
        self._try(lambda: carry_out(outcomes.Open(name), self))

    def on_transcript_requested(self, message: Transcript.Requested) -> None:
        """Carry out an action on a block."""
        self._try(lambda: carry_out(message.action(self.exchange.idle_session), self))

    def on_transcript_edit(self, message: Transcript.Edit) -> None:
        """Put an earlier message into the prompt."""
        self._entry.edit(message.node)
        self._refresh_status()

    # Drawing

    def _show_activity(self, activity: str) -> None:
        self._status.activity = activity
        self._refresh_status()

    def _refresh_status(self) -> None:
        status, keymap = self._status, keymap_of(self.app)
        status.observe(self.session, self._pending, self.exchange.queued)
        self.sidebar.observe(self.session)
        if time.monotonic() - self._interrupted < _AGAIN_SECONDS:
            status.hint = f"{keymap.shown('chat', 'interrupt')} again quits"
        elif self._entry.edited is not None:
            send, leave = keymap.shown("prompt", "send"), keymap.shown("chat", "stop")
            status.hint = f"editing: {send} sends a branch, {leave} leaves"
        elif self.transcript.max_scroll_y - self.transcript.scroll_y >= 1:
            status.hint = f"↓ more ({keymap.shown('chat', 'newest')})"
        else:
            status.hint = f"{keymap.shown('chat', 'stop')} stops" if self._pending else ""
        self.query_one(StatusLine).redraw()
