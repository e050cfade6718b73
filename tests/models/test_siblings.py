"""The small siblings of the bundled model, and the command that makes them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import macllm
from macllm.hub.names import BUNDLED, bundled_models
from macllm_models import making
from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.questions import kept_from_training
from macllm_models.maclet.topics import normalized
from macllm_models.siblings import masked, remake, tasks, texts

INSTALLED = [name for name in bundled_models() if name != BUNDLED]


def folder_of(name: str) -> Path:
    return bundled_models()[name]


@pytest.fixture(scope="module")
def guide() -> Guide:
    return Guide(random.Random(0))


@pytest.fixture(scope="module")
def parts(guide: Guide) -> list[texts.Part]:
    return texts.parts_of(guide)


@pytest.mark.parametrize("name", INSTALLED)
def test_a_sibling_has_at_most_2_mb_and_a_card_with_its_files_and_measurements(name: str) -> None:
    folder = folder_of(name)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= remake.MOST_BYTES
    card = (folder / "card.md").read_text(encoding="utf-8")
    assert [path.name for path in files if f"`{path.name}`" not in card] == []
    measured = card.partition(making.MARKS[0])[2].partition(making.MARKS[1])[0]
    assert "validation" in measured
    assert f"**{name}**" in measured
    assert making.written(card, measured.strip()) == card


@pytest.mark.parametrize("name", INSTALLED)
def test_a_sibling_loads_with_the_parameters_that_its_card_says(name: str) -> None:
    from mlx.utils import tree_flatten

    model, tokenizer = macllm.load(name)
    count = sum(array.size for _, array in tree_flatten(model.parameters()))
    assert f"| parameters | {count:,} " in (folder_of(name) / "card.md").read_text(encoding="utf-8")
    assert tokenizer.decode(tokenizer.encode("what is attention?", add_special_tokens=False)) == "what is attention?"


@pytest.mark.parity
@pytest.mark.parametrize("name", INSTALLED)
def test_tokens_and_logits_of_a_sibling_are_those_of_transformers(name: str) -> None:
    """The model runs in float32, and of an encoder-decoder with a target of its own."""
    import mlx.core as mx
    import torch
    import transformers

    folder = str(folder_of(name))
    model, tokenizer = macllm.load(name, dtype=mx.float32)
    reference = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    theirs = getattr(transformers, reference).from_pretrained(folder, dtype=torch.float32).eval()
    text = "What is multi-query attention, and why is its KV cache small?"
    tokens = tokenizer.encode(text)
    assert transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == tokens
    encoder = model.info.hidden_size is None
    target = [model.info.decoder_start, *tokens[:5]] if encoder else tokens
    with torch.no_grad():
        more = {"decoder_input_ids": torch.tensor([target])} if encoder else {}
        expected = theirs(torch.tensor([tokens]), **more).logits.numpy()
    found = model(mx.array([target]), source=mx.array([tokens])) if encoder else _logits(model, mx.array([target]))
    np.testing.assert_allclose(np.array(found), expected, atol=1e-5 * np.abs(expected).max())


def _logits(model: Any, tokens: Any) -> Any:
    """Logits of a decoder, or of an encoder, whose output are hidden states."""
    out = model(tokens)
    return out if out.shape[-1] == model.info.vocab_size else model.logits(out)


# --- texts ---


def test_texts_are_taken_once_and_none_is_of_the_examination(parts: list[texts.Part]) -> None:
    found = [normalized(text) for part in parts for group in part for text in group]
    assert len(found) > 45_000
    assert len(set(found)) == len(found)
    assert not kept_from_training() & set(found)


def test_a_text_of_the_examination_is_left_out(guide: Guide, monkeypatch: pytest.MonkeyPatch) -> None:
    examined = guide.own[0][-1]
    monkeypatch.setattr(texts, "kept_from_training", lambda: {normalized(examined)})
    assert normalized(examined) not in {normalized(text) for group in texts.texts(guide) for text in group}


def test_held_out_texts_are_in_no_row_of_training(parts: list[texts.Part], tmp_path: Path) -> None:
    texts.make(tmp_path, parts)
    rows = {part: _texts(tmp_path / f"{part}.jsonl") for part in ("train", "valid")}
    held = set(rows["valid"])
    count, size = (sum(measure(text) for train, _ in parts for text in train) for measure in (lambda _: 1, len))
    assert 0.04 < len(held) / count < 0.06
    long = [text for text in sorted(held) if len(text) > 40][::10]
    trained = "\n".join(rows["train"])
    assert [text for text in long if text in trained] == []
    spaces = sum(map(len, rows["train"])) - size
    assert spaces == count - len(rows["train"])  # each text once
    assert max(map(len, rows["train"])) <= texts.LONGEST


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


# --- the encoder ---


def test_probabilities_between_neighbours_are_those_counted() -> None:
    """Against Bayes' rule over all pairs, written out, for texts of four tokens."""
    rows = [[0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 1, 3]]
    counts = masked.Counts(rows, 4)
    single = np.bincount(np.concatenate(rows), minlength=4) + 1
    unigram = single / single.sum()

    def after(left: int, token: int) -> float:
        following = [row[at + 1] for row in rows for at in range(3) if row[at] == left]
        kinds = max(len(set(following)), 1)
        return (following.count(token) + kinds * unigram[token]) / (len(following) + kinds)

    row = masked.Masked(np.array([0, 1, 2, 3]), np.array([1]))
    expected = np.array([after(0, token) * after(token, 2) for token in range(4)])
    np.testing.assert_allclose(counts.between(row), [expected / expected.sum()], rtol=1e-12)
    closed = masked.Counts(rows, 4, special=(3,))
    assert closed.unigram == pytest.approx([*(unigram[:3] / unigram[:3].sum()), 0.0], rel=1e-12)
    first = np.array([*expected[:3], 0.0])
    np.testing.assert_allclose(closed.between(row), [first / first.sum()], rtol=1e-12)
    both = masked.Masked(np.array([0, 1, 2, 3]), np.array([1, 2]))
    expected = np.array([[after(0, token) for token in range(4)], [unigram[t] * after(t, 3) for t in range(4)]])
    np.testing.assert_allclose(counts.between(both), expected / expected.sum(axis=1, keepdims=True), rtol=1e-12)


def test_scores_count_ranks_and_the_loss_of_masked_tokens() -> None:
    row = masked.Masked(np.array([5, 0, 2]), np.array([1, 2]))
    probabilities = np.array([[0.5, 0.25, 0.25, 0, 0, 0], [0.3, 0.3, 0.1, 0.1, 0.1, 0.1]])
    found = masked.scores(iter([probabilities]), [row])
    assert found == {"loss": pytest.approx(-np.log([0.5, 0.1]).mean()), "accuracy": 0.5, "five": 1.0, "tokens": 2}


@pytest.mark.skipif("maclet-encoder" not in INSTALLED, reason="not made yet")
def test_the_encoder_predicts_masked_tokens_of_held_out_texts_better_than_counts(parts: list[texts.Part]) -> None:
    model, tokenizer = macllm.load("maclet-encoder")
    train, held = ([text for part in parts for text in part[at][::20]] for at in (0, 1))
    special = sorted(tokenizer.special_ids)
    rows = masked.masked([tokenizer.encode(text) for text in held], special)
    counts = masked.Counts([tokenizer.encode(text) for text in train], tokenizer.vocab_size, special)
    ours = masked.scores(iter(masked.probabilities(model, rows, tokenizer.mask_token_id)), rows)
    theirs = masked.scores(_each(counts.unigram, rows), rows)
    assert ours["tokens"] > 200
    assert ours["loss"] < theirs["loss"] - 1
    assert ours["accuracy"] > 3 * theirs["accuracy"]
    assert all(tokenizer.mask_token_id not in row.targets for row in rows)


def _each(probability: np.ndarray, rows: list[masked.Masked]) -> Iterator[np.ndarray]:
    return (np.tile(probability, (len(row.places), 1)) for row in rows)


def test_terms_are_marked_by_the_longest_name() -> None:
    found = {("attention",): 1, ("kv", "cache"): 2, ("cache",): 1}
    assert tasks.marked_words("Is the KV cache for attention? A cache!", found) == list("OOBIOBOB")
    assert tasks.marked_words("the kv", found) == ["O", "O"]


def test_rows_of_both_tasks_keep_what_is_held_out(guide: Guide, parts: list[texts.Part], tmp_path: Path) -> None:
    tasks.make(tmp_path, guide, parts)
    for objective, share in (("classify", 0.2), ("tag", 0.8)):
        count, right = tasks.baseline(tmp_path / objective, objective)
        assert count == tasks.HELD_OUT
        assert right == pytest.approx(share, abs=0.03)
        for part in ("train", "valid"):
            lines = (tmp_path / objective / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            found = {row.get("text") or " ".join(row["words"]) for row in rows}
            assert {texts.is_held_out(text) for text in found} == {part == "valid"}
            assert not {normalized(text) for text in found} & kept_from_training()


# --- making them ---


def test_a_sibling_of_more_than_2_mb_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    home, build, model = (tmp_path / name for name in ("home", "build", "model"))
    for folder in (home, build / "tokenizer", model):
        folder.mkdir(parents=True)
    (home / "card.md").write_text(" ".join(making.MARKS))
    (home / "shape.json").write_text("{}")
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(4 * 10**6)
    with pytest.raises(ValueError, match=r"2\.00 MB, more than 2"):
        remake.install(build, model, "", home)
    assert sorted(path.name for path in home.iterdir()) == ["card.md", "shape.json"]


def test_stages_are_run_one_after_another_and_on_the_model_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, build = tmp_path / "home", tmp_path / "build"
    home.mkdir()
    for name in ("recipe.toml", "second.toml", "third.toml"):
        (home / name).touch()
    runs: list[tuple[str, str, Path, list[str]]] = []

    def trained(command: str, recipe: Path, run: Path, settings: list[str]) -> Path:
        runs.append((command, recipe.name, run, list(settings)))
        return run / "model"

    monkeypatch.setattr(remake, "trained", trained)
    assert remake.train(home, build, ["iters=3"]) == build / "third" / "run" / "model"
    (first, second, third) = runs
    assert first[:3] == ("train", "recipe.toml", build / "run")
    assert first[3] == [f"data={build}", f"tokenizer={build / 'tokenizer'}", f"output={build / 'run'}", "iters=3"]
    assert second[:3] == ("finetune", "second.toml", build / "second" / "run")
    where = build / "second"
    assert second[3] == [f"data={where}", f"model={build / 'run' / 'model'}", f"adapter_path={where / 'run'}"]
    after = build / "third"
    assert third[3] == [f"data={after}", f"model={where / 'run' / 'model'}", f"adapter_path={after / 'run'}"]
