"""Benchmark figures against counts by hand from the shapes."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from click.testing import CliRunner

from macllm.cli.bench import command
from macllm.errors import UsageError
from macllm.evaluate import speed
from macllm.evaluate.speed import Figure, Workload, measure
from macllm.families import spec
from macllm.families.config import Config
from macllm.nn.models import build

LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
ATTENTION, MLP, NORMS = 64 * (64 + 32 + 32 + 64), 3 * 64 * 96, 2 * 64
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}


def model(raw: dict[str, Any]) -> Any:
    made = build(spec(Config(raw)))
    mx.eval(made.parameters())
    return made


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "read_bytes_per_second", lambda: 1e9)
    monkeypatch.setattr(speed, "operations_per_second", lambda dtype: 1e10)


def test_a_token_reads_every_matrix_but_the_embedding() -> None:
    count, size = speed._read_per_token(model(LLAMA))
    assert count == 2 * (ATTENTION + MLP) + 320 * 64
    assert size == 4 * (count + 2 * NORMS + 64)


def test_a_tied_embedding_is_read_as_the_head() -> None:
    untied, _ = speed._read_per_token(model(LLAMA))
    assert speed._read_per_token(model({**LLAMA, "tie_word_embeddings": True}))[0] == untied


def test_a_token_reads_only_the_experts_it_visits() -> None:
    count, _ = speed._read_per_token(model(MIXTRAL))
    assert count == 2 * (ATTENTION + 2 * MLP + 4 * 64) + 320 * 64


def test_quantized_weights_count_by_number_and_by_stored_bytes() -> None:
    made = model(LLAMA)
    nn.quantize(made, group_size=32, bits=4)
    count, size = speed._read_per_token(made)
    assert count == 2 * (ATTENTION + MLP) + 320 * 64
    assert size == count // 2 + count // 32 * 8 + 4 * (2 * NORMS + 64)


def test_speeds_and_shares_follow_from_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([speed._Round(9.0, 9.0, 100), *(speed._Round(s, 2 * s, 100) for s in (0.1, 0.2, 0.4))])
    monkeypatch.setattr(speed, "_round", lambda *_: next(rounds))
    progress: list[tuple[int, int]] = []
    made = model(LLAMA)
    count, size = speed._read_per_token(made)
    result = measure(lambda: made, Workload(20, 5, repeats=3), lambda done, total: progress.append((done, total)))
    assert result.prefill.median == 20 / 0.2
    assert result.decode.median == 4 / 0.4
    assert result.first_token.median == 0.2
    head = 320 * 64  # applied only to the last of the 20 tokens
    assert result.prefill_share == pytest.approx(2 * (count - head + head / 20) * 100 / 1e10)
    assert result.decode_share == pytest.approx((size + 100) * 10 / 1e9)
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("shares", "notes"),
    [
        ((1.0, 1.0, 1000), ()),
        ((0.5, 1.2, 1000), ("decode: above 100%, because the processor's caches hold part of the model",)),
        ((0.5, 1.2, 10**9), ("decode: above 100%, because other work slowed the machine",)),
        ((1.2, 0.4, 1000), ("prompt: above 100%, because other work slowed the machine",)),
    ],
)
def test_a_share_above_100_percent_has_a_note_with_its_reason(
    shares: tuple[float, float, int], notes: tuple[str, ...]
) -> None:
    found = speed._notes(model(LLAMA), *shares)
    assert len(found) == len(notes)
    assert all(note.startswith(expected) for note, expected in zip(found, notes, strict=True))


def test_a_quantized_models_prompt_above_100_percent_is_explained_by_int8() -> None:
    made = model(LLAMA)
    nn.quantize(made, group_size=32, bits=4)
    (note,) = speed._notes(made, 1.5, 0.5, 1000)
    assert ("8-bit integers" if mx.default_device() == mx.cpu else "other work") in note


def test_a_measured_round_fills_the_cache_and_takes_time() -> None:
    result = measure(lambda: model(LLAMA), Workload(None, 8, repeats=2))
    slots = 39  # of a context of 40: the last token is not fed back
    assert result.cache_bytes >= slots * 2 * 2 * 2 * 16 * 4
    assert result.decode.median > 0
    assert result.prefill.median > 0


@pytest.mark.parametrize("workload", [Workload(33, 8), Workload(None, 40)])
def test_a_workload_beyond_the_context_is_refused(workload: Workload) -> None:
    with pytest.raises(UsageError, match="more than the model's context of 40"):
        measure(lambda: model(LLAMA), workload)


def test_a_figure_is_the_median_and_half_the_interquartile_range() -> None:
    assert Figure.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Figure(3.0, 1.5)
    assert Figure.of([2.0]) == Figure(2.0, 0.0)


def test_bench_prints_a_table_or_one_json_object() -> None:
    flags = ["--prompt", "8", "--new", "2", "--repeats", "1"]
    table = CliRunner().invoke(command, flags, standalone_mode=False)
    assert [line.split("  ")[0] for line in table.stdout.splitlines()] == [
        "load", "first token", "prompt", "decode", "memory", "bandwidth", "arithmetic",
    ]  # fmt: skip
    printed = json.loads(CliRunner().invoke(command, [*flags, "--json"], standalone_mode=False).stdout)
    assert printed["weights_bytes"] > 7_000_000
    assert printed["decode"]["median"] > 0
