"""`macllm chats`: list, search, show, export, import, remove and replay stored conversations."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from macllm.errors import MacllmError, ModelNotFoundError, UsageError
from macllm.units import date_text
from macllm.visible import one_line, visible

from . import names
from .output import report, say

if TYPE_CHECKING:
    from macllm.chat.conversation import Turn
    from macllm.chat.replay import Replay
    from macllm.chat.rows import StoredChat
    from macllm.chat.store import Store
    from macllm.generation.contract import Engine

FORMATS = ("md", "json", "html")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_LIMIT = click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="At most N conversations.")
_CONTEXT = 20  # characters shown before and after the first difference


@click.group("chats", epilog="ID is the beginning of an id, as macllm chats ls shows it.", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, search, show, export, import, remove and replay stored conversations."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("ls")
@_LIMIT
@_JSON
def ls(limit: int | None, as_json: bool) -> None:
    """List the conversations, newest change first."""
    store = _store()
    chats = store.list(limit)
    if as_json:
        _print_json([asdict(chat) for chat in chats])
        return
    if not chats:
        say("no conversation is stored yet; macllm chat begins one")
    ids = store.short_ids()
    for chat in chats:
        _print(f"{_line(ids, chat)}  {one_line(chat.name)}")


@command.command("search")
@click.argument("text")
@_LIMIT
@_JSON
def search(text: str, limit: int | None, as_json: bool) -> int:
    """Find the conversations with all words of TEXT in a message or in the title.

    "Words in quotation marks" stay together. Exits with 1 if nothing is found.
    """
    store = _store()
    hits = store.search(text, limit)
    if as_json:
        _print_json([asdict(hit.chat) | {"message": hit.message, "snippet": hit.snippet} for hit in hits])
    else:
        ids = store.short_ids()
        for hit in hits:
            _print(f"{_line(ids, hit.chat)}  {one_line(hit.chat.name)}")
            if hit.snippet:
                _print(f"    {hit.snippet}")
    if not hits:
        say("nothing found")
    return 0 if hits else 1


@command.command("show")
@click.argument("chat", metavar="ID", shell_complete=names.chats)
@_JSON
def show(chat: str, as_json: bool) -> None:
    """Print the current path of a conversation, with the numbers of its messages."""
    from macllm.chat.archive import as_object
    from macllm.chat.conversation import with_attachments
    from macllm.chat.exports import model_name
    from macllm.chat.transcript import ENDINGS, cut_text

    conversation = _store().load(chat)
    if as_json:
        _print_json(as_object(conversation))
        return
    _print(one_line(conversation.name))
    if conversation.system:
        _print(f"\nsystem\n{conversation.system}")
    for number, node in enumerate(conversation.path, 1):
        turn = node.turn
        if turn.role == "cut":
            _print(f"\n{number}  {cut_text(turn)}")
            continue
        siblings = conversation.siblings(node.id)
        place = f"  ‹{siblings.index(node.id) + 1}/{len(siblings)}›" if len(siblings) > 1 else ""
        _print(f"\n{number}  {'you' if turn.role == 'user' else model_name(conversation.at(node.id))}{place}")
        _print(with_attachments(turn.content, turn.attachments).strip("\n"))
        if turn.finish in ENDINGS:
            _print(f"({ENDINGS[turn.finish]})")


@command.command("export")
@click.argument("chat", metavar="ID", shell_complete=names.chats)
@click.option("-f", "--format", "form", type=click.Choice(FORMATS), help="[default: by FILE's name, else md]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def export_chat(chat: str, form: str | None, output: Path | None, force: bool) -> None:
    """Print a conversation as Markdown, JSON (all branches, for import) or HTML."""
    from macllm.chat.exports import export, format_of
    from macllm.files import write_text

    text = export(_store().load(chat), form or (format_of(output) if output else "md"))
    if output is None:
        _print(text.removesuffix("\n"))
        return
    try:
        write_text(output, text, overwrite=force)
    except FileExistsError as error:
        raise UsageError(f"{output} exists", remedy="--force replaces it") from error
    say(f"exported to {output}")


@command.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
def import_chats(files: tuple[Path, ...]) -> None:
    """Store conversations from JSON exports; messages that are stored already stay as they are."""
    from macllm.chat.archive import read_export

    store = _store()
    for conversation in [read_export(path) for path in files]:
        new = store.add(conversation)
        _print(store.short(conversation.id))
        say(f"{new} new of {len(conversation.nodes)} messages: {one_line(conversation.name)}")


@command.command("rm")
@click.argument("chats", metavar="ID...", shell_complete=names.chats, nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(chats: tuple[str, ...], yes: bool) -> None:
    """Remove conversations for good."""
    store = _store()
    found = [store.load(chat) for chat in dict.fromkeys(map(store.find, chats))]
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError("removing asks on a terminal", remedy=f"macllm chats rm --yes {' '.join(chats)}")
        for conversation in found:
            say(f"{store.short(conversation.id)}  {one_line(conversation.name)}")
        number = len(found)
        click.confirm(f"remove {number} conversation{'s' * (number != 1)} for good?", abort=True, err=True)
    for conversation in found:
        store.remove(conversation.id)
    say(f"removed {len(found)}")


@command.command("replay")
@click.argument("chat", metavar="ID", shell_complete=names.chats)
@click.option("--verify", is_flag=True, help="Print only the comparison; exit with 1 at a difference.")
@_JSON
def replay_chat(chat: str, verify: bool, as_json: bool) -> int:
    """Make the answers of a conversation again, with the recorded model, settings and seeds.

    The tokens are compared with the recorded ones.
    """
    from macllm.chat.replay import answers, by_model, replay

    conversation = _store().load(chat)
    if not answers(conversation):
        raise UsageError("the conversation has no answer to make again", remedy="macllm chats ls")
    results: list[Replay] = []
    for origin, run in by_model(conversation):
        with _engine(origin.model, origin.adapter, run[0][0]) as engine:
            for each in run:
                results.append(replay(engine, conversation, *each))
                if not as_json:
                    _print_replay(results[-1], with_text=not verify)
    different = sum(result.difference is not None for result in results)
    if as_json:
        _print_json([_compared(result) for result in results])
    say(f"{len(results) - different} of {len(results)} answers are equal")
    return 1 if verify and different else 0


@contextmanager
def _engine(model: str, adapter: str | None, number: int) -> Iterator[Engine]:
    """An engine with the model that made answer `number`. Raises: ModelNotFoundError with a remedy."""
    from macllm.generation.engines.process import ProcessEngine
    from macllm.hub import describe

    try:
        missing = describe(model).missing_bytes
    except MacllmError as error:
        raise _missing(model, number, error.message) from error
    if missing:
        raise _missing(model, number, "it is not downloaded")
    engine = ProcessEngine(model, adapter, on_status=lambda status: status.transient or say(status.text))
    try:
        yield engine
    finally:
        engine.close()


def _missing(model: str, number: int, cause: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"message {number} was made by {model}, which is missing", cause=cause, remedy=f"macllm models get {model}"
    )


def _print_replay(result: Replay, *, with_text: bool) -> None:
    turn = result.node.turn
    if with_text:
        _print(f"{result.number}  {result.text}\n")
    if (place := result.difference) is None:
        text = f"{result.number}  equal  {len(result.tokens)} tokens"
    else:
        old, new = _apart(turn, result)
        text = f"{result.number}  different from token {place + 1} on: recorded {old!r}, now {new!r}"
    if with_text:
        say(text)
    else:
        _print(text)


def _apart(turn: Turn, result: Replay) -> tuple[str, str]:
    """The texts around the first character that differs."""
    old, new = turn.content, result.text
    pairs = zip(old, new, strict=False)
    at = next((n for n, (before, after) in enumerate(pairs) if before != after), min(len(old), len(new)))
    part = slice(max(at - _CONTEXT, 0), at + _CONTEXT)
    return old[part], new[part]


def _compared(result: Replay) -> dict[str, Any]:
    return {
        "message": result.node.id,
        "number": result.number,
        "equal": result.difference is None,
        "first_difference": result.difference,
        "recorded": {"text": result.node.turn.content, "tokens": list(result.node.turn.tokens)},
        "now": {"text": result.text, "tokens": list(result.tokens)},
    }


def _store() -> Store:
    from macllm.chat.store import Store

    return Store(on_error=report)


def _line(ids: dict[str, str], chat: StoredChat) -> str:
    return f"{ids.get(chat.id, chat.id)}  {date_text(chat.updated)}  {chat.messages:>4}"


def _print(text: str) -> None:
    """Print to stdout; on a terminal without what it would obey, elsewhere without what cannot be encoded."""
    click.echo(visible(text) if sys.stdout.isatty() else text.encode("utf-8", "replace").decode())


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2, ensure_ascii=False))
