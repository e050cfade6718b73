"""Completion of commands, arguments and files, without a screen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from macllm.chat.session import Session
from macllm_tui import slash
from macllm_tui.completion import Menu, complete
from macllm_tui.text.matching import match
from tests.chat.scripted_engine import ScriptedEngine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("notes.md", "Nice name.txt", "src", ".hidden", "old.log", "node_modules"):
        if "." in name:
            (tmp_path / name).write_text("x")
        else:
            (tmp_path / name).mkdir()
    (tmp_path / "src" / "main.py").write_text("x")
    (tmp_path / ".gitignore").write_text("# logs\n*.log\n")
    return tmp_path


def menu(text: str, folder: Path | None = None, cursor: int | None = None) -> Menu:
    found = complete(text, len(text) if cursor is None else cursor, Session(ScriptedEngine()), folder)
    assert found is not None
    return found


def after(text: str, number: int = 0, folder: Path | None = None) -> str:
    """The text after the choice of an item."""
    found = menu(text, folder)
    return text[: found.start] + found.items[number].text + text[found.end :]


def test_a_slash_offers_every_command_with_its_help() -> None:
    items = menu("/").items
    assert [item.label.split()[0][1:] for item in items] == list(slash.COMMANDS)
    assert all(item.detail for item in items)


@pytest.mark.parametrize(
    ("text", "completed"),
    [("/sys", "/system "), ("/stm", "/system "), ("/cle", "/clear"), ("/retr", "/retry"), ("/CLE", "/clear")],
)
def test_a_half_typed_command_is_completed(text: str, completed: str) -> None:
    assert after(text) == completed


@pytest.mark.parametrize(
    ("text", "takes_enter"),
    [
        ("/cle", True),
        ("/clear", False),
        ("/retry", False),
        ("/theme ", False),
        ("/theme da", True),
        ("/theme dark", False),
        ("/set temp", True),
        ("/set temperature", False),
        ("@", False),
        ("@not", True),
        ("@notes.md", False),
        ("@src", True),
        ("@src/", False),
    ],
)
def test_enter_takes_a_choice_for_a_part_and_sends_the_whole(folder: Path, text: str, takes_enter: bool) -> None:
    assert menu(text, folder).takes_enter is takes_enter
    assert menu(text, folder).moved(1).takes_enter is True


@pytest.mark.parametrize(
    ("text", "completed"), [("/theme d", "/theme dark"), ("/theme l", "/theme light"), ("/set seed", "/set seed ")]
)
def test_an_argument_is_completed_from_the_values_of_its_command(text: str, completed: str) -> None:
    assert after(text) == completed


def test_an_argument_with_a_slash_is_completed_only_as_it_is_typed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert [item.text for item in menu("/attach src/ma").items] == ["src/main.py"]
    assert complete("/attach src/mn", 14) is None
    assert menu("/attach src").takes_enter
    assert not menu("/attach src/").takes_enter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "//x",
        "/usr/lib",
        "/xyzzy",
        "/set temperature 0.5",
        "/system Be brief",
        "a@not",
        "x\n/cle",
        "/clear\n",
    ],
)
def test_other_text_is_not_completed(folder: Path, text: str) -> None:
    assert complete(text, len(text), None, folder) is None


def test_files_come_with_hidden_and_ignored_ones_last(folder: Path) -> None:
    labels = [item.label for item in menu("see @", folder).items]
    assert labels == ["Nice name.txt", "notes.md", "src/", ".gitignore", ".hidden", "node_modules/", "old.log"]
    assert [item.label for item in menu("@.h", folder).items] == [".hidden"]


def test_a_folder_goes_on_with_its_files_and_a_file_ends(folder: Path) -> None:
    assert after("see @sr", 0, folder) == "see @src/"
    found = menu("see @src/m", folder)
    assert [(item.label, item.path) for item in found.items] == [("main.py", "src/main.py")]


def test_a_name_is_found_in_the_folders_below_without_hidden_and_ignored_ones(folder: Path) -> None:
    for name in ("src/deep", "node_modules/deep", ".git"):
        (folder / name).mkdir()
        (folder / name / "deeper.py").write_text("x")
    found = menu("@dee", folder).items
    assert [(item.label, item.path) for item in found] == [("src/deep/deeper.py", "src/deep/deeper.py")]
    assert [item.label[position] for item in found for position in item.positions] == ["d", "e", "e"]


def test_folders_below_the_home_folder_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert complete("@mai", 4, None, folder) is None


def test_a_name_with_spaces_is_quoted(folder: Path) -> None:
    assert after("@nice", 0, folder) == '@"Nice name.txt"'
    assert after('@"nice n', 0, folder) == '@"Nice name.txt"'


def test_a_path_in_the_middle_of_a_text_is_completed_in_place(folder: Path) -> None:
    text = "compare @no with it"
    found = menu(text, folder, cursor=11)
    assert (found.start, found.end) == (8, 11)


def test_the_home_folder_is_completed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert after("@~") == "@~/"
    assert after("@~/not") == "@~/notes.md"


def test_a_selection_moves_around_both_ends() -> None:
    found = menu("/theme ")
    last = len(found.items) - 1
    assert [found.moved(steps).selected for steps in (1, -1, last + 1)] == [1, last, 0]


def test_matched_positions_spell_the_query_in_its_order() -> None:
    chance = random.Random(2)
    for _ in range(2000):
        query = "".join(chance.choice("abA_") for _ in range(chance.randint(0, 4)))
        text = "".join(chance.choice("abcB_ ") for _ in range(chance.randint(0, 10)))
        found = match(query, text)
        letters = iter(text.lower())
        assert (found is not None) == all(letter in letters for letter in query.lower())
        if found is not None:
            assert "".join(text[position] for position in found[1]).lower() == query.lower()
            assert list(found[1]) == sorted(set(found[1]))


def test_the_beginning_is_better_than_a_word_and_a_word_better_than_letters() -> None:
    texts = ["top", "max_top", "stop", "tXop", "tXXop"]
    assert [match("top", text) for text in texts] == [
        (0, (0, 1, 2)),
        (1, (4, 5, 6)),
        (2, (1, 2, 3)),
        (4, (0, 2, 3)),
        (5, (0, 3, 4)),
    ]
