"""A long chat, typed into a real terminal: `python -m tests.tui.walk [--macllm PROGRAM]`.

Begins with an empty home and the bundled model. Prints a line for each step with what was looked for; the exit code is
1 if something was not seen. Needs tmux, and Linux or macOS. `--show` prints the screen of each step.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.tui.test_terminal import Tmux, children

SECONDS = 40.0
ESCAPE_SECONDS = 0.3  # the next key, at once, would be one with Alt
KEY = re.compile("[CM]-.|M-[A-Z][a-z]+|Enter|Escape|Tab|Up|BSpace|F1")


class Walk:
    """A terminal in a folder, and what was not seen in it."""

    def __init__(self, folder: Path, macllm: str, shows: bool) -> None:
        self.folder, self.macllm, self.shows = folder, shlex.quote(macllm), shows
        self.home = folder / "home"
        self.work = folder / "work"
        for path in (self.home, self.work):
            path.mkdir()
        settings = {"PS1": "shell> ", "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        self.environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], **settings}
        self.steps = 0
        self.missed: list[str] = []

    def open(self, width: int = 100, height: int = 30) -> None:
        """Open a terminal, of its own server, with a shell."""
        place = self.folder / f"terminal {self.steps}"
        place.mkdir()
        self.tmux = Tmux(place)
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        shell = f"cd {self.work}; env -i {given} bash --norc --noprofile -i"
        self.tmux.start(shell, width=width, height=height, then="true")
        self.step("a shell", "shell>")

    def step(self, name: str, text: str, *actions: str, seconds: float = SECONDS) -> None:
        """Press keys and type texts, and look for a text, a regular expression, on the screen."""
        for action in actions:
            self.tmux("send-keys", *(() if KEY.fullmatch(action) else ("-l",)), action)
            if action == "Escape":
                time.sleep(ESCAPE_SECONDS)
        self.see(name, self.tmux.screen, text, seconds)

    def see(self, name: str, source: Callable[[], str], text: str, seconds: float = SECONDS) -> str:
        """Look for a text, a regular expression, until it is there."""
        self.steps += 1
        end = time.monotonic() + seconds
        while not (found := re.search(text, seen := source())) and time.monotonic() < end:
            time.sleep(0.1)
        print(f"{'ok    ' if found else 'MISSED'} {self.steps:2} {name}: {found[0] if found else text!r}", flush=True)
        if not found:
            self.missed.append(name)
        if not found or self.shows:
            print(seen.rstrip(), flush=True)
        return seen

    def run(self, name: str, text: str, command: str) -> None:
        """Run a command without a terminal, and look for a text in its output."""
        done = subprocess.run(
            ["bash", "-c", f"cd {self.work}; macllm() {{ {self.macllm} \"$@\"; }}; {command}; echo exit code $?"],
            capture_output=True, text=True, env=self.environment, check=False,
        )  # fmt: skip
        self.see(name, lambda: done.stdout + done.stderr, text, 0)

    def app(self) -> int:
        """The process of the chat, a child of the shell."""
        return children(self.tmux.app())[0]


def read(path: Path) -> str:
    """The text of a file that may not be there yet."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def first_evening(walk: Walk) -> None:
    """The first start, menus, help, other answers."""
    walk.open()
    walk.step("the first start", "Ask anything", f"{walk.macllm} chat", "Enter")
    walk.step("an answer", r"(?s)RoPE rotates.* first after", "What is RoPE?", "Enter")
    walk.step("the command menu", r"› /clear", "/")
    walk.step("the menu, filtered", r"› /regen", "reg")
    walk.step("Esc closes the menu", r"tok/s · first after[^›]*❯ /reg\b", "Escape")
    walk.step("another answer beside the first", r"‹2/2›(?s:.*)reused \d+ of \d+", "C-u", "/regen", "Enter")
    walk.step("an unknown command", "Unknown command /foo", "/foo", "Enter")
    walk.step("help over the chat", r"type to filter", "C-u", "F1")
    walk.step("help, filtered", r"› /set ", "temperature")
    walk.step("Esc closes help", r"‹2/2›", "Escape")
    walk.step("the palette", r"Enter run · Esc close", "C-p")
    walk.step("Esc closes the palette", r"‹2/2›", "Escape")
    walk.step("a new line in the prompt", r"❯ one\n +two", "one", "C-j", "two")
    walk.step("is cleared", "Ask anything", "C-u", "C-u", "C-u")
    (walk.folder / "paste").write_text("\n".join(f"line {number}" for number in range(5000)))
    walk.tmux("load-buffer", str(walk.folder / "paste"))
    walk.tmux("paste-buffer", "-p")
    walk.step("a long paste is folded", r"pasted 5,000 lines")
    walk.step("and deleted as a unit", "Ask anything", "BSpace", "BSpace")
    walk.step("a setting", r"temperature.*0\.3", "/set temperature 0.3", "Enter")
    walk.step("the system prompt", "(?i)system prompt", "/system Answer briefly.", "Enter")
    walk.step("a question by the history", r"❯ /system Answer briefly", "Up")
    walk.step("quits", "shell>", "C-c", "C-c", "C-c")


def long_talk(walk: Walk) -> None:
    """Stopping, going on, queued messages, branches, blocks, files, a full context, narrow terminals."""
    walk.open()
    (walk.work / "notes with spaces.txt").write_text("The meeting is on Tuesday.\n")
    (walk.work / "bytes.bin").write_bytes(bytes(range(256)) * 10)
    walk.step("going on with the newest chat", "RoPE rotates", f"{walk.macllm} chat --continue", "Enter")
    walk.step("a file of two words", "› notes with spaces", "@notes")
    walk.step("is chosen", r"❯ \[?[@']*notes with spaces", "Tab")
    walk.step("is sent", r"(?s)notes with spaces.*first after", " When is it?", "Enter")
    walk.step("a missing file", "(?i)no file|cannot", "See @nothing.txt", "Enter")
    walk.step("its text stays", "❯ See @nothing", "C-l")
    walk.step("a binary file", "(?i)bytes.bin is not|not text|binary", "C-u", "See @bytes.bin", "Enter")
    walk.tmux("send-keys", "C-u")
    walk.step("an answer is stopped", r"· stopped", "Tell me about attention and caches.", "Enter", "Escape")
    walk.step("and continued", r"(?s)caches\.(?:(?!stopped).)*❯ Ask anything", "/continue", "Enter")
    walk.step("the next answer", r"(?s)What is MoE\?.*first after", "What is MoE?", "Enter")
    walk.step("its message to edit", r"✎ What is MoE", "Escape", "Escape")
    walk.step("a branch", r"‹2/2›", "C-u", "What is LoRA?", "Enter", seconds=90)
    walk.step("blocks", r"(?i)edit|copy", "M-Up")
    walk.step("the prompt again", r"❯", "Escape")
    walk.step("chats", r"(?i)search|type to", "C-s")
    walk.step("the chat again", r"Ask anything", "Escape")
    walk.step("models", r"(?i)maclet", "C-o")
    walk.step("the chat again", r"Ask anything", "Escape")
    walk.step("the sidebar", r"RoPE\?? .*│|│.*RoPE", "C-b")
    walk.step("without the sidebar", r"Ask anything", "C-b")
    walk.tmux("resize-window", "-x", "60", "-y", "20")
    walk.step("in 60x20", r"─{60}\n")
    walk.tmux("resize-window", "-x", "30", "-y", "8")
    walk.step("in 30x8", r"─{30}\n")
    walk.tmux("resize-window", "-x", "100", "-y", "30")
    walk.step("in 100x30", r"─{100}\n")
    walk.step("an export", r"(?i)talk.md", "/export talk.md", "Enter")
    walk.see("is a file", lambda: read(walk.work / "talk.md"), "RoPE rotates")
    walk.step("stopped by Ctrl+Z", "Stopped", "C-z")
    walk.step("and back", r"LoRA(?s:.*)❯", "fg", "Enter")
    (engine,) = children(walk.app())
    os.kill(engine, signal.SIGKILL)
    walk.see("its engine is gone", lambda: str(children(walk.app())), r"^\[\]$")  # a question before is asked again
    walk.step("an answer of a new engine", r"(?s)What is GQA\?.*first after", "What is GQA?", "Enter")
    os.kill(walk.app(), signal.SIGTERM)
    walk.step("SIGTERM", "shell>")
    walk.step("is exit code 143", r"code 143", "echo code $?", "Enter")


def pipes(walk: Walk) -> None:
    """Lines, pipes, stored chats, settings."""
    walk.open(80, 24)
    walk.step("lines", "you:", f"NO_COLOR=1 {walk.macllm} chat --plain --temporary", "Enter")
    walk.step("an answer in lines", r"(?s)macllm: .*\n+you:", "What is a token?", "Enter")
    walk.step("the context in lines", r"(?i)tokens", "/context", "Enter")
    walk.step("the end of lines", "shell>", "C-d")
    walk.run("an answer in a pipe", r"^\w.*\nexit code 0", "macllm chat 'What is a KV cache?' --temperature 0")
    walk.run("piped text", "exit code 0", "echo Tuesday | macllm chat 'When?'")
    walk.run("a closed pipe", "exit code 141", "macllm chat 'What is GQA?' | true; (exit ${PIPESTATUS[0]})")
    walk.run("stored chats", "(?s)RoPE.*exit code 0", "macllm chats ls")
    walk.run("found by a word", "(?s)RoPE.*exit code 0", "macllm chats search rotates")
    walk.run("nothing found", "(?i)nothing", "macllm chats search xylophone")
    walk.run("settings with origins", "(?s)default.*exit code 0", "macllm config show")
    walk.run("a wrong setting", "exit code 2", "macllm config set chat.theme loud")
    walk.run("a wrong model", "exit code 2|exit code [1-9]", "macllm chat -m ./nowhere Hi")
    walk.run("doctor", "exit code 0", "macllm doctor")


SECTIONS = (first_evening, long_talk, pipes)


def main() -> int:
    """Walk through all sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--macllm", default=shutil.which("macllm"), metavar="PROGRAM", help="[default: on the PATH]")
    parser.add_argument("--show", action="store_true", help="print the screen of each step")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # kernels may still be compiled
        walk = Walk(Path(folder), chosen.macllm, chosen.show)
        for section in SECTIONS:
            section(walk)
            walk.tmux("kill-server")
    print(f"{walk.steps - len(walk.missed)} of {walk.steps} seen")
    return 1 if walk.missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
