"""`macllm train`: a recipe in, a model trained from random weights out."""

from __future__ import annotations

from pathlib import Path

import click

from macllm.errors import UsageError
from macllm.train.config import PretrainConfig

from .native import compile_kernels
from .settings import config_options
from .training import check, tell


@click.command("train")
@click.argument("toml_file", metavar="[RECIPE]", type=click.Path(), required=False)
@config_options(PretrainConfig)
def command(config: PretrainConfig) -> None:
    """Train a model from random weights, as the TOML file RECIPE says; a flag changes what it says.

    The recipe names a config.json, a tokenizer and rows. The run's folder goes to stdout. --resume with --output goes
    on with a run, by the settings that its folder holds.
    """
    check(config)
    for path, found in ((Path(config.config), Path.is_file), (Path(config.tokenizer), Path.is_dir)):
        if not found(path):
            raise UsageError(f"there is no {path}", remedy="--config and --tokenizer, or a recipe that names them")
    compile_kernels()
    from macllm.train.pretrain import events

    tell(events(config), config.output)
