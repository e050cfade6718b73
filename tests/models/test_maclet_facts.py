"""Commands, flags, slash commands and keys in maclet's answers about macllm: each exists."""

from __future__ import annotations

import random
import re

import click
import pytest

from macllm import cli
from macllm_models.maclet.knowledge import Guide
from macllm_tui import slash
from macllm_tui.keys import KEYS

FENCED = re.compile(r"`([^`]+)`")


@pytest.fixture(scope="module")
def told() -> str:
    """All answers, one a line."""
    topics = Guide(random.Random(0)).topics
    return "\n".join(answer for topic in topics for answers in topic.answers.values() for answer in answers)


@pytest.fixture(scope="module")
def commands() -> dict[str, click.Command]:
    group = cli.LazyGroup()
    context = click.Context(group)
    found: dict[str, click.Command] = {}
    for name in cli.COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {sub}": each for sub, each in command.commands.items()}
    return found


def test_every_command_of_macllm_in_an_answer_exists(told: str, commands: dict[str, click.Command]) -> None:
    typed = [match[1] for match in re.finditer(r"`macllm ([a-z]+(?: [a-z]+)?)", told)]
    assert len(typed) > 60
    unknown = []
    for words in typed:
        first = words.split()[0]
        group = isinstance(commands.get(first), click.Group)
        if first not in commands or (group and " " in words and words not in commands):
            unknown.append(words)
    assert unknown == []


def test_every_flag_in_an_answer_exists(told: str, commands: dict[str, click.Command]) -> None:
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", told))
    options = [option for each in commands.values() for option in each.params]
    known = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    assert len(flags) > 15
    assert flags - known - {"--help"} == set()


def test_every_slash_command_in_an_answer_exists(told: str) -> None:
    named = {match[1] for text in FENCED.findall(told) if (match := re.match(r"/([a-z]+)\b(?!/)", text))}
    assert len(named) > 20
    assert named - set(slash.NAMES) == set()


def test_every_key_in_an_answer_is_bound(told: str) -> None:
    bound = {each for keys in KEYS.values() for key in keys for each in key.keys.split(",")}
    named = {key.lower() for key in re.findall(r"\b(?:Ctrl|Alt|Shift)\+\w+", told)}
    assert len(named) >= 10
    assert named - bound == set()
    assert re.findall(r"\bCtrl-\w", told) == []


@pytest.mark.parametrize(
    ("key", "action", "words"),
    [
        ("ctrl+b", "sidebar", "beside"),
        ("ctrl+s", "open('chats')", "search"),
        ("ctrl+o", "open('models')", "models"),
        ("ctrl+p", "open('palette')", "commands"),
        ("ctrl+r", "search", "earlier"),
        ("ctrl+g", "editor", "EDITOR"),
        ("f1", "open('help')", "keys"),
    ],
)
def test_a_key_is_told_by_its_action(told: str, key: str, action: str, words: str) -> None:
    assert action in {each.action for keys in KEYS.values() for each in keys if key in each.keys.split(",")}
    shown = "+".join(part.capitalize() for part in key.split("+"))
    assert any(shown in line and words in line for line in told.splitlines())


def test_no_existing_command_is_refused_as_unknown(commands: dict[str, click.Command]) -> None:
    refused = {name.strip("`").removeprefix("macllm ") for name in Guide(random.Random(0)).slots["command"]}
    known = {flag for each in commands.values() for option in each.params for flag in option.opts}
    assert refused & (set(commands) | known) == set()
