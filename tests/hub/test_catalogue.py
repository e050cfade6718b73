"""The list of recommended models: its shape, and the choice for a machine."""

from __future__ import annotations

from datetime import date

import pytest

from macllm import families
from macllm.hub import catalogue as listed
from macllm.hub import fit as fitting
from macllm.hub.catalogue import FIT_TOKENS, best_for, catalogue
from macllm.hub.fit import needed_bytes
from macllm.hub.names import parse_name

GIGABYTE = 10**9


def test_the_catalogue_is_dated_short_and_sorted_by_size() -> None:
    found = catalogue()
    assert date(2026, 1, 1) <= found.date <= date.today()
    sizes = [model.size_bytes for model in found.models]
    assert sizes == sorted(set(sizes))
    assert 6 <= len(sizes) <= 12
    names = [model.name for model in found.models]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("model", catalogue().models, ids=lambda model: model.name.rpartition("/")[2])
def test_every_entry_is_complete_and_of_a_family_of_ours(model: listed.Recommended) -> None:
    assert str(parse_name(model.name)) == model.name
    assert model.shape.family in families.FAMILIES
    assert model.shape.quantization == "4-bit"
    # Groups of 64 with a scale and a bias of 16 bits take 4.5 bits for a parameter.
    assert model.size_bytes == pytest.approx(model.parameters * 4.5 / 8, rel=0.005)
    assert (model.active_bytes < model.size_bytes) is model.shape.has_experts
    assert model.shape.context_tokens
    assert model.shape.context_tokens % 1024 == 0
    assert model.licence
    assert 10 < len(model.use) < 80
    assert model.shape.cache_bytes(1000, 2) > 0


@pytest.mark.parametrize(
    ("gigabytes", "best"),
    [
        (5.3, "Qwen3-4B-Instruct-2507"),
        (10.7, "Qwen3-8B"),
        (16, "Qwen3-14B"),
        (48, "Qwen3-30B-A3B"),
        (96, "Llama-3.3-70B"),
    ],
)
def test_the_largest_models_that_fit_are_recommended(
    gigabytes: float, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting.sys, "platform", "darwin")
    found = best_for(int(gigabytes * GIGABYTE))
    assert best in found[0].name
    assert [model.size_bytes for model in found] == sorted((model.size_bytes for model in found), reverse=True)
    needed = needed_bytes(found[0].size_bytes, found[0].shape, FIT_TOKENS)
    assert needed <= 0.7 * gigabytes * GIGABYTE


def test_nothing_is_recommended_to_a_machine_without_memory() -> None:
    assert best_for(GIGABYTE // 2) == []
