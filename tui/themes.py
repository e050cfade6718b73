"""The colors of the full screen.

`dark` and `light` are in true colors; `ansi` takes the terminal's own sixteen. Text is in $foreground or, where it
matters less, $muted, which is readable too; $faint is for lines and bars only. The grounds are $tint of code in a
line, $ground of blocks of code, $selected of a chosen message and $highlighted of a row. No state has a color alone:
without colors (NO_COLOR) bold, reverse, signs and words are left.
"""

from __future__ import annotations

from collections.abc import Mapping

from textual.theme import Theme

THEMES = (
    Theme(
        name="macllm-dark",
        primary="#82aaff",
        accent="#82aaff",
        foreground="#d9dce3",
        background="#14161a",
        surface="#14161a",
        panel="#1d2026",
        warning="#d9a657",
        error="#e5786d",
        success="#82aaff",
        dark=True,
        variables={
            "muted": "#9a9da3",
            "faint": "#3f4246",
            "tint": "#2c2e32",
            "ground": "#1e2024",
            "selected": "#212835",
            "highlighted": "#2a3242",
        },
    ),
    Theme(
        name="macllm-light",
        primary="#2457c5",
        accent="#2457c5",
        foreground="#23262d",
        background="#fbfaf8",
        surface="#fbfaf8",
        panel="#f0eee9",
        warning="#8a5a00",
        error="#b3261e",
        success="#2457c5",
        dark=False,
        variables={
            "muted": "#5f6166",
            "faint": "#cbcbcb",
            "tint": "#e1e1e0",
            "ground": "#f0efee",
            "selected": "#e1e6f2",
            "highlighted": "#d3dcf0",
        },
    ),
    Theme(
        name="macllm-ansi",
        ansi=True,
        primary="ansi_blue",
        accent="ansi_blue",
        foreground="ansi_default",
        background="ansi_default",
        surface="ansi_default",
        panel="ansi_default",
        warning="ansi_yellow",
        error="ansi_red",
        success="ansi_blue",
        variables={
            "muted": "ansi_default",
            "faint": "ansi_bright_black",
            "tint": "ansi_default",
            "ground": "ansi_default",
            "selected": "ansi_default",
            "highlighted": "ansi_default",
            "ansi-background": "ansi_default",
            "ansi-foreground": "ansi_default",
            "border": "ansi_blue",
            "border-blurred": "ansi_default",
            "block-cursor-foreground": "ansi_default",
            "block-cursor-background": "ansi_default",
            "block-cursor-text-style": "reverse",
            "input-cursor-background": "ansi_default",
            "input-cursor-foreground": "ansi_default",
            "input-cursor-text-style": "reverse",
            "input-selection-background": "ansi_blue",
            "input-selection-foreground": "ansi_bright_white",
            "screen-selection-background": "ansi_blue",
            "screen-selection-foreground": "ansi_bright_white",
        },
    ),
)


def chosen(name: str, environ: Mapping[str, str]) -> str:
    """The theme for a name; for `auto`, and without colors, one that suits the terminal.

    A terminal with sixteen colors gets `ansi`; its background is known from COLORFGBG, else taken for dark.
    """
    if is_colorless(environ):
        return "macllm-ansi"
    if name != "auto":
        return f"macllm-{name}"
    if has_few_colors(environ):
        return "macllm-ansi"
    background = environ.get("COLORFGBG", "").rpartition(";")[2]
    return "macllm-light" if background in ("7", "15") else "macllm-dark"


def is_colorless(environ: Mapping[str, str]) -> bool:
    """True if NO_COLOR is set (https://no-color.org)."""
    return bool(environ.get("NO_COLOR"))


def has_few_colors(environ: Mapping[str, str]) -> bool:
    """True for a terminal with sixteen colors, by the same signs as Rich takes."""
    if environ.get("COLORTERM", "").strip().lower() in ("truecolor", "24bit"):
        return False
    return environ.get("TERM", "").rpartition("-")[2] not in ("256color", "kitty", "direct")
