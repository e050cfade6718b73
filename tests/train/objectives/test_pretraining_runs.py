"""Runs of encoders and encoder-decoders: checkpoints that are used, and models that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import macllm
from macllm.errors import UsageError
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.events import Evaluated
from macllm.train.finetune import finetune
from macllm.train.pretrain import train
from tests.train.recipes import write_recipe, write_texts

MODELS = {"mlm": "encoder", "span": "t5", "infill": "t5", "seq2seq": "t5"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder)
    return folder


def config(folder: Path, objective: str, output: Path, **changes: Any) -> PretrainConfig:
    settings = {
        "data": folder / ("words.jsonl" if objective == "seq2seq" else "texts.jsonl"),
        "config": folder / f"{MODELS[objective]}.json",
        "tokenizer": folder,
        "objective": objective,
        "output": output,
        "iters": 4,
        "save_every": 2,
        "learning_rate": 0.02,
        "max_seq_length": 40,
    }
    return PretrainConfig.load(**{**settings, **changes})


def test_text_to_text_learns_words_and_answers_with_them(folder: Path, tmp_path: Path) -> None:
    seen = []
    run = config(folder, "seq2seq", tmp_path / "run", iters=60, valid=folder / "words.jsonl", save_every=0, warmup=0.1)
    train(run, on_event=seen.append)
    losses = [event.loss for event in seen if isinstance(event, Evaluated)]
    assert losses[-1] < 0.6 * losses[0]
    model, tokenizer = macllm.load(tmp_path / "run" / "model")
    assert model.info.decoder_start == 1
    answer = macllm.generate(model, tokenizer, "abcd", max_tokens=6, temperature=0)
    assert answer
    tuned = finetune(
        FinetuneConfig(
            model=str(tmp_path / "run" / "model"), data=str(folder / "words.jsonl"), objective="seq2seq",
            adapter_path=str(tmp_path / "adapter"), iters=2, rank=2, label_smoothing_factor=0.1,
        )
    )  # fmt: skip
    adapted, _ = macllm.load(tmp_path / "run" / "model", adapter=tuned)
    assert json.loads((tuned / "run.json").read_text())["label_smoothing_factor"] == 0.1
    logits = [each(mx.array([[1, 2]]), source=mx.array([[20, 21, 2]])) for each in (model, adapted)]
    assert not mx.array_equal(*logits)


def test_settings_are_a_config_or_keywords_of_which_one_is_the_models_config(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "mlm", tmp_path / "run", iters=1)
    with pytest.raises(UsageError, match="no further keywords") as error:
        train(settings, iters=2)
    assert error.value.cause == "iters"
    keywords = {name: value for name, value in settings.as_dict().items() if value != PretrainConfig.defaults()[name]}
    assert "config" in keywords
    assert (train(**keywords) / "model/config.json").is_file()


def test_a_model_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an encoder") as error:
        train(config(folder, "mlm", tmp_path / "run", config=folder / "t5.json"))
    assert "objective is mlm" in (error.value.cause or "")
    headless = json.loads((folder / "encoder.json").read_text()) | {"architectures": ["BertModel"]}
    (tmp_path / "headless.json").write_text(json.dumps(headless))
    with pytest.raises(UsageError, match="no head"):
        train(config(folder, "mlm", tmp_path / "run", config=tmp_path / "headless.json"))
    write_recipe(tmp_path)
    with pytest.raises(UsageError, match="no mask token"):
        train(config(folder, "mlm", tmp_path / "run", config=folder / "encoder.json", tokenizer=tmp_path))
    with pytest.raises(UsageError, match="span_length has no effect"):
        config(folder, "mlm", tmp_path / "run", span_length=5)
