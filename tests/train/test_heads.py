"""Runs that train heads: labels of texts and words, rewards; their results load and export."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import macllm
from macllm import adapter, checkpoint
from macllm.adapter.export import export
from macllm.cli import main
from macllm.errors import DataError, UsageError
from macllm.families import labels
from macllm.nn import lora
from macllm.train import data, heads, objectives
from macllm.train import finetune as finetuning
from macllm.train.config import FinetuneConfig
from macllm.train.events import Evaluated, Saved, Step
from macllm.train.finetune import finetune
from macllm.train.objectives.reward import RankedPair
from macllm.train.render import Example
from macllm.train.snapshot import Sums
from macllm.weights.safetensors import load_file
from tests.train.labelled_base import (
    labelled_texts,
    ranked_pairs,
    tagged_words,
    write_decoder,
    write_encoder,
    write_rows,
)

ROWS = {"classify": labelled_texts, "tag": tagged_words, "reward": ranked_pairs}
QUESTION, GOOD, BAD = {"role": "user", "content": "x"}, {"role": "assistant", "content": "ac"}, "bb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("heads")
    write_encoder(made / "encoder")
    write_decoder(made / "decoder")
    for name, rows in ROWS.items():
        write_rows(made / f"{name}.jsonl", rows(24))
    return made


def settings(folder: Path, out: Path, objective: str, base: str = "", **changes: Any) -> FinetuneConfig:
    model = base or ("decoder" if objective == "reward" else "encoder")
    given = {
        "objective": objective, "data": folder / f"{objective}.jsonl", "model": folder / model / "model",
        "adapter_path": out, "iters": 4, "rank": 2, "alpha": 4.0, "learning_rate": 0.01, "batch_size": 4,
        "steps_per_report": 2, "save_every": 2,
    }  # fmt: skip
    return FinetuneConfig.load(**(given | changes))


def outputs(model: Any, tokenizer: Any, objective: str) -> Any:
    """The answers of a model to a few inputs."""
    if objective == "classify":
        return [each.probabilities for each in macllm.classify(model, tokenizer, ["a bc d", "bc"])]
    if objective == "tag":
        return [each and each.probabilities for each in macllm.tag(model, tokenizer, [["a", "bc", "e"]])[0]]
    return macllm.reward(model, tokenizer, [[QUESTION, GOOD], "xb"]).tolist()


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    ("objective", "base"),
    [("classify", "encoder"), ("classify", "decoder"), ("tag", "encoder"), ("reward", "decoder")],
)
def test_a_run_trains_a_head_that_loads_again(
    objective: str, base: str, method: str, folder: Path, tmp_path: Path
) -> None:
    seen: list[Any] = []
    config = settings(folder, tmp_path / "run", objective, base, method=method, valid_fraction=0.2, **(
        {"rank": 16, "alpha": 32.0} if method == "full" else {}
    ))  # fmt: skip
    result = finetune(config, on_event=seen.append)
    metrics = [each.metrics for each in seen if isinstance(each, Step | Evaluated)]
    wanted = {"accuracy", "margin"} if objective == "reward" else {"accuracy", "f1"}
    assert all(each.keys() == wanted for each in metrics)
    if method == "lora":
        model, tokenizer = macllm.load(folder / base / "model", adapter=result)
    else:
        model, tokenizer = macllm.load(result)
    names = {"classify": ("with", "without"), "tag": ("O", "VOWEL"), "reward": ("reward",)}[objective]
    assert labels.names(model.info.config) == names
    weight = (
        load_file(result / "adapters.safetensors" if method == "lora" else result / "model.safetensors")
    )["score.weight" if base == "decoder" else "classifier.weight"]  # fmt: skip
    assert bool(mx.array_equal(weight.astype(mx.float32), model.labels.proj.weight.astype(mx.float32)))
    found = outputs(model, tokenizer, objective)
    assert found == outputs(model, tokenizer, objective)
    with pytest.raises(UsageError, match="cannot generate text"):
        macllm.generate(model, tokenizer, "a", raw=True, max_tokens=1)


@pytest.mark.parametrize("objective", ["classify", "tag", "reward"])
def test_sums_over_parts_of_a_batch_are_those_of_the_whole(objective: str, folder: Path) -> None:
    config = settings(folder, folder / "x", objective)
    model, tokenizer = checkpoint.load(config.model)
    learned = objectives.chosen(config, model, tokenizer, heads.prepare(model, tokenizer, config))
    rows = data.load(config, learned, tokenizer, model.info.context_length).train

    def sums(*parts: Any) -> dict[str, float]:
        batches = [learned.collate(part, np.random.default_rng(0)) for part in parts]
        found = Sums()
        for batch in batches:
            found = found.plus(Sums.of(learned.loss(model, batch), batch))
        return {"loss": found.numerator, "units": found.denominator, "tokens": found.tokens, **found.metrics}

    whole, parts = sums(rows[:9]), sums(rows[:2], rows[2:3], rows[3:9])
    assert whole == pytest.approx(parts, rel=1e-5)
    assert whole["units"] >= 9


def test_layers_that_are_computed_again_give_the_same_losses(folder: Path, tmp_path: Path) -> None:
    losses: dict[bool, list[float]] = {False: [], True: []}
    for again, found in losses.items():
        changes = {"steps_per_report": 1, "iters": 2, "save_every": 0, "grad_checkpoint": again}
        config = settings(folder, tmp_path / str(again), "classify", **changes)
        finetune(config, on_event=lambda each, found=found: isinstance(each, Step) and found.append(each.loss))
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)


def test_a_run_is_not_resumed_with_other_names_of_its_labels(folder: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", labelled_texts(24))
    config = settings(folder, tmp_path / "run", "classify", data=file)
    with closing(finetuning.events(config)) as events:
        for event in events:
            if isinstance(event, Saved) and event.step == 2:
                break
    file.write_text(file.read_text().replace('"with"', '"known"'))  # numbers of the labels stay as they are
    with pytest.raises(UsageError, match="has another run"):
        finetune(dataclasses.replace(config, resume=True))


def test_a_cut_pair_keeps_its_margin() -> None:
    row = Example(np.arange(6, dtype=np.int32), np.arange(6) > 2, "here:1")
    cut = RankedPair(row, row, margin=0.5).cut(0, 4)
    assert (len(cut), cut.margin) == (4, 0.5)
    assert RankedPair(row, row, margin=0.5).fingerprint() != RankedPair(row, row).fingerprint()


def test_full_training_of_the_last_layers_trains_the_head_too(folder: Path) -> None:
    config = settings(folder, folder / "x", "classify", method="full", num_layers=1, rank=16, alpha=32.0)
    model, tokenizer = checkpoint.load(config.model)
    heads.prepare(model, tokenizer, config)
    names = finetuning._trainable(model, config)
    assert {name.split(".")[0] for name in names} == {"encoder", "labels", "pooler"}
    assert {name.split(".")[2] for name in names if name.startswith("encoder")} == {"1"}


def test_labels_are_sorted_and_a_head_that_has_them_is_kept(folder: Path, tmp_path: Path) -> None:
    def found(rows: list[dict[str, Any]], own: tuple[str, ...] = ()) -> tuple[str, ...]:
        file = write_rows(tmp_path / "rows.jsonl", rows)
        return heads.names_for(settings(folder, tmp_path / "x", "classify", data=file), own)

    assert found([{"text": "a", "label": each} for each in ("10", "9", "b")]) == ("10", "9", "b")
    assert found([{"text": "a", "label": each} for each in (10, 9, 2)]) == ("2", "9", "10")
    assert found([{"text": "a", "label": each} for each in (True, False)]) == ("false", "true")
    assert found([{"text": "a", "label": each} for each in ("x", "y")], ("y", "z", "x")) == ("y", "z", "x")
    with pytest.raises(DataError, match="one label only"):
        found([{"text": "a", "label": "x"}] * 3)
    with pytest.raises(DataError, match="no labels"):
        found([{"text": "a"}])


def test_a_second_run_goes_on_with_the_head_of_the_first(folder: Path, tmp_path: Path) -> None:
    full = {"method": "full", "rank": 16, "alpha": 32.0}
    first = finetune(settings(folder, tmp_path / "first", "classify", **full))
    config = settings(folder, tmp_path / "second", "classify", model=first)
    model, tokenizer = checkpoint.load(config.model)
    before = model.labels.proj.weight
    assert heads.prepare(model, tokenizer, config) == ("with", "without")
    assert model.labels.proj.weight is before


def test_rows_without_labels_are_refused(folder: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [*labelled_texts(4), {"text": "a"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:5 is a text without a label"):
        finetune(settings(folder, tmp_path / "run", "classify", data=file))
    with pytest.raises(DataError, match="no labels"):
        finetune(settings(folder, tmp_path / "tag", "tag", data=file))
    with pytest.raises(DataError, match="compares two answers"):
        finetune(settings(folder, tmp_path / "reward", "reward", data=file))


def test_long_texts_are_told_and_keep_their_closing_token(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, tmp_path / "run", "classify", max_seq_length=4)
    seen: list[Any] = []
    finetune(config, on_event=seen.append)
    prepared = seen[0] if hasattr(seen[0], "truncated_rows") else next(e for e in seen if hasattr(e, "truncated_rows"))
    assert prepared.truncated_rows > 10
    model, tokenizer = checkpoint.load(config.model)
    names = heads.prepare(model, tokenizer, config)
    rows = data.load(config, objectives.chosen(config, model, tokenizer, names), tokenizer, model.info.context_length)
    assert {int(each.tokens[-1]) for each in rows.train} == {3}
    assert {int(each.tokens[0]) for each in rows.train} == {2}
    assert max(map(len, rows.train)) == 4


def test_only_first_pieces_have_labels(folder: Path) -> None:
    from macllm.text.words import word_tokens

    tokenizer = checkpoint.load(folder / "encoder" / "model")[1]
    tokens, places = word_tokens(["ab", "c", "\u0007", "de"], tokenizer)
    assert "|".join(map(tokenizer.id_to_token, tokens)) == "[CLS]|a|##b|c|[UNK]|d|##e|[SEP]"
    assert places == [1, 3, 4, 5]


def test_margins_and_centring_change_the_loss(folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "margin": 3.0} for row in ranked_pairs(24)]
    file = write_rows(tmp_path / "margins.jsonl", rows)

    def first_loss(name: str, **changes: Any) -> float:
        seen: list[Any] = []
        config = settings(folder, tmp_path / name, "reward", iters=1, steps_per_report=1, **changes)
        finetune(config, on_event=seen.append)
        return next(each.loss for each in seen if isinstance(each, Step))

    plain = first_loss("plain")
    assert first_loss("margin", data=file) > plain + 1
    assert first_loss("centred", centering=0.5) > plain


@pytest.mark.parametrize("objective", ["classify", "tag"])
def test_both_formats_of_adapters_hold_the_head(objective: str, folder: Path, tmp_path: Path) -> None:
    result = finetune(settings(folder, tmp_path / "run", objective))
    base = folder / "encoder" / "model"
    export(checkpoint.load(base)[0], result, tmp_path / "peft", "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["task_type"] == {"classify": "SEQ_CLS", "tag": "TOKEN_CLS"}[objective]
    wanted = ["bert.pooler.dense", "classifier"] if objective == "classify" else ["classifier"]
    assert config["modules_to_save"] == wanted
    model, tokenizer = macllm.load(base, adapter=result)
    again, _ = macllm.load(base, adapter=tmp_path / "peft")
    assert labels.names(again.info.config) == ("LABEL_0", "LABEL_1")
    tokens = mx.array([tokenizer.encode("a bc d")])
    np.testing.assert_allclose(np.array(again.label_logits(tokens)), np.array(model.label_logits(tokens)), atol=1e-6)
    export(checkpoint.load(base)[0], tmp_path / "peft", tmp_path / "back", "mlx")
    first, second = ((part / "adapters.safetensors").read_bytes() for part in (result, tmp_path / "back"))
    assert first == second


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("objective", "base"), [("classify", "encoder"), ("tag", "encoder"), ("reward", "decoder")])
def test_peft_loads_an_exported_adapter_with_its_head(objective: str, base: str, folder: Path, tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    result = finetune(settings(folder, tmp_path / "run", objective, base))
    at = folder / base / "model"
    export(checkpoint.load(at)[0], result, tmp_path / "peft", "peft")
    kind: Any = (
        transformers.AutoModelForTokenClassification if objective == "tag"
        else transformers.AutoModelForSequenceClassification
    )  # fmt: skip
    theirs = kind.from_pretrained(at, num_labels=1 if objective == "reward" else 2)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft").eval()
    model, tokenizer = macllm.load(at, adapter=result)
    tokens = tokenizer.encode("abcad" if base == "decoder" else "a bc d")
    with torch.no_grad():
        want = theirs(torch.tensor([tokens])).logits.numpy()
    got = np.array(model.label_logits(mx.array([tokens])))
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.parity
@pytest.mark.parametrize("objective", ["classify", "reward"])
def test_a_full_run_opens_in_transformers(objective: str, folder: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    result = finetune(settings(folder, tmp_path / "run", objective, "decoder", method="full", rank=16, alpha=32.0))
    theirs: Any = transformers.AutoModelForSequenceClassification.from_pretrained(result).eval()
    model, tokenizer = macllm.load(result)
    rows = [tokenizer.encode("abcad"), tokenizer.encode("b")]
    assert theirs.config.id2label == ({0: "reward"} if objective == "reward" else {0: "with", 1: "without"})
    for row in rows:
        with torch.no_grad():
            want = theirs(torch.tensor([row])).logits.numpy()
        got = np.array(model.label_logits(mx.array([row])))
        assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


def test_a_reward_is_read_at_the_last_token_of_the_conversation(folder: Path, tmp_path: Path) -> None:
    from macllm.train.objectives.reward import token_rewards

    result = finetune(settings(folder, tmp_path / "run", "reward"))
    model, tokenizer = macllm.load(folder / "decoder" / "model", adapter=result)
    text = tokenizer.render([QUESTION, GOOD], add_generation_prompt=False)
    rows = [tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text + "abc", add_special_tokens=False)]
    together = token_rewards(model, rows)
    alone = [token_rewards(model, [row])[0] for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert together[0] != together[1]
    np.testing.assert_allclose(macllm.reward(model, tokenizer, [[QUESTION, GOOD]])[0], together[0], rtol=1e-5)
    with pytest.raises(UsageError, match="without an answer"):
        macllm.reward(model, tokenizer, [[QUESTION]])
    base, _ = macllm.load(folder / "decoder" / "model")
    with pytest.raises(UsageError, match="classifies texts"):
        macllm.classify(base, tokenizer, ["a"])
    with pytest.raises(UsageError, match="no reward model"):
        macllm.reward(base, tokenizer, ["a"])


def test_a_model_without_a_head_takes_none_from_an_adapter_of_another_kind(folder: Path, tmp_path: Path) -> None:
    model, _ = checkpoint.load(folder / "decoder" / "model")
    lora.apply(model, rank=2, alpha=4.0)
    adapter.save(model, tmp_path / "plain")
    again, _ = macllm.load(folder / "decoder" / "model", adapter=tmp_path / "plain")
    assert again.info.labels is None
    assert again.info.kind == "decoder"


def test_the_command_says_how_its_result_is_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = folder / "encoder" / "model"
    flags = ["--objective", "classify", "--model", str(base), "--data", str(folder / "classify.jsonl")]
    assert main(["finetune", *flags, "--adapter-path", "run", "--iters", "2", "--restarts", "0"]) == 0
    call = f"macllm.classify(*macllm.load({str(base)!r}, adapter='run'), [...])"
    assert f"try it: {call} in Python" in capsys.readouterr().err
    assert eval(call.replace("...", "'a b'"), {"macllm": macllm})[0].label in ("with", "without")
    assert main(["fuse", "--adapter", "run", "--output", "merged"]) == 0
    assert "chat" not in capsys.readouterr().err
    merged, tokenizer = macllm.load("merged")
    assert macllm.classify(merged, tokenizer, ["a b"])[0].label in ("with", "without")
