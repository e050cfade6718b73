from __future__ import annotations

from dataclasses import replace

import pytest

from macllm.chat.context import ContextUse
from macllm.chat.session import Session
from macllm_tui.widgets.status_line import StatusValues, render
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.test_presets import preset_file
from tests.tui.test_slash import run

ANSWERING = StatusValues(
    "qwen3-4b",
    activity="61.4 tok/s",
    adapter="my-notes",
    first_token_seconds=0.31,
    reused_tokens=1812,
    context=ContextUse(2258, 32768),
    fitting_tokens=21000,
    memory_bytes=5_100_000_000,
    memory_limit_bytes=10_700_000_000,
    queued=2,
    hint="Esc stops",
)


def line(width: int, **changes: object) -> str:
    return render(replace(ANSWERING, **changes), width).plain  # type: ignore[arg-type]


def test_a_wide_line_has_everything() -> None:
    assert line(200, hint="") == (
        "qwen3-4b + my-notes  ·  61.4 tok/s  ·  first 0.31 s  ·  reused 1.8k  ·  2 queued  ·  "
        "context ━─────── 2,258/32,768 (fits to 21k)  ·  memory ━━━───── 5.1 GB/10.7 GB"
    )


@pytest.mark.parametrize("width", range(1, 200, 7))
def test_the_line_fits_and_keeps_the_speed(width: int) -> None:
    text = line(width)
    assert len(text) <= width
    assert text.startswith("61.4 tok/s"[:width]) or "61.4 tok/s" in text or text.endswith("…")


def test_a_line_of_60_columns_has_speed_queue_context_and_the_key() -> None:
    assert all(part in line(58) for part in ("61.4 tok/s", "2 queued", "ctx 7 %", "Esc stops"))


def test_reading_has_a_bar_where_there_is_room() -> None:
    reading = {"reading": (1024, 1940), "activity": "reading", "first_token_seconds": None, "reused_tokens": 0}
    assert "reading ━━━━──── 1,024/1,940" in line(160, **reading)
    assert "reading 1,024/1,940" in line(60, **reading)


@pytest.mark.parametrize(
    ("used", "wide", "narrow"),
    [
        (20_000, "20,000/32,768  ·", "ctx 61 %"),
        (24_000, "24,000/32,768, 73%  ·", "ctx 73 %"),
        (30_000, "30,000/32,768, 92%, nearly full", "ctx 92 %, nearly full"),
        (40_000, "40,000/32,768, 100%, full", "ctx 100 %, full"),
    ],
)
def test_a_context_that_fills_up_says_so_in_words(used: int, wide: str, narrow: str) -> None:
    context = ContextUse(used, 32768)
    assert wide in line(200, context=context, fitting_tokens=None)
    assert narrow in line(60, context=context, queued=0, hint="")


def test_memory_that_fills_up_says_so_in_words() -> None:
    assert "memory ━━━━━━━─ 10.0 GB/10.7 GB, 93%, nearly full" in line(200, memory_bytes=10_000_000_000)


def test_the_preset_in_effect_is_named_beside_the_model_where_there_is_room() -> None:
    assert line(200, preset="code").startswith("qwen3-4b + my-notes  ·  preset code  ·  61.4 tok/s")
    assert "preset code  ·  61.4 tok/s  ·  2 queued  ·  ctx 7 %" in line(90, preset="code")  # memory gives way
    assert "61.4 tok/s" in line(60, preset="code")


def test_a_preset_is_named_until_one_of_its_values_is_changed() -> None:
    session, status = Session(ScriptedEngine()), StatusValues("scripted")
    preset_file('[presets.code]\nsystem = "Write."\ntemperature = 0\n')

    def named(command: str) -> str:
        run(session, command)
        status.observe(session, None, 0)
        return status.preset

    assert named("/preset code") == "code"
    assert named("/set top_p 0.5") == "code"
    assert named("/set temperature 0.3") == ""
    assert named("/set temperature 0") == "code"
    assert named("/system Draw.") == ""
    assert named("/preset code") == "code"
    other = Session(ScriptedEngine())
    other.take_over(session)
    assert other.preset_in_effect == "code"
    assert named("/preset none") == ""


def test_a_context_that_fits_as_a_whole_has_no_forecast() -> None:
    assert "fits" not in line(200, fitting_tokens=40_000)
