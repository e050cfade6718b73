"""`macllm data`: check training data, and make some by a model's own judgement."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from macllm.files import json_text
from macllm.train.config import FinetuneConfig, FinetuneObjective, PretrainConfig
from macllm.train.config.objective import OBJECTIVES, AnyObjective
from macllm.units import bytes_text, count_text

from . import answers, constitution, names
from .fetch import fetch_rows, fetch_tokenizer
from .output import followed, working
from .settings import options_for

if TYPE_CHECKING:
    from macllm.train.check import DataReport

SHOWN_ON_A_TERMINAL = 2
# Settings of a run that change its examples.
_SETTINGS = (
    "valid", "max_seq_length", "long_rows", "mask_prompt", "chat_feature", "prompt_feature", "completion_feature",
    "text_feature", "date",
)  # fmt: skip


@click.group("data", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Check training data, make some by a model's judgement, and show the cache of encoded rows."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _made in (answers.answer, constitution.critique, constitution.prefer):
    command.add_command(_made)


@command.command("check")
@click.argument("data", metavar="FILE|FOLDER|hf:NAME")
@click.option(
    "-m", "--model", default="maclet", show_default=True, metavar="NAME", shell_complete=names.models,
    help="Model, or folder of a tokenizer, that the rows are for.",
)  # fmt: skip
@click.option(
    "--objective",
    type=click.Choice(tuple(OBJECTIVES)),
    metavar="NAME",
    default="sft",
    show_default=True,
    help=f"Objective of the run that the rows are for: {', '.join(OBJECTIVES)}.",
)
@options_for(FinetuneConfig, _SETTINGS)
@click.option(
    "--against", multiple=True, metavar="FILE", help="Find rows of FILE, such as a test set, among the training rows."
)
@click.option(
    "--show", type=click.IntRange(min=0), default=None, metavar="N",
    help=f"Show N rows with their loss masks. [default: {SHOWN_ON_A_TERMINAL} on a terminal, else 0]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(data: str, model: str, against: tuple[str, ...], show: int | None, as_json: bool, **fields: Any) -> int:
    """Check rows as a training run reads, renders and cuts them.

    Reports lengths in tokens, rows that cannot be read, are cut or teach nothing, answers whose end is never learned,
    copies, rows that training and other files share, labels that are missing or unknown, and biases of preferences. In
    the rows shown, learned tokens are green and others dim; in a pipe, learned tokens stand between ⟦ and ⟧.

    The exit code is 1 if a run would stop with an error, 2 if a file is missing or rows of --against cannot be read.
    """
    config = _config(data, model, **fields)
    folder = fetch_tokenizer(model)
    fetch_rows(config)
    from macllm.text.tokenizer import Tokenizer
    from macllm.train.check import checking

    with working("loading the tokenizer"):
        tokenizer = Tokenizer.from_folder(folder)
    shown = SHOWN_ON_A_TERMINAL if sys.stdout.isatty() and not as_json else 0
    work = checking(
        config,
        tokenizer,
        against=against,
        context_length=_context_length(folder),
        show=shown if show is None else show,
    )
    report = followed(work)
    if as_json:
        click.echo(json_text(report.as_dict(), indent=2))
    else:
        _print(report)
    return int(report.errors > 0)


@command.command("cache")
@click.option("--clear", is_flag=True, help="Delete the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cache(clear: bool, as_json: bool) -> None:
    """Show the folder and the size of the cache of encoded rows.

    A run that starts again on the same rows, with the same tokenizer and settings, takes them from there. Its limit is
    the setting cache_gb of a run; 0 turns it off.
    """
    from macllm.train import encoding_cache

    freed = encoding_cache.clear() if clear else 0
    entries = encoding_cache.entries()
    size = sum(size for _, size in entries)
    folder = str(encoding_cache.folder())
    if as_json:
        click.echo(json.dumps({"folder": folder, "files": len(entries), "size_bytes": size, "freed_bytes": freed}))
        return
    click.echo(f"{folder}: {count_text(len(entries))} files, {bytes_text(size)}")
    if clear:
        click.echo(f"{bytes_text(freed)} freed")


def _config(data: str, model: str, objective: AnyObjective, **fields: Any) -> FinetuneConfig | PretrainConfig:
    """The settings of a run on the rows; those that it needs beside them do not matter."""
    if objective not in get_args(FinetuneObjective):
        return PretrainConfig.load(data=data, objective=objective, **fields)
    if "rewards" in OBJECTIVES[objective].reads:
        fields["rewards"] = ("exact_match",)
    if "teacher" in OBJECTIVES[objective].reads:
        fields["teacher"] = model
    return FinetuneConfig.load(data=data, model=model, objective=objective, **fields)


def _print(report: DataReport) -> None:
    from .checked import report_lines

    for line in report_lines(report):
        click.echo(line)


def _context_length(folder: Path) -> int | None:
    """The context of a model by its config.json; None for a tokenizer alone."""
    from macllm.files import read_json
    from macllm.hub.shape import read_shape

    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    return read_shape(config).context_tokens if isinstance(config, dict) else None
