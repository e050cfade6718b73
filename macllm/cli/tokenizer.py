"""`macllm tokenizer`: train a tokenizer, and show how one splits a word."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from macllm.errors import UsageError
from macllm.files import json_text
from macllm.units import bytes_text, count_text

from . import names
from .output import Progress, say, working

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer
    from macllm.train.tokenizer import Fertility, Trained

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group("tokenizer", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Train a tokenizer on texts, and show how a tokenizer splits a word."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("train")
@click.argument("data", nargs=-1, required=True, metavar="FILE|FOLDER|hf:NAME...")
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Folder for the files of the tokenizer.")
@click.option(
    "--type", "kind", type=click.Choice(["bpe", "unigram", "wordpiece"]), default="bpe", show_default=True,
    help="Byte-level BPE as in GPT-2, a Unigram model as in T5, or WordPiece as in BERT.",
)  # fmt: skip
@click.option(
    "--vocab-size", type=click.IntRange(min=1), default=8192, show_default=True, metavar="N",
    help="Tokens in all, special ones included.",
)  # fmt: skip
@click.option(
    "--valid", default="", metavar="FILE", help="Held-out texts for the report. [default: every 20th piece of 4 kB]"
)
@click.option(
    "--special-token",
    "special_tokens",
    multiple=True,
    metavar="TEXT",
    help="A text that is one token; may be repeated.",
)
@click.option(
    "--sentinels", type=click.IntRange(min=0), default=0, metavar="N",
    help="Add T5's <extra_id_0> to <extra_id_N-1>, for span corruption.",
)  # fmt: skip
@click.option("--byte-fallback", is_flag=True, help="Bytes as tokens for unknown characters (Unigram).")
@click.option(
    "--normalization", type=click.Choice(["none", "nfc", "nfkc"]), default="none", show_default=True,
    help="Unicode form of every text.",
)  # fmt: skip
@click.option("--lowercase", is_flag=True, help="Lower case; in WordPiece also without accents.")
@click.option("--add-eos", is_flag=True, help="End every encoded text with the end token, as T5 expects.")
@click.option("--add-mask", is_flag=True, help="Add <mask>, for masked LM and infilling (WordPiece has [MASK]).")
@click.option("--chat", is_flag=True, help="Add ChatML's markers and chat template.")
@click.option(
    "--chat-template", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Jinja template in place of ChatML's; implies --chat.",
)  # fmt: skip
@click.option("--text-feature", default="text", show_default=True, metavar="NAME", help="Column of texts.")
@_JSON
def train(
    data: tuple[str, ...], chat: bool, chat_template: Path | None, text_feature: str, as_json: bool, **fields: Any
) -> None:
    """Train a tokenizer on texts or rows, which are read as a training run reads them.

    Writes tokenizer.json, tokenizer_config.json and, with --chat, chat_template.jinja, for macllm and transformers. The
    same texts and options give the same files. The report counts tokens per word, bytes per token and unknown tokens,
    on training texts and on held-out texts.
    """
    from macllm.train.rows import Columns
    from macllm.train.tokenizer import CHATML, TokenizerConfig
    from macllm.train.tokenizer import train as run

    from .fetch import fetch_named_rows

    template = _template(chat_template) if chat_template else CHATML if chat else ""
    config = TokenizerConfig(data=data, chat_template=template, **fields)
    fetch_named_rows(*data, config.valid)
    with Progress("reading") as line, working(f"training {count_text(config.vocab_size)} tokens"):
        made = run(config, Columns(text=text_feature), line.update)
    if as_json:
        click.echo(json_text(_report(made), indent=2))
        return
    for name, fit in (("training", made.training), ("held out", made.held_out)):
        click.echo(f"{name}: {_fit(fit)}" if fit else f"{name}: no texts, give some with --valid")
    say(f"{count_text(made.tokenizer.vocab_size)} tokens in {made.tokenizer.folder}")


@command.command("show")
@click.argument("model", shell_complete=names.models)
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@_JSON
def show(model: str, words: tuple[str, ...], as_json: bool) -> None:
    """Show how the tokenizer of MODEL (a name or a folder) splits each WORD.

    BPE: the merges in order, each with its rank. Unigram: the lattice of pieces with their log-probabilities, and the
    best path. WordPiece: the longest matches.
    """
    from .fetch import fetch_tokenizer

    folder = fetch_tokenizer(model)
    from macllm.text.segmentation import segment
    from macllm.text.tokenizer import Tokenizer

    from .segmented import as_json_value, lines_of

    tokenizer = Tokenizer.from_folder(folder)
    made = [segment(tokenizer, word) for word in words]
    if as_json:
        click.echo(json_text([as_json_value(each) for each in made], indent=2))
        return
    for each in made:
        for line in lines_of(each):
            click.echo(line)


def _template(path: Path) -> str:
    """The source of a chat template. Raises UsageError if it is not UTF-8 or not Jinja."""
    from macllm.text.template import ChatTemplate

    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", cause=str(error)) from error
    ChatTemplate(source).render([{"role": "user", "content": "?"}])
    return source


def _report(made: Trained) -> dict[str, Any]:
    tokenizer: Tokenizer = made.tokenizer
    fits = {"training": made.training, "held_out": made.held_out}
    shown = {name: None if fit is None else fit.as_dict() for name, fit in fits.items()}
    return {"folder": str(tokenizer.folder), "vocab_size": tokenizer.vocab_size, **shown}


def _fit(fit: Fertility) -> str:
    part = "the first " if fit.is_sample else ""
    share = fit.unknown / max(fit.tokens, 1)
    return (
        f"{part}{bytes_text(fit.size_bytes)}, {count_text(fit.words)} words, {count_text(fit.tokens)} tokens: "
        f"{fit.per_word:.2f} tokens per word, {fit.bytes_per_token:.2f} bytes per token, "
        f"{count_text(fit.unknown)} unknown ({share:.2%})"
    )
