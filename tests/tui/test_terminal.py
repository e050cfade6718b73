"""The app in a real terminal, driven by tmux."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.compiling import cache_files, running_compilers, wait_for

SCRIPT = Path(__file__).parent / "scripted_cli.py"


class Tmux:
    """A window of a private tmux server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._folder / "tmux"), "-f", "/dev/null", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    def start(self, command: str, width: int = 80, height: int = 24, then: str = "cat") -> None:
        """Run a command in a shell, which then waits in `then`."""
        code = self._folder / "code"
        self(
            "new-session",
            "-d",
            "-x",
            str(width),
            "-y",
            str(height),
            f"unset COLUMNS LINES; {command}; echo $? > {code}; {then}",
        )

    def screen(self) -> str:
        return self("capture-pane", "-p")

    def until(self, text: str, seconds: float = 30.0) -> str:
        end = time.monotonic() + seconds
        while text not in (screen := self.screen()):
            assert time.monotonic() < end, f"timed out waiting for {text!r}:\n{screen}"
            time.sleep(0.05)
        return screen

    def until_format(self, form: str, answer: str, seconds: float = 30.0) -> None:
        """Wait until tmux expands `form` to `answer`, which may be after the program has ended."""
        end = time.monotonic() + seconds
        while (expanded := self("display-message", "-p", form).strip()) != answer:
            assert time.monotonic() < end, f"timed out waiting for {answer!r}: {expanded!r}"
            time.sleep(0.05)

    def exit_code(self, seconds: float = 30.0) -> int:
        end = time.monotonic() + seconds
        while not (self._folder / "code").exists() or not (self._folder / "code").read_text().strip():
            assert time.monotonic() < end, f"it did not end:\n{self.screen()}"
            time.sleep(0.05)
        return int((self._folder / "code").read_text())

    def type(self, text: str) -> None:
        """Type text, then Enter."""
        self("send-keys", "-l", text)
        self("send-keys", "Enter")

    def app(self) -> int:
        """The process of the program."""
        return children(int(self("display-message", "-p", "#{pane_pid}")))[0]


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    window = Tmux(tmp_path)
    yield window
    window("kill-server")


def chat(answers: object, *arguments: str) -> str:
    return shlex.join([sys.executable, str(SCRIPT), json.dumps(answers), "chat", *arguments])


def test_a_user_can_type_stop_paste_resize_and_quit_in_a_terminal(tmux: Tmux) -> None:
    tmux.start(chat([["The first ", "half", None], ["Line ", "two ", "came."]]))
    tmux.until("Ask anything")
    tmux("send-keys", "-l", "Hello there")
    tmux.until("❯ Hello there")
    tmux("send-keys", "Enter")
    tmux.until("The first half")
    tmux("send-keys", "Escape")
    screen = tmux.until("stopped")
    assert "The first half" in screen
    tmux("send-keys", "-l", "one")
    tmux("send-keys", "C-j")
    tmux("send-keys", "-l", "two")
    tmux("send-keys", "M-Enter")
    tmux("set-buffer", "three\nfour")
    tmux("paste-buffer", "-p")
    tmux.until("four")
    tmux("send-keys", "Enter")
    screen = tmux.until("Line two came.")
    assert [line.strip(" ▌") for line in screen.splitlines() if line.startswith("  ▌")][1:] == [
        "one",
        "two",
        "three",
        "four",
    ]
    tmux("resize-window", "-x", "40", "-y", "12")
    tmux.until("ctx")
    tmux("send-keys", "C-d")
    assert tmux.exit_code() == 0
    tmux.until_format("#{alternate_on}", "0")
    assert "Ask anything" not in tmux.screen()


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux")
def test_the_chat_answers_during_compilation_and_quitting_ends_all_compilers(
    tmux: Tmux, compiler: Callable[[float], Path]
) -> None:
    log = compiler(60)
    settings = [f"{name}={os.environ[name]}" for name in ("CXX", "MACLLM_NATIVE_CACHE", "MACLLM_HOME")]
    tmux.start(shlex.join(["env", *settings, sys.executable, "-m", "macllm", "chat", "Hello there"]))
    screen = tmux.until("compiling the CPU kernels, once: 0 of")
    assert "Hello there" in screen
    wait_for(lambda: running_compilers(log))
    tmux.until("tok/s")
    tmux.until("compiling the CPU kernels, once: 0 of")  # still, once the answer, whose speed comes first, has ended
    tmux("send-keys", "C-c")
    tmux.until("Ctrl+C again quits")
    tmux("send-keys", "C-c")
    assert tmux.exit_code() == 0
    wait_for(lambda: not running_compilers(log))
    assert cache_files() == ["lock"]


def test_control_c_and_sigterm_restore_the_terminal(tmux: Tmux, tmp_path: Path) -> None:
    tmux.start(chat([["half", None]], "A first question"))
    tmux.until("half")
    tmux("send-keys", "C-c")
    tmux.until("stopped")
    os.kill(tmux.app(), signal.SIGTERM)
    assert tmux.exit_code() == 143
    tmux.until_format("#{alternate_on} #{mouse_any_flag} #{cursor_flag}", "0 0 1")


@pytest.mark.parametrize("seconds", [30.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_a_killed_engine_leaves_the_text_and_a_prompt_that_works_in_time(tmux: Tmux, seconds: float) -> None:
    tmux.start(chat("words in a process"))
    tmux.until("Ask anything")
    tmux.type("Hi")
    tmux.until("word word word")
    (engine,) = children(tmux.app())
    os.kill(engine, signal.SIGKILL)
    tmux("send-keys", "-l", "still here")
    screen = tmux.until("❯ still here", seconds)
    assert "word word word" in screen
    assert "SIGKILL" in tmux.until("SIGKILL", seconds)
    tmux("send-keys", "Enter")
    tmux.until("Esc stops")
    tmux.until("tok/s  ·  ctx")  # from a new engine
    tmux("send-keys", "Escape")
    tmux.until("stopped")
    tmux("send-keys", "C-d")
    assert tmux.exit_code() == 0


def test_reset_makes_the_terminal_usable_after_the_app_is_killed(tmux: Tmux, tmp_path: Path) -> None:
    modes = tmp_path / "modes"
    tmux.start(chat("words in a process"), then=f"reset; stty -a > {modes}; cat")
    tmux.until("Ask anything")
    tmux.type("Hi")
    tmux.until("word word word")
    app = tmux.app()
    (engine,) = children(app)
    os.kill(app, signal.SIGKILL)
    assert tmux.exit_code() == 137
    wait_for(modes.exists)
    tmux.until_format("#{mouse_any_flag} #{cursor_flag} #{wrap_flag}", "0 1 1")
    wait_for(modes.read_text)
    assert {"icanon", "echo", "isig", "icrnl", "opost"} <= set(modes.read_text().replace(";", " ").split())
    wait_for(lambda: not Path(f"/proc/{engine}").exists() or sys.platform != "linux")


def test_the_conversation_goes_to_a_file_when_the_chat_ends(tmux: Tmux, tmp_path: Path) -> None:
    out = tmp_path / "out.md"
    answers = [["Some **bold** ", "\x1b]2;owned\atext."], ["half", None]]
    tmux.start(f"{chat(answers)} > {out}", width=100)
    tmux.until("Ask anything")
    tmux.type("Hi")
    tmux.until("Some bold ␛]2;owned␇text.")
    assert "owned" not in tmux("display-message", "-p", "#{pane_title}")
    tmux("resize-window", "-x", "60", "-y", "20")
    tmux.until("─" * 60 + "\n")
    tmux.type("More")
    tmux.until("half")
    os.kill(tmux.app(), signal.SIGTERM)
    assert tmux.exit_code() == 143
    turns = ["# Chat with scripted", "## You", "Hi", "## scripted", "Some **bold** \x1b]2;owned\atext."]
    turns += ["## You", "More", "## scripted", "half", "*(stopped)*"]
    assert out.read_text() == "\n\n".join(turns) + "\n"


@pytest.mark.parametrize("plain", [[], ["--plain"]])
def test_piped_text_without_a_prompt_is_attached_to_a_conversation(tmux: Tmux, plain: list[str]) -> None:
    tmux.start(f"printf 'line one\\nline two' | {chat([['Fine.']], '--show-prompt', *plain)}", height=40)
    tmux.until("you:" if plain else "[stdin, 17 characters]")
    tmux.type("Summarise")
    tmux.until("Fine.")
    tmux("send-keys", "C-d")
    assert tmux.exit_code() == 0
    assert 'name="stdin">\nline one\nline two\n</file>' in tmux.screen() or not plain


def test_a_reader_of_the_conversation_that_has_gone_ends_it_silently_with_141(tmux: Tmux) -> None:
    tmux.start(shlex.join(["bash", "-c", f"{chat([['Hello.']], '--plain')} | true; exit ${{PIPESTATUS[0]}}"]))
    tmux.until("you:")
    tmux.type("Hi")
    tmux.until("macllm: Hello.")
    tmux("send-keys", "C-d")
    screen = tmux.until("engine closed")
    assert "Traceback" not in screen
    assert "Broken" not in screen
    assert tmux.exit_code() == 141


def test_resizes_while_an_answer_streams_leave_a_tidy_screen(tmux: Tmux) -> None:
    rows = [part for n in range(60) for part in (f"Line number {n} of a list that is long.\n\n", 0.02)]
    tmux.start(chat([rows]), width=60, height=20)
    tmux.until("Ask anything")
    tmux.type("Hi")
    for width, height in ((120, 40), (60, 20), (25, 8), (100, 30), (60, 20)):
        tmux("resize-window", "-x", str(width), "-y", str(height))
        time.sleep(0.15)
    screen = tmux.until("Line number 59 of a list that is long.")
    screen = tmux.until("tok/s")
    assert screen.count("❯") == 1
    assert [line for line in screen.splitlines() if "─" in line] == ["─" * 60]
    tmux("send-keys", "C-d")
    assert tmux.exit_code() == 0
