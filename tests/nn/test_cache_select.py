"""Selection of a cache's sequences: those that go on, in another order, repeated, or left out."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm.nn.models import DecoderLM
from tests.families.golden import shared_model
from tests.families.oracles import CASES, Case
from tests.nn.test_cache import close, tokens_for

ROWS = [2, 0, 0, 1, 2]
DECODERS = [case for case in CASES if case.name in ("llama", "mistral", "gemma3_text", "llama4_text-plain", "gpt2")]
PAIRS = [case for case in CASES if case.name in ("t5", "bart", "marian")]


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
def test_selected_sequences_go_on_as_if_they_were_alone(case: Case, bits: int | None) -> None:
    model, tokens = shared_model(case.name), tokens_for(case, rows=3)
    cache = model.make_cache(kv_bits=bits)
    model(tokens[:, :11], cache=cache)
    origin, chosen = cache.fork(), mx.array(ROWS)
    cache.select(ROWS)
    for at in range(11, 17):
        found = model(tokens[chosen, at : at + 1], cache=cache)
        close(np.array(found), np.array(model(tokens[:, at : at + 1], cache=origin)[chosen]))


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name)
def test_selected_sequences_keep_their_sources(case: Case) -> None:
    model, tokens, sources = shared_model(case.name), tokens_for(case, rows=3), tokens_for(case, rows=3, seed=1)
    lengths = mx.array([29, 4, 17])
    wanted = model(tokens, source=sources, source_lengths=lengths)
    cache = model.start(sources, lengths)
    model(tokens[:, :3], cache=cache)
    cache.select(ROWS)
    found = model(tokens[mx.array(ROWS), 3:9], cache=cache)
    close(np.array(found), np.array(wanted[mx.array(ROWS), 3:9]))


def test_beams_of_one_source_share_its_keys() -> None:
    case = PAIRS[0]
    model, tokens, source = shared_model(case.name), tokens_for(case, rows=3), tokens_for(case, rows=1, seed=1)
    cache = model.start(source)
    cache.select([0, 0, 0])
    model(tokens[:, :3], cache=cache)
    cross = [kv.keys for kv in cache.cross]
    cache.select([1, 1, 2], same_source=True)
    assert all(kv.keys is keys for kv, keys in zip(cache.cross, cross, strict=True))
    found = model(tokens[mx.array([1, 1, 2]), 3:9], cache=cache)
    wanted = model(tokens, source=mx.repeat(source, 3, axis=0))
    close(np.array(found), np.array(wanted[mx.array([1, 1, 2]), 3:9]))


@pytest.mark.parametrize("rows", [[1, 1, 2, 0], [2, 1], [0]], ids=str)
@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
def test_selected_sequences_keep_their_padding(case: Case, rows: list[int]) -> None:
    model, tokens, padding = shared_model(case.name), tokens_for(case, rows=3), (0, 3, 9)
    assert isinstance(model, DecoderLM)
    cache = model.make_cache(left_padding=padding)
    model(tokens[:, :11], cache=cache)
    cache.select(rows)
    for row, pads in enumerate(padding):
        alone = np.array(model(tokens[row : row + 1, pads:])[0])
        for at in [i for i, chosen in enumerate(rows) if chosen == row]:
            copy = cache.fork()
            found = model(tokens[mx.array(rows), 11:17], cache=copy)
            close(np.array(found)[at], alone[11 - pads : 17 - pads])
