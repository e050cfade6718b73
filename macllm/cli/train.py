"""`macllm train`: train a model from random weights."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from macllm.errors import UsageError
from macllm.train.config import PretrainConfig

from . import names
from .native import compile_kernels
from .settings import SettingsCommand, config_options
from .training import RESTARTS, check, events, narrate, restarts_option


@click.command("train", cls=SettingsCommand)
@click.argument("recipe", metavar="[RECIPE]", required=False, shell_complete=names.recipes("train"))
@click.option("--json", "as_json", is_flag=True, help="Print the events of the run as JSON lines on stdout.")
@restarts_option
@config_options(PretrainConfig)
def command(config: PretrainConfig, as_json: bool, restarts: int) -> None:
    """Train a model from random weights.

    RECIPE is a TOML file of settings, or else the name of a recipe of macllm (macllm recipe ls); flags override it.
    A config.json, a tokenizer and data are required. Prints the folder of the run. To resume a run with its own
    settings, use --resume --output FOLDER.
    """
    start(config, as_json=as_json, restarts=restarts)


def start(config: PretrainConfig, *, as_json: bool = False, restarts: int = RESTARTS) -> None:
    """Train with checked settings, and report the run."""
    check(config)
    for path, found in ((Path(config.config), Path.is_file), (config.tokenizer_folder, Path.is_dir)):
        if not found(path):
            remedy = (
                f"--config and --tokenizer, or a recipe: macllm train pretrain-tiny --data {shlex.quote(config.data)}"
            )
            raise UsageError(f"{path} does not exist", remedy=remedy)
    compile_kernels()
    narrate(events(config, restarts), config.output, as_json=as_json)
