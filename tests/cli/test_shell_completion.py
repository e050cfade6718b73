"""Completion in the shell: what is offered, and bash's own function at work."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from macllm.chat.conversation import Conversation, Turn
from macllm.chat.store import Store
from macllm.cli import COMMANDS, main
from macllm.cli.completion import SHELLS
from macllm.config.settings import config_path
from macllm.hub.names import bundled_models
from tests.tui.test_plain import Terminal


def offered(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The values that bash gets for a line whose last word is half-typed."""
    words = line.split(" ")
    monkeypatch.setenv("_MACLLM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    main([])
    return [answer.partition(",")[2] for answer in capsys.readouterr().out.splitlines() if answer]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_asks_macllm(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert f"_MACLLM_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_the_help_says_where_the_script_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(how in out for how in SHELLS.values())


def test_commands_flags_and_names_are_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[presets.code]\nsystem = "a"\n[presets.prose]\n')
    assert offered("macllm ch", monkeypatch, capsys) == ["chat", "chats"]
    assert set(offered("macllm ", monkeypatch, capsys)) >= set(COMMANDS)
    assert "--model" in offered("macllm generate --mo", monkeypatch, capsys)
    assert offered("macllm chat -m ma", monkeypatch, capsys) == list(bundled_models())
    assert offered("macllm chat -m ./", monkeypatch, capsys) == ["./"]  # a folder
    assert offered("macllm chat --preset c", monkeypatch, capsys) == ["code"]
    assert offered("macllm config set sampling.temp", monkeypatch, capsys) == ["sampling.temperature"]
    assert offered("macllm config set keys.chat.sto", monkeypatch, capsys) == ["keys.chat.stop"]


def test_conversations_are_completed_by_their_ids(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert offered("macllm chat --resume 0", monkeypatch, capsys) == []
    store = Store()
    store.open()
    conversation = Conversation.begin().added(Turn(role="user", content="hello"))
    store.save(conversation)
    store.close()
    (found,) = offered(f"macllm chat --resume {conversation.id[:1]}", monkeypatch, capsys)
    assert conversation.id.startswith(found)


def test_a_wrong_configuration_file_completes_nothing_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text("[nonsense]\n")
    assert offered("macllm chat --preset c", monkeypatch, capsys) == []
    assert capsys.readouterr().err == ""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose `macllm` is this one."""
    program = tmp_path / "macllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m macllm "$@"\n')
    program.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "xterm"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_printed_script(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out + (
        'COMP_WORDS=(macllm gen); COMP_CWORD=1; _macllm_completion macllm; printf "%s\\n" "${COMPREPLY[@]}"\n'
        "complete -p macllm\n"
    )
    result = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.splitlines() == ["generate", "complete -o nosort -F _macllm_completion macllm"]


def test_the_script_for_fish_keeps_descriptions_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 0
    assert 'string split --max 1 "," $completion' in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_with_the_printed_script(environment: dict[str, str]) -> None:
    script = 'macllm completion fish | source; complete -C "macllm ch"'
    result = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, env=environment)
    assert result.stdout.splitlines() == [f"{name}\t{COMMANDS[name]}" for name in ("chat", "chats")], result.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_with_the_printed_script(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "HOME"):
        monkeypatch.setenv(name, environment[name])
    terminal = Terminal(["zsh", "-f", "-i"])
    terminal.type("autoload -U compinit; compinit -u -D; source <(macllm completion zsh); echo rea'dy'\n")
    terminal.until("ready")
    terminal.type("macllm gen\t")
    terminal.until("macllm generate")
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.end()
