"""The slash commands, for the full screen and the line mode alike. No Textual in here.

A line is a command when it starts with one slash; two slashes send a text that starts with one. A
command acts on the session and returns what to tell, or leaves the act to the screen by its `effect`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

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

Effect = Literal["none", "quit", "regenerate", "clear", "copy", "help", "theme"]


@dataclass(frozen=True)
class Outcome:
    """What a command came to: `text` to tell or, for "copy" and "theme", to use."""

    text: str = ""
    effect: Effect = "none"


@dataclass(frozen=True)
class Command:
    """One command. `idle` ones wait until no answer is being made; without `run` the screen does it, model or not."""

    name: str
    argument: str
    help: str
    run: Callable[[Session, str], Outcome] | None = None
    effect: Effect = "none"
    idle: bool = False

    @property
    def usage(self) -> str:
        """The command as it is typed."""
        return f"/{self.name} {self.argument}".rstrip()


def parse(line: str) -> tuple[Command, str] | None:
    """(command, argument), or None for a text to send. Raises: UsageError for an unknown command."""
    if not line.startswith("/") or line.startswith("//") or "\n" in line.strip():
        return None
    name, _, argument = line[1:].strip().partition(" ")
    if "/" in name:  # a path such as /usr/lib is a text
        return None
    if (command := COMMANDS.get(name.lower())) is not None:
        return command, argument.strip()
    near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.5)
    remedy = f"{COMMANDS[near[0]].usage}" if near else "/help lists the commands"
    raise UsageError(f"There is no command /{name}.", remedy=f"{remedy}; two slashes send it as a text")


def plain_text(line: str) -> str:
    """The text that a line sends: two leading slashes stand for one."""
    return line[1:] if line.startswith("//") else line


def completions(line: str) -> list[Command]:
    """The commands that a half-typed line may become, best first; none once the name is complete and spaced."""
    if not re.fullmatch(r"/[A-Za-z]*", line):
        return []
    typed = line[1:].lower()
    return [command for name, command in COMMANDS.items() if name.startswith(typed)]


def _clear(session: Session, argument: str) -> Outcome:
    session.clear()
    return Outcome("A new conversation.", "clear")


def _system(session: Session, argument: str) -> Outcome:
    if not argument:
        return Outcome(f"System prompt: {session.system}" if session.system else "There is no system prompt.")
    session.system = None if argument == "none" else argument
    return Outcome("The system prompt is gone." if session.system is None else "The system prompt is set.")


def _regenerate(session: Session, argument: str) -> Outcome:
    return Outcome(effect="regenerate")


def _copy(session: Session, argument: str) -> Outcome:
    answer = session.last_answer
    if answer is None:
        raise UsageError("There is no answer to copy.")
    if argument == "all":
        name = short_name(session.engine.info.model_name)
        return Outcome(transcript.as_markdown(session.turns, model_name=name, system=session.system), "copy")
    if not argument:
        return Outcome(answer.content, "copy")
    blocks = [code for _, code in _CODE.findall(answer.content + "\n")]
    if not argument.isdecimal() or not 1 <= int(argument) <= len(blocks):
        held = f"the answer has {len(blocks)} code block{'s' * (len(blocks) != 1)}"
        raise UsageError(f"There is no code block {argument}.", cause=held, remedy="/copy, /copy 1 or /copy all")
    return Outcome(blocks[int(argument) - 1], "copy")


_CODE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)^ {0,3}\1", re.MULTILINE | re.DOTALL)


def _save(session: Session, argument: str) -> Outcome:
    force = argument.startswith("--force ")
    name = argument.removeprefix("--force ").strip()
    if not name or name == "--force":
        raise UsageError("/save needs a file name.", remedy="/save chat.md")
    if not session.turns:
        raise UsageError("There is nothing to save yet.")
    path = Path(os.path.expandvars(name)).expanduser()
    model_name = short_name(session.engine.info.model_name)
    text = transcript.as_markdown(session.turns, model_name=model_name, system=session.system)
    transcript.write(path, text, overwrite=force)
    return Outcome(f"Saved to {path}.")


def _set(session: Session, argument: str) -> Outcome:
    if not argument:
        return Outcome("\n".join(f"{name} = {_shown(session, name)}" for name in SETTINGS))
    name, _, value = re.sub(r"\s*=\s*|\s+", " ", argument, count=1).partition(" ")
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        remedy = f"/set {near[0]} …" if near else "/set lists what can be set"
        raise UsageError(f"There is no setting {name!r}.", remedy=remedy)
    if not value:
        return Outcome(f"{name} = {_shown(session, name)}")
    number = _number(name, value)
    if name == "max_tokens":
        defaults.check(Request(prompt=(), max_tokens=1 if number is None else int(number)))
        session.max_tokens = None if number is None else int(number)
    else:
        sampling = replace(session.sampling, **{name: number})
        defaults.check(Request(prompt=(), sampling=sampling))
        session.sampling = sampling
    return Outcome(f"{name} = {_shown(session, name)}")


def _shown(session: Session, name: str) -> str:
    value = session.max_tokens if name == "max_tokens" else getattr(session.sampling, name)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(name: str, text: str) -> float | int | None:
    """The number that `text` says for a setting. Raises: UsageError when it says none."""
    if text == "none" and name in ("max_tokens", "seed"):
        return None
    whole = name in ("max_tokens", "seed") or isinstance(getattr(SamplingParams, name), int)
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{name} is {kind}.", cause=f"{text!r} is not") from None


_ALL = (
    Command("help", "", "commands and keys", effect="help"),
    Command("clear", "", "start a new conversation", _clear, idle=True),
    Command("system", "[TEXT | none]", "show, set or drop the system prompt", _system, idle=True),
    Command("regen", "", "answer the last message again", _regenerate, idle=True),
    Command("copy", "[N | all]", "copy the last answer, its N-th code block, or everything", _copy),
    Command("save", "[--force] FILE", "write the conversation as Markdown", _save),
    Command("set", "[NAME VALUE]", "show or change sampling: temperature, top_p, seed, max_tokens, …", _set),
    Command("theme", "[dark | light]", "switch the colours", effect="theme"),
    Command("quit", "", "leave", effect="quit"),
)
COMMANDS = {command.name: command for command in _ALL}
