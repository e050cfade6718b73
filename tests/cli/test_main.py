"""Exit codes of the program, and errors of at most three lines on stderr."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from macllm import cli
from macllm.errors import (
    DoesNotFitError,
    EngineCrashedError,
    MacllmError,
    ModelNotFoundError,
    NetworkError,
    UnsupportedMachineError,
    UsageError,
)

CODES = [
    (MacllmError, 1),
    (UsageError, 2),
    (ModelNotFoundError, 3),
    (DoesNotFitError, 4),
    (NetworkError, 5),
    (UnsupportedMachineError, 6),
    (EngineCrashedError, 7),
]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Register `macllm probe` with a given body."""

    def register(body: Callable[[], object]) -> None:
        module = types.ModuleType("macllm.cli.probe")
        module.command = click.command("probe")(lambda: body())  # type: ignore[attr-defined]
        monkeypatch.setitem(cli.COMMANDS, "probe", "Run a given body.")
        monkeypatch.setitem(sys.modules, "macllm.cli.probe", module)

    return register


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


@pytest.mark.parametrize(("kind", "code"), CODES)
def test_an_error_becomes_its_exit_code(kind: type[MacllmError], code: int, command, capsys) -> None:
    command(raising(kind("it broke", cause="a screw\nwas loose", remedy="macllm doctor")))
    assert cli.main(["probe"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: it broke\ncause: a screw was loose\ntry: macllm doctor\n"


def test_an_error_without_a_cause_is_one_line(command, capsys) -> None:
    command(raising(MacllmError("it broke")))
    assert cli.main(["probe"]) == 1
    assert capsys.readouterr().err == "error: it broke\n"


def test_a_command_without_an_exit_code_exits_with_0(command) -> None:
    command(lambda: None)
    assert cli.main(["probe"]) == 0


def test_a_command_can_return_an_exit_code(command) -> None:
    command(lambda: 3)
    assert cli.main(["probe"]) == 3


def test_an_interrupt_exits_with_130_and_prints_nothing(command, capsys) -> None:
    command(raising(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_machine_without_mlx_is_an_error_with_exit_code_6(command, capsys) -> None:
    command(raising(ImportError("libmlx.so: cannot open shared object file", name="mlx.core")))
    assert cli.main(["probe"]) == 6
    assert "error: this machine cannot run MLX\ncause: libmlx.so" in capsys.readouterr().err


def test_errors_of_the_file_system_are_reported_and_other_os_errors_are_raised(command, capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "inside"
    command(inside.mkdir)
    assert cli.main(["probe"]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot use {inside}\ncause: Not a directory")
    command(raising(OSError(errno.EIO, "Input/output error", "disk")))
    assert cli.main(["probe"]) == 1
    assert "cannot use disk" in capsys.readouterr().err
    command(raising(OSError(errno.ENOSPC, "No space left on device")))
    assert cli.main(["probe"]) == 4
    assert capsys.readouterr().err.startswith("error: the disk is full")
    command(raising(OSError(errno.EBADF, "Bad file descriptor")))
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["probe"])


def test_a_user_without_a_home_is_told_to_name_one(command, capsys) -> None:
    command(raising(RuntimeError("Could not determine home directory.")))
    assert cli.main(["probe"]) == 1
    assert "try: HOME=" in capsys.readouterr().err
    command(raising(RuntimeError("another one")))
    with pytest.raises(RuntimeError, match="another one"):
        cli.main(["probe"])


def test_other_exceptions_keep_their_traceback(command) -> None:
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_the_signal_handlers_are_restored(command) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    command(lambda: None)
    cli.main(["probe"])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_closed_terminal_ends_a_command_as_ctrl_c_does_unless_nohup_is_in_effect(command) -> None:
    command(lambda: signal.raise_signal(signal.SIGHUP))
    assert cli.main(["probe"]) == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.main(["probe"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (["chta"], "no such command 'chta'. Did you mean 'chat'?", "macllm --help"),
        (["qqqq"], "no such command 'qqqq'", "macllm --help"),
        (["--versoin"], "no such option '--versoin'. Did you mean '--version'?", "macllm --help"),
        (["generate"], "missing argument 'PROMPT'", "macllm generate --help"),
        (
            ["generate", "x", "--top-k", "many"],
            "invalid value for '--top-k': 'many' is not a valid integer",
            "macllm generate --help",
        ),
    ],
)
def test_a_wrong_command_line_is_an_error_with_a_remedy(
    arguments: list[str], message: str, remedy: str, capsys
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\ntry: {remedy}\n"


def test_without_a_command_three_first_commands_are_shown(capsys) -> None:
    assert cli.main([]) == 0
    shown = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  macllm ")]
    assert [line.split()[1] for line in shown] == ["chat", "generate", "finetune"]
    assert {line.split()[1] for line in shown} <= set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_every_command_begins_with_the_verb_of_the_list(name: str) -> None:
    found = cli.program.get_command(click.Context(cli.program), name)
    assert found is not None
    assert found.name == name
    assert (found.help or "").split()[0] == cli.COMMANDS[name].split()[0]


PROBE = """
import sys, types, click, time
from macllm import cli
module = types.ModuleType("macllm.cli.probe")
def body():
{body}
module.command = click.command("probe")(body)
sys.modules["macllm.cli.probe"] = module
cli.COMMANDS["probe"] = ""
sys.exit(cli.main(["probe"]))
"""


def run_until_ready(body: str, act: Callable[[subprocess.Popen[str]], object]) -> subprocess.Popen[str]:
    program = PROBE.format(body="\n".join(f"    {line}" for line in body.splitlines()))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        act(process)
        process.errors = process.stderr.read() if process.stderr else ""  # type: ignore[attr-defined]
    return process


WAITING = """\
try:
    print("ready", flush=True)
    time.sleep(60)
finally:
    print("tidied", file=sys.stderr)"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_run_cleanup_and_exit_with_their_code(number: signal.Signals, code: int) -> None:
    ended = run_until_ready(WAITING, lambda process: process.send_signal(number))
    assert (ended.returncode, ended.errors) == (code, "tidied\n")  # type: ignore[attr-defined]


def test_a_closed_pipe_exits_with_141_and_prints_nothing() -> None:
    body = 'print("ready", flush=True)\nfor _ in range(100_000):\n    print("more")'
    ended = run_until_ready(body, lambda process: process.stdout.close() if process.stdout else None)
    assert (ended.returncode, ended.errors) == (141, "")  # type: ignore[attr-defined]
