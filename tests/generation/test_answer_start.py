"""Completions that continue an answer, against the answer that nothing interrupted."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from macllm.errors import UsageError
from macllm.generation.prefix import PrefixCache
from macllm.generation.request import Delta, Done, Event, Prefill, Request, SamplingParams
from macllm.generation.stream import generate, run
from macllm.nn.info import ModelInfo
from tests.generation.generate_fakes import EOS, FakeModel, FakeTokenizer
from tests.generation.scripted_answer import MESSAGES, model, script, tokenizer

GREEDY = SamplingParams(temperature=0.0)
FAKE_SIZE = len(FakeTokenizer().encode_chat(MESSAGES, tools=None))


@lru_cache
def whole() -> list[Event]:
    return answered()


def answered(start: tuple[int, ...] = (), count: int = 500, prefix: PrefixCache | None = None) -> list[Event]:
    request = Request(messages=MESSAGES, answer_start=start, max_tokens=count, sampling=GREEDY)
    return list(run(model(), tokenizer(), request, prefix=prefix))


def parts(events: list[Event]) -> dict[tuple[str, int | None], str]:
    """The text of every part of an answer."""
    found: dict[tuple[str, int | None], str] = {}
    for event in events:
        if isinstance(event, Delta):
            found[event.kind, event.call] = found.get((event.kind, event.call), "") + event.text
    return found


def tokens_of(events: list[Event]) -> tuple[int, ...]:
    return tuple(token for event in events if isinstance(event, Delta) for token in event.tokens)


def test_an_answer_continued_at_any_token_is_the_uninterrupted_one() -> None:
    """The text that is certain comes first, marked as given, without the character that was cut."""
    for at in range(1, len(script())):
        events = answered(script()[:at])
        assert parts(events) == parts(whole())
        assert tokens_of(events) == script()
        done = events[-1]
        assert isinstance(done, Done)
        assert done.finish_reason == "tool_calls"
        assert done.usage.prompt_tokens == len(tokenizer().encode_chat(MESSAGES)) + at
        assert done.usage.completion_tokens == len(script()) - at + 1
        deltas = [event for event in events if isinstance(event, Delta)]
        assert [delta.given for delta in deltas] == sorted((delta.given for delta in deltas), reverse=True)
        given = parts([delta for delta in deltas if delta.given])
        assert all(parts(whole())[part].startswith(text) for part, text in given.items())


def test_the_script_has_all_parts_and_cut_characters() -> None:
    assert {kind for kind, _ in parts(whole())} == {"reasoning", "content", "tool_call"}
    assert not any(delta.given for delta in whole() if isinstance(delta, Delta))
    assert any(tokenizer().decode(script()[:n]).endswith("\ufffd") for n in range(len(script())))


def test_given_text_comes_with_the_first_new_token_and_not_without_one() -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 1

    request = Request(messages=MESSAGES, answer_start=script()[:9], sampling=GREEDY)
    events = list(run(model(), tokenizer(), request, cancelled=cancelled))
    assert [type(event) for event in events] == [Prefill, Done]


@pytest.mark.parametrize("count", [1, 4, 12])
@pytest.mark.parametrize("stop", [1, 7, 16])
def test_a_sampled_answer_continues_with_the_draws_of_its_seed(stop: int, count: int) -> None:
    sampling = SamplingParams(
        seed=11, repetition_penalty=1.1, no_repeat_ngram_size=3, min_new_tokens=8, begin_suppress_tokens=(5, 6)
    )
    fake, plain = FakeModel(seed=3), FakeTokenizer()
    whole = generate(fake, plain, Request(messages=MESSAGES, max_tokens=stop + count, sampling=sampling))
    start = whole.tokens[:stop]
    request = Request(messages=MESSAGES, answer_start=start, max_tokens=count, sampling=sampling)
    assert generate(fake, plain, request).tokens == whole.tokens


def test_a_least_length_and_a_beginning_count_from_the_first_token_of_the_answer() -> None:
    """An end that is banned for four tokens, and a token that is banned as the first only."""
    fake = FakeModel(script=[65, 66, EOS, EOS, 67, EOS], prompt_size=FAKE_SIZE)
    sampling = SamplingParams(temperature=0.0, min_new_tokens=2, begin_suppress_tokens=(66,))
    request = Request(messages=MESSAGES, answer_start=(65,), sampling=sampling)
    assert generate(fake, FakeTokenizer(), request).tokens == (65, 66)


def test_a_stop_string_that_the_first_part_began_ends_the_answer() -> None:
    text = b"one two END three"
    fake = FakeModel(script=[*text, EOS], prompt_size=FAKE_SIZE)
    request = Request(messages=MESSAGES, answer_start=tuple(text[:10]), stop=("END",), sampling=GREEDY)
    out = generate(fake, FakeTokenizer(), request)
    assert (out.text, out.finish_reason) == ("one two ", "stop")


def test_continuing_reuses_the_cache_of_the_first_part() -> None:
    prefix = PrefixCache()
    first = answered(count=20, prefix=prefix)
    done = answered(tokens_of(first), prefix=prefix)[-1]
    assert isinstance(done, Done)
    assert done.usage.cached_tokens == done.usage.prompt_tokens - 1
    assert prefix.tokens[-len(script()) :] == script()


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (Request(prompt="x", raw=True, answer_start=(1,)), "not answered but continued"),
        (Request(prompt=(1, 2), answer_start=(1,)), "not answered but continued"),
        (Request(messages=MESSAGES, answer_start=(65, EOS)), "whole answer"),
        (Request(messages=MESSAGES, answer_start=tuple(b"to the END"), stop=("END",)), "whole answer"),
        (Request(messages=MESSAGES, answer_start=(999,)), "token 999"),
        (Request(messages=MESSAGES, answer_start="text"), "answer_start"),  # type: ignore[arg-type]
    ],
)
def test_a_request_without_an_open_answer_is_refused(request_: Request, match: str) -> None:
    fake = FakeModel()
    with pytest.raises(UsageError, match=match):
        run(fake, FakeTokenizer(), request_)
    assert fake.positions == 0


def test_an_encoder_decoder_cannot_continue_an_answer() -> None:
    fake: Any = FakeModel()
    fake.info = ModelInfo(kind="encoder-decoder", vocab_size=257)
    with pytest.raises(UsageError, match="cannot continue"):
        run(fake, FakeTokenizer(), Request(messages=MESSAGES, answer_start=(1,)))
