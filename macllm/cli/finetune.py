"""`macllm finetune`: train an adapter, or the weights themselves."""

from __future__ import annotations

import shlex

import click

from macllm.train.config import FinetuneConfig
from macllm.train.config.objective import OBJECTIVES

from . import names
from .fetch import fetch
from .native import compile_kernels
from .output import say
from .settings import SettingsCommand, config_options
from .training import RESTARTS, check, events, narrate, restarts_option


@click.command("finetune", cls=SettingsCommand)
@click.argument("recipe", metavar="[RECIPE]", required=False, shell_complete=names.recipes("finetune"))
@click.option("--lora", "methods", flag_value="lora", multiple=True, help="Train a low-rank adapter (the default).")
@click.option("--full", "methods", flag_value="full", multiple=True, help="Train the weights themselves.")
@click.option(
    "-c", "--config", "toml_file", metavar="FILE", help="The same as RECIPE; also a YAML file of mlx_lm.lora."
)
@click.option("--json", "as_json", is_flag=True, help="Print the events of the run as JSON lines on stdout.")
@restarts_option
@config_options(FinetuneConfig)
def command(config: FinetuneConfig, as_json: bool, restarts: int) -> None:
    """Fine-tune a model on your own data (LoRA or full).

    RECIPE is a TOML file of settings, or else the name of a recipe of macllm (macllm recipe ls); flags override it.
    Each line of the data is a JSON object: {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...};
    rows of Alpaca and ShareGPT are read too. Files may be .jsonl, .json, .txt, and compressed (.gz); .zst and .parquet
    with pip install 'macllm[data]'.
    Prints the folder of the adapter, for macllm chat --adapter or macllm fuse; with --full that of the new model, for
    macllm chat --model. Full fine-tuning takes about 16 bytes of memory for each parameter.
    """
    start(config, as_json=as_json, restarts=restarts)


def start(config: FinetuneConfig, *, as_json: bool = False, restarts: int = RESTARTS) -> None:
    """Train with checked settings, and report the run."""
    check(config)
    fetch(config.model)
    if config.teacher:
        fetch(config.teacher)
    compile_kernels()
    path = narrate(events(config, restarts), config.adapter_path, as_json=as_json)
    say(f"try it: {_use(config, path)}")


def _use(config: FinetuneConfig, path: str) -> str:
    """The command or, for a head that classifies, the Python that uses the result of a run."""
    made = OBJECTIVES[config.objective]
    if made.head is None:
        answers = ["generate", "a source"] if made.kind == "encoder-decoder" else ["chat"]
        return shlex.join(["macllm", *answers, *_flags(config, path)])
    loaded = f"{path!r}" if config.method == "full" else f"{config.model!r}, adapter={path!r}"
    return f"macllm.{config.objective}(*macllm.load({loaded}), [...]) in Python"


def _flags(config: FinetuneConfig, path: str) -> list[str]:
    """The flags of a chat with the result of a run."""
    if config.method == "full":
        return ["--model", path]
    model = [] if config.model == "maclet" else ["--model", config.model]
    return [*model, "--adapter", path]
