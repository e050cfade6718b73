"""The chat: the conversation, the prompt, and a line of status."""

from __future__ import annotations

import time
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalGroup, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from macllm.chat.options import short_name
from macllm.chat.session import Session
from macllm.errors import MacllmError, UsageError
from macllm.generation.request import Delta, Done, Prefill
from macllm.units import count_text, speed_text

from .. import clipboard, slash
from ..keys import KEYS, help_lines
from ..messages import EngineNews, ModelFailed, ModelReady, PromptChanged, PromptSubmitted, TurnEnded, TurnEvent
from ..opening import Opening
from ..running import Running
from ..widgets.prompt import Prompt
from ..widgets.status_line import Status, StatusLine
from ..widgets.turns import AnswerTurn, Failure, Notice, UserTurn

_AGAIN_SECONDS = 1.5  # in which a second Ctrl+C quits


class Transcript(VerticalScroll, can_focus=False):
    """The conversation; follows its end until the user scrolls up."""


class ChatScreen(Screen[None]):
    """One conversation on the screen. A second message, or one typed while the model loads, waits for its turn."""

    BINDINGS: ClassVar = [
        Binding(key.keys, key.action, key.help, id=f"chat.{key.id}", show=False, priority=key.id == "interrupt")
        for key in KEYS["chat"]
    ]

    def __init__(self, opening: Opening, *, model_name: str, prompt: str | None = None) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-normal")]
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (16, "-tall")]
        self.opening = opening
        self.session: Session | None = None
        self.failure: MacllmError | None = None  # what kept the model from loading
        self._first_prompt = prompt
        self._status = Status(model_name, activity="loading…")
        self._queue: list[UserTurn] = []
        self._current: Running | None = None
        self._interrupted = -_AGAIN_SECONDS

    def compose(self) -> ComposeResult:
        """Conversation, completions, prompt, status."""
        with Transcript(id="transcript"), VerticalGroup(id="turns"):
            yield Static(_welcome(), id="welcome", markup=False)
        yield Static(id="completions", markup=False)
        with Horizontal(id="entry"):
            yield Static("❯", id="sign", markup=False)
            yield Prompt()
        yield StatusLine(self._status)

    def on_mount(self) -> None:
        """Paint first, load then."""
        self.transcript.anchor()
        self.watch(self.transcript, "scroll_y", self._refresh_status, init=False)
        self.prompt.focus()
        self._clock = self.set_interval(0.1, self._refresh_status, pause=True)
        self._open()
        if self._first_prompt:
            self._say(self._first_prompt)

    @property
    def transcript(self) -> Transcript:
        """The conversation."""
        return self.query_one(Transcript)

    @property
    def turns(self) -> VerticalGroup:
        """What the conversation is made of."""
        return self.query_one("#turns", VerticalGroup)

    @property
    def prompt(self) -> Prompt:
        """Where the user types."""
        return self.query_one(Prompt)

    # The model

    @property
    def _loading(self) -> str:
        return f"loading {self._status.model}…"

    def _open(self) -> None:
        self.failure = None
        self._show_activity(self._loading)
        self.opening.start(
            lambda session: self.post_message(ModelReady(session)),
            lambda error: self.post_message(ModelFailed(error)),
            lambda news: self.post_message(EngineNews(news)),
        )

    def on_engine_news(self, message: EngineNews) -> None:
        """Show it, below the welcome if that is still there."""
        if not message.news.passing:
            self.turns.mount(Notice(message.news.text))
            return
        self._status.remark = message.news.text
        if self.session is None and self.failure is None:
            self._show_activity(message.news.text or self._loading)
        else:
            self._refresh_status()

    def on_model_ready(self, message: ModelReady) -> None:
        """Use the model."""
        self.session = message.session
        self._status.model = short_name(self.session.engine.info.model_name)
        self._show_activity("")
        self._send_next()

    def on_model_failed(self, message: ModelFailed) -> None:
        """Say why there is no model."""
        self.failure = message.error
        self._show_activity("no model")
        self._tell(Failure(message.error))
        self._give_back()

    # Saying something

    def on_prompt_submitted(self, message: PromptSubmitted) -> None:
        """Run a command or say the text. What cannot be run stays in the prompt."""
        try:
            found = slash.parse(message.text)
        except UsageError as error:
            self._tell(Failure(error))
            return
        self._interrupted = -_AGAIN_SECONDS  # what is sent now is not to be quit by the second of two Ctrl+C
        self.prompt.remember(message.text)
        self.prompt.put("")
        if found is None:
            self._say(slash.plain_text(message.text))
        else:
            self._command(*found)

    def on_prompt_changed(self, message: PromptChanged) -> None:
        """Show the commands that a slash may become."""
        found = slash.completions(message.text)
        width = max((len(command.usage) for command in found), default=0)
        lines = [Content.assemble((c.usage.ljust(width), "$foreground"), "   ", c.help) for c in found]
        shown = self.query_one("#completions", Static)
        shown.update(Content("\n").join(lines))
        shown.display = bool(found)

    def _say(self, text: str) -> None:
        turn = UserTurn(text, queued=True)
        self._queue.append(turn)
        self._tell(turn)
        self.transcript.anchor()
        if self.session is None and self.failure is not None:
            self._open()
        self._send_next()

    def _send_next(self) -> None:
        if self.session is None or self._current is not None or not self._queue or self._status.activity:
            return
        turn = self._queue.pop(0)
        turn.remove_class("-queued")
        self._run(Running(self.session, AnswerTurn(), user_turn=turn), after=turn)

    def _run(self, running: Running, after: Widget) -> None:
        self._current = running
        self.turns.mount(running.answer, after=after)
        self._show_activity("thinking…")
        self._clock.resume()
        running.start(self.post_message)

    # The answer

    def on_turn_event(self, message: TurnEvent) -> None:
        """Draw what came."""
        if (running := self._current) is None:
            return
        match message.event:
            case Prefill(done, total) if not running.stopping:
                self._status.activity = f"reading {count_text(done)}/{count_text(total)}"
            case Delta() as delta:
                running.answer.feed(delta)
                running.speed.add(max(len(delta.tokens), 1), time.monotonic())
                if not running.stopping:
                    speed = running.speed.tokens_per_second
                    self._status.activity = speed_text(speed) if speed else "answering…"
            case Done():
                pass

    async def on_turn_ended(self, message: TurnEnded) -> None:
        """Finish the answer. What was said only in part stays; what was not answered at all goes back to the prompt."""
        if (running := self._current) is None:
            return
        turn = running.outcome()
        await running.finish(turn)
        self._refresh_status()
        self._current = None
        self._clock.pause()
        if message.error is not None:
            self._status.remark = ""  # an engine that crashed does not say that its work has ended
        self._show_activity("")
        if message.error is not None:
            self._tell(Failure(message.error), after=running.answer if running.answer.is_attached else None)
        elif self.session is not None and (warning := self.session.take_warning()) is not None:
            self._tell(Notice(warning), after=running.answer)
        if turn is None and running.user_turn is not None:
            self._queue.insert(0, running.user_turn)
        if message.error is not None or turn is None or turn.finish == "cancelled":
            self._give_back()
        self._send_next()

    def _give_back(self) -> None:
        """Put what waits to be sent back into the prompt, before what is typed there."""
        if self._queue:
            texts = [turn.text for turn in self._queue] + [self.prompt.text] * bool(self.prompt.text)
            self.prompt.put("\n\n".join(texts))
            for turn in self._queue:
                turn.remove()
            self._queue.clear()

    # Commands and keys

    def _command(self, command: slash.Command, argument: str) -> None:
        try:
            if command.run is None:
                self._act(slash.Outcome(argument, command.effect))
                return
            if self.session is None:
                raise UsageError(f"/{command.name} needs a model.", cause="none is loaded yet")
            if command.idle and self._current is not None:
                raise UsageError(f"/{command.name} waits until the answer is over.", remedy="Esc stops it")
            self._act(command.run(self.session, argument))
        except MacllmError as error:
            self._tell(Failure(error))

    def _act(self, outcome: slash.Outcome) -> None:
        effect = outcome.effect
        if effect == "quit":
            self.action_leave()
        elif effect == "help":
            self.action_help()
        elif effect == "theme":
            self._switch_theme(outcome.text)
        elif effect == "regenerate":
            self._regenerate()
        elif effect == "copy":
            self._copy(outcome.text)
        else:
            if effect == "clear":
                self.turns.remove_children()
            self._tell(Notice(outcome.text))
            self._refresh_status()

    def _switch_theme(self, name: str) -> None:
        wanted = name or ("light" if self.app.current_theme.dark else "dark")
        if wanted not in ("dark", "light"):
            raise UsageError(f"There is no theme {name!r}.", remedy="/theme dark or /theme light")
        self.app.theme = f"macllm-{wanted}"

    def _copy(self, text: str) -> None:
        if clipboard.copy_natively(text):
            self._tell(Notice("Copied."))
        else:
            self.app.copy_to_clipboard(text)
            self._tell(Notice("Copied, if the terminal allows programs to (OSC 52)."))

    def _regenerate(self) -> None:
        if self.session is None or self._current is not None:
            return
        if not self.session.turns:
            raise UsageError("There is no message to answer again.", remedy="write one first")
        former = self.transcript.query(AnswerTurn).last()
        former.display = False
        self._run(Running(self.session, AnswerTurn(), former=former), after=former)

    def action_regenerate(self) -> None:
        """Answer the newest message again."""
        self._command(slash.COMMANDS["regen"], "")

    def action_stop(self) -> None:
        """End the answer and keep what is there; take back what waits to be sent."""
        if self._current is not None:
            self._current.stop()
            self._status.activity = "stopping…"
        else:
            self._give_back()

    def action_interrupt(self) -> None:
        """Copy a selection; else stop the answer or clear the prompt; soon after that, or with nothing to do, quit."""
        if selected := self.prompt.selected_text or self.get_selected_text():
            self._copy(selected)
            self.clear_selection()
            return
        now = time.monotonic()
        if now - self._interrupted < _AGAIN_SECONDS:
            self.action_leave()
            return
        self._interrupted = now
        if self._current is not None or self._queue:
            self.action_stop()
        elif self.prompt.text:
            self.prompt.remember(self.prompt.text)
            self.prompt.put("")
        self._refresh_status()
        self.set_timer(_AGAIN_SECONDS, self._refresh_status)

    def action_leave(self) -> None:
        """Quit."""
        if self._current is not None:
            self._current.stop()
        unloaded = self.session is None and self.failure is not None
        self.app.exit(return_code=self.failure.exit_code if unloaded and self.failure else 0)

    def action_help(self) -> None:
        """Tell commands and keys."""
        rows = [(command.usage, command.help) for command in slash.COMMANDS.values()] + [("", "")] + help_lines()
        if self.size.width < 80:
            lines = [Content.assemble((left, "$foreground"), "\n  " if left else "", right) for left, right in rows]
        else:
            lines = [Content.assemble((left.ljust(32), "$foreground"), right) for left, right in rows]
        self._tell(Notice(Content("\n").join(lines)))

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
        """Go to the end and follow it."""
        self.transcript.anchor()

    # Drawing

    def _tell(self, widget: Widget, after: Widget | None = None) -> None:
        for welcome in self.query("#welcome"):
            welcome.remove()
        self.turns.mount(widget, after=after)

    def _show_activity(self, activity: str) -> None:
        self._status.activity = activity
        self._refresh_status()

    def _refresh_status(self) -> None:
        status = self._status
        status.context = self.session.context if self.session else None
        if self._current is not None and (memory := self._current.memory) is not None:
            status.memory_bytes, status.memory_limit_bytes = memory.active_bytes, memory.limit_bytes
        if time.monotonic() - self._interrupted < _AGAIN_SECONDS:
            status.hint = "Ctrl+C again quits"
        elif self.transcript.max_scroll_y - self.transcript.scroll_y >= 1:
            status.hint = "↓ more (End)"
        else:
            status.hint = "Esc stops" if self._current else ""
        self.query_one(StatusLine).redraw()


def _welcome() -> Content:
    return Content.assemble(
        ("macllm", "bold $accent"),
        "\n\nAsk anything. The model runs on this machine; nothing leaves it.\n\n",
        "Enter sends, Ctrl+J breaks the line, Esc stops an answer.\n",
        "/help lists commands and keys.",
    )
