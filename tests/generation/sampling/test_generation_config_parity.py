"""Greedy completions under the settings of a checkpoint's files, against transformers' `generate`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from macllm import checkpoint
from macllm.generation.sampling.defaults import default_sampling
from macllm.generation.stream import Request, generate
from tests.families.oracles import CASES, Case, write
from tests.generation.generate_fakes import FakeTokenizer

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

TOKENS = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
PROMPT = tuple(5 + n * 7 % 80 for n in range(13))
SETTINGS: list[dict[str, Any]] = [
    {},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 0.5},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 0.4},
    {"encoder_no_repeat_ngram_size": 1},
    {"min_length": 9},
    {"min_length": 17},
    {"min_new_tokens": 7},
    {"min_length": 30, "min_new_tokens": 3},
    {"bad_words_ids": [[a, b] for a in range(97) for b in range(a % 2, 97, 2)]},
    {"sequence_bias": [[[a, (a * 31 + 7) % 97], 60.0] for a in range(97)]},
    {"suppress_tokens": list(range(0, 90, 2))},
    {"begin_suppress_tokens": list(range(3, 90))},
    {"forced_eos_token_id": 2},
    {"forced_bos_token_id": 11},
    {"forced_bos_token_id": 11, "min_new_tokens": 5, "no_repeat_ngram_size": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "+".join(settings) or "nothing")
@pytest.mark.parametrize("ends_soon", [False, True], ids=["runs-on", "ends-soon"])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_completions_under_generation_config_equal_transformers(
    name: str, settings: dict, ends_soon: bool, tmp_path: Path
) -> None:
    _compare(name, settings, tmp_path, bias={"sequence_bias": [[[2], 1e4]]} if ends_soon else {})


@pytest.mark.parametrize(
    "settings", [{"no_repeat_ngram_size": 2, "min_length": 9}, {"forced_bos_token_id": 11}], ids=str
)
def test_a_decoder_that_starts_with_padding_equals_transformers_under_generation_config(
    settings: dict, tmp_path: Path
) -> None:
    _compare("t5", settings, tmp_path, bias={})


@pytest.mark.parametrize("settings", [{}, {"forced_bos_token_id": 11}], ids=["alone", "before-the-file"])
def test_a_decoder_begins_with_the_token_that_the_user_forces(settings: dict, tmp_path: Path) -> None:
    _compare("bart", settings, tmp_path, bias={}, user={"forced_bos_token_id": 20, "no_repeat_ngram_size": 1})


@pytest.mark.parametrize(
    "settings", [{"no_repeat_ngram_size": 2}, {"forced_eos_token_id": 2}, {"min_length": 9}], ids=str
)
def test_generation_settings_in_config_json_apply_without_a_generation_config(settings: dict, tmp_path: Path) -> None:
    _compare("bart", settings, tmp_path, bias={}, old=True)


@lru_cache
def _written(name: str) -> tuple[Case, Path, Any]:
    case = next(case for case in CASES if case.name == name)
    folder = Path(tempfile.mkdtemp())
    return case, folder, write(case, folder)


def _compare(
    name: str, settings: dict, folder: Path, *, bias: dict, old: bool = False, user: dict | None = None
) -> None:
    """Compare 20 new tokens after one prompt. `bias` can make the model end as soon as it may."""
    user = user or {}
    import torch
    from transformers import GenerationConfig

    case, written, theirs = _written(name)
    theirs.generation_config = GenerationConfig()  # else the settings of its class would fill the gaps
    shutil.copytree(written, folder, dirs_exist_ok=True)
    start = theirs.config.decoder_start_token_id if case.kind == "text-to-text" else None
    file = TOKENS | ({} if start is None else {"decoder_start_token_id": start}) | settings
    if bias:
        file["sequence_bias"] = [*settings.get("sequence_bias", []), *bias["sequence_bias"]]
    if old:
        file.setdefault("forced_eos_token_id", 2)  # as BART's class has it
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **file}))
        (folder / "generation_config.json").unlink()
    else:
        (folder / "generation_config.json").write_text(json.dumps(file))
    config = GenerationConfig(**file | user, do_sample=False, num_beams=1, max_new_tokens=20)
    out = theirs.generate(torch.tensor([PROMPT]), generation_config=config, use_cache=name != "t5")[0].tolist()
    model = checkpoint.load_model(folder)
    wanted = out[1:] if start is not None else out[len(PROMPT) :]
    if start is not None and "forced_bos_token_id" in settings | user:
        assert wanted.pop(0) == (settings | user)["forced_bos_token_id"]
    wanted = wanted[: wanted.index(2)] if 2 in wanted else wanted
    most = 20 - (start is not None and "forced_bos_token_id" in settings | user)
    sampling = dataclasses.replace(default_sampling(model.info), **user)
    if start is None:
        sampling = dataclasses.replace(sampling, temperature=0.0, min_p=0.0)
    made = generate(model, FakeTokenizer(), Request(prompt=PROMPT, max_tokens=most, sampling=sampling))
    assert list(made.tokens) == wanted
