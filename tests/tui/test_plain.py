"""The chat in pipes, and in line mode on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from macllm.chat.context import ContextUse
from macllm.chat.conversation import Turn
from macllm.errors import UsageError
from macllm_tui.lines.piped import message
from macllm_tui.plain import end_lines

SCRIPT = Path(__file__).parent / "scripted_cli.py"


def command(answers: list[list[Any]], *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", str(SCRIPT), json.dumps(answers), "chat", *arguments]


def chat(answers: list[list[Any]], *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of a run through pipes."""
    result = subprocess.run(command(answers, *arguments), input=stdin, capture_output=True, timeout=60, check=False)
    return result.returncode, result.stdout, result.stderr.decode()


def test_only_the_answer_is_on_stdout_of_a_pipe() -> None:
    answer = [{"think": "hm, let me see"}, "\n\nSome **bold** ", "\x1b words", " äöü 🦙", ".\n\n"]
    code, out, err = chat([answer], "Hi")
    assert code == 0
    assert out.decode() == "Some **bold** \x1b words äöü 🦙.\n"
    assert err == "engine closed\n"


def test_piped_text_is_attached_between_tags() -> None:
    code, out, err = chat([["ok"]], "summarise", "--show-prompt", stdin=b"line one\nline two")
    assert (code, out) == (0, b"ok\n")
    assert err.startswith("summarise\n\n<stdin>\nline one\nline two\n</stdin>\n")


def test_verbose_prints_the_speed_to_stderr_only() -> None:
    code, out, err = chat([["a", "b", "c"]], "Hi", "-v")
    assert (code, out) == (0, b"abc\n")
    assert "stats: 3 tokens · 4.0 tok/s · first after 0.25 s\n" in err


def test_an_answer_cut_at_the_token_limit_is_reported_on_stderr() -> None:
    code, out, err = chat([["a", "b", "c"]], "Hi", "--max-tokens", "2")
    assert (code, out) == (0, b"ab\n")
    assert "--max-tokens" in err


@pytest.mark.parametrize(
    ("context", "shown"),
    [
        (ContextUse(40, 512), "cut off at the token limit (--max-tokens)"),
        (ContextUse(512, 512), "cut off at the end of the context"),
        (ContextUse(40, None), "cut off at the token limit (--max-tokens)"),
    ],
)
def test_the_end_of_the_context_and_the_token_limit_are_reported_differently(context: ContextUse, shown: str) -> None:
    turn = Turn(role="assistant", content="half", finish="length")
    assert shown in " ".join(end_lines(turn, context, verbose=False))


@pytest.mark.parametrize(
    ("answers", "arguments", "stdin", "code", "out", "error"),
    [
        ([["half ", {"crash": "The engine is gone."}]], ["Hi"], b"", 7, b"half \n", "cause: why\ntry: x\n"),
        ([[{"crash": "The engine is gone."}]], ["Hi"], b"", 7, b"", "error: The engine is gone.\n"),
        ([], ["Hi", "--adapter", "missing"], b"", 3, b"", "error: There is no adapter missing.\n"),
        ([], [], b"", 2, b"", "error: The message is empty.\n"),
        ([], ["Hi"], b"\xff\xfe\x00", 2, b"", "error: The input is not UTF-8.\n"),
        ([], ["Hi", "--temperature", "-1"], b"", 2, b"", "temperature"),
        ([], ["word " * 2000], b"", 4, b"", "the context holds 1000"),
    ],
)
def test_errors_are_reported_on_stderr_with_their_exit_code(
    answers: list[list[Any]], arguments: list[str], stdin: bytes, code: int, out: bytes, error: str
) -> None:
    result, stdout, stderr = chat(answers, *arguments, stdin=stdin)
    assert (result, stdout) == (code, out)
    assert error in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("answer", [["half an answer", None], [None]])
def test_a_signal_keeps_the_text_so_far_and_exits_with_its_code(
    number: signal.Signals, code: int, answer: list[Any]
) -> None:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command([answer], "Hi", "--show-prompt"), **pipes) as process:  # type: ignore[call-overload]
        assert process.stderr.readline() == b"Hi\n"
        shown = b"half an answer" if len(answer) > 1 else b""
        assert process.stdout.read(len(shown)) == shown
        time.sleep(0.1)
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest) == (code, b"\n" if shown else b"")
    assert errors.startswith(b"engine closed\n")
    assert b"Traceback" not in errors


def test_a_closed_output_pipe_ends_the_chat_silently_with_141() -> None:
    answer = ["line\n" * 400 for _ in range(45)] + [None]  # more than a pipe holds
    with subprocess.Popen(
        command([answer], "Hi"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(30) == 141
    assert errors == b"engine closed\n"


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, arguments: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(arguments[0], arguments, {**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null"})
        self.seen = ""

    def until(self, text: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"timed out waiting for {text!r}: {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it ended before {text!r}: {self.seen!r}") from None
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self, seconds: float = 30.0) -> int:
        """The exit code, once the program has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    if not os.read(self.fd, 65536):
                        break
                except OSError:
                    break
        else:
            pytest.fail("the program does not end")
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_line_mode_on_a_terminal_is_a_conversation_with_labels() -> None:
    answers = [["Hello ", "there."], ["half", None], ["again"], ["joined"]]
    terminal = Terminal(command(answers, "--plain", "--show-prompt"))
    terminal.until("Ctrl-D ends")
    terminal.until("you: ")
    terminal.type("Hi\n")
    terminal.until("macllm: Hello there.")
    terminal.until("you: ")
    terminal.type("More\n")
    terminal.until("macllm: half")
    terminal.type("\x03")
    terminal.until("stopped.")
    terminal.until("you: ")
    terminal.type("/nope\n")
    terminal.until("Unknown command /nope.")
    terminal.type("/regen\n")
    terminal.until("macllm: again")
    terminal.type("one\\\ntwo\n")
    terminal.until("one\r\ntwo")
    terminal.until("macllm: joined")
    terminal.type("/set top_k 4\n")
    terminal.until("top_k = 4")
    terminal.until("you: ")
    time.sleep(0.3)  # readline handles signals only while it waits for a key
    terminal.type("\x03")
    terminal.until("Ctrl-D ends")
    terminal.until("you: ")
    terminal.type("\x04")
    terminal.until("engine closed")
    assert terminal.end() == 0


def test_control_c_clears_the_line_but_keeps_it_in_the_history() -> None:
    terminal = Terminal(command([["one"]], "--plain"))
    terminal.until("you: ")
    time.sleep(0.3)  # readline handles signals only while it waits for a key
    terminal.type("a half line")
    time.sleep(0.1)
    terminal.type("\x03")
    terminal.until("Ctrl-D ends")
    terminal.until("you: ")
    terminal.type("\x1b[A")
    terminal.until("a half line")
    terminal.type("\n")
    terminal.until("macllm: one")
    terminal.type("/thi\t\n")
    terminal.until("No reasoning yet.")
    terminal.until("you: ")  # between two prompts the terminal is not readline's, which never sees the key
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.parametrize(
    ("answers", "prompt", "shown"), [([["half", None]], ["Hi"], "macllm: half"), ([], [], "you: ")]
)
def test_a_closed_terminal_ends_the_chat_with_the_code_of_sighup(
    answers: list[list[Any]], prompt: list[str], shown: str
) -> None:
    terminal = Terminal(command(answers, "--plain", *prompt))
    terminal.until(shown)
    os.close(terminal.fd)
    _, status = os.waitpid(terminal.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129


def test_a_terminal_gets_no_control_characters_of_the_model() -> None:
    terminal = Terminal(command([["a\x1b]0;owned\x07b\x9b2Jc"]], "--plain", "Hi"))
    terminal.until("macllm: a␛]0;owned␇b�2Jc")
    terminal.type("/quit\n")
    assert terminal.end() == 0


def test_the_attachment_cannot_close_its_own_tag() -> None:
    assert message("do", "x</stdin>\ny\n") == "do\n\n<stdin-2>\nx</stdin>\ny\n</stdin-2>"


def test_without_a_prompt_the_input_is_the_message() -> None:
    assert message(None, "\nHello\n") == "Hello"
    assert message("  Hi ", " \n") == "Hi"
    with pytest.raises(UsageError, match="message is empty"):
        message(" ", "")
