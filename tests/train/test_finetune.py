"""Whole runs on files: training from random weights, then LoRA on the result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import adapter, checkpoint
from macllm.errors import CheckpointError, DataError, UsageError
from macllm.files import read_json, write_json
from macllm.nn import lora
from macllm.train import finetune as finetuning
from macllm.train import pretrain as pretraining
from macllm.train.config import FinetuneConfig, PretrainConfig, TrainConfig
from macllm.train.events import Advanced, Evaluated, Finished, Prepared, Saved, Step, TrainEvent
from macllm.train.finetune import finetune
from macllm.train.pretrain import train
from tests.train.recipes import CONFIG, chat, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.json, a byte tokenizer with a chat template, and rows."""
    folder = tmp_path_factory.mktemp("recipe")
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def base(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint trained from random weights."""
    out = tmp_path_factory.mktemp("base") / "run"
    train(PretrainConfig.load(recipe / "recipe.toml", output=out, iters=60, init_std=0.2, steps_per_eval=0))
    return out / "model"


def lora_config(recipe: Path, base: Path, out: Path, **changes: Any) -> FinetuneConfig:
    settings = {
        "data": recipe / "fact.jsonl",
        "model": base,
        "adapter_path": out,
        "iters": 6,
        "save_every": 2,
        "learning_rate": 0.01,
        "steps_per_report": 1,
        "rank": 4,
        "alpha": 8.0,
    }
    return FinetuneConfig.load(**(settings | changes))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_from_random_weights_writes_a_loadable_checkpoint(base: Path) -> None:
    model, tokenizer = checkpoint.load(base)
    assert tokenizer.render([{"role": "user", "content": "x"}]) == "<user>x<end><assistant>"
    (prepared,) = (event for event in metrics(base.parent) if event["event"] == "Prepared")
    assert sum(array.size for _, array in tree_flatten(model.parameters())) == prepared["parameters"]
    assert {name: model.info.config[name] for name in CONFIG} == CONFIG


def test_the_reported_validation_loss_is_that_of_the_exported_checkpoint(recipe: Path, tmp_path: Path) -> None:
    """Cross-entropy of the answers and their end tokens in float64."""
    folder = train(PretrainConfig.load(recipe / "recipe.toml", output=tmp_path / "run", mask_prompt=True))
    reported = min(event["loss"] for event in metrics(folder) if event["event"] == "Evaluated")
    model, tokenizer = checkpoint.load(folder / "model")
    losses = []
    for line in (recipe / "valid.jsonl").read_text().splitlines():
        question, answer = (message["content"] for message in json.loads(line)["messages"])
        prompt = tokenizer.encode(f"<user>{question}<end><assistant>", add_special_tokens=False)
        tokens = prompt + tokenizer.encode(f"{answer}<end>", add_special_tokens=False)
        logits = np.array(model(mx.array([tokens[:-1]])))[0].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        losses += [-logprobs[at - 1, tokens[at]] for at in range(len(prompt), len(tokens))]
    assert reported == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_run_emits_its_events_in_order(recipe: Path, tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    folder = train(PretrainConfig.load(recipe / "recipe.toml", output=tmp_path / "run"), on_event=events.append)
    read = [e for e in events if isinstance(e, Advanced) and e.work == "reading"]
    assert [(e.done, e.total) for e in read] == [(done, 24) for done in range(24)]
    assert [e.done for e in events if isinstance(e, Advanced) and e.work == "training"] == [1, 2, 3, 4, 5, 6]
    events = [e for e in events if not isinstance(e, Advanced)]
    assert [type(e) for e in events if not isinstance(e, Saved)] == [
        Prepared, Evaluated, Step, Evaluated, Step, Step, Evaluated, Finished,
    ]  # fmt: skip
    first, last = events[0], events[-1]
    assert isinstance(first, Prepared)
    assert isinstance(last, Finished)
    assert (first.rows, first.valid_rows, first.steps, first.first_step) == (20, 4, 6, 0)
    assert first.parameters == first.trained_parameters
    assert last.loss == min(e.loss for e in events if isinstance(e, Evaluated))
    assert [m["event"] for m in metrics(folder)] == [type(e).__name__ for e in events]
    assert json.loads((folder / "run.json").read_text())["iters"] == 6


def test_an_adapter_learns_a_fact_that_the_base_lacks(recipe: Path, base: Path, tmp_path: Path) -> None:
    config = lora_config(recipe, base, tmp_path / "adapters", iters=100, rank=8, alpha=16.0, save_every=0)
    assert finetune(config) == tmp_path / "adapters"
    losses = [m["loss"] for m in metrics(tmp_path / "adapters") if m["event"] == "Step"]
    assert losses[-1] < 0.3 * losses[0]
    model, tokenizer = checkpoint.load(base, adapter=tmp_path / "adapters")
    tokens = tokenizer.encode_chat([{"role": "user", "content": "who"}])
    for _ in range(2):
        tokens.append(int(model(mx.array([tokens]))[0, -1].argmax()))
    assert tokenizer.decode(tokens[-2:]) == "me"
    plain, _ = checkpoint.load(base)
    assert tokenizer.decode([int(plain(mx.array([tokens[:-2]]))[0, -1].argmax())]) != "m"


def test_a_fused_adapter_is_saved_as_a_checkpoint_with_the_same_outputs(
    recipe: Path, base: Path, tmp_path: Path
) -> None:
    finetune(lora_config(recipe, base, tmp_path / "adapters"))
    model, tokenizer = checkpoint.load(base, adapter=tmp_path / "adapters")
    tokens = mx.array([[5, 6, 7]])
    adapted = model(tokens)
    with pytest.raises(UsageError, match="fuse"):
        checkpoint.save(model, tokenizer, tmp_path / "fused")
    lora.fuse(model)
    checkpoint.save(model, tokenizer, tmp_path / "fused")
    again, _ = checkpoint.load(tmp_path / "fused")
    assert float(mx.abs(again(tokens) - adapted).max()) < 1e-4


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_an_interrupted_run_resumes_to_the_same_bytes(recipe: Path, base: Path, tmp_path: Path, stop: int) -> None:
    straight = lora_config(recipe, base, tmp_path / "straight", dropout=0.2)
    finetune(straight)
    halved = dataclasses.replace(straight, adapter_path=str(tmp_path / "halved"))
    with closing(finetuning.events(halved)) as stream:
        for event in stream:
            if isinstance(event, Step) and event.step == stop:
                break
    adapter.attach(checkpoint.load(base)[0], tmp_path / "halved")  # the adapter so far is usable
    with pytest.raises(UsageError, match="--resume"):
        finetune(halved)
    finetune(dataclasses.replace(halved, resume=True))
    assert digest(tmp_path / "halved/adapters.safetensors") == digest(tmp_path / "straight/adapters.safetensors")
    steps = [m["step"] for m in metrics(tmp_path / "halved") if m["event"] == "Step"]
    assert steps == [1, 2, 3, 4, 5, 6]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name",
    ["adapters.safetensors", "adapter_model.safetensors", "adapter_config.json", "model", "run.json", "metrics.jsonl"],
)
def test_nothing_in_the_folder_of_a_run_is_overwritten(
    recipe: Path, base: Path, tmp_path: Path, name: str, resume: bool
) -> None:
    out = tmp_path / "out"
    (out / "model").mkdir(parents=True) if name == "model" else out.mkdir()
    (out / name / "weights" if name == "model" else out / name).write_text("{}")
    before = contents(out)
    with pytest.raises(UsageError) as error:
        finetune(dataclasses.replace(lora_config(recipe, base, out), resume=resume))
    assert "another folder" in str(error.value.remedy)
    with pytest.raises(UsageError, match="no run to resume" if resume else "already has"):
        train(dataclasses.replace(PretrainConfig.load(recipe / "recipe.toml", output=out), resume=resume))
    assert contents(out) == before


@pytest.mark.parametrize("name", ["snapshots", ".lock", "."])
def test_a_file_or_folder_in_the_way_of_a_run_is_one_error(recipe: Path, base: Path, tmp_path: Path, name: str) -> None:
    config = lora_config(recipe, base, tmp_path / "out")
    path = tmp_path / "out" / name
    path.mkdir(parents=True) if name == ".lock" else path.parent.mkdir(exist_ok=True)
    if name != ".lock":
        path.write_text("mine")
    with pytest.raises(UsageError, match=r"already has a run|cannot write|is a file"):
        finetune(config)
    assert path.is_dir() or path.read_text() == "mine"


def test_a_run_without_its_snapshots_is_not_resumed_and_keeps_its_adapter(
    recipe: Path, base: Path, tmp_path: Path
) -> None:
    config = lora_config(recipe, base, tmp_path / "out")
    finetune(config)
    kept = digest(tmp_path / "out/adapters.safetensors")
    for spare in ("snapshots/step-*", "snapshots"):
        for path in (tmp_path / "out").glob(spare):
            shutil.rmtree(path)
        with pytest.raises(UsageError, match="no run to resume"):
            finetune(dataclasses.replace(config, resume=True))
        with pytest.raises(UsageError, match="already has"):
            finetune(config)
    assert digest(tmp_path / "out/adapters.safetensors") == kept


def test_a_run_is_not_resumed_on_other_rows(recipe: Path, base: Path, tmp_path: Path) -> None:
    config = lora_config(recipe, base, tmp_path / "out")
    finetune(config)
    before = contents(tmp_path / "out")
    with pytest.raises(UsageError, match="another run"):
        finetune(dataclasses.replace(config, data=str(recipe / "train.jsonl"), resume=True))
    assert contents(tmp_path / "out") == before


def test_a_run_of_a_version_without_a_setting_resumes_with_its_default(
    recipe: Path, base: Path, tmp_path: Path
) -> None:
    config = lora_config(recipe, base, tmp_path / "out")
    finetune(config)
    snapshot = max((tmp_path / "out/snapshots").iterdir())
    state, manifest = (read_json(snapshot / name) for name in ("state.json", "manifest.json"))
    del state["run"]["packing"]
    state["run"]["data"] = "elsewhere.jsonl"  # paths were recorded, too
    write_json(snapshot / "state.json", state)
    data = (snapshot / "state.json").read_bytes()
    manifest["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(snapshot / "manifest.json", manifest)
    finetune(dataclasses.replace(config, resume=True))
    with pytest.raises(UsageError, match="packing was False, is True"):
        finetune(dataclasses.replace(config, resume=True, packing=True))


def test_a_run_killed_before_its_first_snapshot_resumes_from_the_first_step(
    recipe: Path, base: Path, tmp_path: Path
) -> None:
    straight = lora_config(recipe, base, tmp_path / "straight", valid=recipe / "valid.jsonl")
    finetune(straight)
    killed = dataclasses.replace(straight, adapter_path=str(tmp_path / "killed"))
    with closing(finetuning.events(killed)) as stream:
        next(event for event in stream if isinstance(event, Evaluated))
    assert [m["event"] for m in metrics(tmp_path / "killed")][-2:] == ["Evaluated", "Stopped"]
    finetune(dataclasses.replace(killed, resume=True))
    assert digest(tmp_path / "killed/adapters.safetensors") == digest(tmp_path / "straight/adapters.safetensors")
    evaluated = [m["step"] for m in metrics(tmp_path / "killed") if m["event"] == "Evaluated"]
    assert evaluated == [0, 6]


def test_a_damaged_line_of_metrics_is_dropped_on_resuming(recipe: Path, base: Path, tmp_path: Path) -> None:
    config = lora_config(recipe, base, tmp_path / "out")
    finetune(config)
    with (tmp_path / "out/metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "Step", "step": 3, \xff\xfe')
    finetune(dataclasses.replace(config, resume=True))
    assert [m["step"] for m in metrics(tmp_path / "out") if m["event"] == "Step"] == [1, 2, 3, 4, 5, 6]


def test_lost_validation_rows_are_counted(recipe: Path, base: Path, tmp_path: Path) -> None:
    rows = [chat("who", "me"), chat("x", "y" * 40), chat("1+1", "2")]
    (tmp_path / "valid.jsonl").write_text("".join(rows))
    changes = {"valid": tmp_path / "valid.jsonl", "max_seq_length": 20, "long_rows": "drop"}
    with closing(finetuning.events(lora_config(recipe, base, tmp_path / "out", **changes))) as stream:
        prepared = _prepared(stream)
    assert isinstance(prepared, Prepared)
    assert (prepared.valid_rows, prepared.sampled_rows) == (2, 2)
    assert (prepared.valid.rows, prepared.valid.dropped_rows, prepared.valid.shared_rows) == (3, 1, 2)


def test_metrics_are_json_without_numbers_that_it_lacks(recipe: Path, base: Path, tmp_path: Path) -> None:
    config = lora_config(recipe, base, tmp_path / "out", iters=1)
    finetune(config)
    finetune(dataclasses.replace(config, resume=True))
    for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert metrics(tmp_path / "out")[-1]["loss"] is None


def test_the_best_weights_are_exported_if_there_is_validation_data(recipe: Path, base: Path, tmp_path: Path) -> None:
    changes = {"valid": recipe / "valid.jsonl", "steps_per_eval": 1, "iters": 12, "learning_rate": 0.03, "keep": 1}
    finetune(lora_config(recipe, base, tmp_path / "best", **changes))
    events = metrics(tmp_path / "best")
    losses = [m["loss"] for m in events if m["event"] == "Evaluated" and m["step"]]
    assert losses[-1] > min(losses)  # otherwise best and last are one
    assert events[-1]["loss"] == min(losses)
    finetune(lora_config(recipe, base, tmp_path / "last", select="last", **changes))
    assert metrics(tmp_path / "last")[-1]["loss"] == losses[-1]
    assert digest(tmp_path / "best/adapters.safetensors") != digest(tmp_path / "last/adapters.safetensors")


def _prepared(stream: Iterator[TrainEvent]) -> TrainEvent:
    return next(event for event in stream if isinstance(event, Prepared))


def test_a_second_run_in_the_same_folder_is_refused(recipe: Path, base: Path, tmp_path: Path) -> None:
    config = lora_config(recipe, base, tmp_path / "adapters")
    with closing(finetuning.events(config)) as first:
        _prepared(first)
        with (
            pytest.raises(UsageError, match="another process"),
            closing(finetuning.events(dataclasses.replace(config, resume=True))) as second,
        ):
            _prepared(second)


def test_rows_beyond_the_context_of_the_model_are_truncated_and_counted(
    recipe: Path, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.jsonl").write_text(chat("x" * 10, "y" * 200))
    config = lora_config(recipe, base, tmp_path / "adapters", data=tmp_path / "long.jsonl", iters=1)
    with closing(finetuning.events(config)) as stream:
        prepared = _prepared(stream)
    assert isinstance(prepared, Prepared)
    assert (prepared.truncated_rows, prepared.tokens) == (1, 64)
    with pytest.raises(DataError, match="more than 64"):
        finetune(dataclasses.replace(config, long_rows="error", adapter_path=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 200}, r"the embedding of .*config\.json only 200 rows"),
        ({"model_type": "unheard"}, "cannot train the family"),
        ({"model_type": "bert"}, "not a causal language model"),
    ],
)
def test_a_config_that_cannot_be_trained_is_refused(
    recipe: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    bert = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | bert | change))
    with pytest.raises(UsageError, match=message):
        train(PretrainConfig.load(recipe / "recipe.toml", output=tmp_path / "run", config=tmp_path / "config.json"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_config_that_cannot_be_read_is_refused(recipe: Path, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json"):
        train(PretrainConfig.load(recipe / "recipe.toml", output=tmp_path / "run", config=tmp_path / "config.json"))


def recorded(kind: type[TrainConfig], config: TrainConfig) -> tuple[Any, set[str]]:
    """A copy of the config that records the names of the fields read from it, and that record."""
    fields, read, recording = {f.name for f in dataclasses.fields(config)}, set[str](), [True]

    class Recorded(kind):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            if name in fields and recording[0]:
                read.add(name)
            return super().__getattribute__(name)

        def as_dict(self) -> dict[str, Any]:
            recording[0] = False
            try:
                return super().as_dict()
            finally:
                recording[0] = True

    copy = Recorded(**dataclasses.asdict(config))
    read.clear()
    return copy, read


def test_finetune_reads_every_field_of_its_config(recipe: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    changes = {"schedule": "wsd", "valid_fraction": 0.2, "iters": 0, "epochs": 1.0}
    config, read = recorded(FinetuneConfig, lora_config(recipe, base, tmp_path / "adapters", **changes))
    finetune(config)
    assert {f.name for f in dataclasses.fields(FinetuneConfig)} - read == set()


def test_train_reads_every_field_of_its_config(recipe: Path, tmp_path: Path) -> None:
    changes = {"schedule": "wsd", "data": recipe / "train.jsonl", "valid_fraction": 0.2, "iters": 0}
    settings = PretrainConfig.load(recipe / "recipe.toml", output=tmp_path / "run", **changes)
    config, read = recorded(PretrainConfig, settings)
    train(config)
    assert {f.name for f in dataclasses.fields(PretrainConfig)} - read == set()


def test_initial_weights_have_the_standard_deviation_of_init_std(recipe: Path) -> None:
    config = PretrainConfig.load(recipe / "recipe.toml", init_std=0.1)
    big = {**CONFIG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "attention_bias": True}
    model = pretraining.new_model(big, config)
    layer = model.decoder.layers[3]
    spread = {
        0.1: [model.embedding.tokens.weight, layer.mixer.q_proj.weight, layer.feed_forward.up_proj.weight],
        0.1 / 4: [layer.mixer.o_proj.weight, layer.feed_forward.down_proj.weight],
    }
    for std, weights in spread.items():
        for weight in weights:
            assert float(weight.std()) == pytest.approx(std, rel=0.05)
    assert not layer.mixer.q_proj.bias.any()
    assert bool((layer.mixer_norm.pre.weight == 1).all())
    again = pretraining.new_model(big, config).embedding.tokens.weight
    assert bool(mx.array_equal(again, model.embedding.tokens.weight))


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 10**30}, {"num_attention_heads": 10**9}, {"intermediate_size": -3}]
)
def test_a_config_with_impossible_sizes_is_refused_before_training(recipe: Path, changes: dict[str, int]) -> None:
    config = PretrainConfig.load(recipe / "recipe.toml")
    with pytest.raises(CheckpointError):
        pretraining.new_model({**CONFIG, **changes}, config)
