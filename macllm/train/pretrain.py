"""Pretraining: config.json, tokenizer and rows in, a checkpoint out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from macllm import checkpoint, families
from macllm.errors import UsageError
from macllm.families.config import Config
from macllm.families.generation import decoder_start, generation_config
from macllm.files import read_json
from macllm.nn.models import Model
from macllm.ops import cpu
from macllm.text.tokenizer import Tokenizer

from . import data, objectives, pack, run
from .config import PretrainConfig
from .events import TrainEvent
from .initial import initialize
from .loop import Trainer


def train(
    settings: PretrainConfig | None = None, /, *, on_event: Callable[[TrainEvent], None] | None = None, **keywords: Any
) -> Path:
    """Train from random weights and return the run directory, with the checkpoint in `model/`.

    Takes a config or its fields as keywords, `config` (the model's config.json) among them. Interrupted, it leaves a
    snapshot and a checkpoint of the last complete step; `resume=True` continues it. Raises UsageError for both.
    """
    if settings is not None and keywords:
        raise UsageError("a config takes no further keywords; set them in it", cause=", ".join(keywords))
    config = settings or PretrainConfig.load(**keywords)
    run.follow(events(config), on_event)
    return Path(config.output)


def events(config: PretrainConfig) -> Generator[TrainEvent]:
    """Train according to `config` and yield the events. Closing the generator saves and ends the run."""
    folder = Path(config.output)
    run.check(folder, config)
    with run.held(folder, config) as notes:
        yield from _events(config, folder, notes)


def _events(config: PretrainConfig, folder: Path, notes: Sequence[str]) -> Generator[TrainEvent]:
    """The events of a run that holds its folder."""
    config = config.dated().pinned()
    cpu.wait()
    raw = _read_json(Path(config.config))
    tokenizer = Tokenizer.from_folder(config.tokenizer_folder)
    model = new_model(raw, config)
    objectives.check_kind(config, model.info)
    if model.spec.head is None:
        raise UsageError(
            f"the model of {config.config} has no head",
            cause="it predicts no tokens",
            remedy='"architectures" with a class that does, such as BertForMaskedLM',
        )
    objective = objectives.chosen(config, model, tokenizer)
    vocab_size = min(filter(None, (model.info.vocab_size, model.info.source_vocab_size)))
    remedy = f'"vocab_size": {tokenizer.vocab_size} in a copy of {config.config}, or a tokenizer of {vocab_size} tokens'
    run.check_vocabulary(config.config, vocab_size, tokenizer.vocab_size, remedy)
    pack.bin_size(config, model, objective)  # refused before rows are read
    rows = yield from data.loading(config, objective, tokenizer, model.info.context_length)
    larger = f'a larger "vocab_size" in a copy of {config.config}'
    run.check_tokens(config.config, vocab_size, [*rows.train, *rows.valid], larger)

    def export() -> Path:
        checkpoint.save(model, tokenizer, folder / "model")
        return folder / "model"

    snapshots = run.snapshots(folder, config, {"rows": rows.fingerprint(), "architecture": raw})
    trainer = Trainer.of(model, objective, config, rows, snapshots)
    yield from run.record(folder, config, trainer.run(export), notes)


def new_model(raw: dict[str, Any], config: PretrainConfig) -> Model:
    """The model that a config.json describes, in float32, with random weights."""
    if not families.is_known(raw):
        raise UsageError(
            f"macllm cannot train the family of {config.config}",
            cause=f"model_type is {raw.get('model_type')!r}",
            remedy=f"one of {', '.join(families.FAMILIES)}",
        )
    text = families.text_config(raw)
    model = checkpoint.build_model(families.spec(Config(text)), text["model_type"])
    initialize(model, config.init_std, config.seed)
    start = decoder_start(generation_config(raw, None, text["model_type"]))
    model.info = replace(model.info, config=MappingProxyType(raw), decoder_start=start)
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = read_json(path)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}", cause=error.strerror, remedy="--set config=path/to/config.json"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON", cause=str(error)) from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} is not a JSON object")
    return raw
