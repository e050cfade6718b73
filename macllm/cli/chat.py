"""`macllm chat`: a conversation, full-screen on a terminal, else as plain lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from . import names
from .resuming import fetched, resume_options, resumed, say_resume_line
from .sampling import model_options, sampling_options

if TYPE_CHECKING:
    from macllm.generation.contract import OnStatus

SETTINGS = ("chat.model", "chat.adapter", "chat.system", "chat.max_tokens", "chat.plain", "ui.theme")
# A conversation goes on with its own model and system prompt.
OF_CONVERSATION = ("chat.model", "chat.adapter", "chat.system", "chat.preset")


@click.command("chat")
@click.argument("prompt", required=False)
@model_options
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Longest answer, in tokens. [default: up to the end of the context]",
)
@click.option("--plain/--no-plain", default=None, help="Use plain lines instead of the full screen.")
@click.option(
    "-p",
    "--preset",
    metavar="NAME",
    shell_complete=names.presets,
    help="System prompt and sampling of [presets.NAME] in the settings.",
)
@click.option("--theme", metavar="NAME", help="Colors of the full screen: dark, light, ansi or auto. [default: auto]")
@click.option("-v", "--verbose", is_flag=True, help="Print token counts and speed to stderr.")
@resume_options
@sampling_options
def command(prompt: str | None, sampling: dict[str, Any], **flags: Any) -> int:
    """Chat with a model.

    On a terminal, PROMPT is the first message of the conversation. In a pipe, the answer to PROMPT goes to
    stdout, and piped input is attached to PROMPT: cat notes.txt | macllm chat "summarise".
    Without PROMPT, piped input is attached to a conversation on the terminal, and the conversation goes to stdout
    when it ends: macllm chat > chat.md.
    Conversations are stored, unless --temporary; macllm chats lists them.
    """
    from macllm.chat.options import ChatOptions, open_session
    from macllm.chat.session import Session
    from macllm_tui import run_chat

    from .configured import configured

    chosen = {name: flags.pop(name) for name in ("goes_on", "resume", "fork")}
    given = {key: flags.pop(key.partition(".")[2]) for key in SETTINGS}
    goes_on = any(value not in (None, False) for value in chosen.values())
    ignored = OF_CONVERSATION if goes_on else ()
    found = configured(given, sampling, preset=flags.pop("preset"), ignored=ignored)
    flags |= {"theme": found["ui.theme"] or "auto", "sidebar": bool(found["ui.sidebar"])}
    flags |= {"config": found.config, "preset": found.preset, **found.chat}
    sampling = found.sampling
    options = ChatOptions(prompt=prompt, seed=sampling.pop("seed", None), sampling=sampling, **flags)
    options = fetched(resumed(options, **chosen), given["chat.model"])
    sessions: list[Session] = []

    def opener(options: ChatOptions, on_status: OnStatus) -> Session:
        sessions.append(open_session(options, on_status))
        return sessions[-1]

    try:
        return run_chat(options, opener)
    finally:
        say_resume_line(sessions, prompt)
