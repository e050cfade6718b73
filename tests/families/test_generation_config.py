"""End tokens of a checkpoint whose files disagree about them."""

from __future__ import annotations

from typing import Any

import pytest

from macllm.families.generation import generation_config


@pytest.mark.parametrize("empty", [[], [-1], ["</s>"], None])
@pytest.mark.parametrize(
    ("config", "ends"),
    [({"eos_token_id": 2}, 2), ({"eos_token_id": [2, 7]}, [2, 7]), ({"text_config": {"eos_token_id": 5}}, 5)],
)
def test_an_empty_list_of_end_tokens_does_not_hide_those_of_config_json(
    empty: Any, config: dict[str, Any], ends: Any
) -> None:
    assert generation_config(config, {"eos_token_id": empty}, "llama")["eos_token_id"] == ends


def test_valid_end_tokens_of_generation_config_json_go_first() -> None:
    assert generation_config({"eos_token_id": 2}, {"eos_token_id": [7, -1]}, "llama")["eos_token_id"] == [7]
