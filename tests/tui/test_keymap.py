"""Keys of the configuration file: taken, or left out with a note that names the line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from textual.keys import Keys

from macllm.config.settings import parse
from macllm_tui import keymap
from macllm_tui.keymap import Keymap, keymap_of, normal, shown, stop_remedy
from macllm_tui.keys import KEYS
from macllm_tui.screens.help import help_rows
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.conftest import Play, Stage


def mapped(entries: str) -> Keymap:
    return Keymap.of(parse("[keys]\n" + entries, Path("/c.toml")))


def keys_of(found: Keymap, name: str) -> str:
    return next(key.keys for keys in found.keys.values() for key in keys if key.id == name)


def test_an_id_gets_the_keys_of_the_file() -> None:
    found = mapped('stop = "Ctrl+X, F9"\nprompt.send = "alt+s"')
    assert (keys_of(found, "stop"), keys_of(found, "send"), keys_of(found, "help")) == ("ctrl+x,f9", "alt+s", "f1")
    assert found.bindings == {"chat.stop": "ctrl+x,f9", "prompt.send": "alt+s"}
    assert found.origins["chat.stop"] == "/c.toml, line 2"
    assert found.notes == ()
    assert found.actions("prompt")["alt+s"] == "send"
    assert "enter" not in found.actions("prompt")
    assert found.shown("chat", "stop") == "Ctrl+X"
    assert ("chat.stop", "Ctrl+X, F9") in [row[:2] for row in found.rows()]


@pytest.mark.parametrize(
    ("entry", "note"),
    [
        ('stpo = "ctrl+x"', "/c.toml, line 2: keys.stpo: no key has this id; did you mean stop?"),
        ('stop = "ctl+x"', "/c.toml, line 2: keys.stop: 'ctl+x' is no key"),
        ('stop = "escap"', "'escap' is no key; did you mean escape?"),
        ('stop = ""', "'' is no key"),
        ('stop = "x"', "x types a character; add Ctrl or Alt"),
        ('send = "/"', "slash types a character"),
        ('send = "shift+space"', "types a character"),
        ('stop = "ctrl+i"', "terminals send the same for Ctrl+I and Tab"),
        ('stop = "ctrl+m"', "terminals send the same for Ctrl+M and Enter"),
        ('stop = "ctrl+h"', "terminals send the same for Ctrl+H and Backspace"),
        ('stop = "ctrl+["', "terminals send the same for Ctrl+[ and Esc"),
        ('stop = "f1"', "/c.toml, line 2: keys.stop: F1 is also chat.help; the default stays"),
        ('stop = "ctrl+j"', "Ctrl+J is also prompt.newline; the default stays"),
        ('send = "ctrl+t"', "Ctrl+T is also chat.reasoning; the default stays"),
    ],
)
def test_an_entry_that_cannot_be_leaves_the_default_and_a_note(entry: str, note: str) -> None:
    found = mapped(entry)
    assert len(found.notes) == 1
    assert note in found.notes[0]
    assert found.keys == KEYS
    assert found.bindings == {}


def test_two_actions_may_swap_their_keys() -> None:
    found = mapped('reasoning = "f1"\nhelp = "ctrl+t"')
    assert found.notes == ()
    assert (keys_of(found, "reasoning"), keys_of(found, "help")) == ("f1", "ctrl+t")


def test_of_two_entries_with_one_key_the_first_holds() -> None:
    found = mapped('stop = "ctrl+x"\nhelp = "ctrl+x"')
    assert (keys_of(found, "stop"), keys_of(found, "help")) == ("ctrl+x", "f1")
    assert found.notes == ("/c.toml, line 3: keys.help: Ctrl+X is also chat.stop; the default stays",)


@pytest.mark.parametrize(
    ("text", "name", "label"),
    [
        ("CTRL+x", "ctrl+x", "Ctrl+X"),
        ("shift+ctrl+left", "ctrl+shift+left", "Ctrl+Shift+Left"),
        ("Esc", "escape", "Esc"),
        ("Option+B", "alt+b", "Alt+B"),
        ("?", "question_mark", "?"),
        ("+", "plus", "+"),
        ("ctrl++", "ctrl+plus", "Ctrl++"),
        ("ctrl+/", "ctrl+slash", "Ctrl+/"),
        ("shift+g", "G", "G"),
        ("G", "G", "G"),
        ("PgUp", "pageup", "PgUp"),
        ("f12", "f12", "F12"),
    ],
)
def test_names_of_keys_are_read_as_people_write_them(text: str, name: str, label: str) -> None:
    assert normal(text) == name
    assert shown(name) == label
    assert normal(label) == name


def test_all_default_keys_are_named_as_textual_names_them() -> None:
    for keys in KEYS.values():
        for key in (each for entry in keys for each in entry.keys.split(",")):
            assert normal(key) == key
    known = {key.value for key in Keys}
    assert {name for name in keymap._NAMED if name not in known} <= {"space"}


def test_no_two_default_keys_clash_within_a_scope() -> None:
    for scope, keys in KEYS.items():
        used = [each for key in keys for each in key.keys.split(",")]
        assert len(used) == len(set(used)), scope


def test_the_way_to_stop_an_answer_names_the_key_in_effect() -> None:
    assert stop_remedy(SimpleNamespace(keymap=mapped('stop = "ctrl+x"'))) == "Ctrl+X stops it"


def test_no_text_names_a_key_that_can_be_changed() -> None:
    """Lists and the comparison, whose keys are fixed, name them; the line mode has keys of its own."""
    lists = {"help.py", "chats.py", "compare.py", "models.py", "overlay.py", "palette.py", "sidebar.py"}
    folder = Path(keymap.__file__).parent
    found = [
        f"{path.relative_to(folder)}: {node.value}"
        for path in folder.rglob("*.py")
        if path.name not in {"keys.py", "keymap.py", "plain.py", *lists} and path.parent.name != "lines"
        for node in texts(ast.parse(path.read_text()))
        if re.search(r"\b(Esc|PgUp|Tab|Enter|F\d+|Ctrl[-+]\w|Alt[-+]\w)\b", node.value)
    ]
    assert found == []


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """The string constants of a module, without its docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def test_remapped_keys_act_and_the_screen_names_them(play: Play) -> None:
    found = mapped('send = "alt+s"\nnewline = "enter"\nhelp = "ctrl+e"\nstop = "ctl+x"')

    async def scenario(stage: Stage) -> None:
        await stage.sees("keys.stop: 'ctl+x' is no key")
        await stage.sees("Alt+S    send; Enter starts a new line")
        await stage.type("a")
        await stage.press("enter")
        await stage.type("b")
        assert stage.typed == "a\nb"
        await stage.press("alt+s")
        await stage.sees("answered")
        await stage.press("ctrl+e")  # moves to the end of the line by default
        await stage.sees("Help")
        assert ("Alt+S", "send") in [(row.label, row.about) for row in help_rows(keymap_of(stage.app))]
        await stage.press("escape")
        await stage.type("/keys")
        await stage.press("alt+s")
        await stage.sees("chat.stop")

    play(ScriptedEngine(["answered"]), scenario, size=(80, 24), keymap=found)
