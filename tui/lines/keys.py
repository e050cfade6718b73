"""The keys of a chat in lines."""

from __future__ import annotations

_KEYS = (
    ("Enter", "send"),
    ("\\ before Enter", "new line"),
    ("Ctrl-C", "stop the answer; while you write, clear the line"),
    ("Ctrl-D", "quit, on an empty line"),
    ("Ctrl-Z", "stop macllm; the shell's fg goes on"),
)
_EDITING = (
    ("Tab", "complete a /command, its argument or an @file"),
    ("Up, Down", "earlier messages"),
    ("Ctrl-R", "search earlier messages"),
    ("Ctrl-A, Ctrl-E", "begin and end of the line"),
    ("Ctrl-W, Ctrl-U", "delete the word, or all, before the cursor"),
)


def key_lines(editing_file: str | None) -> list[str]:
    """The keys, one a line.

    `editing_file` changes those of editing; None: the terminal has none.
    """
    lines = [f"{key}: {about}" for key, about in _KEYS + (_EDITING if editing_file else ())]
    if editing_file:
        lines.append(f"{editing_file} changes the keys of editing.")
    return [
        *lines,
        "macllm config show keys lists the keys of the full screen, macllm config set keys.stop ctrl+x changes one.",
    ]
