"""Foreign text in every place that shows some: nothing in it reaches the terminal as more than text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from rich.segment import Segment
from textual.app import App
from textual.color import Color

from macllm.chat.conversation import Attachment
from macllm.chat.models import UsableModel
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm.errors import EngineCrashedError, ModelNotFoundError
from macllm.generation.contract import OnStatus, Status
from macllm.visible import visible
from macllm_tui.app import ChatApp
from macllm_tui.lines.narrator import Narrator
from macllm_tui.outcomes import Choice, Question
from macllm_tui.safe_lines import SafeLines
from macllm_tui.screens.models import ModelsScreen
from tests.chat.scripted_engine import ScriptedEngine, thinking
from tests.tui.conftest import Play, Stage

FOREIGN = "[red]A[/red]\x1b]0;owned\x07\x1b[2J\x9b31m\u202eB\u200b\tC\x85"
SHOWN = "[red]A[/red]␛]0;owned␇␛[2J"
LONG = FOREIGN + "x" * 3000

Place = Callable[[Stage], Awaitable[None]]


async def ask(stage: Stage) -> None:
    await stage.say("Hi")
    await stage.idle()


async def message(stage: Stage) -> None:
    stage.app.chat.prompt.put(f"hello {FOREIGN}")
    await stage.press("enter")
    await stage.idle()


async def system(stage: Stage) -> None:
    await stage.until(lambda: stage.app.chat.session)
    stage.session.system = FOREIGN
    await stage.say("/system")


async def question(stage: Stage) -> None:
    stage.app.chat.ask(Question(FOREIGN, (Choice(FOREIGN), Choice(FOREIGN))))


async def title(stage: Stage) -> None:
    await ask(stage)
    stage.session.set_title(FOREIGN)
    await stage.say("/rename")


async def attached(stage: Stage) -> None:
    stage.app.chat.prompt.attach(Attachment(FOREIGN, FOREIGN))
    await stage.say("see")
    await stage.idle()


async def chats(stage: Stage) -> None:
    await ask(stage)
    stage.session.set_title(FOREIGN)
    await stage.press("ctrl+s")


async def models(stage: Stage) -> None:
    await stage.until(lambda: stage.app.chat.session)
    found = UsableModel(FOREIGN, "folder", 4, problem=FOREIGN, use=FOREIGN)
    stage.app.push_screen(ModelsScreen(stage.session, lister=lambda: [found]))


async def nothing(stage: Stage) -> None:
    await stage.pilot.pause()


def engine(*steps: object, model_name: str = "scripted") -> ScriptedEngine:
    made = ScriptedEngine(list(steps) or ["ok"])  # type: ignore[arg-type]
    made.info = replace(made.info, model_name=model_name)
    return made


def failing(on_status: OnStatus) -> Session:
    raise ModelNotFoundError(FOREIGN, cause=FOREIGN, remedy=FOREIGN)


def noting(on_status: OnStatus) -> Session:
    on_status(Status(FOREIGN, transient=False))
    return Session(engine())


def remarking(on_status: OnStatus) -> Session:
    on_status(Status(FOREIGN, transient=True))
    return Session(engine())


PLACES: dict[str, tuple[Callable[[], object], Place]] = {
    "answer": (lambda: engine(FOREIGN), ask),
    "long answer": (lambda: engine(LONG + FOREIGN), ask),
    "table": (lambda: engine(f"| {FOREIGN} |\n|---|\n| {FOREIGN} |\n"), ask),
    "code": (lambda: engine(f"```{FOREIGN}\n{FOREIGN}\n```\n"), ask),
    "link": (lambda: engine(f"[{FOREIGN}](http://{FOREIGN})"), ask),
    "reasoning": (lambda: engine(thinking(FOREIGN), FOREIGN), ask),
    "failure": (lambda: engine("half", EngineCrashedError(FOREIGN, cause=FOREIGN, remedy=FOREIGN)), ask),
    "message": (engine, message),
    "attachment": (engine, attached),
    "notice": (engine, system),
    "title": (engine, title),
    "question": (engine, question),
    "chats": (lambda: lambda on_status: Session(engine(), journal=Store()), chats),
    "models": (engine, models),
    "model's name": (lambda: engine(model_name=f"org/{FOREIGN}"), ask),
    "failure of loading": (lambda: failing, nothing),
    "lasting status": (lambda: noting, nothing),
    "passing status": (lambda: remarking, nothing),
}
TYPED = ("message", "attachment")  # the prompt takes in no control characters


@pytest.mark.parametrize("place", PLACES)
def test_foreign_text_in_the_full_screen_is_only_text(place: str, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatApp, "get_line_filters", App.get_line_filters)  # widgets do not rely on the guard
    made, act = PLACES[place]

    async def scenario(stage: Stage) -> None:
        await act(stage)
        shown = "[red]A[/red]" if place in TYPED else "owned"
        await stage.until(lambda: shown in stage.screen())
        screen = stage.screen()
        assert screen == visible(screen).replace("\t", ""), place
        assert "␛" in screen or place in TYPED

    play(made(), scenario, size=(100, 30))  # type: ignore[arg-type]


def test_the_guard_takes_out_what_a_widget_forgot() -> None:
    kept = Segment("plain ␛ äöü 🦙")
    shown = SafeLines().apply([kept, Segment(f"a{FOREIGN}b")], Color(0, 0, 0))
    assert shown[0].text == kept.text
    assert shown[1].text == "a[red]A[/red]]0;owned[2J31mBCb"


def test_narration_is_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    Narrator().say(FOREIGN)
    err = capsys.readouterr().err
    assert SHOWN in err
    assert err == visible(err)
