"""Presets and themes by slash commands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from macllm.chat.session import Session
from macllm.config.settings import config_path
from macllm.errors import UsageError
from macllm_tui import outcomes
from macllm_tui.commands.interface import theme_choices
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.test_slash import run


def preset_file(text: str) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text(text)


def test_a_preset_sets_system_prompt_and_sampling_from_the_defaults() -> None:
    chat = Session(ScriptedEngine())
    chat.sampling = replace(chat.sampling, top_k=9, seed=4)
    preset_file('[sampling]\ntop_p = 0.5\n[presets.code]\nsystem = "Write."\ntemperature = 0\n[presets.b]\n')
    assert run(chat, "/preset code") == outcomes.Say("Preset code: Write., temperature 0")
    assert chat.system == "Write."
    expected = replace(chat.engine.info.defaults, top_p=0.5, temperature=0, seed=4)
    assert chat.sampling == expected
    run(chat, "/preset b")
    assert (chat.system, chat.sampling.temperature) == ("Write.", chat.engine.info.defaults.temperature)
    run(chat, "/preset none")
    assert chat.system is None


def test_presets_are_offered_and_an_unknown_one_is_refused() -> None:
    chat = Session(ScriptedEngine())
    with pytest.raises(UsageError, match="No presets yet"):
        run(chat, "/preset")
    with pytest.raises(UsageError) as caught:
        run(chat, '/preset my "own"')
    assert '[presets."my \\"own\\""]' in (caught.value.remedy or "")
    preset_file('[presets.code]\nsystem = "Write."\n')
    outcome = run(chat, "/preset")
    assert isinstance(outcome, outcomes.Ask)
    assert [choice.line for choice in outcome.question.choices] == ["/preset code", "/preset none"]
    with pytest.raises(UsageError, match="no preset is named cod"):
        run(chat, "/preset cod")
    preset_file("[presets.code]\nsytem = 1\n")
    with pytest.raises(UsageError, match="line 2"):
        run(chat, "/preset code")


def test_themes_are_offered_and_an_unknown_one_is_refused() -> None:
    assert run(Session(ScriptedEngine()), "/theme") == outcomes.SwitchTheme("")
    offered = ["/theme dark", "/theme light", "/theme ansi", "/theme auto"]
    assert [choice.line for choice in theme_choices()] == offered
    assert run(Session(ScriptedEngine()), "/theme ansi") == outcomes.SwitchTheme("ansi")
    with pytest.raises(UsageError, match="Unknown theme 'purple'"):
        run(Session(ScriptedEngine()), "/theme purple")
