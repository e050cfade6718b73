"""Command line: `macllm COMMAND`, its errors and exit codes.

One file per command, imported when the command is called, so that `macllm --help` loads only click.
`main` turns every error and interrupt into an exit code and at most three lines on stderr.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import click

from macllm.errors import DoesNotFitError, MacllmError, UnsupportedMachineError, UsageError

from .names import COMPLETE
from .output import report

if TYPE_CHECKING:
    from types import FrameType

    from click.shell_completion import CompletionItem

# Errors of the operating system that a path on the command line can cause.
_WRONG_PATH = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip

COMMANDS = {
    "chat": "Chat with a model, in the terminal or through a pipe.",
    "generate": "Print the answer to one prompt.",
    "chats": "List, search, export and replay stored conversations.",
    "models": "List, download, show, verify and remove models.",
    "data": "Check training data, and make some by a model's answers and judgement.",
    "tokenizer": "Train a tokenizer on texts, and show how one splits a word.",
    "finetune": "Fine-tune a model on your own data (LoRA or full).",
    "constitution": "Train a model to keep principles, by its own judgement (Constitutional AI).",
    "adapters": "Show adapters, and write them in the format of mlx-lm or PEFT.",
    "fuse": "Merge LoRA adapters into their model.",
    "train": "Train a model from random weights.",
    "runs": "List, watch, stop, resume and compare training runs.",
    "recipe": "List, show and copy settings of training runs for common purposes.",
    "scaling": "Fit scaling laws to runs: loss by parameters, tokens and compute.",
    "bench": "Measure the speed and memory use of a model.",
    "config": "Show and change the settings.",
    "doctor": "Show system and kernel diagnostics.",
    "completion": "Print a script that completes commands in your shell.",
}

WELCOME = """\
macllm runs, inspects and trains language models on your own machine.

  macllm chat                                  chat with the bundled model
  macllm generate "What is a KV cache?"        one answer on stdout
  macllm finetune --lora --data rows.jsonl     fine-tune it on your own data

macllm --help lists every command.
"""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
INTERRUPTED = 130
_SIGNALLED = 128
BROKEN_PIPE = 141


class LazyGroup(click.Group):
    """A click group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, most used first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, from the module of the same name."""
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"{__name__}.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command named by `args[0]`. Raises: click.UsageError with the nearest name if it is unknown."""
        if args[0] in COMMANDS or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(args[0], COMMANDS, n=1)
        raise click.UsageError(f"No such command {args[0]!r}." + "".join(f" Did you mean {n!r}?" for n in near), ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that begin with `incomplete`, without importing them, and the flags."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=about) for name, about in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"macllm {version('macllm')}")
        ctx.exit()


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings=CONTEXT)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def program(ctx: click.Context) -> None:
    """Run, inspect, train and fine-tune language models on your own machine."""
    if ctx.invoked_subcommand is None:
        click.echo(WELCOME, nl=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0, the code of a `MacllmError`, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 141 after a broken pipe.
    SIGTERM and SIGHUP raise KeyboardInterrupt, so that partial work is kept as after Ctrl-C.
    """
    # The interpreter's last collection takes a tenth of a short command, and frees what the system frees anyway.
    atexit.register(gc.freeze)
    with _interruptible() as signals:
        return _code(arguments, signals)


def _code(arguments: Sequence[str] | None, signals: list[int]) -> int:
    """Run one command, report its error, and return its exit code."""
    try:
        code = _invoke(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except MacllmError as error:
        report(error)
        code = error.exit_code
    except click.UsageError as error:
        report(_usage_error(error))
        code = UsageError.exit_code
    except ImportError as error:
        if not (error.name or "").startswith("mlx"):
            raise
        report(_unsupported(error))
        code = UnsupportedMachineError.exit_code
    except BrokenPipeError:
        _drop_output()
        code = BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):  # Abort is a RuntimeError
        code = _SIGNALLED + signals[0] if signals else INTERRUPTED
    except (OSError, RuntimeError) as error:
        failure = _file_error(error) if isinstance(error, OSError) else _home_error(error)
        if failure is None:
            raise
        if getattr(error, "errno", None) == errno.EBADF:
            _drop_output()
        report(failure)
        code = failure.exit_code
    return code


def _invoke(arguments: list[str]) -> int:
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(program, {}, "macllm", COMPLETE, instruction)
    try:
        with program.make_context("macllm", arguments) as ctx:
            code = program.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """Point stdout at /dev/null, so that the interpreter can flush its buffer at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at SIGTERM, and at SIGHUP unless nohup ignores it, and list them."""
    signals: list[int] = []

    def terminate(number: int, _frame: FrameType | None) -> None:
        from macllm_tui.lines.signals import leave_closed_terminal

        if signals and number == signal.SIGHUP:  # a shell and the system may both send it
            return
        signals.append(number)
        leave_closed_terminal()
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])]
    before = {number: signal.signal(number, terminate) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _output_is_closed() -> bool:
    """True if stdout was closed at the start: its descriptor is then /dev/null, opened for reading."""
    try:
        return fcntl.fcntl(sys.stdout.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    except OSError:
        return False


def _home_error(error: RuntimeError) -> MacllmError | None:
    """A MacllmError for a user without a home folder; None for other errors."""
    if "home directory" not in str(error):
        return None
    return MacllmError(
        "the home folder is not known", cause="HOME is not set", remedy="HOME=/a/folder before the command"
    )


def _file_error(error: OSError) -> MacllmError | None:
    """A MacllmError for a full disk, a closed stdout or an unusable path; None for other errors."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DoesNotFitError(f"the disk is full: cannot write{where}", cause=error.strerror, remedy="free some space")
    if error.errno == errno.EBADF and _output_is_closed():
        return MacllmError("standard output is closed", remedy="redirect it, as with > answer.txt")
    if not where:
        return None
    kind = UsageError if error.errno in _WRONG_PATH else MacllmError
    return kind(f"cannot use{where}", cause=error.strerror, remedy="check the path and its permissions")


def _unsupported(error: ImportError) -> UnsupportedMachineError:
    return UnsupportedMachineError(
        "this machine cannot run MLX",
        cause=str(error),
        remedy="macOS 14 or newer on Apple silicon with an arm64 Python, or Linux with pip install 'mlx[cpu]'",
    )


def _usage_error(error: click.UsageError) -> UsageError:
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if error.ctx else "macllm"
    return UsageError(message[:1].lower() + message[1:], remedy=f"{path} --help")
