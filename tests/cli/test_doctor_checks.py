"""`macllm doctor` on stored conversations, settings, terminal and disk."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from macllm.chat import condition, database
from macllm.chat.store import Store
from macllm.cli import checks, main
from macllm.config.settings import config_path
from macllm.doctor import machine
from tests.chat.test_conversation import talk


@pytest.fixture
def stored() -> Path:
    store = Store()
    store.save(talk("a", "b"))
    store.close()
    return store.path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doctor that asks nothing of MLX."""
    monkeypatch.setattr(machine, "facts", lambda: {"terminal": {}})


def damage(path: Path) -> None:
    """Overwrite a page of the tables."""
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 3] = b"\xa5" * 4096
    path.write_bytes(content)


def test_no_conversation_yet_is_no_problem() -> None:
    found = checks.conversations()
    assert found["state"] == "none yet: macllm chat makes it"
    assert "problem" not in found
    assert not Path(found["file"]).exists()


def test_sound_conversations_are_counted_and_left_as_they_are(stored: Path) -> None:
    before = stored.read_bytes()
    found = checks.conversations()
    assert (found["state"], found["chats"], found["messages"]) == ("ok", 1, 2)
    assert found["schema"] == f"version {len(database.MIGRATIONS)} of {len(database.MIGRATIONS)}"
    assert found["size_bytes"] == len(before)
    assert found["search"] == "parts of words (FTS5 with trigrams)"
    assert stored.read_bytes() == before


@pytest.mark.parametrize("kind", [1, 2])
def test_a_sqlite_without_trigrams_or_fts5_is_named(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = ["CREATE VIRTUAL TABLE search USING missing (text)"] * kind
    monkeypatch.setattr(condition, "SEARCH_TABLES", (*lacking, *database.SEARCH_TABLES[kind:]))
    assert checks.conversations()["search"] == ("words (FTS5)", "parts of words, slowly (without FTS5)")[kind - 1]


def test_a_damaged_file_is_a_problem_with_a_remedy_and_stays_in_its_place(
    stored: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(stored)
    assert main(["doctor"]) == 1
    assert f"  problem            {stored} is damaged. " in (out := capsys.readouterr().out)
    assert "try: macllm chat keeps it as a backup and begins a new one\n" in out
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["conversations"]["state"] == "failed"
    assert [path.name for path in stored.parent.glob("macllm.db.damaged*")] == []


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("PRAGMA user_version = 99", "is of a newer version of macllm."),
        ("PRAGMA application_id = 7", "belongs to another program."),
    ],
)
def test_a_file_that_this_macllm_cannot_use_is_a_problem(stored: Path, statement: str, problem: str) -> None:
    with sqlite3.connect(stored) as db:
        db.execute(statement)
    db.close()
    assert problem in checks.conversations()["problem"]


def test_files_that_were_set_aside_are_listed(stored: Path) -> None:
    for name in ("macllm.db.damaged-20260101-000000", "macllm.db.damaged-20260101-000000-wal", "unsaved-1.json"):
        stored.with_name(name).touch()
    assert checks.conversations()["set_aside"] == ["macllm.db.damaged-20260101-000000", "unsaved-1.json"]


def test_a_wrong_setting_is_a_problem_with_its_line_and_a_remedy(
    quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[chat]\nmodell = "maclet"\n')
    assert main(["doctor"]) == 1
    assert "config.toml, line 2: unknown setting chat.modell try: chat.model\n" in capsys.readouterr().out


def test_keys_that_are_left_out_are_a_warning_and_variables_are_named() -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[ui]\ntheme = "dark"\n[keys]\nstop = "ctl+x"\n')
    found = checks.settings({"MACLLM_TOP_P": "0.5"})
    assert (found["values"], found["keys"], found["environment"]) == (1, 1, ["sampling.top_p"])
    assert "line 4: keys.stop: 'ctl+x' is no key" in found["warning"]
    assert "MACLLM_TOP_P" in checks.settings({"MACLLM_TOP_P": "7"})["problem"]


@pytest.mark.parametrize(
    ("environ", "new_line"),
    [
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, ["Ctrl+J"]),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, ["Shift+Enter", "Alt+Enter", "Ctrl+J"]),
        ({"TERM": "xterm-kitty"}, ["Shift+Enter", "Alt+Enter", "Ctrl+J"]),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app", "TMUX": "x"}, ["Alt+Enter", "Ctrl+J"]),
        ({"TERM": "xterm"}, ["Alt+Enter", "Ctrl+J"]),
        ({"TERM": "dumb"}, "\\ before Enter"),
        ({}, "\\ before Enter"),
    ],
)
def test_the_keys_that_begin_a_new_line_are_those_that_the_terminal_sends(
    environ: dict[str, str], new_line: list[str] | str
) -> None:
    found = checks.terminal(environ)
    assert found["new_line"] == new_line
    assert ("option_key" in found) == (environ.get("TERM_PROGRAM") in ("Apple_Terminal", "iTerm.app"))


def test_a_new_line_has_the_key_of_the_settings() -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[keys]\nnewline = "ctrl+x"\n')
    assert checks.terminal({"TERM": "xterm"})["new_line"] == ["Ctrl+X"]


def test_a_full_or_read_only_disk_of_models_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def disk(free: int, writable: bool) -> Any:
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free, "total": 9}))
        monkeypatch.setattr(machine.os, "access", lambda folder, mode: writable)
        return machine._disk()

    assert "warning" not in disk(machine.LOW_DISK_BYTES, True)
    assert "models rm" in disk(machine.LOW_DISK_BYTES - 1, True)["warning"]
    assert "cannot be written" in disk(machine.LOW_DISK_BYTES, False)["warning"]
