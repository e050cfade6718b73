"""Flags cover what they set: every sampling parameter, every field of a run's config."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import click
import pytest

from macllm import cli
from macllm.cli.sampling import sampling_options
from macllm.cli.settings import config_options
from macllm.errors import UsageError
from macllm.generation.request import SamplingParams
from macllm.train.config import FinetuneConfig, PretrainConfig, TrainConfig
from macllm.train.config.objective import unread
from macllm.train.config.subjects import subjects


def invoke(decorator, arguments: list[str], key: str | None = None):
    return invoker(decorator, key)(arguments)


def invoker(decorator, key: str | None = None):
    """A function of arguments that gives the values a command sees; the command is made once."""
    seen = []
    command = click.command()(decorator(lambda *values, **named: seen.append(named[key] if key else values[0])))
    if key is None:
        command.params.insert(0, click.Option(["--file", "toml_file"]))

    def run(arguments: list[str]):
        command.main(arguments, standalone_mode=False)
        return seen.pop()

    return run


def test_every_sampling_parameter_has_a_flag() -> None:
    arguments = [
        "--temperature=0.5", "--top-k=7", "--top-p=0.9", "--min-p=0.1", "--typical-p=0.8", "--xtc-probability=0.2",
        "--xtc-threshold=0.3", "--repetition-penalty=1.1", "--presence-penalty=0.4", "--frequency-penalty=0.6",
        "--penalty-window=64", "--dry-multiplier=0.7", "--dry-base=1.5", "--dry-allowed-length=3", "--dry-window=128",
        "--dry-breakers=5", "--dry-breakers=6", "--logit-bias=9=-1.5", "--seed=11", "--no-repeat-ngram-size=3",
        "--encoder-no-repeat-ngram-size=4", "--min-length=5", "--min-new-tokens=6", "--forced-bos-token-id=7",
        "--forced-eos-token-id=8", "--suppress-tokens=1", "--suppress-tokens=2", "--begin-suppress-tokens=3",
        "--sequence-bias=1,2=0.5", "--bad-words-ids=3,4", "--bad-words-ids=5",
    ]  # fmt: skip
    sampling = invoke(sampling_options, arguments, "sampling")
    assert set(sampling) == {field.name for field in dataclasses.fields(SamplingParams)}
    params = SamplingParams(**sampling)
    assert (params.top_k, params.dry_breakers, params.logit_bias, params.seed) == (7, (5, 6), ((9, -1.5),), 11)
    assert (params.suppress_tokens, params.bad_words_ids) == ((1, 2), ((3, 4), (5,)))
    assert params.sequence_bias == (((1, 2), 0.5),)


def test_flags_that_are_not_given_set_nothing() -> None:
    assert invoke(sampling_options, [], "sampling") == {}
    assert invoke(sampling_options, ["--temperature", "0"], "sampling") == {"temperature": 0.0}


@pytest.mark.parametrize("text", ["", "5", "a=1", "5=b"])
def test_a_malformed_logit_bias_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="logit bias"):
        invoke(sampling_options, ["--logit-bias", text], "sampling")


@pytest.mark.parametrize("flag", ["--sequence-bias=1,2", "--sequence-bias=a=1", "--bad-words-ids=1,b"])
def test_malformed_token_lists_are_refused(flag: str) -> None:
    with pytest.raises(UsageError, match="cannot read the"):
        invoke(sampling_options, [flag], "sampling")


_REINFORCED = ["--objective", "grpo", "--rewards", "exact_match"]
_TEXTS = {"rewards": ("exact_match", "format:a"), "reward_weights": ("1", "0.5")}
_READ_BY_GRPO = [name for name in unread("sft") if name not in unread("grpo")]
_READ_BY_PPO = [name for name in unread("grpo") if name not in unread("ppo")]


@pytest.mark.parametrize("config", [FinetuneConfig, PretrainConfig])
def test_every_setting_has_a_flag_that_sets_it(
    config: type[TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(next(f.default for f in dataclasses.fields(config) if f.name == config._folder))
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({config._folder: "."}))  # for --resume
    needed = {"decay": ["--schedule", "wsd"], "decay_all": ["--weight-decay", "0.1"]}
    needed["spike_patience"] = ["--spike-threshold", "8"]
    needed |= {name: ["--objective", "simpo"] for name in ("beta", "gamma")}
    distils = ["--objective", "distil"]
    needed |= {"teacher": distils, "divergence": [*distils, "--teacher", "t"]}
    needed |= {name: needed["divergence"] for name in ("distil_temperature", "data_weight", "teacher_top")}
    needed["jsd_weight"] = [*needed["divergence"], "--divergence", "jsd"]
    needed |= {name: [*needed["divergence"], "--teacher-top", "9"] for name in ("teacher_others", "teacher_first")}
    needed["centering"] = ["--objective", "reward"]
    needed |= {name: ["--objective", "dpo"] for name in ("preference_loss", "label_smoothing", "reference")}
    needed |= {name: ["--objective", "kto"] for name in ("desirable_weight", "undesirable_weight")}
    needed |= {name: _REINFORCED for name in _READ_BY_GRPO}
    needed |= {name: ["--objective", "ppo", *_REINFORCED[2:]] for name in _READ_BY_PPO}
    needed |= {"judge": ["--objective", "grpo", "--rewards", "judge"], "rewards": ["--objective", "grpo"]}
    needed["reward_weights"] = ["--objective", "grpo", "--rewards", "judge,exact_match"]
    needed |= {name: ["--objective", "infill"] for name in ("mask_ratio", "span_length", "permute_sentences")}
    needed["label_smoothing_factor"] = ["--objective", "seq2seq"]
    needed |= {name: ["--method", "full"] for name in ("context_length", "rope_theta")}
    needed["rope_scaling"] = ["--method", "full", "--context-length", "99"]
    needed |= {name: ["--optimizer", "muon"] for name in ("adamw_rate", "momentum")}
    run = invoker(config_options(config))
    for field in dataclasses.fields(config):
        flag = "--" + field.name.replace("_", "-")
        changed: object = "elsewhere"
        arguments = [flag, "elsewhere"]
        if isinstance(field.default, bool | None):
            changed = not field.default
            arguments = [flag if changed else flag.replace("--", "--no-", 1)]
        elif field.name in config.choices() and field.name != "objective":
            changed = next(choice for choice in config.choices()[field.name] if choice != field.default)
            arguments = [flag, changed]
        elif isinstance(field.default, int | float):
            changed = 0.25 if isinstance(field.default, float) and field.name != "span_length" else 8
            arguments = [flag, str(changed)]
        elif field.name == "report_to":
            changed, arguments = ("wandb", "tensorboard"), [flag, "wandb,tensorboard"]
        elif field.name in _TEXTS:
            changed, arguments = _TEXTS[field.name], [flag, ",".join(_TEXTS[field.name])]
        elif field.name == "judge":
            changed, arguments = "{completion}?", [flag, "{completion}?"]
        elif field.name == "objective":
            changed = "simpo" if config is FinetuneConfig else "infill"
            arguments = [flag, changed]
        elif field.default == ():
            changed, arguments = ("a", "b"), [flag, "a,b"]
        elif field.name == "date":
            changed, arguments = "2026-01-31", [flag, "2026-01-31"]
        arguments += needed.get(field.name, [])
        if field.name == "decay_all" and config is FinetuneConfig:
            with pytest.raises(UsageError, match="decay_all has no effect"):
                run(["--data", "rows.jsonl", *arguments])
            continue
        loaded = run(["--data", "rows.jsonl", *arguments])
        assert getattr(loaded, field.name) == changed


def test_a_flag_wins_over_set_and_set_over_the_file(tmp_path) -> None:
    (tmp_path / "run.toml").write_text('data = "rows.jsonl"\nrank = 2\nalpha = 3.0\nseed = 4\n')
    arguments = ["--file", str(tmp_path / "run.toml"), "--set", "rank=5", "--set", "alpha=6", "--rank", "7"]
    loaded = invoke(config_options(FinetuneConfig), arguments)
    assert (loaded.rank, loaded.alpha, loaded.seed) == (7, 6.0, 4)
    assert loaded.data == str(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("flags", [("--lora", "--full"), ("--full", "--method", "lora")])
def test_two_methods_at_once_are_refused(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "--data", "rows.jsonl", *flags]) == 2
    assert "at once" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "config"), [("finetune", FinetuneConfig), ("train", PretrainConfig)])
def test_help_lists_settings_by_subject_with_their_defaults_in_80_columns(
    command: str, config: type[TrainConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    titles = [line.rstrip(":") for line in lines if line.endswith(":") and line[0] != " "]
    assert titles[1:] == list(subjects(config))
    sections = " ".join(lines).split("Options:", 1)[1]
    for field in dataclasses.fields(config):
        flag = "--" + field.name.replace("_", "-")
        found = re.search(rf" {flag}[ /].*?(?=  -|$)", sections)
        assert found, flag
        assert any(said in found[0] for said in ("[default:", "[required]", "empty")), flag
