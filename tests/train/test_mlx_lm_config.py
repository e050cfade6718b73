"""Configs of mlx-lm, read as settings of fine-tuning."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest

from macllm.errors import UsageError
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.config.mlx_lm import _loader, _share, read
from macllm.train.optim import learning_rate

EXAMPLE = """
model: org/name
train: true
fine_tune_type: lora
data: rows.jsonl
seed: 7
num_layers: 8
batch_size: 2
iters: 1000
learning_rate: 1e-5
steps_per_report: 20
grad_checkpoint: true
mask_prompt: true
resume_adapter_file: null
test: false
optimizer: adamw
optimizer_config:
  adamw:
    betas: [0.9, 0.98]
    eps: 1e-6
    bias_correction: true
lora_parameters:
  keys: ["self_attn.q_proj", "mlp.down_proj"]
  rank: 16
  scale: 10.0
  dropout: 0.1
lr_schedule:
  name: cosine_decay
  warmup: 100
  warmup_init: 1e-7
  arguments: [2e-5, 1000, 1e-6]
"""


def load(folder: Path, text: str, **changes: object) -> FinetuneConfig:
    (folder / "lora.yaml").write_text(text)
    return FinetuneConfig.load(folder / "lora.yaml", **changes)


def test_keys_that_mean_the_same_are_taken_over(tmp_path: Path) -> None:
    config = load(tmp_path, EXAMPLE, keep=5)
    assert (config.model, config.data, config.seed, config.num_layers) == ("org/name", "rows.jsonl", 7, 8)
    assert (config.batch_size, config.iters, config.steps_per_report, config.keep) == (2, 1000, 20, 5)
    assert (config.rank, config.alpha, config.dropout, config.keys) == (
        16,
        160.0,
        0.1,
        ("self_attn.q_proj", "mlp.down_proj"),
    )
    assert (config.schedule, config.learning_rate, config.warmup) == ("cosine", 2e-5, 0.101)
    assert config.min_lr_ratio == pytest.approx(0.05)
    assert (config.beta1, config.beta2, config.epsilon, config.weight_decay) == (0.9, 0.98, 1e-6, 0.01)
    assert load(tmp_path, EXAMPLE + "report_to: wandb, tensorboard\n").report_to == ("wandb", "tensorboard")
    assert (config.grad_checkpoint, config.mask_prompt) == (True, True)


def test_keys_that_a_file_leaves_out_have_mlx_lms_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "data: rows.jsonl\n")
    assert (config.model, config.rank, config.alpha, config.num_layers) == ("Qwen/Qwen3-0.6b", 8, 160.0, 16)
    assert (config.learning_rate, config.schedule, config.warmup, config.iters) == (1e-5, "constant", 0.0, 1000)
    assert (config.mask_prompt, config.max_grad_norm, config.val_batches) == (False, 0.0, 25)


def test_all_of_mlx_lms_methods_are_trained(tmp_path: Path) -> None:
    config = load(tmp_path, "data: rows.jsonl\nfine_tune_type: dora\n")
    assert (config.method, config.use_dora, config.rank) == ("lora", True, 8)
    full = EXAMPLE.replace("fine_tune_type: lora", "fine_tune_type: full")
    config = load(tmp_path, full)
    assert (config.method, config.num_layers, config.rank, config.keys) == ("full", 8, 16, ())  # 16: the default
    config = load(tmp_path, full.replace("num_layers: 8", "num_layers: -1"))
    assert config.num_layers > 1000  # all layers, but neither embeddings nor head


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("learning_rate: 2E-5", "learning_rate", 2e-5),
        ("learning_rate: .5e-4", "learning_rate", 5e-5),
        ("mask_prompt: yes", "mask_prompt", True),
        ("mask_prompt: off", "mask_prompt", False),
        ("val_batches: null", "val_batches", 25),
        ("iters:", "iters", 1000),
        ("max_seq_length: 1_024", "max_seq_length", 1024),
        ("lora_parameters: &a {rank: 4, scale: 2}", "alpha", 8.0),
        ("optimizer: AdamW", "weight_decay", 0.01),
        ("optimizer_config: {adamw: {weight_decay: 0.5}}", "weight_decay", 0.0),
        ("data: mlx-community/WikiSQL", "data", "hf:mlx-community/WikiSQL"),
    ],
)
def test_values_are_those_that_mlx_lm_reads(text: str, name: str, value: object, tmp_path: Path) -> None:
    read_value = getattr(load(tmp_path, text, **({} if "data" in text else {"data": "x"})), name)
    assert (read_value, type(read_value)) == (value, type(value))


def test_numbers_are_read_as_by_mlx_lms_loader(tmp_path: Path) -> None:
    yaml, lora = pytest.importorskip("yaml"), pytest.importorskip("mlx_lm.lora")
    for text in (
        "1e-5",
        "1E5",
        "1.e-5",
        ".5e-5",
        "1e+3",
        "-2e3",
        "1_0e2",
        "1:30",
        "010",
        ".inf",
        "e5",
        "1e",
        "yes",
        "~",
    ):
        assert repr(yaml.load(text, _loader())) == repr(yaml.load(text, lora.yaml_loader)), text


def test_keys_with_another_name_or_form_are_told(tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").write_text(EXAMPLE)
    notes = read(tmp_path / "lora.yaml").notes
    assert "defaults hold" in notes[0]
    assert not any("bias" in note for note in notes)
    (tmp_path / "lora.yaml").write_text(EXAMPLE.replace("    bias_correction: true\n", ""))
    assert "moments are corrected" in read(tmp_path / "lora.yaml").notes[-1]
    (tmp_path / "lora.yaml").write_text(EXAMPLE)
    assert (
        "  lora_parameters: rank = 16, alpha = 160.0, dropout = 0.1, keys = ['self_attn.q_proj', 'mlp.down_proj']"
        in notes
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fine_tune_type: lokr", "fine_tune_type (lokr"),
        ("optimizer: adafactor", "optimizer (adafactor"),
        ("resume_adapter_file: a.safetensors", "resume_adapter_file (an adapter"),
        ("report_to: swanlab", "report_to (swanlab"),
        ("test: true", "test (no test"),
        ("lora_parameters: {rank: 8, alpha: 3}", "lora_parameters (alpha unknown)"),
        ("lora_parameters: [1]", "lora_parameters (it is malformed)"),
        ("lr_schedule: {name: step_decay, arguments: [1, 2, 3]}", "step_decay"),
        ("lr_schedule: {name: cosine_decay, warmup: 1000, arguments: [1e-5, 10]}", "over 1000 steps of a run of 1000"),
        ("grad_accumulation_steps: 1001", "1000 iterations make no step of 1001"),
        ("lr_schedule: {name: cosine_decay}", "lr_schedule (it is malformed)"),
        ("optimizer_config: {adam: {gamma: 1}}", "optimizer_config (gamma unknown)"),
        ("optimizer_config: 3", "optimizer_config (it is malformed)"),
        ("learning_rates: 1", "learning_rates (unknown; did you mean learning_rate?)"),
        ("rank: 4", "rank (it belongs into lora_parameters)"),
        ("lora_parameters: {keys: q_proj}", "keys is 'q_proj', not a list"),
        ("lora_parameters: {rank: big}", "rank is 'big', not a number"),
        ("lr_schedule: {name: cosine_decay, arguments: [1e-5, 1000], warm: 1}", "lr_schedule (warm unknown)"),
        ("iters: 0", "iters (0 trains nothing)"),
        ("learning_rate: 0.0", "learning_rate (0 trains nothing)"),
        ("seed: 1\nseed: 2", "line 2: seed is given twice"),
        ("lora_parameters:\n  rank: 1\n  rank: 2", "line 3: rank is given twice"),
        ("seed: 1\n---\nseed: 2", "line 2: expected a single document"),
        ("seed:\t1", "line 1: while scanning"),
        ("", "it is empty"),
        ("model: yes", "lora.yaml: model cannot be true"),
        ("seed: '3'", "lora.yaml: seed cannot be '3'"),
        ("mask_prompt: 1", "lora.yaml: mask_prompt cannot be 1"),
        ("- 1", "not a mapping"),
        ("a: [", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_keys_without_an_equal_are_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load(tmp_path, text)
    assert message in f"{error.value.message} {error.value.cause}"


@pytest.mark.parity
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(
    "schedule",
    [
        "{name: cosine_decay, warmup: 7, warmup_init: 1e-7, arguments: [2e-5, 60, 1e-6]}",
        "{name: cosine_decay, warmup: 5, arguments: [2e-5, 60]}",
        "{name: cosine_decay, warmup: 1, arguments: [2e-5, 8, 1e-6]}",
        "{name: linear_schedule, arguments: [1e-4, 1e-5, 60]}",
        "{name: linear_schedule, warmup: 13, arguments: [1e-4, 0, 47]}",
        "{name: cosine_decay, warmup: 14, arguments: [1e-4, 200]}",
    ],
)
def test_every_step_has_the_rate_of_mlx_lm(schedule: str, accumulation: int, tmp_path: Path) -> None:
    import mlx.optimizers
    import yaml
    from mlx_lm.tuner.utils import build_schedule

    keys = f"data: x\niters: {61 * accumulation}\ngrad_accumulation_steps: {accumulation}\n"
    config = load(tmp_path, f"{keys}lr_schedule: {schedule}\n")
    assert (config.iters, config.save_every) == (61, 100 // accumulation)
    theirs = mlx.optimizers.Adam(build_schedule(yaml.load(schedule, _loader())))
    for step in range(61):
        theirs.update({}, {})
        assert learning_rate(config, step, 61) == pytest.approx(theirs.learning_rate.item(), rel=2e-6, abs=1e-12), step


def test_only_fine_tuning_reads_them(tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").write_text("data: x\n")
    with pytest.raises(UsageError, match="is not TOML"):
        PretrainConfig.load(tmp_path / "lora.yaml")


@pytest.mark.parametrize("steps", [1, 2, 3, 150, 300, 900, 1500])
def test_every_length_of_the_warm_up_is_a_share_of_the_steps(steps: int) -> None:
    for count in range(steps + 1):
        assert math.ceil(Fraction(str(_share(count, steps))) * steps) == count
