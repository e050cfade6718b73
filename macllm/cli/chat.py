"""`macllm chat`: a conversation, full-screen on a terminal, else as plain lines."""

from __future__ import annotations

from typing import Any

import click

from .fetch import fetch
from .sampling import model_options, sampling_options


@click.command("chat")
@click.argument("prompt", required=False)
@model_options
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Longest answer, in tokens. [default: up to the end of the context]",
)
@click.option("--plain", is_flag=True, help="Use plain lines instead of the full screen.")
@click.option("-v", "--verbose", is_flag=True, help="Print token counts and speed to stderr.")
@sampling_options
def command(prompt: str | None, sampling: dict[str, Any], **flags: Any) -> int:
    """Chat with a model.

    On a terminal, PROMPT is the first message of the conversation. In a pipe, the answer to PROMPT goes to
    stdout, and piped input is attached to PROMPT: cat notes.txt | macllm chat "summarise".
    """
    from macllm.chat.options import ChatOptions
    from macllm_tui import run_chat

    fetch(flags["model"])
    return run_chat(ChatOptions(prompt=prompt, seed=sampling.pop("seed", None), sampling=sampling, **flags))
