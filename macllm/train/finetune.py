"""Fine-tuning: a model and rows in, an adapter or another model out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macllm import adapter, checkpoint, families, hub
from macllm.adapter.names import our_keys, our_modules_to_save
from macllm.errors import UsageError
from macllm.families.extension import extended
from macllm.files import read_json, write_json
from macllm.nn import lora
from macllm.nn.protocol import LanguageModel
from macllm.ops import cpu
from macllm.text.messages import kind_of
from macllm.text.tokenizer import Tokenizer
from macllm.weights.fingerprint import fingerprint

from . import data, heads, objectives, pack, rewards, run
from .config import (
    Divergence,
    FinetuneConfig,
    FinetuneObjective,
    LongRows,
    Method,
    OptimizerName,
    OtherTokens,
    PreferenceLoss,
    Reference,
    RopeScaling,
    Schedule,
    Select,
)
from .config.reinforcement import Importance, PolicyLoss, ScaleRewards
from .contract import Generates
from .events import TrainEvent
from .loop import Trainer
from .objectives.value_head import drop_value_head
from .parameters import tell_of_experts, train_weights

_RESIZE = "resize the model's embedding (transformers: resize_token_embeddings), or remove the added tokens"


def finetune(
    config: FinetuneConfig | None = None,
    *,
    on_event: Callable[[TrainEvent], None] | None = None,
    objective: FinetuneObjective | None = None,
    model: str | None = None,
    adapter_path: str | None = None,
    method: Method | None = None,
    num_layers: int | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    use_rslora: bool | None = None,
    use_dora: bool | None = None,
    dropout: float | None = None,
    keys: Sequence[str] | None = None,
    modules_to_save: Sequence[str] | None = None,
    data: str | None = None,
    valid: str | None = None,
    valid_fraction: float | None = None,
    max_seq_length: int | None = None,
    long_rows: LongRows | None = None,
    mask_prompt: bool | None = None,
    chat_feature: str | None = None,
    prompt_feature: str | None = None,
    completion_feature: str | None = None,
    text_feature: str | None = None,
    cache_gb: float | None = None,
    date: str | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    teacher: str | None = None,
    divergence: Divergence | None = None,
    jsd_weight: float | None = None,
    distil_temperature: float | None = None,
    data_weight: float | None = None,
    teacher_top: int | None = None,
    teacher_others: OtherTokens | None = None,
    teacher_first: bool | None = None,
    centering: float | None = None,
    preference_loss: PreferenceLoss | None = None,
    label_smoothing: float | None = None,
    desirable_weight: float | None = None,
    undesirable_weight: float | None = None,
    reference: Reference | None = None,
    rewards: Sequence[str] | None = None,
    reward_weights: Sequence[str] | None = None,
    answer_feature: str | None = None,
    judge: str | None = None,
    num_generations: int | None = None,
    max_completion_length: int | None = None,
    num_iterations: int | None = None,
    num_minibatches: int | None = None,
    kl_coefficient: float | None = None,
    clip_low: float | None = None,
    clip_high: float | None = None,
    policy_loss: PolicyLoss | None = None,
    importance: Importance | None = None,
    scale_rewards: ScaleRewards | None = None,
    leave_one_out: bool | None = None,
    discount: float | None = None,
    gae_lambda: float | None = None,
    value_coefficient: float | None = None,
    value_clip: float | None = None,
    whiten: bool | None = None,
    label_smoothing_factor: float | None = None,
    router_aux_loss_coef: float | None = None,
    router_z_loss_coef: float | None = None,
    context_length: int | None = None,
    rope_scaling: RopeScaling | None = None,
    rope_theta: float | None = None,
    batch_size: int | None = None,
    packing: bool | None = None,
    grad_accumulation_steps: int | None = None,
    iters: int | None = None,
    epochs: float | None = None,
    seed: int | None = None,
    optimizer: OptimizerName | None = None,
    learning_rate: float | None = None,
    lora_plus_ratio: float | None = None,
    schedule: Schedule | None = None,
    warmup: float | None = None,
    warmup_init: float | None = None,
    decay_steps: int | None = None,
    decay: float | None = None,
    min_lr_ratio: float | None = None,
    adamw_rate: float | None = None,
    embedding_rate: float | None = None,
    layer_decay: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    epsilon: float | None = None,
    momentum: float | None = None,
    first_moment_bits: int | None = None,
    weight_decay: float | None = None,
    decay_all: bool | None = None,
    max_grad_norm: float | None = None,
    grad_checkpoint: bool | None = None,
    steps_per_report: int | None = None,
    report_to: Sequence[str] | None = None,
    steps_per_eval: int | None = None,
    val_batches: int | None = None,
    save_every: int | None = None,
    keep: int | None = None,
    select: Select | None = None,
    spike_threshold: float | None = None,
    spike_patience: int | None = None,
    rollbacks: int | None = None,
    pause_on_battery: bool | None = None,
    resume: bool | None = None,
) -> Path:
    """Train a LoRA adapter and return the run directory, which mlx-lm loads as an adapter too.

    With method "full" train all weights, and return the folder of the new model. Takes a config, or its fields as
    keywords (`FinetuneConfig` documents each). Interrupted, it leaves a snapshot and the result of the last complete
    step; `resume=True` continues it. Raises UsageError for invalid values.
    """
    keywords = {name: value for name, value in locals().items() if name not in ("config", "on_event")}
    if config is not None and (given := [name for name, value in keywords.items() if value is not None]):
        raise UsageError("a config takes no further keywords; set them in it", cause=", ".join(given))
    if config is not None and not isinstance(config, FinetuneConfig):
        raise UsageError(f"config is {kind_of(config)}, not a FinetuneConfig", remedy='finetune(data="rows.jsonl")')
    config = config or FinetuneConfig.load(**keywords)
    run.follow(events(config), on_event)
    return Path(config.result)


def events(config: FinetuneConfig) -> Generator[TrainEvent]:
    """Train according to `config` and yield the events. Closing the generator saves and ends the run."""
    folder = Path(config.adapter_path)
    run.check(folder, config)
    with run.held(folder, config) as notes:
        yield from _events(config, folder, notes)


def _events(config: FinetuneConfig, folder: Path, notes: Sequence[str]) -> Generator[TrainEvent]:
    """The events of a run that holds its folder."""
    cpu.wait()
    source = hub.resolve(config.model)
    model, tokenizer = _loaded(config, source)
    base = fingerprint(source)
    if model.info.vocab_size is not None:
        run.check_vocabulary(config.model, model.info.vocab_size, tokenizer.vocab_size, _RESIZE)
    config = config.fitted(_parameters(model)).dated().pinned()
    objectives.check_kind(config, model.info)
    names = heads.prepare(cast("nn.Module", model), tokenizer, config)
    objective = objectives.chosen(config, cast("nn.Module", model), tokenizer, names)
    pack.bin_size(config, model, objective)  # refused before rows are read
    trained = _trainable(model, config)
    if config.method == "lora" and not config.keys:
        tell_of_experts(cast("nn.Module", model))
    rows = yield from data.loading(config, objective, tokenizer, model.info.context_length)
    if model.info.vocab_size is not None:
        run.check_tokens(config.model, model.info.vocab_size, [*rows.train, *rows.valid], _RESIZE)
    if isinstance(objective, data.Prepares):
        rows = yield from objective.prepare(model, rows, folder, base)
    if isinstance(objective, Generates):
        objective = objective.bound(model, tokenizer)

    def export() -> Path:
        drop_value_head(cast("nn.Module", model))
        if config.method == "full":
            saved = checkpoint.save(model, tokenizer, config.result, checkpoint.stored_types(source))
            _lengthen(saved / "tokenizer_config.json", config.context_length)
            return saved
        adapter.save(model, folder, _about(config) | {adapter.BASE: base})
        return folder

    identity = {"rows": rows.fingerprint(), "adapted": trained, "base": base} | ({"labels": names} if names else {})
    identity |= {"rewarded": rewards.identity(config.rewards)} if config.rewards else {}
    snapshots = run.snapshots(folder, config, identity)
    trainer = Trainer.of(model, objective, config, rows, snapshots)
    yield from run.record(folder, config, trainer.run(export), notes)


def _loaded(config: FinetuneConfig, source: Path) -> tuple[Any, Tokenizer]:
    """The model, with rotary positions for a longer context if one is asked for, and its tokenizer."""
    if not config.extends:
        return checkpoint.load(config.model)
    change = (config.context_length, config.rope_scaling, config.rope_theta)
    raw = families.with_text_config(checkpoint.read_config(source), lambda text: extended(text, *change))
    return checkpoint.load_model(source, config=raw), Tokenizer.from_folder(source)


def _lengthen(path: Path, length: int) -> None:
    """Raise the `model_max_length` of a tokenizer_config.json to `length` tokens, if it has one."""
    values = read_json(path) if path.is_file() else {}
    if length > values.get("model_max_length", length):
        write_json(path, values | {"model_max_length": length})


def _trainable(model: LanguageModel, config: FinetuneConfig) -> list[str]:
    """Make trainable what the method trains: the names of adapted layers, or of weights."""
    modules = cast("nn.Module", model)
    if config.method == "full":
        if not families.is_known(dict(model.info.config)):
            raise UsageError(
                f"macllm cannot save the weights of {config.model}",
                cause=f"model_type is {model.info.config.get('model_type')!r}, which runs through mlx-lm's class",
                remedy="--lora",
            )
        return train_weights(modules, config.num_layers, heads.modules(modules))
    return lora.apply(
        modules,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        keys=our_keys(modules, config.keys),
        num_layers=config.num_layers,
        seed=config.seed,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        modules_to_save=(*our_modules_to_save(modules, config.modules_to_save), *heads.modules(modules)),
    )


def _parameters(model: LanguageModel) -> int:
    """Approximate number of parameters; a packed uint32 word counts as eight."""
    arrays: list[tuple[str, Any]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    return sum(array.size * (8 if array.dtype == mx.uint32 else 1) for _, array in arrays)


def _about(config: FinetuneConfig) -> dict[str, Any]:
    local = Path(config.model)
    return {"model": str(local.resolve()) if local.is_dir() else config.model, "learning_rate": config.learning_rate}
