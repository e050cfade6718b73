"""Themes: contrast of all text, the choice by the terminal, and a screen without colors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from textual.color import Color

from macllm_tui.commands.interface import THEMES as OFFERED
from macllm_tui.themes import THEMES, chosen
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.conftest import Play, Stage

READABLE = 4.5  # WCAG 2.2, 1.4.3: contrast of text
TRUE_COLOR = [theme for theme in THEMES if not theme.ansi]
TEXTS = ("foreground", "muted", "accent", "warning", "error")
GROUNDS = ("background", "panel", "selected", "highlighted", "tint", "ground")


def luminance(color: Color) -> float:
    """Relative luminance (WCAG 2.2, definitions)."""
    parts = [c / 255 for c in color.rgb]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted(luminance(Color.parse(color)) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_of_known_colors_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", TRUE_COLOR, ids=lambda theme: theme.name)
def test_text_of_any_color_is_readable_on_every_ground_that_it_has(theme) -> None:
    colors = theme.variables | {name: getattr(theme, name) for name in (*TEXTS, *GROUNDS) if hasattr(theme, name)}
    pairs = {(text, ground) for text in TEXTS for ground in ("background", "panel", "selected")}
    pairs |= {("foreground", ground) for ground in GROUNDS} | {
        ("muted", ground) for ground in ("ground", "highlighted")
    }
    weak = {pair: round(contrast(*(colors[name] for name in pair)), 2) for pair in sorted(pairs)}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < READABLE} == {}


def test_no_color_is_a_share_of_another(repository: Path) -> None:
    """The contrast of a share is not checked, and a terminal's own colors have none."""
    sources = [*(repository / "tui").rglob("*.py"), *(repository / "tui").rglob("*.tcss")]
    shares = re.compile(r"\$(?!background )[a-z-]+ \d+%")
    assert [path.name for path in sources if shares.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("name", "environ", "theme"),
    [
        ("auto", {"TERM": "xterm-256color"}, "dark"),
        ("auto", {"TERM": "xterm-256color", "COLORFGBG": "0;15"}, "light"),
        ("auto", {"TERM": "xterm", "COLORTERM": "truecolor"}, "dark"),
        ("auto", {"TERM": "xterm"}, "ansi"),
        ("auto", {"TERM": "linux"}, "ansi"),
        ("auto", {"TERM": "xterm-16color"}, "ansi"),
        ("auto", {"TERM": "xterm-kitty"}, "dark"),
        ("light", {"TERM": "xterm"}, "light"),
        ("light", {"TERM": "xterm-256color", "NO_COLOR": "1"}, "ansi"),
        ("auto", {"TERM": "xterm-256color", "NO_COLOR": ""}, "dark"),
    ],
)
def test_the_theme_suits_the_terminal(name: str, environ: dict[str, str], theme: str) -> None:
    assert chosen(name, environ) == f"macllm-{theme}"


def test_the_offered_themes_are_all_there_are() -> None:
    assert {f"macllm-{name}" for name in OFFERED if name != "auto"} == {theme.name for theme in THEMES}


def colors_on(stage: Stage) -> set[str]:
    """The colors that the terminal gets, of characters and of their grounds."""
    found: set[str] = set()
    for strip in stage.app.screen._compositor.render_strips():
        segments = list(strip)
        for each in stage.app.get_line_filters():
            if each.enabled:
                segments = each.apply(segments, Color(0, 0, 0))
        styles = [segment.style for segment in segments if segment.style]
        found |= {color.name for style in styles for color in (style.color, style.bgcolor) if color is not None}
    return found


ANSWER = "# Title\n\nSome `code`, a [link](https://example.com).\n\n```python\ndef f(x):\n    return x\n```\n"


def test_no_color_draws_in_the_terminal_s_own_two_colors(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def scenario(stage: Stage) -> None:
        await stage.say("hi")
        await stage.sees("return x")
        await stage.idle()
        assert colors_on(stage) == {"default"}

    play(ScriptedEngine([ANSWER]), scenario, theme="dark")


def test_the_theme_of_sixteen_colors_draws_with_these_alone(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.say("hi")
        await stage.sees("return x")
        await stage.idle()
        colors = colors_on(stage)
        assert "color(4)" in colors
        assert {name for name in colors if name.startswith("#")} == set()

    play(ScriptedEngine([ANSWER]), scenario, theme="ansi")
