"""Slash commands of the full screen and the line mode. No Textual in here.

A line that starts with one slash is a command; two slashes send a message that starts with one. A command
changes the session and returns an `Outcome` for the interface to carry out.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from macllm.chat import transcript
from macllm.chat.options import short_name
from macllm.chat.session import Session
from macllm.errors import UsageError
from macllm.generation.request import Request, SamplingParams
from macllm.generation.sampling import defaults

SETTINGS = (
    "max_tokens",
    *(item.name for item in fields(SamplingParams) if item.default is None or isinstance(item.default, int | float)),
)


@dataclass(frozen=True)
class Say:
    """Show a line of text."""

    text: str


@dataclass(frozen=True)
class Clear:
    """Empty the screen, then show a line of text."""

    text: str


@dataclass(frozen=True)
class Copy:
    """Copy text to the clipboard."""

    text: str


@dataclass(frozen=True)
class Regenerate:
    """Answer the last message again."""


@dataclass(frozen=True)
class ShowHelp:
    """Show commands and keys."""


@dataclass(frozen=True)
class SwitchTheme:
    """Switch to a theme, or to the other one if `name` is empty."""

    name: str


@dataclass(frozen=True)
class Quit:
    """End the chat."""


Outcome = Say | Clear | Copy | Regenerate | ShowHelp | SwitchTheme | Quit


@dataclass(frozen=True)
class Command:
    """A slash command. It calls `run`, or `run_without_model` if it needs no session.

    Commands with `idle` are not allowed while an answer is being generated.
    """

    name: str
    argument: str
    help: str
    run: Callable[[Session, str], Outcome] | None = None
    run_without_model: Callable[[str], Outcome] | None = None
    idle: bool = False

    @property
    def usage(self) -> str:
        """Name and argument, as the user types them."""
        return f"/{self.name} {self.argument}".rstrip()

    def __call__(self, session: Session | None, argument: str) -> Outcome:
        """Run the command. Raises: UsageError if it needs a session and has none; MacllmError."""
        if self.run_without_model is not None:
            return self.run_without_model(argument)
        assert self.run is not None
        if session is None:
            raise UsageError(f"/{self.name} needs a model.", cause="no model is loaded yet")
        return self.run(session, argument)


def parse(line: str) -> tuple[Command, str] | None:
    """(command, argument), or None if the line is text to send. Raises: UsageError for an unknown command."""
    if not line.startswith("/") or line.startswith("//") or "\n" in line.strip():
        return None
    name, _, argument = line[1:].strip().partition(" ")
    if "/" in name:  # a path such as /usr/lib is text
        return None
    if (command := COMMANDS.get(name.lower())) is not None:
        return command, argument.strip()
    near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.5)
    remedy = f"{COMMANDS[near[0]].usage}" if near else "/help lists the commands"
    raise UsageError(f"Unknown command /{name}.", remedy=f"{remedy}; two slashes send it as text")


def plain_text(line: str) -> str:
    """The text to send for a line: two leading slashes become one."""
    return line[1:] if line.startswith("//") else line


def completions(line: str) -> list[Command]:
    """The commands that start with a half-typed line, in table order; none once a space follows the name."""
    if not re.fullmatch(r"/[A-Za-z]*", line):
        return []
    typed = line[1:].lower()
    return [command for name, command in COMMANDS.items() if name.startswith(typed)]


def _clear(session: Session, argument: str) -> Outcome:
    session.clear()
    return Clear("New conversation.")


def _system(session: Session, argument: str) -> Outcome:
    if not argument:
        return Say(f"System prompt: {session.system}" if session.system else "No system prompt is set.")
    session.system = None if argument == "none" else argument
    return Say("The system prompt is removed." if session.system is None else "The system prompt is set.")


def _regenerate(session: Session, argument: str) -> Outcome:
    return Regenerate()


def _copy(session: Session, argument: str) -> Outcome:
    answer = session.last_answer
    if answer is None:
        raise UsageError("No answer to copy yet.")
    if argument == "all":
        name = short_name(session.engine.info.model_name)
        return Copy(transcript.as_markdown(session.turns, model_name=name, system=session.system))
    if not argument:
        return Copy(answer.content)
    blocks = [code for _, code in _CODE.findall(answer.content + "\n")]
    if not argument.isdecimal() or not 1 <= int(argument) <= len(blocks):
        cause = f"the answer has {len(blocks)} code block{'s' * (len(blocks) != 1)}"
        raise UsageError(f"No code block {argument}.", cause=cause, remedy="/copy, /copy 1 or /copy all")
    return Copy(blocks[int(argument) - 1])


_CODE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)^ {0,3}\1", re.MULTILINE | re.DOTALL)


def _save(session: Session, argument: str) -> Outcome:
    force = argument.startswith("--force ")
    name = argument.removeprefix("--force ").strip()
    if not name or name == "--force":
        raise UsageError("/save needs a file name.", remedy="/save chat.md")
    if not session.turns:
        raise UsageError("No conversation to save yet.")
    path = Path(os.path.expandvars(name)).expanduser()
    model_name = short_name(session.engine.info.model_name)
    text = transcript.as_markdown(session.turns, model_name=model_name, system=session.system)
    transcript.write(path, text, overwrite=force)
    return Say(f"Saved to {path}.")


def _set(session: Session, argument: str) -> Outcome:
    if not argument:
        return Say("\n".join(f"{name} = {_shown(session, name)}" for name in SETTINGS))
    name, _, value = re.sub(r"\s*=\s*|\s+", " ", argument, count=1).partition(" ")
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        remedy = f"/set {near[0]} …" if near else "/set lists all settings"
        raise UsageError(f"Unknown setting {name!r}.", remedy=remedy)
    if not value:
        return Say(f"{name} = {_shown(session, name)}")
    number = _number(name, value)
    if name == "max_tokens":
        defaults.check(Request(prompt=(), max_tokens=1 if number is None else int(number)))
        session.max_tokens = None if number is None else int(number)
    else:
        sampling = replace(session.sampling, **{name: number})
        defaults.check(Request(prompt=(), sampling=sampling))
        session.sampling = sampling
    return Say(f"{name} = {_shown(session, name)}")


def _shown(session: Session, name: str) -> str:
    value = session.max_tokens if name == "max_tokens" else getattr(session.sampling, name)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(name: str, text: str) -> float | int | None:
    """The value of a setting, parsed from `text`. Raises: UsageError if `text` is not a number."""
    if text == "none" and name in ("max_tokens", "seed"):
        return None
    whole = name in ("max_tokens", "seed") or isinstance(getattr(SamplingParams, name), int)
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{name} must be {kind}.", cause=f"{text!r} is not {kind}") from None


_ALL = (
    Command("help", "", "show commands and keys", run_without_model=lambda _: ShowHelp()),
    Command("clear", "", "start a new conversation", _clear, idle=True),
    Command("system", "[TEXT | none]", "show, set or remove the system prompt", _system, idle=True),
    Command("regen", "", "answer the last message again", _regenerate, idle=True),
    Command("copy", "[N | all]", "copy the last answer, its Nth code block, or the whole conversation", _copy),
    Command("save", "[--force] FILE", "save the conversation as Markdown", _save),
    Command("set", "[NAME VALUE]", "show or change settings: temperature, top_p, seed, max_tokens, …", _set),
    Command("theme", "[dark | light]", "switch the color theme", run_without_model=SwitchTheme),
    Command("quit", "", "quit", run_without_model=lambda _: Quit()),
)
COMMANDS = {command.name: command for command in _ALL}
