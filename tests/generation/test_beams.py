"""Beam search: its options, errors and events, and the best answer of all by enumeration."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import macllm
from macllm import cli
from macllm.errors import UsageError
from macllm.generation.beams import Beams
from macllm.generation.request import Delta, Done, Prefill, Request, SamplingParams
from macllm.generation.sampling import config_file
from macllm.generation.stream import _given, generate, make_request, stream
from tests.generation.generate_fakes import FakeModel, FakeTokenizer
from tests.train.toy import random_llama

GREEDY = SamplingParams(temperature=0.0)


def model(**changes: Any) -> Any:
    """A small decoder; `changes` are of its facts."""
    made = random_llama(vocab_size=12)
    made.info = replace(made.info, eos=frozenset({3}), **changes)
    return made


class Letters(FakeTokenizer):
    """A tokenizer whose model ends by token 3 alone."""

    eos_token_id = None  # type: ignore[assignment]


def test_as_many_beams_as_sequences_find_the_likeliest_one() -> None:
    llama, most = model(), 3
    request = Request(
        prompt=(5, 7), max_tokens=most, num_beams=200, length_penalty=0.0, early_stopping="never", sampling=GREEDY,
    )  # fmt: skip
    found = generate(llama, Letters(), request)
    scores: dict[tuple[int, ...], float] = {}
    every = list(itertools.product(range(12), repeat=most))
    logits = np.array(llama(mx.array([[5, 7, *tokens] for tokens in every])))[:, 1:].astype(np.float64)
    for tokens, log_p in zip(every, logits - np.log(np.exp(logits).sum(-1, keepdims=True)), strict=True):
        end = tokens.index(3) + 1 if 3 in tokens else most
        scores[tokens[:end]] = sum(log_p[at, token] for at, token in enumerate(tokens[:end]))
    best = max(scores, key=scores.__getitem__)
    assert found.tokens == tuple(token for token in best if token != 3)
    assert found.beams[0].score == pytest.approx(scores[best], rel=1e-5)
    assert found.usage.completion_tokens == len(best)


def test_more_beams_find_no_worse_answers() -> None:
    llama = model()
    settings: dict[str, Any] = {"length_penalty": 0.0, "early_stopping": "never", "sampling": GREEDY}
    requests = [Request(prompt=(5, 7), max_tokens=6, num_beams=n, **settings) for n in (2, 8, 200)]
    scores = [generate(llama, Letters(), request).beams[0].score for request in requests]
    assert scores == sorted(scores)


def test_the_text_comes_at_the_end_with_the_best_beams() -> None:
    request = Request(prompt=(5, 7), max_tokens=5, num_beams=4, num_return_sequences=3, sampling=GREEDY)
    events = list(stream(model(), Letters(), request))
    kinds = [type(event) for event in events]
    assert kinds[-1] is Done
    assert kinds[0] is Prefill
    assert Prefill not in kinds[kinds.index(Delta) :]
    done = events[-1]
    assert isinstance(done, Done)
    assert len(done.beams) == 3
    assert [beam.score for beam in done.beams] == sorted((beam.score for beam in done.beams), reverse=True)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == done.beams[0].text
    assert sum((event.tokens for event in events if isinstance(event, Delta)), ()) == done.beams[0].tokens


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_beams": 3, "temperature": 0.7}, "beam search does not sample"),
        ({"num_beams": 3, "num_return_sequences": 4}, "num_return_sequences is 4, more than num_beams, 3"),
        ({"num_return_sequences": 2}, "more than num_beams, 1"),
        ({"length_penalty": 2.0}, "length_penalty has no effect"),
        ({"early_stopping": True}, "early_stopping has no effect"),
        ({"num_beams": 2, "early_stopping": "often"}, "early_stopping is 'often'"),
        ({"num_beams": 2, "logprobs": 1}, "not reported for beams"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2.5}, "num_beams is 2.5"),
    ],
    ids=str,
)
def test_settings_of_beams_that_make_no_sense_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        generate(model(), Letters(), "x", raw=True, max_tokens=3, **options)


def test_a_model_whose_cache_has_no_selection_cannot_search() -> None:
    with pytest.raises(UsageError, match="cannot search with beams"):
        generate(FakeModel(), FakeTokenizer(), "x", max_tokens=3, num_beams=2)


def test_an_encoder_decoder_takes_its_beams_from_the_checkpoint_unless_it_samples() -> None:
    file = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}
    seq2seq = model(kind="encoder-decoder", generation_config=file)

    def request(**options: Any) -> Request:
        return make_request(seq2seq, Letters(), "x", {"raw": True, "max_tokens": 3, **options})

    made = request()
    assert (made.num_beams, made.length_penalty, made.early_stopping) == (4, 2.0, True)
    assert request(length_penalty=0.5).length_penalty == 0.5
    assert request(**_given({"raw": False, "early_stopping": False, "seed": None})).early_stopping is False
    assert request(num_beams=2).length_penalty == 1.0
    assert request(num_beams=1).num_beams == request(temperature=0.5).num_beams == request(logprobs=2).num_beams == 1
    decoder = model(generation_config=file)
    assert make_request(decoder, Letters(), "x", {"max_tokens": 3}).num_beams == 1
    assert make_request(decoder, Letters(), "x", {"max_tokens": 3, "num_beams": 2}).sampling.temperature == 0


@pytest.mark.parametrize(
    ("file", "beams", "corrected"),
    [
        ({"num_beams": 1, "length_penalty": 2.0}, {}, 0),
        ({"num_beams": "6"}, {"num_beams": 6, "length_penalty": 1.0, "early_stopping": False}, 0),
        ({"num_beams": 2, "length_penalty": "x", "early_stopping": "x"}, {"num_beams": 2}, 2),
        ({"num_beams": 2.5}, {}, 1),
    ],
)
def test_beams_of_a_generation_config_are_checked(file: dict[str, Any], beams: dict[str, Any], corrected: int) -> None:
    read = config_file.read(file)
    assert read.beams == beams
    assert len(read.corrected) == corrected


def test_an_ended_beam_is_kept_while_others_go_on() -> None:
    request = Request(num_beams=2, num_return_sequences=2, length_penalty=0.0)
    beams = Beams(request, frozenset({0}), max_tokens=3)
    first = np.log(np.array([[0.5, 0.3, 0.2]] * 2, dtype=np.float32))
    assert beams.step(mx.array(first)) == ([0, 0], [1, 2])
    assert not beams.over
    parents, tokens = beams.step(mx.array(np.log(np.array([[0.1, 0.8, 0.1], [0.6, 0.2, 0.2]], np.float32))))
    assert (parents, tokens) == ([0, 1], [1, 1])
    assert [each.tokens for each in beams.best()] == [(0,), (2, 0)]
    np.testing.assert_allclose([each.score for each in beams.best()], np.log([0.5, 0.12]), rtol=1e-6)
    assert not beams.over  # 0.24 may still be more than 0.12
    beams.step(mx.array(np.log(np.array([[0.05, 0.05, 0.9], [0.2, 0.4, 0.4]], np.float32))))
    assert beams.over
    assert [each.tokens for each in beams.best()] == [(0,), (1, 1, 2)]


def test_the_command_reports_the_best_beams(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--num-beams", "3", "--num-return-sequences", "2", "-n", "8", "What is a KV cache?"]
    assert cli.main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["beams"]) == 2
    assert answer["text"] == answer["beams"][0]["text"]
    assert cli.main(command) == 2
    assert cli.main(["generate", "--length-penalty", "2", "--num-beams", "1", "x"]) == 2
    assert cli.main(["generate", "--json", "-n", "4", "x"]) == 0
    assert "beams" not in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_bundled_model_answers_with_beams() -> None:
    llama, tokenizer = macllm.load()
    made = macllm.generate(llama, tokenizer, "What is a KV cache?", num_beams=3, max_tokens=12, kv_bits=8)
    assert len(made.beams) == 1
    assert made.text == made.beams[0].text
