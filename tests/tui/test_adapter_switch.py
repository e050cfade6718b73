"""Adapters exchanged during a conversation, in the full screen."""

from __future__ import annotations

import threading

import pytest

from macllm.chat.models import UsableModel
from macllm.errors import CheckpointError
from macllm_tui.screens.models import ModelsScreen
from macllm_tui.widgets.notices import Failure
from macllm_tui.widgets.turns import UserTurn
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.conftest import Play, Stage

KNOWN = [UsableModel(f"/x/{name}", "adapter", 1, base="maclet") for name in ("notes", "tone")]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macllm_tui.commands.models.usable_models", lambda: KNOWN)


class SlowEngine(ScriptedEngine):
    """An engine whose adapters come when the gate is set."""

    def __init__(self, *answers: list[str]) -> None:
        super().__init__(*answers)
        self.gate = threading.Event()

    def activate(self, adapter: str | None) -> None:
        assert self.gate.wait(10)
        super().activate(adapter)


def test_messages_wait_for_the_adapter_and_record_it(play: Play) -> None:
    engine = SlowEngine(["plain"], ["adapted"])

    async def scenario(stage: Stage) -> None:
        await stage.say("One")
        await stage.sees("plain")
        await stage.idle()
        first = stage.session
        await stage.type("/adapter notes tone:0.5")
        await stage.press("escape", "enter")
        await stage.sees("loading notes + tone:0.5…")
        await stage.say("Two")
        assert stage.app.chat.query_one("UserTurn.-queued", UserTurn)
        assert len(engine.requests) == 1
        engine.gate.set()
        await stage.sees("adapted")
        await stage.idle()
        await stage.sees("+ notes + tone:0.5")
        assert stage.session is first
        origins = [turn.origin.adapter for turn in stage.session.turns if turn.origin]
        assert origins == [None, "/x/notes + /x/tone:0.5"]
        await stage.say("/adapter off")
        await stage.until(lambda: engine.activated[-1] is None)
        await stage.idle()
        assert "notes" not in stage.screen().splitlines()[-1]

    play(engine, scenario, size=(120, 30))


def test_an_adapter_that_cannot_be_loaded_leaves_the_former_one(play: Play) -> None:
    engine = ScriptedEngine(["one"])
    engine.unloadable["/x/tone"] = CheckpointError("The adapter does not fit.", remedy="another base")

    async def scenario(stage: Stage) -> None:
        await stage.idle()
        await stage.say("/adapter /x/notes")
        await stage.until(lambda: engine.activated == ["/x/notes"])
        await stage.idle()
        await stage.say("/adapter /x/tone")
        await stage.sees("The adapter does not fit.")
        await stage.idle()
        assert len(stage.app.chat.query(Failure)) == 1
        assert stage.session.adapter == "/x/notes"
        await stage.say("Go on")
        await stage.sees("one")

    play(engine, scenario)


def test_an_answer_is_not_interrupted_by_another_adapter(play: Play) -> None:
    gate = threading.Event()
    engine = ScriptedEngine(["one ", gate, "two"])

    async def scenario(stage: Stage) -> None:
        await stage.say("Go")
        await stage.sees("one")
        await stage.say("/adapter off")
        await stage.sees("/adapter cannot run during an answer.")
        gate.set()
        await stage.idle()
        assert engine.activated == []

    play(engine, scenario)


def test_the_list_shows_which_adapters_are_active(play: Play) -> None:
    engine = ScriptedEngine()
    engine.activate("/x/tone:0.5 + /elsewhere/style")

    async def scenario(stage: Stage) -> None:
        await stage.idle()
        screen = ModelsScreen(stage.session, "adapters", lister=lambda: KNOWN)
        stage.app.push_screen(screen)
        await stage.sees("● style")
        assert "● tone" in stage.screen()
        assert "● notes" not in stage.screen()

    play(engine, scenario)
