"""Greedy completions under the wishes of a checkpoint's files, compared with transformers' `generate`."""

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
WISHES: list[dict[str, Any]] = [
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


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: "+".join(wish) or "nothing")
@pytest.mark.parametrize("ends_soon", [False, True], ids=["runs-on", "ends-soon"])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_completions_under_wishes_equal_transformers(name: str, wish: dict, ends_soon: bool, tmp_path: Path) -> None:
    _compare(name, wish, tmp_path, bias={"sequence_bias": [[[2], 1e4]]} if ends_soon else {})


@pytest.mark.parametrize("wish", [{"no_repeat_ngram_size": 2, "min_length": 9}, {"forced_bos_token_id": 11}], ids=str)
def test_a_decoder_that_starts_with_padding_obeys_them_too(wish: dict, tmp_path: Path) -> None:
    _compare("t5", wish, tmp_path, bias={})


@pytest.mark.parametrize("wish", [{}, {"forced_bos_token_id": 11}], ids=["alone", "before-the-file"])
def test_a_decoder_begins_with_the_token_that_the_user_forces(wish: dict, tmp_path: Path) -> None:
    _compare("bart", wish, tmp_path, bias={}, user={"forced_bos_token_id": 20, "no_repeat_ngram_size": 1})


@pytest.mark.parametrize("wish", [{"no_repeat_ngram_size": 2}, {"forced_eos_token_id": 2}, {"min_length": 9}], ids=str)
def test_wishes_in_config_json_hold_where_there_is_no_other_file(wish: dict, tmp_path: Path) -> None:
    _compare("bart", wish, tmp_path, bias={}, old=True)


@lru_cache
def _written(name: str) -> tuple[Case, Path, Any]:
    case = next(case for case in CASES if case.name == name)
    folder = Path(tempfile.mkdtemp())
    return case, folder, write(case, folder)


def _compare(name: str, wish: dict, folder: Path, *, bias: dict, old: bool = False, user: dict | None = None) -> None:
    """One prompt, 20 new tokens. A bias on the end makes a model end at its first chance."""
    user = user or {}
    import torch
    from transformers import GenerationConfig

    case, written, theirs = _written(name)
    theirs.generation_config = GenerationConfig()  # else what its class wishes would fill the gaps
    shutil.copytree(written, folder, dirs_exist_ok=True)
    start = theirs.config.decoder_start_token_id if case.kind == "text-to-text" else None
    file = TOKENS | ({} if start is None else {"decoder_start_token_id": start}) | wish
    if bias:
        file["sequence_bias"] = [*wish.get("sequence_bias", []), *bias["sequence_bias"]]
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
    if start is not None and "forced_bos_token_id" in wish | user:
        assert wanted.pop(0) == (wish | user)["forced_bos_token_id"]
    wanted = wanted[: wanted.index(2)] if 2 in wanted else wanted
    most = 20 - (start is not None and "forced_bos_token_id" in wish | user)
    sampling = dataclasses.replace(default_sampling(model.info), **user)
    if start is None:
        sampling = dataclasses.replace(sampling, temperature=0.0, min_p=0.0)
    made = generate(model, FakeTokenizer(), Request(prompt=PROMPT, max_tokens=most, sampling=sampling))
    assert list(made.tokens) == wanted
