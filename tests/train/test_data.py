from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macllm.errors import DataError, UsageError
from macllm.train import data
from macllm.train.config import TrainConfig
from macllm.train.objectives.clm import CausalLM, collate
from macllm.train.order import Order
from macllm.train.render import Example
from macllm.train.sources import Validation
from tests.train.test_render import forgetful, plain, unmarked
from tests.train.toy import CharTokenizer, arithmetic_rows


def load(config: TrainConfig) -> data.Dataset[Example]:
    return data.load(config, CausalLM(config.mask_prompt), CharTokenizer())


def folder(path: Path, train: list[dict[str, Any]], valid: list[dict[str, Any]] | None = None) -> str:
    for name, some in (("train", train), ("valid", valid)):
        if some is not None:
            (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return str(path)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 400), size=st.integers(1, 9), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_row_comes_once_in_each_epoch(rows: int, size: int, seed: int, epoch: int) -> None:
    order = Order(list(np.random.default_rng(0).integers(1, 99, rows)), size, seed)
    first = epoch * order.batches_per_epoch
    seen = [r for b in range(first, first + order.batches_per_epoch) for (r,) in order.bins(b)]
    assert sorted(seen) == list(range(rows))


def test_a_batch_depends_only_on_the_seed_and_its_number() -> None:
    lengths = list(range(100))
    straight = [Order(lengths, 4, 7).bins(n) for n in range(60)]
    shuffled = Order(lengths, 4, 7)
    assert [shuffled.bins(n) for n in reversed(range(60))] == straight[::-1]
    assert [Order(lengths, 4, 8).bins(n) for n in range(60)] != straight
    assert straight[:25] != straight[25:50]


def test_rows_of_similar_length_share_a_batch() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 640)
    order = Order(list(lengths), 8, 0)
    batches = [lengths[[row for (row,) in order.bins(b)]] for b in range(80)]
    padding = sum(len(batch) * max(batch) - batch.sum() for batch in batches)
    assert padding / lengths.sum() < 0.05


@pytest.mark.parametrize("rows", [20, 40, 100, 128])
def test_few_rows_of_distinct_lengths_share_batches_with_others_in_each_epoch(rows: int) -> None:
    order = Order(list(range(1, rows + 1)), 4, 0)
    count = order.batches_per_epoch
    first, second = ({frozenset(order.bins(n)) for n in range(k, k + count)} for k in (0, count))
    assert len(first & second) <= count / 4


def test_a_batch_holds_shifted_inputs_targets_and_loss_weights() -> None:
    rows = arithmetic_rows(5)
    batch = collate(rows)
    assert batch.inputs.shape == batch.targets.shape == batch.weights.shape
    assert batch.inputs.shape[1] % 8 == 0
    for i, row in enumerate(rows):
        n = len(row) - 1
        assert list(batch.inputs[i, :n]) == list(row.tokens[:-1])
        assert list(batch.targets[i, :n]) == list(row.tokens[1:])
        assert list(batch.weights[i, :n]) == list(row.loss_mask[1:])
        assert not batch.weights[i, n:].any()
    assert batch.num_target_tokens == sum(int(r.loss_mask.sum()) for r in rows)


def test_long_rows_are_truncated_split_dropped_or_refused_and_counted(tmp_path: Path) -> None:
    path = folder(tmp_path, [{"text": "abcdefgh"}, {"text": "ab"}])
    whole = [1, *b"abcdefgh", 0]
    made = {
        kind: load(TrainConfig(data=path, max_seq_length=4, long_rows=kind)) for kind in ("truncate", "split", "drop")
    }
    cut = made["truncate"]
    assert [list(e.tokens) for e in cut.train] == [whole[:4], [1, 97, 98, 0]]
    assert (cut.counts.truncated_rows, cut.counts.lost_tokens, cut.counts.tokens) == (1, 6, 8)
    pieces = made["split"].train[:3]
    assert [list(e.tokens) for e in pieces] == [whole[0:4], whole[3:7], whole[6:10]]
    assert [t for e in pieces for t in e.tokens[e.loss_mask]] == whole[1:]
    assert (made["split"].counts.split_rows, made["split"].counts.lost_tokens) == (1, 0)
    assert (len(made["drop"].train), made["drop"].counts.dropped_rows) == (1, 1)
    with pytest.raises(DataError, match=r"train\.jsonl:1 has 10 tokens"):
        load(TrainConfig(data=path, max_seq_length=4, long_rows="error"))


@pytest.mark.parametrize("length", range(2, 14))
@pytest.mark.parametrize("most", [2, 3, 5, 8])
def test_splitting_predicts_every_token_once(tmp_path: Path, length: int, most: int) -> None:
    text = "abcdefghijkl"[: length - 2]
    path = folder(tmp_path, [{"text": text}])
    made = load(TrainConfig(data=path, max_seq_length=most, long_rows="split"))
    assert made.counts.supervised_tokens == length - 1
    assert max(map(len, made.train)) <= most
    whole = [1, *text.encode(), 0]
    predicted = [
        (int(before), int(token))
        for example in made.train
        for before, token, on in zip(example.tokens, example.tokens[1:], example.loss_mask[1:], strict=False)
        if on
    ]
    assert predicted == list(itertools.pairwise(whole))


def test_rows_without_supervised_tokens_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "abcdefgh", "completion": "x"}, {"prompt": "a", "completion": "x"}]
    config = TrainConfig(data=folder(tmp_path, rows), max_seq_length=5)
    made = load(config)
    assert (len(made.train), made.counts.unsupervised_rows, made.counts.truncated_rows) == (1, 1, 1)
    with pytest.raises(DataError, match="no supervised tokens"):
        load(TrainConfig(data=folder(tmp_path, rows[:1]), max_seq_length=5))


def test_a_row_of_several_examples_is_counted_once(tmp_path: Path) -> None:
    messages = [{"role": ("user", "assistant")[at % 2], "content": "x" * (40 if at > 3 else 1)} for at in range(8)]
    rows = [{"messages": messages}, {"messages": messages[:4]}, {"messages": messages[:1]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counted = {}
    for long_rows in ("truncate", "drop"):
        config = TrainConfig(data=str(tmp_path / "rows.jsonl"), max_seq_length=30, long_rows=long_rows)
        counted[long_rows] = data.load(config, CausalLM(), CharTokenizer(forgetful)).counts
    assert (counted["truncate"].truncated_rows, counted["truncate"].unsupervised_rows) == (1, 1)
    assert (counted["drop"].dropped_rows, counted["drop"].unsupervised_rows) == (1, 1)


def test_validation_rows_are_not_trained_on_and_depend_on_the_seed(tmp_path: Path) -> None:
    path = folder(tmp_path, [{"text": chr(97 + i) * 3} for i in range(20)])
    made = {seed: load(TrainConfig(data=path, valid_fraction=0.2, seed=seed)) for seed in (0, 1)}
    assert (len(made[0].train), len(made[0].valid)) == (16, 4)
    wheres = [{e.where for e in part} for part in (made[0].train, made[0].valid)]
    assert not wheres[0] & wheres[1]
    assert wheres[1] != {e.where for e in made[1].valid}


@pytest.mark.parametrize("seed", range(5))
def test_equal_rows_are_held_out_together(tmp_path: Path, seed: int) -> None:
    rows = [{"text": chr(97 + i // 3) * 3} for i in range(21)]
    made = load(TrainConfig(data=folder(tmp_path, rows), valid_fraction=0.2, seed=seed))
    assert len(made.train) + len(made.valid) == 21
    assert len(made.valid) == 6
    assert made.valid_counts.shared_rows == 0
    with pytest.raises(DataError, match="too few rows"):
        load(TrainConfig(data=folder(tmp_path, rows[:3]), valid_fraction=0.5, seed=seed))


@pytest.mark.parametrize("seed", range(5))
def test_many_equal_rows_are_not_held_out_in_place_of_few(tmp_path: Path, seed: int) -> None:
    rows = [{"text": "same", "id": str(n)} for n in range(30)]
    for others, held in (([{"text": c} for c in "abcdefghij"], 4), ([{"text": "a"}] * 8, 8)):
        made = load(TrainConfig(data=folder(tmp_path, [*rows, *others]), valid_fraction=0.1, seed=seed))
        assert (len(made.valid), made.valid_counts.shared_rows) == (held, 0)
        assert len(made.train) == 30 + len(others) - held
    copies = [{"text": "same"}, {"text": "same", "label": "x"}]
    with pytest.raises(DataError, match="too few rows"):
        load(TrainConfig(data=folder(tmp_path, copies), valid_fraction=0.5, seed=seed))


def test_rows_with_the_same_tokens_are_held_out_together(tmp_path: Path) -> None:
    """Whatever columns they come from."""
    rows = [{"text": "xy", "tools": "a"}, {"text": "xy"}, {"prompt": "x", "completion": "y"}, {"text": "z"}]
    config = TrainConfig(data=folder(tmp_path, rows), valid_fraction=0.25, mask_prompt=False)
    made = load(config)
    assert ([len(each) for each in made.valid], made.valid_counts.shared_rows) == ([3], 0)


def test_a_sample_of_the_validation_rows_has_all_lengths_and_depends_on_the_seed_alone() -> None:
    lengths = [*range(3, 11), *range(100, 260, 20)]
    rows = [Example(np.arange(n, dtype=np.int32), np.arange(n) > 0, str(n)) for n in lengths]

    def sampled(seed: int, most: int) -> list[int]:
        validation = Validation(CausalLM(), rows, batch_size=2, most=most, seed=seed)
        assert validation.num_sampled == min(len(rows), 2 * most) == sum(len(b.inputs) for b in validation.batches())
        return [int(n) + 1 for batch in validation.batches() for n in batch.weights.sum(axis=1)]

    for seed in range(5):
        assert [sum(n > 60 for n in sampled(seed, most)) for most in (1, 2, 4)] == [1, 2, 4]
        assert sampled(seed, 3) == sampled(seed, 3)
        assert sampled(seed, 99) == lengths
    assert len({tuple(sampled(seed, 4)) for seed in range(5)}) > 1


def test_a_validation_file_is_used_whole(tmp_path: Path) -> None:
    path = folder(tmp_path, [{"text": "a"}], [{"text": "b"}, {"text": "c"}])
    made = load(TrainConfig(data=path))
    assert (len(made.train), len(made.valid)) == (1, 2)
    with pytest.raises(UsageError, match=r"valid_fraction has no effect.*\n.*valid\.jsonl"):
        load(TrainConfig(data=path, valid_fraction=0.5))


def test_the_fingerprint_depends_on_tokens_and_loss_masks(tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "completion": "c"}]
    seen = {
        load(TrainConfig(data=folder(tmp_path, r), mask_prompt=m)).fingerprint()
        for r in (rows, [*rows, *rows], [{"prompt": "a", "completion": "bc"}])
        for m in (True, False)
    }
    assert len(seen) == 5  # without the mask, "ab" + "c" is "a" + "bc"


def test_rows_are_counted_by_kind_and_those_that_learn_no_end(tmp_path: Path) -> None:
    asked, answered = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    rows = [{"messages": asked + answered}, {"text": "t"}, {"prompt": asked, "completion": answered}, {"text": "t"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(data=str(tmp_path))
    for write, unended in ((plain, 2), (unmarked, 0)):
        counts = data.load(config, CausalLM(), CharTokenizer(write)).counts
        assert counts.kinds == {"chat": 1, "text": 2, "prompt and completion": 1}
        assert counts.unended_rows == unended


def test_rows_with_calls_or_reasoning_that_the_template_leaves_out_are_counted(tmp_path: Path) -> None:
    def without_thoughts(messages: Any, answer_next: bool) -> str:
        return plain([{**m, "content": m["content"].split("</think>")[-1]} for m in messages], answer_next)

    asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    rows = [[answered], [{**answered, "tool_calls": [call]}], [{**answered, "reasoning_content": "hm"}]]
    rows += [[{**answered, "content": "<think>\nhm\n</think>\n\nb"}]]
    path = folder(tmp_path, [{"messages": [asked, *each]} for each in rows])
    for write, unwritten in ((plain, 2), (without_thoughts, 3)):
        tokenizer = CharTokenizer(write)
        assert data.load(TrainConfig(data=path), CausalLM(), tokenizer).counts.unwritten_rows == unwritten


@pytest.mark.parametrize(("most", "unended"), [(40, 0), (16, 1), (10, 2)])
def test_a_row_whose_ends_are_cut_off_learns_no_end(tmp_path: Path, most: int, unended: int) -> None:
    asked = {"role": "user", "content": "a"}
    short, long = ([asked, {"role": "assistant", "content": text}] for text in ("b", "b" * 20))
    rows = [{"messages": long}, {"messages": short + long}, {"text": "a text"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = CharTokenizer(plain)
    tokenizer.end_token_ids = frozenset({0, ord("$")})
    config = TrainConfig(data=str(tmp_path), max_seq_length=most)
    assert data.load(config, CausalLM(), tokenizer).counts.unended_rows == unended


def test_a_text_that_is_split_learns_its_end(tmp_path: Path) -> None:
    made = load(TrainConfig(data=folder(tmp_path, [{"text": "abcdefgh"}]), max_seq_length=4, long_rows="split"))
    assert [example.ends for example in made.train] == [False, False, True]
    assert made.counts.unended_rows == 0


def test_columns_of_other_names_are_read(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text('{"body": "abc"}\n')
    made = load(TrainConfig(data=str(tmp_path), text_feature="body"))
    assert [list(example.tokens) for example in (*made.train, *made.valid)] == [[1, *b"abc", 0]] * 2
    with pytest.raises(DataError, match="no known columns"):
        load(TrainConfig(data=str(tmp_path)))


def test_a_row_of_another_objective_is_refused_with_the_objectives_that_it_is_for(tmp_path: Path) -> None:
    for row, use in (
        ({"prompt": "p"}, "GRPO"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "DPO"),
        ({"prompt": "p", "completion": "c", "label": True}, "KTO"),
    ):
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=r"train\.jsonl:1") as raised:
            load(TrainConfig(data=str(tmp_path)))
        assert use in str(raised.value.cause)
