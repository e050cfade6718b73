"""`macllm data answer`: a model's answers as training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from macllm.train.config import FinetuneConfig
from macllm.units import count_text

from . import names
from .fetch import fetch, fetch_rows
from .native import answering as compiling
from .output import followed, say, working
from .sampling import sampling_options
from .settings import options_for

# Settings of a run that say how rows are read.
_SETTINGS = ("chat_feature", "prompt_feature", "completion_feature", "text_feature")


@click.command("answer")
@click.argument("data", metavar="FILE|FOLDER|hf:NAME")
@click.option(
    "-m", "--model", required=True, metavar="NAME", shell_complete=names.models, help="Model that writes the answers."
)
@click.option("-o", "--output", required=True, metavar="FILE", help="File to write, of JSON lines.")
@click.option("-n", "--max-tokens", type=int, help="Longest answer, in tokens. [default: 256]")
@options_for(FinetuneConfig, _SETTINGS)
@sampling_options
def answer(data: str, model: str, output: str, max_tokens: int | None, sampling: dict[str, Any], **fields: Any) -> None:
    """Let a model answer the questions of rows, for others to learn its answers.

    This is sequence distillation: macllm finetune reads the output. An answer in the rows is not read; of a
    conversation, an answer at the end is replaced. Answers that are empty, call a tool or reach --max-tokens are left
    out, and reasoning is not written. The same command again continues a pass that was interrupted. Prints the file.
    """
    from macllm.generation.options import SAMPLING_NAMES
    from macllm.train import answers, rows
    from macllm.weights.fingerprint import fingerprint

    config = FinetuneConfig.load(data=data, model=model, **fields)
    fetch_rows(config)
    questions = rows.read(rows.find_files(data, "")[0], columns=config.columns)
    folder = fetch(model)
    options = {name: value for name, value in sampling.items() if name in SAMPLING_NAMES and name != "seed"}
    options |= {"max_tokens": max_tokens} if max_tokens else {}
    from macllm.checkpoint import load

    with compiling():
        with working("loading the model"):
            loaded, tokenizer = load(folder)
        made = answers.answering(
            loaded,
            tokenizer,
            questions,
            Path(output),
            identity=fingerprint(folder),
            seed=sampling.get("seed", 0),
            options=options,
        )
        written = followed(made)
    left = f"; {count_text(written.left_out)} left out: empty, cut or a call of a tool" if written.left_out else ""
    say(f"{count_text(written.answers)} answers to {count_text(written.questions)} questions{left}")
    click.echo(output)
