"""Packing: several rows in one row of a batch, each computed as if it were alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from macllm import families
from macllm.errors import DoesNotFitError, UsageError
from macllm.families.config import Config
from macllm.nn import lora
from macllm.nn.mask import Masks
from macllm.nn.models import build
from macllm.nn.position import Span
from macllm.nn.recompute import checkpoint_layers
from macllm.nn.segments import Segments
from macllm.ops import query_blocks
from macllm.ops.dispatch import using
from macllm.train import pack
from macllm.train.config import FinetuneConfig, TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts, Prepared, Step
from macllm.train.finetune import finetune
from macllm.train.loop import Trainer
from macllm.train.objectives import clm
from macllm.train.objectives.clm import Batch, CausalLM, collate, collate_packed
from macllm.train.order import Order
from macllm.train.pretrain import new_model
from macllm.train.render import Example
from macllm.train.snapshot import Snapshots
from tests.train.toy import ToyLM, arithmetic_rows

LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
LLAMA4 = {
    **LLAMA,
    "model_type": "llama4_text",
    "head_dim": 4,
    "intermediate_size_mlp": 24,
    "attention_chunk_size": 6,
    "floor_scale": 3,
    "no_rope_layers": [1, 0],
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "rotary": LLAMA,
    "windowed": {**LLAMA, "model_type": "mistral", "sliding_window": 6},
    "learned positions": GPT2,
    "chunked, with temperatures and experts": LLAMA4,
    "attention in linear time": {
        **LLAMA,
        "model_type": "macllm",
        "attention_kind": "performer",
        "num_random_features": 8,
    },
    "biased scores": {**LLAMA, "model_type": "macllm", "position_kind": "alibi"},
    "capped scores": {**LLAMA, "model_type": "gemma2", "head_dim": 4, "sliding_window": 5, "query_pre_attn_scalar": 4},
}
LENGTHS = [(5, 17, 2), (23, 9, 3, 30, 4), (31, 2, 2)]


class Recipe:
    config, init_std, seed = "config.json", 0.3, 0


def decoder(config: dict[str, Any]) -> Any:
    model = new_model(config, Recipe)  # type: ignore[arg-type]
    model.train()
    return model


def rows(lengths: Sequence[int], seed: int = 0, vocab_size: int = 50) -> list[Example]:
    random = np.random.default_rng([seed, *lengths])
    made = []
    for n in lengths:
        loss_mask = np.arange(n) >= random.integers(1, n)
        made.append(Example(random.integers(0, vocab_size, n).astype(np.int32), loss_mask, "here:1"))
    return made


BINS = [rows(lengths) for lengths in LENGTHS]
ALONE = [[row] for each in BINS for row in each]


def losses(model: nn.Module, batches: Sequence[Batch]) -> tuple[float, float, dict[str, mx.array]]:
    """The sum of the losses, its denominator and the summed gradients."""
    total, units, summed = 0.0, 0.0, dict[str, mx.array]()
    run = nn.value_and_grad(model, lambda batch: CausalLM().loss(model, batch))
    for batch in batches:
        (loss, weight, _), tree = run(batch)
        total, units = total + loss.item(), units + weight
        found = dict(tree_flatten(tree))
        summed = {name: summed[name] + g for name, g in found.items()} if summed else found
    return total, units, summed


def difference(one: dict[str, mx.array], other: dict[str, mx.array]) -> float:
    """Largest difference of gradients, relative to the largest of each weight.

    Some are 0 (a bias of keys shifts the scores of a query alike), and both sides compute noise.
    """
    assert one.keys() == other.keys()
    noise = 1e-7 * max(float(mx.abs(g).max()) for g in other.values())
    return max(
        (float(mx.abs(one[name] - g).max()) - noise) / float(mx.abs(g).max())
        for name, g in other.items()
        if float(mx.abs(g).max()) > noise
    )


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    return decoder(request.param)


@pytest.fixture(scope="module")
def alone(model: Any) -> tuple[float, float, dict[str, mx.array]]:
    return losses(model, [collate(row) for row in ALONE])


@pytest.mark.parametrize("backend", ["stock", None])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_packed_rows_have_the_loss_and_the_gradients_of_the_rows_alone(
    model: Any, alone: Any, backend: Any, checkpoints: bool
) -> None:
    checkpoint_layers(model, checkpoints)
    if backend is None:
        total, units, found = losses(model, [collate_packed(BINS)])
    else:
        with using(backend):
            total, units, found = losses(model, [collate_packed(BINS)])
    checkpoint_layers(model, False)
    assert units == alone[1]
    assert total == pytest.approx(alone[0], rel=2e-6)
    assert difference(found, alone[2]) <= 1e-5


def test_packed_rows_have_the_logits_of_the_rows_alone(model: Any) -> None:
    batch = collate_packed(BINS)
    packed = model.logits(model.hidden(mx.array(batch.inputs), segments=batch.segments))
    for i, each in enumerate(BINS):
        start = 0
        for row in each:
            own = model(mx.array(row.tokens[None, :-1]))[0]
            found = packed[i, start : start + len(row) - 1]
            assert float(mx.abs(found - own).max()) <= 5e-6 * float(mx.abs(own).max())
            start += len(row) - 1


def test_a_row_does_not_depend_on_what_it_is_packed_with(model: Any) -> None:
    others = [[row if i % 2 else rows([len(row)], seed=9)[0] for i, row in enumerate(each)] for each in BINS]
    results = []
    for bins in (BINS, others):
        batch = collate_packed(bins)
        results.append(np.array(model.hidden(mx.array(batch.inputs), segments=batch.segments)))
    for i, each in enumerate(BINS):
        ends = np.cumsum([0, *(len(row) - 1 for row in each)])
        for number in range(1, len(each), 2):
            own = slice(ends[number], ends[number + 1])
            assert np.array_equal(results[0][i, own], results[1][i, own])


def _without(part: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Sequence[Example]]], Batch]:
    """Packed batches with one fault."""
    if part == "segment masks":
        monkeypatch.setattr(Masks, "of_each_sequence", lambda self, run, *arrays: run(*arrays, _whole(self)))
    elif part == "positions that restart":
        monkeypatch.setattr(Segments, "positions", property(lambda self: mx.arange(self.width)))
    else:  # the target of each row's last token is the first token of the next row

        def crossing(bins: Sequence[Sequence[Example]]) -> Batch:
            joined = [np.concatenate([row.tokens for row in each]) for each in bins]
            loss = [np.concatenate([np.arange(len(row)) >= 0 for row in each]) for each in bins]
            whole = [[Example(t, m, "here:1")] for t, m in zip(joined, loss, strict=True)]
            made = clm._laid_out(whole)
            lengths = [[len(row) for row in each] for each in bins]
            rest = tuple((*each[:-1], each[-1] - 1) for each in lengths)
            return replace(made, segments=Segments(rest, made.inputs.shape[1]))

        return crossing
    return collate_packed


def _whole(masks: Masks) -> Masks:
    return Masks(Span(0, masks.span.length))


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ("rotary", "segment masks"),
        ("windowed", "segment masks"),
        ("learned positions", "segment masks"),
        ("learned positions", "positions that restart"),
        ("rotary", "targets within a row"),
    ],
)
def test_the_comparison_finds_packing_without(config: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder({**CONFIGS[config], "n_positions": 99})
    total, _, wanted = losses(model, [collate(row) for row in ALONE])
    lay = _without(fault, monkeypatch)
    wrong, _, found = losses(model, [lay(BINS)])
    assert abs(wrong - total) > 1e-3 * total
    assert difference(found, wanted) > 1e-2


def test_long_packed_rows_train_by_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(CONFIGS["windowed"])
    calls = []
    run = query_blocks.attention_in_blocks
    with using("stock"):
        total, _, wanted = losses(model, [collate(row) for row in ALONE])
        monkeypatch.setattr(query_blocks, "SHORTEST", 16)
        monkeypatch.setattr(query_blocks, "_SIZE", 8)
        monkeypatch.setattr(query_blocks, "attention_in_blocks", lambda *a: calls.append(a[1].shape[2]) or run(*a))
        got, _, found = losses(model, [collate_packed(BINS)])
    assert calls
    assert max(calls) <= 30
    assert got == pytest.approx(total, rel=2e-6)
    assert difference(found, wanted) <= 1e-5


def test_adapters_have_the_gradients_of_the_rows_alone() -> None:
    model = decoder(LLAMA)
    lora.apply(model, rank=2, alpha=4, dropout=0.0)
    for i, layer in enumerate(m for m in model.modules() if isinstance(m, lora.LoRALinear)):
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(i)) * 0.1
    total, _, wanted = losses(model, [collate(row) for row in ALONE])
    got, _, found = losses(model, [collate_packed(BINS)])
    assert got == pytest.approx(total, rel=2e-6)
    assert difference(found, wanted) <= 1e-5


def test_padding_has_no_gradient_and_groups_hold_rows_of_similar_lengths() -> None:
    segments = Segments(((3, 50), (1,), (40, 9, 8)), 60)
    assert segments.groups == [(2, 50), (4, 9)]
    x = mx.random.normal((3, 60, 2), key=mx.random.key(0))

    def run(x: mx.array) -> mx.array:
        return segments.joined([part + 1 for part in segments.apart(x)])

    real = np.arange(60) < np.array([53, 1, 57])[:, None]
    y, (slope,) = mx.vjp(run, [x], [mx.ones_like(x)])
    np.testing.assert_array_equal(np.array(y[0]), np.where(real[..., None], np.array(x) + 1, 0))
    np.testing.assert_array_equal(np.array(slope), np.broadcast_to(real[..., None], x.shape))


lengths_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_rows, size=st.integers(40, 90), seed=st.integers(0, 2**31), epoch=st.integers(0, 3))
def test_every_row_is_in_one_bin_of_each_epoch_and_no_bin_overflows(
    lengths: list[int], size: int, seed: int, epoch: int
) -> None:
    order = Order(lengths, 2, seed, size)
    first = epoch * order.batches_per_epoch
    bins = [each for b in range(first, first + order.batches_per_epoch) for each in order.bins(b)]
    assert sorted(row for each in bins for row in each) == list(range(len(lengths)))
    assert max(sum(lengths[row] for row in each) for each in bins) <= size
    assert len(bins) == order.bins_per_epoch
    loads = sorted(sum(lengths[row] for row in each) for each in bins)
    assert len(bins) == 1 or sum(loads[:2]) > size  # else best fit would have made them one


def test_bins_depend_only_on_the_seed_and_their_number() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 200).tolist()
    straight = [Order(lengths, 3, 7, 100).bins(n) for n in range(80)]
    again = Order(lengths, 3, 7, 100)
    assert [again.bins(n) for n in reversed(range(80))] == straight[::-1]
    assert [Order(lengths, 3, 8, 100).bins(n) for n in range(80)] != straight
    per_epoch = again.batches_per_epoch
    assert {b for each in straight[:per_epoch] for b in each} != {
        b for each in straight[per_epoch : 2 * per_epoch] for b in each
    }


def test_best_fit_is_that_of_its_definition() -> None:
    random = np.random.default_rng(0)
    for size in (20, 31):
        lengths = random.integers(1, 20, 80)
        bins: list[list[int]] = []
        for row in np.argsort(-lengths, kind="stable"):
            rooms = [size - lengths[each].sum() - lengths[row] for each in bins]
            fitting = [room for room in rooms if room >= 0]
            if fitting:
                bins[rooms.index(min(fitting))].append(row)
            else:
                bins.append([row])
        found = pack.best_fit(lengths, size)
        assert sorted(lengths[each].sum() for each in found) == sorted(lengths[each].sum() for each in bins)


CONFIG = TrainConfig(data="x", iters=4, batch_size=2, packing=True, max_seq_length=40, steps_per_report=1)


def test_a_packed_run_trains_each_row_once_an_epoch_and_reports_its_bins() -> None:
    dataset = Dataset(rows([5, 30, 12, 8, 20, 3, 22, 40, 7]), [], Counts(rows=9, tokens=147))
    trainer = Trainer.of(decoder(LLAMA), CausalLM(), replace(CONFIG, iters=0, epochs=2.0), dataset)
    prepared, *_ = events = list(trainer.run())
    assert isinstance(prepared, Prepared)
    assert (prepared.bins, prepared.bin_tokens, prepared.binned, prepared.steps) == (4, 40, 9, 4)
    batches = [b for step in range(2) for b in trainer.passes.source.batches(step, trainer.model)]
    assert sum(b.num_target_tokens for b in batches) == sum(e.num_target_tokens for e in dataset.train)
    assert {type(event).__name__ for event in events} >= {"Step", "Finished"}


LONG = {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
OTHERS = {
    "no info": lambda: ToyLM(),
    "an encoder": lambda: build(_encoder()),
    "lengths that change positions": lambda: decoder(
        {
            **LLAMA, "model_type": "phi3", "rope_scaling": LONG, "original_max_position_embeddings": 16,
            "max_position_embeddings": 64, "pad_token_id": 0,
        }
    ),
}  # fmt: skip


def _encoder() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    more = {"max_position_embeddings": 64, "type_vocab_size": 2}
    return families.spec(Config({"model_type": "bert", "vocab_size": 50, **sizes, **more}))


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_a_model_that_cannot_keep_rows_apart_refuses_packing(make: Any) -> None:
    with pytest.raises(UsageError, match="packing cannot be used"):
        Trainer.of(make(), CausalLM(), CONFIG, Dataset(arithmetic_rows(4), [], Counts()))


def test_an_objective_without_packed_batches_refuses_packing() -> None:
    class Plain:
        collate, loss, examples = CausalLM().collate, CausalLM().loss, CausalLM().examples

    with pytest.raises(UsageError, match="Plain has no packed batches"):
        Trainer.of(decoder(LLAMA), Plain(), CONFIG, Dataset(arithmetic_rows(4), [], Counts()))


def test_finetune_reads_packing(tmp_path: Path) -> None:
    text = [json.dumps({"prompt": "ab" * (1 + i % 3), "completion": "cd" * (1 + i % 4)}) for i in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(text))
    seen: list[Any] = []
    finetune(
        data=str(tmp_path), adapter_path=str(tmp_path / "run"), iters=2, rank=2, packing=True, max_seq_length=64,
        batch_size=1, on_event=seen.append,
    )  # fmt: skip
    (prepared,) = (event for event in seen if isinstance(event, Prepared))
    assert prepared.binned == 12
    assert 0 < prepared.bins < 12
    assert FinetuneConfig.load(data="x", packing="true").packing is True


def test_a_row_as_long_as_the_table_of_positions_is_trained_on() -> None:
    model, (row,) = decoder({**GPT2, "n_positions": 21}), rows([22])
    total, units, _ = losses(model, [collate([row])])
    logits = model(mx.array(row.tokens[None, :-1]))[0]
    own = -nn.log_softmax(logits)[mx.arange(21), mx.array(row.tokens[1:])] * mx.array(row.loss_weights[1:])
    assert (total, units) == (pytest.approx(own.sum().item(), rel=1e-6), row.loss_mask.sum())
    with pytest.raises(DoesNotFitError):
        losses(model, [collate(rows([23]))])


@pytest.mark.parametrize("stop", [1, 4])
def test_a_packed_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    examples = rows(np.random.default_rng(1).integers(2, 30, 24).tolist())
    config = replace(CONFIG, iters=7, learning_rate=1e-2, save_every=2)
    ended = []
    for name, stops in (("whole", [None]), ("parts", [stop, None])):
        for last in stops:
            model = decoder(LLAMA)
            kept = Snapshots(tmp_path / name, 2, {})
            with closing(Trainer.of(model, CausalLM(), config, Dataset(examples, [], Counts()), kept).run()) as events:
                for event in events:
                    if isinstance(event, Step) and event.step == last:
                        break
        ended.append([np.array(w).tobytes() for _, w in tree_flatten(model.parameters())])
    assert ended[0] == ended[1]


def test_one_trajectory_packed_or_padded() -> None:
    lengths = np.random.default_rng(1).integers(2, 30, 24).tolist()
    examples = rows(lengths)
    weights = []
    for padded in (False, True):
        model = decoder(LLAMA)
        config = replace(CONFIG, iters=6, learning_rate=1e-2)
        trainer = Trainer.of(model, CausalLM(), config, Dataset(examples, [], Counts()))
        if padded:
            trainer.passes.source = Padded(trainer.passes.source, examples, config)
        list(trainer.run())
        weights.append({name: np.array(w) for name, w in tree_flatten(model.parameters())})
    for name, one in weights[0].items():
        residual = np.abs(one - weights[1][name])
        assert residual.max() <= 2e-5, name
        assert residual.mean() <= 2e-6, name


class Padded:
    """The rows of a packed source, in the same steps, each row alone."""

    def __init__(self, source: Any, examples: Sequence[Example], config: TrainConfig) -> None:
        self.counts, self.steps_per_epoch = source.counts, source.steps_per_epoch
        self.order = Order([len(e) for e in examples], config.batch_size, config.seed, config.max_seq_length)
        self.examples = examples

    def batches(self, step: int, model: nn.Module) -> Any:
        for each in self.order.bins(step):
            yield collate([self.examples[i] for i in each])
