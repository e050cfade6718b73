"""Line mode of the chat, for pipes, screen readers and simple terminals. No Textual in here.

stdout gets only the answer (in a conversation also the labels); all narration goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from macllm.chat import attachments
from macllm.chat.context import ContextUse
from macllm.chat.conversation import Attachment, Turn
from macllm.chat.options import ChatOptions, short_name
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm.errors import MacllmError, UsageError
from macllm.generation.request import Events
from macllm.units import count_text
from macllm.visible import visible

from . import clipboard, editor, first_start, outcomes, questions, slash
from .commands.storage import chats_question
from .comparison import Comparison
from .lines.answering import Answering
from .lines.entry import YOU, Entry
from .lines.keys import key_lines
from .lines.loading import Loading
from .lines.model import LineModel, Opener
from .lines.models import adapters_question, fetch, models_question
from .lines.narrator import Narrator
from .lines.piped import message, piped_text
from .lines.printer import Printer
from .lines.signals import terminable
from .text.summary import summarize

INTERRUPTED = 130
_LABEL = "macllm: "
_SHOWN_TURNS = 6  # of a conversation that is shown again


def answer_once(options: ChatOptions, opener: Opener) -> int:
    """Answer the prompt with the piped text attached, and return the exit code.

    Raises: MacllmError if the answer is incomplete; BrokenPipeError if the reader of stdout is gone.
    """
    narrator = Narrator(redraws=not options.plain)
    loading = Loading(narrator)
    with terminable(), contextlib.closing(loading):
        try:
            loading.start(options.model_name, lambda on_status: opener(options, on_status))
            text = message(options.prompt, piped_text())
            session = loading.wait()
            before = session.last_answer
            stopped = Answering(Printer(), narrator, loading.inbox).print(session, session.reply(text))
            if (turn := session.last_answer) is not None and turn is not before:
                narrator.say_all(end_lines(turn, session.context, verbose=options.verbose))
            return INTERRUPTED if stopped else 0
        except KeyboardInterrupt:
            return INTERRUPTED
        finally:
            narrator.clear()


class LineChat:
    """A conversation in lines. `attached` goes with the first message."""

    def __init__(self, options: ChatOptions, opener: Opener, attached: tuple[Attachment, ...] = ()) -> None:
        self._options = options
        self._attached = attached
        self._narrator = Narrator(redraws=False)
        self._printer = Printer(paced=True)
        self._entry = Entry(session=lambda: self.session)
        self._model = LineModel(options, opener, self._narrator)
        self._answering = Answering(self._printer, self._narrator, self._model.loading.inbox, conversation=True)
        self._question: outcomes.Question | None = None
        self._unanswered = ""  # the message that got no answer
        self._waiting: tuple[str, tuple[Attachment, ...]] | None = None  # the message for the model that is loaded next
        self._introduced = False

    @property
    def session(self) -> Session | None:
        """The conversation, while there is a model."""
        return self._model.session

    @property
    def last_session(self) -> Session | None:
        """The conversation, once a model was loaded, also after its model was closed."""
        return self._model.session or self._model.former

    def converse(self) -> int:
        """Read messages and answer them until the input ends. Returns the exit code.

        Raises: BrokenPipeError if the terminal is gone.
        """
        with terminable(), contextlib.closing(self._model.loading):
            try:
                self._load(self._model.load)
                line = self._first_message() or self._entry.ask()
                while line is not None and self._handle_line(line):
                    line = self._entry.ask()
            except KeyboardInterrupt:  # of the first loading
                return INTERRUPTED
        return self._model.exit_code

    def _first_message(self) -> str | None:
        """The message of the command line; without a model it waits."""
        first = self._options.prompt
        if first and self.session is None:
            self._waiting = (first, ())
            return None
        if first:
            self._printer.raw(f"{YOU}{visible(first)}\n")
        return first

    def _introduce(self, session: Session) -> None:
        """Say the model; at the first time also the way on, and what there is already."""
        name, adapter = session.engine.info.model_name, session.adapter
        if self._introduced:
            self._narrator.say(f"model: {short_name(name)}{f' with {adapter}' if adapter else ''}")
            return
        self._introduced = True
        if isinstance(session.journal, Store):
            with contextlib.suppress(MacllmError):  # reported when the store was opened
                self._entry.recall(session.journal.prompts())
        limit = session.engine.info.context_length
        context = f", context {count_text(limit)} tokens" if limit else ""
        self._narrator.say(f"model: {name}{context}")
        self._narrator.say("Ctrl-C stops an answer, Ctrl-D ends, /help lists the commands.")
        if session.turns:
            self._show_conversation(session)
        self._introduce_attachments()
        if self._options.prompt is None and (offer := first_start.question(self._model.options.model)) is not None:
            self._ask(offer)

    def _introduce_attachments(self) -> None:
        for attachment in self._attached:
            count = len(attachment.text.splitlines())
            lines = f"{count_text(count)} line{'s' * (count != 1)}"
            self._narrator.say(f"attached to the next message: {attachment.name}, {lines}")

    # One line

    def _handle_line(self, line: str) -> bool:
        """Make a choice, run a command or answer a message. Returns False to end the conversation."""
        try:
            question, self._question = self._question, None
            if question is None and self.session is None:
                question = questions.after_loading(self._model.former)
            if question is not None and line.strip().isdecimal():
                return self._choose(question, line)
            if not line.strip() and not self._attached:
                return True
            if self.session is not None and isinstance(self.session.journal, Store) and line.strip():
                self.session.journal.remember(line)
            if (found := slash.parse(line)) is None:
                self._send(slash.plain_text(line))
                return True
            command, argument = found
            return self._apply(command(self.session, argument))
        except MacllmError as error:
            self._narrator.say(f"error: {error}")
        except KeyboardInterrupt:  # of a download or a question to the hub
            self._narrator.say("stopped.")
        return True

    def _choose(self, question: outcomes.Question, line: str) -> bool:
        choice = questions.chosen(question, line)
        if choice is None:
            self._question = question
            raise UsageError(f"No choice {line.strip()}.", remedy=f"a number from 1 to {len(question.choices)}")
        unanswered, attached = self._unanswered, self._attached
        found = slash.parse(choice.line)
        outcome = found[0](self.session, found[1]) if found else outcomes.Say("")
        if isinstance(outcome, outcomes.Shorten):
            unanswered, attached = attachments.shortened(unanswered, attached, outcome.most)
        elif found and not self._apply(outcome):
            return False
        if choice.send and unanswered:
            self._attached = attached
            self._send(unanswered)
        elif choice.send and self.session is None:
            self._load(self._model.load)
        return True

    def _send(self, text: str) -> None:
        text, named = attachments.referenced(text)
        known = [attachment.name for attachment in self._attached]
        attached = self._attached + tuple(attachment for attachment in named if attachment.name not in known)
        self._attached = ()
        if self.session is None:
            self._waiting = (text, attached)
            self._load(self._model.load)
        else:
            self._reply(self.session, text, attached)

    def _reply(self, session: Session, text: str, attached: tuple[Attachment, ...]) -> None:
        self._attached = attached
        try:
            self._answer(session, session.reply(text, attached), text)
        finally:
            if not self._unanswered:
                self._attached = ()

    def _write_in_editor(self) -> None:
        text = editor.edit("", editor.command()).strip()
        if text:
            self._printer.raw(f"{YOU}{visible(text)}\n")
            self._send(text)

    def _apply(self, outcome: outcomes.Outcome) -> bool:
        """Carry out the outcome of a command. Returns False to end the conversation."""
        match outcome:
            case outcomes.Answer(events, message, title, comparison):
                label = self._show_sides(comparison) if comparison else f"{title}:\n" if title else _LABEL
                self._answer(self._ready(), events, message, label)
            case outcomes.Compare(comparison):
                self._show_sides(comparison)
            case outcomes.Ask(question):
                self._ask(question)
            case outcomes.Open(screen, argument):
                self._open(screen, argument)
            case outcomes.SwitchModel(model, adapter):
                self._load(lambda: self._model.switch(model, adapter))
            case outcomes.Activate(adapter):
                self._ready().activate(adapter)
                self._narrator.say(f"adapter: {adapter or 'none'}")
            case outcomes.OpenEditor():
                self._write_in_editor()
            case outcomes.Quit():
                return False
            case shown:
                self._show(shown)
        return True

    def _show(self, outcome: outcomes.Outcome) -> None:
        match outcome:
            case outcomes.Say(text) | outcomes.Mark(text):
                self._narrator.say(text)
            case outcomes.Redraw(text):
                self._show_conversation(self._ready())
                if text:
                    self._narrator.say(text)
            case outcomes.Copy(text):
                self._copy(text)
            case outcomes.ShowReasoning():
                answer = self.session.last_answer if self.session else None
                self._narrator.say(answer.reasoning.strip() if answer and answer.reasoning else "No reasoning yet.")
            case outcomes.ShowHelp():
                self._narrator.say_all(f"{command.usage}: {command.help}" for command in slash.COMMANDS.values())
                self._narrator.say_all(key_lines(self._entry.editing_file))
            case outcomes.Attach(attachment):
                self._attached += (attachment,)
                self._introduce_attachments()
            case outcomes.Shorten(most):
                self._attached = attachments.shortened("", self._attached, most)[1]
                self._introduce_attachments()
            case outcomes.SwitchTheme(name):
                from .lines.theme import keep_theme, theme_question  # reads and writes the settings; seldom needed

                if name:
                    self._narrator.say(keep_theme(name))
                else:
                    self._ask(theme_question())

    def _copy(self, text: str) -> None:
        if clipboard.copy_natively(text):
            self._narrator.say("Copied.")
        elif os.environ.get("TERM", "dumb") == "dumb":
            raise UsageError("This terminal has no clipboard.", remedy="/export chat.md")
        else:
            self._printer.raw(clipboard.terminal_sequence(text))
            self._narrator.say("Sent to the terminal's clipboard (OSC 52; some terminals do not allow it).")

    def _open(self, screen: str, argument: str) -> None:
        """Ask a question in place of a screen."""
        session = self.session
        if screen == "keys":
            self._narrator.say_all(key_lines(self._entry.editing_file))
        elif screen == "chats" and session is not None:
            self._ask(chats_question(session, argument))
        elif screen == "models" and argument == "adapters":
            self._ask(adapters_question(self._ready()))
        elif screen == "models" and "/" in argument:
            fetch(argument, self._narrator)
            self._load(lambda: self._model.switch(argument, None))
        elif screen == "models":
            self._ask(models_question(session.engine.info.model_name if session else ""))
        else:
            raise UsageError(f"/{screen} needs the full screen.", remedy="macllm chat --no-plain")

    def _ask(self, question: outcomes.Question | None) -> None:
        self._question = question
        if question is not None:
            self._narrator.say(questions.as_text(question))
            self._narrator.say("Type a number, or go on writing.")

    def _ready(self) -> Session:
        assert self.session is not None
        return self.session

    # Answers

    def _answer(self, session: Session, events: Events, message: str, label: str = _LABEL) -> None:
        before = session.last_answer
        self._unanswered = message
        stopped, failure = False, None
        try:
            stopped = self._answering.print(session, events, label)
        except KeyboardInterrupt:  # a second one, before the engine has acknowledged the first
            stopped = True
        except MacllmError as error:
            failure = error
            self._narrator.say(f"error: {error}")
        turn = session.last_answer
        if turn is not before:
            self._unanswered = ""
        if failure is not None:
            waiting = questions.Unanswered(self._attached, text=self._unanswered) if self._unanswered else None
            self._ask(questions.after_answer(failure, session, message=waiting))
        elif stopped:
            self._narrator.say("stopped before the first word." if self._unanswered else "stopped.")
        elif turn is not None and turn is not before:
            self._narrator.say_all(end_lines(turn, session.context, verbose=self._options.verbose))
            if self._options.verbose and (limit := session.context.limit_tokens):
                self._narrator.say(f"context: {count_text(session.context.used_tokens)} of {count_text(limit)} tokens")
            question = questions.after_answer(None, session, answer=turn, message=None)
            if (warning := session.take_warning()) is not None and question is None:
                self._narrator.say(warning)
            self._ask(question)

    def _show_conversation(self, session: Session) -> None:
        """Print the newest turns of the conversation."""
        turns = session.turns
        if len(turns) > _SHOWN_TURNS:
            self._narrator.say(f"{count_text(len(turns) - _SHOWN_TURNS)} earlier messages are not shown.")
        for turn in turns[-_SHOWN_TURNS:]:
            if turn.role == "cut":
                self._narrator.say("The model no longer reads the messages above.")
                continue
            self._printer.begin(YOU if turn.role == "user" else _LABEL)
            names = "".join(f"\n[{attachment.name}]" for attachment in turn.attachments)
            self._printer.write(turn.content + names)
            self._printer.end()

    def _show_sides(self, comparison: Comparison) -> str:
        """Print the stored sides of a comparison, each below its label. Returns the label of the other one."""
        if comparison.same:
            self._narrator.say(f"Two answers {comparison.same}:")
        rest = ""
        for side in comparison.sides:
            label = f"{visible(side.label)}:\n"
            if side.node is None:
                rest = label
                continue
            self._printer.begin(label)
            self._printer.write(side.node.turn.content)
            self._printer.end()
        return rest

    # The model

    def _load(self, load: Callable[[], Session]) -> None:
        """Load a model and send the message that waits for it. If it fails, ask what to do."""
        try:
            session = load()
        except MacllmError as error:
            self._narrator.say(f"error: {error}")
        except KeyboardInterrupt:
            if not self._introduced and self._model.failure is None:
                raise
            self._narrator.say("stopped.")
        else:
            self._introduce(session)
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                self._reply(session, *waiting)
            return
        self._ask(questions.after_loading(self._model.former))


def end_lines(turn: Turn, context: ContextUse, *, verbose: bool) -> list[str]:
    """The statistics of an answer with `verbose`, else the reason if it is cut off."""
    if verbose:
        return [f"stats: {summarize(turn)}"]
    if turn.finish != "length":
        return []
    where = "end of the context" if context.is_full else "token limit (--max-tokens)"
    return [f"The answer is cut off at the {where}."]
