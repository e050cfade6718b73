"""The offer of models at the first start, in the app."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from macllm.chat.session import Session
from macllm.generation.contract import OnStatus
from macllm.hub import speeds
from macllm_tui.screens.models import ModelsScreen
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.conftest import Play, Stage
from tests.tui.golden import check, screen_text


def maclet(*answers: list[str]) -> ScriptedEngine:
    engine = ScriptedEngine(*answers)
    engine.info = replace(engine.info, model_name="maclet")
    return engine


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    speeds.record_machine(bandwidth=100e9, memory_limit=12_000_000_000)


def test_the_first_start_offers_models_with_size_and_speed_and_shows_the_chosen_one(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.sees("Qwen3-8B-4bit: 4.6 GB, ~22 tok/s")
        for size in ((60, 20), (80, 24), (120, 40)):
            await stage.pilot.resize_terminal(*size)
            await stage.pilot.pause()
            check(screen_text(stage.app), f"first-start-{size[0]}x{size[1]}")
        await stage.say("1")
        await stage.until(lambda: isinstance(stage.app.screen, ModelsScreen))
        await stage.sees("Download Qwen3-8B-4bit (4.6 GB)?")
        await stage.press("escape")

    async def again(stage: Stage) -> None:
        await stage.say("Hi")
        await stage.sees("Hello.")
        assert "4.6 GB" not in stage.screen()

    play(maclet(), scenario, size=(120, 40))
    play(maclet(["Hello."]), again, size=(120, 40))


def test_the_bundled_guide_answers_at_once_all_the_same(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.sees("stay with maclet")
        await stage.say("Hi")
        await stage.sees("Hello.")

    play(maclet(["Hello."]), scenario, size=(60, 20))  # where all choices are seen, too


def test_a_first_message_on_the_command_line_is_answered_without_an_offer(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.sees("Hello.")
        assert "stay with maclet" not in stage.screen()

    play(maclet(["Hello."]), scenario, prompt="Hi")


def test_ctrl_o_opens_the_list_of_models_and_a_choice_switches_the_model_in_place(play: Play) -> None:
    switched: list[tuple[str, str | None]] = []

    def open_model(model: str, adapter: str | None, on_status: OnStatus) -> Session:
        switched.append((model, adapter))
        return Session(maclet(["From the other model."]))

    async def scenario(stage: Stage) -> None:
        await stage.say("Hi")
        await stage.sees("From the first.")
        await stage.press("ctrl+o")
        await stage.until(lambda: isinstance(stage.app.screen, ModelsScreen))
        await stage.sees("On this machine")
        await stage.press("enter")
        await stage.until(lambda: switched)
        await stage.say("Again")
        await stage.sees("From the other model.")
        assert "From the first." in stage.screen()

    play(ScriptedEngine(["From the first."]), scenario, open_model=open_model)
    assert switched == [("maclet", None)]
