from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import macllm
from macllm.errors import UsageError
from macllm.train.config import FinetuneConfig, PretrainConfig, TrainConfig


def test_keywords_win_over_sets_and_sets_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('data = "rows.jsonl"\nseed = 1\nrank = 4\nkeys = ["q_proj", "v_proj"]\n')
    config = FinetuneConfig.load(tmp_path / "run.toml", ("seed=2", "batch_size=3"), seed=3, iters=None)
    assert (config.seed, config.batch_size, config.rank, config.iters) == (3, 3, 4, 0)
    assert config.keys == ("q_proj", "v_proj")


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('data = "rows.jsonl"\nconfig = "/abs/config.json"\n')
    config = PretrainConfig.load(tmp_path / "run.toml", output="here")
    assert config.data == str(tmp_path / "rows.jsonl")
    assert (config.config, config.output) == ("/abs/config.json", "here")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1.0}, "did you mean learning_rate?"),
        ({"batch-sise": 1}, "did you mean batch_size?"),
        ({"zzz": 1}, "one of data"),
        ({"seed": "many"}, "a whole number"),
        ({"seed": 1.5}, "a whole number"),
        ({"seed": True}, "a whole number"),
        ({"mask_prompt": "maybe"}, "true or false"),
        ({"schedule": "cosin"}, "cosine"),
        ({"keys": [1]}, "a list of strings"),
        ({"keys": 1}, "a list of strings"),
        ({"model": 3}, "a string"),
        ({"batch_size": 0}, "between 1"),
        ({"warmup": 1.5}, "between 0"),
        ({"learning_rate": float("nan")}, "between 1e-30"),
        ({"data": ""}, "--data train.jsonl"),
    ],
)
def test_an_invalid_setting_is_an_error_that_names_valid_ones(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        FinetuneConfig.load(None, (), **({"data": "x"} | settings))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('seed = "3"', "run.toml: seed cannot be '3'"),
        ("mask_prompt = 1", "run.toml: mask_prompt cannot be 1"),
        ("mask_prompt = 0.0", "run.toml: mask_prompt cannot be 0.0"),
        ("learning_rate = true", "run.toml: learning_rate cannot be true"),
        ("rank = [4]", "run.toml: rank cannot be [4]"),
        ("alpha = inf", "run.toml: alpha cannot be inf"),
        ("model = 2026-01-31", "run.toml: model cannot be 2026-01-31"),
        ("decay = 0.3", "run.toml: decay has no effect"),
        ('adapter_path = ""', "run.toml: adapter_path cannot be empty"),
        ('chat_feature = " "', "run.toml: chat_feature cannot be empty"),
        ('keys = ["q_proj", ""]', "run.toml: keys cannot be empty"),
        ("lr = 1e-4", "did you mean learning_rate?"),
        ("[lora]\nrank = 4", "unknown section 'lora'"),
        ('report_to = ["none", "wandb"]', "it stands alone"),
    ],
)
def test_errors_in_a_file_name_the_file_and_the_key(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f"{text}\n")
    with pytest.raises(UsageError) as error:
        FinetuneConfig.load(tmp_path / "run.toml", data="x")
    assert message in str(error.value)
    (tmp_path / "run.toml").write_text("alpha = 3.0\n")
    with pytest.raises(UsageError, match=r"^alpha cannot be nan"):  # of the keyword
        FinetuneConfig.load(tmp_path / "run.toml", data="x", alpha=float("nan"))


@pytest.mark.parametrize("text", ["date = 2026-01-31", 'date = "2026-01-31"', "\ufeffdate = 2026-01-31\r\n"])
def test_a_date_of_toml_and_a_byte_order_mark_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    assert FinetuneConfig.load(tmp_path / "run.toml", data="x").date == "2026-01-31"


def test_a_path_below_home_and_a_model_beside_the_recipe_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "org/name/config.json").touch()
    (tmp_path / "run.toml").write_text('data = "~/rows.jsonl"\nadapter_path = "~/out"\nmodel = "org/name"\n')
    config = FinetuneConfig.load(tmp_path / "run.toml")
    assert (config.data, config.adapter_path) == (str(tmp_path / "home/rows.jsonl"), str(tmp_path / "home/out"))
    assert config.model == str(tmp_path / "org/name")
    for model in ("./name", "org/other"):
        (tmp_path / "run.toml").write_text(f'data = "hf:org/rows"\nmodel = "{model}"\n')
        config = FinetuneConfig.load(tmp_path / "run.toml", sets=("adapter_path=~/out",))
        assert config.model == (str(tmp_path / "name") if model == "./name" else model)
        assert (config.data, config.adapter_path) == ("hf:org/rows", str(tmp_path / "home/out"))


@pytest.mark.parametrize("sets", [("seed",), ("seed=x",), ("sed=1",)])
def test_an_invalid_set_argument_is_a_usage_error(sets: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        TrainConfig.load(None, sets, data="x")


@pytest.mark.parametrize("text", ["seed = ", "seed = 1\nseed = 2", "\udcff"])
def test_a_broken_file_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=r"run\.toml"):
        TrainConfig.load(tmp_path / "run.toml")
    with pytest.raises(UsageError, match="cannot read"):
        TrainConfig.load(tmp_path / "absent.toml")


@pytest.mark.parametrize("kind", [TrainConfig, FinetuneConfig, PretrainConfig])
def test_every_setting_is_documented_in_one_line(kind: type[TrainConfig]) -> None:
    for name, line in kind.documentation().items():
        assert 10 < len(line) < 100, name
        assert "\n" not in line


def test_set_arguments_are_converted_to_the_types_of_their_fields() -> None:
    config = FinetuneConfig.load(None, ("mask_prompt=false", "keys=q_proj, v_proj", "epochs=2"), data="x")
    assert config.mask_prompt is False
    assert config.keys == ("q_proj", "v_proj")
    assert config.epochs == 2.0
    assert isinstance(config.epochs, float)


def test_finetune_takes_every_field_of_its_config_as_a_keyword() -> None:
    parameters = inspect.signature(macllm.finetune).parameters
    types = get_type_hints(FinetuneConfig)
    keywords = {name: one for name, one in get_type_hints(macllm.finetune).items() if name in types}
    assert parameters.keys() - {"config", "on_event"} == {field.name for field in dataclasses.fields(FinetuneConfig)}
    for name, kind in keywords.items():
        field = Sequence[str] if types[name] == tuple[str, ...] else types[name]
        assert kind == field | None, name


@pytest.mark.parametrize("config", ["rows.jsonl", {"data": "rows.jsonl"}, 5], ids=str)
def test_finetune_refuses_a_config_of_a_wrong_type(config: object) -> None:
    with pytest.raises(UsageError, match="not a FinetuneConfig") as error:
        macllm.finetune(config)
    assert error.value.remedy == 'finetune(data="rows.jsonl")'


def test_finetune_refuses_a_config_together_with_keywords() -> None:
    with pytest.raises(UsageError, match="set them in it"):
        macllm.finetune(FinetuneConfig(data="x.jsonl"), rank=4)


def test_a_resumed_run_reads_its_saved_settings_and_given_ones_override_them(tmp_path: Path) -> None:
    first = FinetuneConfig.load(data="rows.jsonl", rank=4, iters=7, keys=("q_proj",), adapter_path=str(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps(first.as_dict()))
    resumed = FinetuneConfig.load(adapter_path=str(tmp_path), resume=True, keep=5)
    assert resumed == dataclasses.replace(first, resume=True, keep=5)
    assert resumed.rounding_changes() == first.rounding_changes() == {}
    smaller = FinetuneConfig.load(adapter_path=str(tmp_path), resume=True, batch_size=2, grad_checkpoint=True)
    assert smaller.rounding_changes() == {"batch_size": (4, 2), "grad_accumulation_steps": (1, 2)}
    assert FinetuneConfig.load(adapter_path=str(tmp_path), resume=True, batch_size=3).grad_accumulation_steps == 1
    whole = FinetuneConfig.load(adapter_path=str(tmp_path), resume=True, grad_accumulation_steps=4)
    assert (whole.batch_size, whole.grad_checkpoint) == (1, None)
    assert FinetuneConfig.load(None, ("resume=true", f"adapter_path={tmp_path}")).data == "rows.jsonl"
    with pytest.raises(UsageError, match="no training data"):
        FinetuneConfig.load(adapter_path=str(tmp_path))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match="settings of the run"):
        FinetuneConfig.load(adapter_path=str(tmp_path), resume=True)


def test_learning_rate_and_epochs_depend_on_the_model_size_unless_given() -> None:
    config = FinetuneConfig(data="x.jsonl")
    assert [(c.learning_rate, c.epochs) for c in (config.fitted(3_000_000), config.fitted(135_000_000))] == [
        (1e-3, 10),
        (2e-4, 3),
    ]
    preferences = FinetuneConfig(data="x.jsonl", objective="dpo")
    fitted = [preferences.fitted(size) for size in (3_000_000, 135_000_000, 8_000_000_000)]
    assert [(c.learning_rate, c.epochs) for c in fitted] == [(5e-4, 3), (5e-5, 1), (5e-6, 1)]
    full = FinetuneConfig(data="x.jsonl", objective="orpo", method="full")
    assert full.fitted(10**10).learning_rate == pytest.approx(5e-7)
    given = FinetuneConfig(data="x.jsonl", learning_rate=5e-5, epochs=2)
    assert given.fitted(3_000_000) == given
    assert FinetuneConfig(data="x.jsonl", iters=9).fitted(3_000_000).iters == 9


@pytest.mark.parametrize("kind", [FinetuneConfig, PretrainConfig])
def test_resuming_without_a_run_is_an_error_that_says_so(kind: type[TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no run to resume"):
        kind.load(resume=True, **{kind._folder: str(tmp_path / "nowhere")})
    with pytest.raises(UsageError, match="has no run to resume"):
        kind.load(resume=True, data="rows.jsonl", **{kind._folder: str(tmp_path / "nowhere")})


@pytest.mark.parametrize(
    "setting",
    [
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"num_layers": 0},
        {"learning_rate": 10**400},
        {"epochs": float("nan")},
        {"dropout": 1},
        {"beta1": 1.0},
        {"beta2": 1.0},
        {"beta2": 1.0 - 1e-9},
        {"epsilon": 0.0},
        {"epsilon": 1e-46},
        {"alpha": 0.0},
        {"learning_rate": float("inf")},
        {"weight_decay": float("inf")},
        {"max_grad_norm": float("nan")},
        {"max_seq_length": 1},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(setting))} cannot be"):
        FinetuneConfig.load(data="rows.jsonl", **setting)


@pytest.mark.parametrize("setting", [{"learning_rate": 0.0}, {"epochs": 0.0}], ids=str)
def test_a_run_from_random_weights_needs_a_learning_rate_and_steps(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(setting))} cannot be 0"):
        PretrainConfig.load(data="rows.jsonl", **setting)
    assert PretrainConfig.load(data="rows.jsonl", epochs=0.0, iters=3).iters == 3


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (FinetuneConfig, {"decay_all": True, "weight_decay": 0.1}, "decay_all has no effect"),
        (PretrainConfig, {"decay_all": True, "weight_decay": 0.0}, "decay_all has no effect"),
        (PretrainConfig, {"decay": 0.3}, "decay has no effect"),
        (PretrainConfig, {"decay_steps": 3, "schedule": "wsd"}, "decay_steps has no effect"),
        (PretrainConfig, {"warmup_init": 0.1, "warmup": 0.0}, "warmup_init has no effect"),
        (PretrainConfig, {"warmup_init": -0.5}, "warmup_init cannot be"),
        (PretrainConfig, {"min_lr_ratio": 0.3, "schedule": "constant"}, "min_lr_ratio has no effect"),
        (PretrainConfig, {"valid": "v.jsonl", "valid_fraction": 0.1}, "valid_fraction has no effect"),
        (PretrainConfig, {"schedule": "wsd", "warmup": 0.3, "decay": 0.71}, "warmup and decay overlap"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(
    kind: type[TrainConfig], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        kind.load(data="rows.jsonl", **settings)
    assert kind.load(data="rows.jsonl", schedule="wsd", warmup=0.3, decay=0.7).decay == 0.7


def test_init_std_must_be_finite() -> None:
    with pytest.raises(UsageError, match="init_std cannot be nan"):
        PretrainConfig.load(data="rows.jsonl", init_std=float("nan"))


def test_a_run_of_another_command_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(PretrainConfig(data="rows.jsonl").as_dict()))
    with pytest.raises(UsageError, match="a run of another command"):
        FinetuneConfig.load(resume=True, data="rows.jsonl", adapter_path=str(tmp_path))


@pytest.mark.parametrize(
    "settings", ["[1]", "{", "[" * 100_000, '{"seed": ' + "1" * 5000 + "}"], ids=["list", "cut", "deep", "long"]
)
def test_a_malformed_run_json_is_a_usage_error(settings: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(settings)
    with pytest.raises(UsageError, match="cannot read the settings"):
        FinetuneConfig.load(resume=True, adapter_path=str(tmp_path))


@pytest.mark.parametrize("text", ["seed = " + "1" * 5000, "a = " + "[" * 100_000], ids=["long", "deep"])
def test_toml_beyond_the_limits_of_python_is_a_usage_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UsageError, match="is not TOML"):
        FinetuneConfig.load(tmp_path / "run.toml")


def test_a_run_keeps_the_date_of_its_first_day(tmp_path: Path) -> None:
    config = FinetuneConfig.load(data="rows.jsonl", adapter_path=str(tmp_path))
    assert (config.date, config.now) == ("", None)
    assert config.dated().date == date.today().isoformat()
    assert FinetuneConfig.load(data="x", date="2024-02-29").dated().now == datetime(2024, 2, 29)
    (tmp_path / "run.json").write_text(json.dumps({**config.as_dict(), "date": "2024-02-28"}))
    for resumed in (
        FinetuneConfig.load(adapter_path=str(tmp_path), resume=True),
        FinetuneConfig(data="rows.jsonl", adapter_path=str(tmp_path), resume=True),
    ):
        assert resumed.dated().date == "2024-02-28"
        assert resumed.dated().reproducibility_fields() == config.reproducibility_fields()
    (tmp_path / "run.json").write_text(json.dumps({"data": "rows.jsonl"}))  # of an earlier version
    assert FinetuneConfig.load(adapter_path=str(tmp_path), resume=True).dated().date == date.today().isoformat()


@pytest.mark.parametrize("text", ["today", "2024-02-30", "29.2.2024"])
def test_a_date_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="date cannot be"):
        FinetuneConfig.load(data="x", date=text)


@pytest.mark.parametrize("given", [{"iters": 3, "epochs": 2.0}, {"iters": "3", "epochs": "1"}])
def test_iters_and_epochs_given_together_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="epochs has no effect"):
        FinetuneConfig.load(data="x", **given)
    with pytest.raises(UsageError, match="epochs has no effect"):
        FinetuneConfig.load(sets=tuple(f"{name}={value}" for name, value in given.items()), data="x")
    (tmp_path / "recipe.toml").write_text('data = "x"\niters = 3\nepochs = 2.0\n')
    with pytest.raises(UsageError, match="epochs has no effect"):
        FinetuneConfig.load(tmp_path / "recipe.toml")


def test_iters_of_a_command_replace_the_epochs_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('data = "x"\nepochs = 2.0\n')
    assert FinetuneConfig.load(tmp_path / "recipe.toml", iters=3).iters == 3
    assert FinetuneConfig.load(data="x", iters=3, epochs=0.0).iters == 3
