"""However a run ends, it ends with the right code and at most three lines on stderr."""

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
    """Register `macllm probe`, which does as it is told."""

    def register(body: Callable[[], object]) -> None:
        module = types.ModuleType("macllm.cli.probe")
        module.command = click.command("probe")(lambda: body())  # type: ignore[attr-defined]
        monkeypatch.setitem(cli.COMMANDS, "probe", "Does as it is told.")
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


def test_a_run_that_ends_well_returns_0(command) -> None:
    command(lambda: None)
    assert cli.main(["probe"]) == 0


def test_a_command_chooses_its_own_code(command) -> None:
    command(lambda: 3)
    assert cli.main(["probe"]) == 3


def test_an_interrupt_is_quiet(command, capsys) -> None:
    command(raising(KeyboardInterrupt()))
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_machine_without_mlx_is_told_so(command, capsys) -> None:
    command(raising(ImportError("libmlx.so: cannot open shared object file", name="mlx.core")))
    assert cli.main(["probe"]) == 6
    assert "error: this machine cannot run MLX\ncause: libmlx.so" in capsys.readouterr().err


def test_what_the_file_system_refuses_is_told_in_three_lines(command, capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command(lambda: (tmp_path / "file" / "inside").mkdir())
    assert cli.main(["probe"]) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot use {tmp_path / 'file' / 'inside'}\ncause: Not a directory")
    command(raising(OSError(errno.ENOSPC, "No space left on device")))
    assert cli.main(["probe"]) == 4
    assert capsys.readouterr().err.startswith("error: the disk is full")
    command(raising(OSError(errno.EBADF, "Bad file descriptor")))
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["probe"])


def test_a_bug_of_ours_keeps_its_traceback(command) -> None:
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_the_terminate_handler_is_put_back(command) -> None:
    before = signal.getsignal(signal.SIGTERM)
    command(lambda: None)
    cli.main(["probe"])
    assert signal.getsignal(signal.SIGTERM) is before


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
def test_a_wrong_command_line_is_told_in_the_same_way(arguments: list[str], message: str, remedy: str, capsys) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\ntry: {remedy}\n"


def test_without_a_command_three_first_commands_are_shown(capsys) -> None:
    assert cli.main([]) == 0
    shown = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  macllm ")]
    assert [line.split()[1] for line in shown] == ["chat", "generate", "finetune"]
    assert {line.split()[1] for line in shown} <= set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_listed_command_is_there_and_says_in_its_help_what_the_list_says(name: str) -> None:
    found = cli.program.get_command(click.Context(cli.program), name)
    assert found is not None
    assert found.name == name
    assert found.help


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
def test_a_signal_stops_cleanly(number: signal.Signals, code: int) -> None:
    ended = run_until_ready(WAITING, lambda process: process.send_signal(number))
    assert (ended.returncode, ended.errors) == (code, "tidied\n")  # type: ignore[attr-defined]


def test_a_reader_that_leaves_is_no_error() -> None:
    body = 'print("ready", flush=True)\nfor _ in range(100_000):\n    print("more")'
    ended = run_until_ready(body, lambda process: process.stdout.close() if process.stdout else None)
    assert (ended.returncode, ended.errors) == (141, "")  # type: ignore[attr-defined]
