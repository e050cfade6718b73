"""Commands, questions and models in line mode, on a scripted engine in this process."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from macllm.chat.conversation import Attachment, Conversation, Turn
from macllm.chat.models import UsableModel
from macllm.chat.options import ChatOptions
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm.config.settings import load
from macllm.errors import CheckpointError, DoesNotFitError, EngineCrashedError, MacllmError, ModelNotFoundError
from macllm.generation.contract import OnStatus
from macllm_tui import slash
from macllm_tui.commands.command import Command
from macllm_tui.lines import entry
from macllm_tui.lines.keys import key_lines
from macllm_tui.outcomes import Ask, Choice, Outcome, Question, Redraw, Say, SwitchModel
from macllm_tui.plain import LineChat
from tests.chat.scripted_engine import ScriptedEngine, Step, thinking


class Talk:
    """Chats in lines, each with a script of answers and what the user types."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr("macllm_tui.first_start.first_offer", lambda model: self.offer)
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.engines: list[ScriptedEngine] = []
        self.store: Store | None = None
        self.offer: list[UsableModel] = []
        self.failures: list[MacllmError] = []  # of the first loadings
        self.unloadable: dict[str, MacllmError] = {}  # adapters

    def __call__(
        self,
        answers: Sequence[Sequence[Step]],
        *lines: str,
        attached: tuple[Attachment, ...] = (),
        verbose: bool = False,
        prompt: str | None = None,
        conversation: Conversation | None = None,
    ) -> tuple[str, str]:
        """Return the text on stdout and on stderr."""
        left, steps = iter(lines), list(answers)

        def typed(prompt: str) -> str:
            line = next(left, None)
            if line is None:
                raise EOFError
            print(f"{prompt}{line}")
            return line

        def opener(options: ChatOptions, on_status: OnStatus) -> Session:
            if options.model == "missing" or self.failures:
                raise self.failures.pop(0) if self.failures else ModelNotFoundError("There is no model missing.")
            self.engines.append(ScriptedEngine())
            self.engines[-1].answers = steps
            self.engines[-1].unloadable = self.unloadable
            return Session(self.engines[-1], journal=self.store, conversation=options.conversation)

        self._monkeypatch.setattr("builtins.input", typed)
        options = ChatOptions(verbose=verbose, prompt=prompt, conversation=conversation)
        self.code = LineChat(options, opener, attached).converse()
        return self._capsys.readouterr()

    def command(self, name: str, run: Callable[[Session, str], Outcome]) -> None:
        """Register a command."""
        self._monkeypatch.setitem(slash.NAMES, name, Command(name, "", "a test", run))

    def switching(self, name: str, model: str | None = None) -> None:
        """Register a command that switches to a model, or to the one of its argument."""
        run = Command(name, "", "a test", run_without_model=lambda argument: SwitchModel(model or argument))
        self._monkeypatch.setitem(slash.NAMES, name, run)


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    return Talk(monkeypatch, capsys)


QUESTION = Question(
    "Which one?", (Choice("the system prompt", "/system"), Choice("nothing"), Choice("again", send=True))
)


def test_a_question_is_a_numbered_list_and_the_next_number_a_choice(talk: Talk) -> None:
    talk.command("ask", lambda session, _: Ask(QUESTION))
    out, err = talk([["two"]], "/ask", "1", "1")
    assert "Which one?\n  1  the system prompt\n  2  nothing\n  3  again\n" in err
    assert "No system prompt is set." in err
    assert out == "you: /ask\nyou: 1\nyou: 1\nmacllm: two\n\n"  # the second number is a message


def test_a_number_without_a_choice_asks_again_and_text_dismisses_the_question(talk: Talk) -> None:
    talk.command("ask", lambda session, _: Ask(QUESTION))
    out, err = talk([["one"], ["two"]], "/ask", "7", "hello", "2")
    assert "error: No choice 7.\ntry: a number from 1 to 3" in err
    assert [line for line in out.splitlines() if line.startswith("macllm")] == ["macllm: one", "macllm: two"]


def test_a_choice_can_send_the_message_that_got_no_answer_again(talk: Talk) -> None:
    talk.command("ask", lambda session, _: Ask(QUESTION))
    failure = ModelNotFoundError("It is gone.")
    out, _ = talk([[failure], ["an answer"]], "Hello", "/ask", "3")
    assert out.endswith("you: 3\nmacllm: an answer\n\n")
    assert talk.engines[0].rendered[-1] == [{"role": "user", "content": "Hello"}]


def test_another_model_takes_over_the_conversation_in_place(talk: Talk) -> None:
    talk.switching("other", "other")
    _, err = talk([["one"], ["two"]], "Hello", "/other", "More")
    first, second = talk.engines
    assert first.closed
    assert [message["content"] for message in second.rendered[0]] == ["Hello", "one", "More"]
    assert err.count("model: scripted") == 2


def test_a_model_that_cannot_be_loaded_asks_and_the_former_one_can_come_back(talk: Talk) -> None:
    talk.switching("other", "missing")
    talk.switching("model")
    out, err = talk([["one"], ["two"]], "Hello", "/other", "/stats", "2", "More")
    assert "error: There is no model missing.\nNo model is loaded.\n  1  try again\n  2  go back to the former" in err
    assert "error: /stats needs a model." in err
    assert out.endswith("macllm: two\n\n")
    assert len(talk.engines[-1].rendered[0]) == 3


def test_a_first_model_that_cannot_be_loaded_asks_and_the_message_waits_for_it(talk: Talk) -> None:
    talk.failures = [ModelNotFoundError("It is gone."), DoesNotFitError("It is too large.")]
    out, err = talk([["one"], ["two"]], "1", "1", "More", prompt="Hello")
    assert "error: It is gone.\nNo model is loaded.\n  1  try again\n  2  choose another model\n  3  quit\n" in err
    assert err.index("error: It is too large.") < err.index("model: scripted")
    assert "macllm: one\n" in out
    assert [message["content"] for message in talk.engines[0].rendered[-1]] == ["Hello", "one", "More"]
    assert talk.code == 0


@pytest.mark.parametrize("lines", [["3"], [], ["/quit"]])
def test_a_chat_without_a_model_ends_with_the_exit_code_of_the_failure(talk: Talk, lines: list[str]) -> None:
    talk.failures = [DoesNotFitError("It is too large.")]
    talk([], *lines)
    assert talk.code == 4


def test_a_message_without_a_model_tries_to_load_it_again(talk: Talk) -> None:
    talk.failures = [ModelNotFoundError("It is gone.")]
    out, err = talk([["one"]], "Hello")
    assert out == "you: Hello\nmacllm: one\n\n"
    assert err.count("model: scripted") == 1


def test_another_model_goes_on_with_a_stored_conversation_whose_own_cannot_be_loaded(talk: Talk) -> None:
    talk.switching("other", "other")
    talk.failures = [ModelNotFoundError("It is gone.")]
    stored = Conversation.begin().added(Turn(role="user", content="Old")).added(Turn(role="assistant", content="words"))
    talk([["one"]], "/other", "More", conversation=stored)
    assert [message["content"] for message in talk.engines[0].rendered[-1]] == ["Old", "words", "More"]


def test_every_command_is_answered_in_lines(talk: Talk, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "true")
    for name in slash.NAMES:
        _, err = talk([["one"], ["two"]], "Hello", f"/{name}")
        assert "full screen." not in err
        assert "--no-plain" not in err


def test_the_keys_are_those_of_lines(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    dumb, shown = talk([], "/keys")[1], key_lines("~/.inputrc")
    assert "Ctrl-D: quit, on an empty line\nCtrl-Z" in dumb
    assert "macllm config show keys lists the keys of the full screen" in dumb
    assert "Tab" not in dumb
    assert {"Ctrl-R: search earlier messages", "~/.inputrc changes the keys of editing."} <= set(shown)


def test_the_theme_of_the_full_screen_is_kept_in_the_settings(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = talk([], "/theme", "2", "/theme")
    assert "The theme of the full screen is auto (default)." in err
    assert "The theme of the full screen is light from its next start on (" in err
    assert "The theme of the full screen is light (" in err
    assert load().values["ui.theme"] == "light"
    monkeypatch.setenv("MACLLM_THEME", "dark")
    assert "The theme ansi is kept, but environment MACLLM_THEME goes before it." in talk([], "/theme ansi")[1]


def test_a_terminal_without_a_clipboard_is_told_another_way(talk: Talk) -> None:
    out, err = talk([["one"]], "Hello", "/copy")
    assert "error: This terminal has no clipboard.\ntry: /export chat.md" in err
    assert "\x1b" not in out


def test_a_conversation_drawn_anew_has_labels_and_says_how_much_is_left_out(talk: Talk) -> None:
    talk.command("redraw", lambda session, _: Redraw("Here it is."))
    out, err = talk([["a"], ["b"], ["c"], ["d"]], "1", "2", "3", "4", "/redraw")
    shown = "you: 2\nmacllm: b\nyou: 3\nmacllm: c\nyou: 4\nmacllm: d\n"
    assert out.endswith("you: /redraw\n" + shown + "\n")
    assert "2 earlier messages are not shown." in err
    assert "Here it is." in err


def test_the_reasoning_is_one_line_and_a_command_shows_it(talk: Talk) -> None:
    out, err = talk([[thinking("Hm, "), thinking("let me see."), "Yes."]], "Hello", "/thinking")
    assert "thinking: 2 tokens, /thinking shows it\n" in err
    assert "Hm" not in out
    assert "Hm, let me see." in err


def test_attached_text_goes_with_the_first_message_only(talk: Talk) -> None:
    notes = Attachment("stdin", "a\nb\n")
    _, err = talk([["one"], ["two"]], "Hello", "More", attached=(notes,))
    assert "attached to the next message: stdin, 2 lines\n" in err
    contents = [message["content"] for message in talk.engines[0].rendered[-1]]
    assert contents == ['Hello\n\n<file name="stdin">\na\nb\n</file>', "one", "More"]


def test_verbose_says_the_context_after_each_answer(talk: Talk) -> None:
    _, err = talk([["one"]], "Hello", verbose=True)
    assert "stats: 1 token" in err
    assert "context: 3 of 1,000 tokens" in err


def test_files_that_a_line_names_go_with_it_and_a_command_attaches_one(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.md").write_text("My notes.")
    monkeypatch.chdir(tmp_path)
    _, narration = talk([["one"], ["two"]], "read @notes.md", "read @./missing", "/attach notes.md", "again")
    assert "There is no file ./missing" in narration
    assert "attached to the next message: notes.md, 1 line\n" in narration
    first, second = (request.messages[-1]["content"] for request in talk.engines[0].requests)
    file = '<file name="notes.md">\nMy notes.\n</file>'
    assert (first, second) == (f"read @notes.md\n\n{file}", f"again\n\n{file}")


def test_a_message_can_be_written_in_the_editor(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "sh -c 'echo From the editor > $0'")
    assert "you: From the editor\nmacllm: Fine." in talk([["Fine."]], "/editor")[0]


@pytest.mark.parametrize(
    ("line", "start", "words"),
    [
        ("/the", 0, ["/theme "]),
        ("/theme d", 7, ["dark"]),
        ("/themes", 0, []),
        ("read @no", 5, ["@notes.md"]),
        ("read @N", 5, []),
        ('read @"my n', 10, ['notes.md"']),
    ],
)
def test_a_word_of_a_line_is_completed(
    line: str, start: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("notes.md", "my notes.md"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert entry.words(line, start) == words


def test_messages_are_in_the_stored_history_but_choices_are_not(talk: Talk, tmp_path: Path) -> None:
    talk.store = Store(tmp_path / "chats.db")
    talk.command("ask", lambda session, _: Ask(QUESTION))
    talk([["one"]], "Hello", "/ask", "2")
    assert talk.store.prompts() == ["Hello", "/ask"]
    assert [chat.name for chat in talk.store.list()] == ["Hello"]


MODELS = [
    UsableModel("maclet", "bundled", 3_500_000),
    UsableModel("org/large", "catalogue", 4_000_000_000),
    UsableModel("org/broken", "cached", 4_000, problem="config.json is missing"),
    UsableModel("/adapters/tone", "adapter", 4_000, base="maclet"),
]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list of models; returns the names of those downloaded."""
    fetched: list[str] = []
    for place in ("macllm_tui.commands.models", "macllm_tui.lines.models"):
        monkeypatch.setattr(f"{place}.usable_models", lambda: MODELS)
    monkeypatch.setattr("macllm_tui.lines.models.download", lambda name, progress: fetched.append(name))
    return fetched


def test_models_are_a_numbered_list_and_a_remote_one_is_downloaded_first(talk: Talk, models: list[str]) -> None:
    _, err = talk([["one"], ["two"]], "Hello", "/model", "2", "More")
    assert "Models:\n  1  maclet, bundled, 3.5 MB\n  2  org/large, remote, 4.0 GB\n" in err
    assert models == ["org/large"]
    assert [message["content"] for message in talk.engines[1].rendered[0]] == ["Hello", "one", "More"]


def test_adapters_are_a_numbered_list(talk: Talk, models: list[str]) -> None:
    _, err = talk([["one"], ["two"]], "Hello", "/adapter", "1", "/adapter tone:0.5", "/adapter", "More")
    assert "blends:\n  1  tone, for maclet\n  2  no adapter (in use)\n" in err
    assert "adapter: /adapters/tone\n" in err
    assert "  1  tone, for maclet (in use with weight 0.5)\n  2  no adapter\n" in err
    [engine] = talk.engines
    assert engine.activated == ["/adapters/tone", "/adapters/tone:0.5"]
    assert [message["content"] for message in engine.rendered[1]] == ["Hello", "one", "More"]


def test_an_adapter_that_cannot_be_loaded_is_an_error_and_the_chat_goes_on(talk: Talk, models: list[str]) -> None:
    talk.unloadable = {"/adapters/tone": CheckpointError("It does not fit.")}
    out, err = talk([["one"]], "/adapter tone", "Hello")
    assert err.count("error: It does not fit.") == 1
    assert out.endswith("macllm: one\n\n")
    assert talk.engines[0].activated == []


def test_a_first_start_offers_models_that_fit(talk: Talk, models: list[str]) -> None:
    talk.offer = [MODELS[1]]
    _, err = talk([["one"]], "2", "Hello")
    assert "Type a number, or just ask:\n  1  large: 4.0 GB; \n  2  stay with maclet\n" in err
    assert talk.engines[0].rendered == [[{"role": "user", "content": "Hello"}]]


LONG = " ".join(["word"] * 400)


def test_a_full_context_asks_what_to_leave_out_and_sends_the_message_again(talk: Talk) -> None:
    out, err = talk([["one"], ["two"], ["three"]], LONG, LONG, f"{LONG} again", "1")
    assert "The conversation is longer than the context.\n  1  leave out the oldest messages" in err
    assert "messages are left out" in err
    assert out.endswith("macllm: three\n\n")
    assert [message["content"] for message in talk.engines[0].rendered[-1]] == [LONG, "two", f"{LONG} again"]


def test_a_crashed_engine_asks_and_can_answer_again(talk: Talk) -> None:
    crash = EngineCrashedError("It crashed.")
    out, err = talk([["half", crash], ["whole"]], "Hello", "2")
    assert "error: It crashed.\n" in err
    assert "  1  go on with the answer\n  2  answer again\n" in err
    assert out == "you: Hello\nmacllm: half\nyou: 2\nmacllm: whole\n\n"


def test_a_summary_has_its_title_and_then_the_message_is_sent(talk: Talk) -> None:
    out, _ = talk([["one"], ["two"], ["They said word."], ["three"]], LONG, LONG, f"{LONG} again", "2")
    assert "Summary of the oldest messages:\nThey said word.\nmacllm: three\n" in out
    assert "They said word." in talk.engines[0].rendered[-1][0]["content"]


def test_an_earlier_message_is_edited_by_its_number(talk: Talk) -> None:
    out, err = talk([["one"], ["two"], ["three"]], "First", "Second", "/edit", "/edit #1 Another", "/edit #4 x")
    assert "#1  First\n#2  Second\n" in err
    assert "error: There is no message #4." in err
    assert out.endswith("you: /edit #1 Another\nmacllm: three\nyou: /edit #4 x\n\n")
    assert [message["content"] for message in talk.engines[0].rendered[-1]] == ["Another"]


def test_other_versions_are_a_numbered_list(talk: Talk) -> None:
    out, err = talk(
        [["one"], ["two"], ["three"]], "First", "/regen", "/edit Second", "/versions", "1", "/versions", "2"
    )
    assert "Other versions, those of the newest message first:\n  1  question 1: First\n" in err
    shown = out.partition("you: /versions\n")[2]
    assert shown == "you: 1\nyou: First\nmacllm: two\nyou: /versions\nyou: 2\nyou: Second\nmacllm: three\n\n"


def test_two_versions_are_printed_one_after_the_other_with_labels(talk: Talk) -> None:
    out, err = talk([["one"], ["two"]], "First", "/regen", "/compare")
    assert re.search(r"version 1 of 2 · seed \d+:\none\nversion 2 of 2 · seed \d+:\ntwo\n", out)
    assert "Two answers with the same settings:\n" in err


def test_the_base_and_the_adapter_are_printed_one_after_the_other_with_labels(talk: Talk) -> None:
    def adapt(session: Session, argument: str) -> Outcome:
        talk.engines[0].info = replace(session.engine.info, adapter="runs/notes")
        return Say("adapted")

    talk.command("adapt", adapt)
    out, _ = talk([["one"], ["two"]], "First", "/adapt", "/ab")
    assert out.endswith("you: /ab\nbase model:\none\nwith notes:\ntwo\n\n")


def test_messages_with_one_version_each_have_no_others(talk: Talk) -> None:
    assert "error: Every message has one version." in talk([["one"]], "First", "/versions")[1]


def test_an_attachment_longer_than_the_context_is_sent_in_part_or_left_out(talk: Talk) -> None:
    notes = Attachment("notes.md", "w " * 3000)
    _, err = talk([["one"]], "Look", "1", attached=(notes,))
    assert "The message is longer than the context.\n  1  send only the first 2,000 characters" in err
    _, err = talk([["one"]], "Look", "2", "/detach 5x", attached=(notes,))
    assert [engine.rendered[-1][-1]["content"].count("w ") for engine in talk.engines] == [1000, 0]
    assert "error: /detach takes a number of characters to keep, or nothing." in err
