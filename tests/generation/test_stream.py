from __future__ import annotations

import inspect
import time
from dataclasses import fields, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import macllm
from macllm.errors import DoesNotFitError, UsageError
from macllm.generation import limits
from macllm.generation.contract import EngineOptions
from macllm.generation.decode import decode
from macllm.generation.prefix import PrefixCache
from macllm.generation.request import Delta, Done, Event, Prefill, Request, SamplingParams, Usage
from macllm.generation.stream import generate, run, stream
from tests.generation.generate_fakes import EOS, FakeModel, FakeTokenizer

GREEDY = SamplingParams(temperature=0.0)
PROMPT = tuple(b"the prompt of a test")


def plain_loop(model: FakeModel, prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy tokens, every one from a full pass over everything before it."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1]).item()))
    return tokens[len(prompt) :]


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def scripted(text: bytes, **options: Any) -> FakeModel:
    return FakeModel(script=[*text, EOS], prompt_size=len(PROMPT), **options)


@pytest.mark.parametrize("step", [1, 2, 7, 19, 20, 21, 512])
def test_greedy_tokens_equal_those_of_full_passes_for_any_prefill_step(step: int) -> None:
    model = FakeModel()
    events = list(
        run(
            model,
            FakeTokenizer(),
            Request(prompt=PROMPT, max_tokens=40, sampling=GREEDY),
            EngineOptions(prefill_step=step),
        )
    )
    assert tokens_of(events) == plain_loop(model, PROMPT, 40)
    assert text_of(events) == FakeTokenizer().decode(tokens_of(events))


def test_the_detokenizer_continues_a_raw_prompt_and_not_a_chat_prompt() -> None:
    plain, chat = FakeTokenizer(), FakeTokenizer()
    chat.chat_template = ""  # only its presence matters
    for tokenizer, request, continued in (
        (plain, Request(prompt="text"), True),
        (plain, Request(prompt=PROMPT), True),
        (chat, Request(prompt="text", raw=True), True),
        (chat, Request(prompt=PROMPT), True),
        (chat, Request(prompt="question"), False),
        (chat, Request(messages=({"role": "user", "content": "question"},)), False),
    ):
        list(run(FakeModel(), tokenizer, replace(request, max_tokens=1)))
        text = PROMPT if request.prompt == PROMPT else tuple(b"text")
        assert tokenizer.continued == (text if continued else ()), request


def test_prefill_events_report_positions_done_and_total() -> None:
    request, options = Request(prompt=PROMPT, max_tokens=1), EngineOptions(prefill_step=8)
    events = list(run(FakeModel(), FakeTokenizer(), request, options))
    assert [(event.done, event.total) for event in events if isinstance(event, Prefill)] == [
        (0, 20),
        (8, 20),
        (16, 20),
        (20, 20),
    ]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_no_position_beyond_the_needed_ones_is_computed(count: int) -> None:
    model = FakeModel()
    events = list(run(model, FakeTokenizer(), Request(prompt=PROMPT, max_tokens=count)))
    assert model.positions == len(PROMPT) + count - 1
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", count)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), step=st.integers(1, 30))
def test_a_reported_seed_replays_the_completion(seed: int, step: int) -> None:
    model, tokenizer = FakeModel(), FakeTokenizer()
    sampling = SamplingParams(temperature=1.3, top_p=0.9, xtc_probability=0.4, dry_multiplier=0.3, seed=seed)
    request = Request(prompt=PROMPT, max_tokens=12, sampling=sampling)
    first = list(run(model, tokenizer, request))
    again = list(run(model, tokenizer, request, EngineOptions(prefill_step=step)))
    assert tokens_of(first) == tokens_of(again)
    assert first[-1].seed == seed


def test_a_random_seed_is_reported_and_replays_the_completion() -> None:
    model, tokenizer = FakeModel(), FakeTokenizer()
    first = generate(model, tokenizer, "x", temperature=1.5, max_tokens=30)
    second = generate(model, tokenizer, "x", temperature=1.5, max_tokens=30)
    assert first.tokens != second.tokens
    assert generate(model, tokenizer, "x", temperature=1.5, max_tokens=30, seed=first.seed).tokens == first.tokens


@pytest.mark.parametrize("reused", [False, True])
def test_penalties_count_the_prompt_whether_it_is_computed_or_cached(reused: bool) -> None:
    model, prefix = FakeModel(), PrefixCache()
    if reused:
        list(run(model, FakeTokenizer(), Request(prompt=PROMPT, max_tokens=3), prefix=prefix))
    sampling = SamplingParams(temperature=0.0, presence_penalty=100.0)
    history = [*PROMPT, *b" next"]
    events = list(
        run(model, FakeTokenizer(), Request(prompt=tuple(history), max_tokens=8, sampling=sampling), prefix=prefix)
    )
    assert (events[-1].usage.cached_tokens > 0) == reused
    start = len(history)
    for _ in range(8):
        logits = np.array(model(mx.array([history]))[0, -1])
        logits[history] -= 100.0
        history.append(int(logits.argmax()))
    assert tokens_of(events) == history[start:]


@pytest.mark.parametrize(("kv_bits", "max_context"), [(8, None), (None, 64)])
def test_a_cache_of_another_precision_or_length_is_not_reused(kv_bits: int | None, max_context: int | None) -> None:
    model, prefix, request = FakeModel(), PrefixCache(), Request(prompt=PROMPT, max_tokens=2)
    plain, changed = (request, None), (replace(request, max_context=max_context), kv_bits)
    cached = []
    for each, bits in (plain, changed, changed, plain):
        events = list(run(model, FakeTokenizer(), each, EngineOptions(kv_bits=bits), prefix=prefix))
        cached.append(events[-1].usage.cached_tokens)
    assert cached == [0, 0, len(PROMPT) - 1, 0]


@pytest.mark.parametrize("prompt", ["x" * 20, Request(prompt=PROMPT, max_tokens=1)], ids=["text", "request"])
def test_engine_options_are_accepted_with_a_text_and_with_a_request(prompt: str | Request) -> None:
    model = FakeModel()
    events = list(stream(model, FakeTokenizer(), prompt, kv_bits=8, prefill_step=15))
    assert [event.done for event in events if isinstance(event, Prefill)] == [0, 15, 20]
    assert [cache.kv_bits for cache in model.caches] == [8]


def test_bos_and_padding_tokens_are_counted_and_have_no_text() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.bos_token_id, tokenizer.pad_token_id = ord("<"), ord("_")
    out = generate(scripted(b"<a_b<"), tokenizer, Request(prompt=PROMPT, sampling=GREEDY))
    assert (out.text, bytes(out.tokens)) == ("ab", b"<a_b<")


@pytest.mark.parametrize("logprobs", [0, 3])
def test_logprobs_are_of_the_unmodified_distribution(logprobs: int) -> None:
    model = FakeModel(vocab_size=60)
    tokenizer = FakeTokenizer([bytes([65 + n % 26]) for n in range(60)])
    sampling = SamplingParams(temperature=3.0, top_k=5, logit_bias=((3, 5.0),), seed=1)
    prompt = (1, 2, 3)
    events = list(run(model, tokenizer, Request(prompt=prompt, max_tokens=10, sampling=sampling, logprobs=logprobs)))
    tokens = tokens_of(events)
    reported = [logprob for event in events if isinstance(event, Delta) for logprob in event.logprobs]
    assert [each.token for each in reported] == tokens
    logits = np.array(model(mx.array([[*prompt, *tokens]])))[0].astype(np.float64)
    exact = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for n, each in enumerate(reported):
        row = exact[len(prompt) - 1 + n]
        assert abs(each.logprob - row[each.token]) < 1e-5
        best = np.argsort(-row)[:logprobs]
        assert [token for token, _ in each.alternatives] == best.tolist()
        np.testing.assert_allclose([value for _, value in each.alternatives], row[best], atol=1e-5)


@pytest.mark.parametrize("end", ["tokenizer", "model", "request"])
def test_a_stop_token_ends_the_answer_and_is_not_shown(end: str) -> None:
    model, tokenizer = FakeModel(script=b"Hello!~more", prompt_size=len(PROMPT)), FakeTokenizer()
    stop = frozenset()
    if end == "tokenizer":
        tokenizer.eos_token_id = ord("~")
    elif end == "model":
        model.info = replace(model.info, eos=frozenset({3, ord("~")}))
    else:
        stop = frozenset({ord("~")})
    prefix = PrefixCache()
    events = list(run(model, tokenizer, Request(prompt=PROMPT, stop_tokens=stop, sampling=GREEDY), prefix=prefix))
    assert text_of(events) == "Hello!"
    assert events[-1].finish_reason == "stop"
    assert events[-1].usage.completion_tokens == 7
    assert bytes(prefix.tokens) == bytes(PROMPT) + b"Hello!"
    assert model.caches[0].tokens.tolist() == list(prefix.tokens)


def test_a_stop_string_over_several_tokens_is_never_shown_and_is_cut_from_the_cache() -> None:
    model, prefix = scripted(b"one two END three"), PrefixCache()
    request = Request(prompt=PROMPT, stop=("END", "never"), sampling=GREEDY)
    events = list(run(model, FakeTokenizer(), request, prefix=prefix))
    assert text_of(events) == "one two "
    assert events[-1].finish_reason == "stop"
    assert bytes(prefix.tokens) == bytes(PROMPT) + b"one two "
    assert model.caches[0].length == len(prefix.tokens)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_text_equals_the_tokenizers_decoding_even_when_a_character_is_cut(length: int) -> None:
    text = b"ok " + "🙂".encode()
    out = generate(scripted(text), FakeTokenizer(), Request(prompt=PROMPT, max_tokens=3 + length, sampling=GREEDY))
    assert out.text == text[: 3 + length].decode(errors="replace")
    assert bytes(out.tokens) == text[: 3 + length]


@pytest.mark.parametrize("can_cut", [True, False])
@pytest.mark.parametrize("position", range(12))
def test_closing_at_any_event_leaves_the_shown_tokens_in_the_cache(position: int, can_cut: bool) -> None:
    model, prefix = FakeModel(can_cut=can_cut), PrefixCache()
    request = Request(prompt=PROMPT, max_tokens=9, sampling=GREEDY)
    events = run(model, FakeTokenizer(), request, EngineOptions(prefill_step=8), prefix=prefix)
    seen = [next(events) for _ in range(position)]
    events.close()
    if not seen:
        assert model.caches == []
        return
    computed = max(event.done for event in seen if isinstance(event, Prefill))
    shown = tokens_of(seen)
    cache = model.caches[0]
    assert list(prefix.tokens) == [*PROMPT[:computed], *plain_loop(model, PROMPT, 9)[: cache.length - computed]]
    assert cache.tokens.tolist() == list(prefix.tokens)
    if can_cut:
        assert cache.length == computed + len(shown) - (len(shown) == 9)


@pytest.mark.parametrize("position", range(14))
def test_cancelling_at_any_step_keeps_the_tokens_and_reports_cancelled(position: int) -> None:
    model, prefix, asked = FakeModel(), PrefixCache(), 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > position

    request, options = Request(prompt=PROMPT, max_tokens=9, sampling=GREEDY), EngineOptions(prefill_step=8)
    events = list(run(model, FakeTokenizer(), request, options, prefix=prefix, cancelled=cancelled))
    shown, done = tokens_of(events), events[-1]
    assert isinstance(done, Done)
    assert done.finish_reason == ("length" if position >= 13 else "cancelled")
    assert shown == plain_loop(model, PROMPT, 9)[: max(0, min(9, position - 3))]
    assert done.usage.completion_tokens == len(shown)
    if position == 0:
        assert model.caches == []
        return
    assert model.caches[0].tokens.tolist() == list(prefix.tokens)
    assert list(prefix.tokens) == [*PROMPT, *shown][: len(prefix.tokens)]
    if shown:
        assert len(prefix.tokens) == len(PROMPT) + len(shown) - (len(shown) == 9)


def test_the_next_turn_reuses_the_cache_and_gives_the_tokens_of_full_passes() -> None:
    model, tokenizer, prefix = FakeModel(), FakeTokenizer(), PrefixCache()
    prompt, fresh = PROMPT, []
    for turn in range(4):
        request = Request(prompt=prompt, max_tokens=6, sampling=GREEDY)
        before = model.positions
        events = list(run(model, tokenizer, request, EngineOptions(prefill_step=5), prefix=prefix))
        cached = events[-1].usage.cached_tokens
        assert model.positions - before == len(prompt) - cached + 5
        assert cached == (0 if turn == 0 else len(fresh) - 1)
        assert events[0] == Prefill(cached, len(prompt))
        assert tokens_of(events) == plain_loop(model, prompt, 6)
        fresh = [*prompt, *tokens_of(events)]
        prompt = (*fresh, *b" next")


def test_an_edited_prompt_reuses_the_cache_up_to_the_edit() -> None:
    model, prefix = FakeModel(), PrefixCache()
    list(run(model, FakeTokenizer(), Request(prompt=PROMPT, max_tokens=6, sampling=GREEDY), prefix=prefix))
    edited = (*PROMPT[:11], *b"Words")
    events = list(run(model, FakeTokenizer(), Request(prompt=edited, max_tokens=6, sampling=GREEDY), prefix=prefix))
    assert events[-1].usage.cached_tokens == 11
    assert tokens_of(events) == plain_loop(model, edited, 6)


def test_a_repeated_prompt_computes_only_its_last_token() -> None:
    model, prefix = FakeModel(), PrefixCache()
    request = Request(prompt=PROMPT, max_tokens=6, sampling=GREEDY)
    first = list(run(model, FakeTokenizer(), request, prefix=prefix))
    again = list(run(model, FakeTokenizer(), request, prefix=prefix))
    assert again[-1].usage.cached_tokens == len(PROMPT) - 1
    assert tokens_of(first) == tokens_of(again)


def test_a_failed_run_leaves_no_cache_behind() -> None:
    class Broken(FakeModel):
        def logits(self, hidden: mx.array) -> mx.array:
            raise RuntimeError("no memory")

    prefix = PrefixCache()
    with pytest.raises(RuntimeError, match="no memory"):
        list(run(Broken(), FakeTokenizer(), Request(prompt=PROMPT), prefix=prefix))
    assert prefix.tokens == ()


@pytest.mark.parametrize("size", [32, 33, 500])
def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(size: int) -> None:
    with pytest.raises(DoesNotFitError, match=str(size)) as error:
        stream(FakeModel(context_length=32), FakeTokenizer(), "x" * size)
    assert "32" in error.value.message
    assert error.value.remedy


def test_an_answer_ends_at_the_end_of_the_context() -> None:
    out = generate(FakeModel(context_length=32), FakeTokenizer(), "x" * 29, max_tokens=100)
    assert (len(out.tokens), out.finish_reason) == (3, "length")
    out = generate(FakeModel(), FakeTokenizer(), "x" * 29, max_tokens=100, max_context=30)
    assert len(out.tokens) == 1
    with pytest.raises(DoesNotFitError, match="max_context"):
        stream(FakeModel(context_length=64), FakeTokenizer(), "x" * 29, max_context=29)


def test_a_max_context_beyond_the_trained_length_is_allowed_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    limits._warn_beyond.cache_clear()
    model = FakeModel(context_length=32)
    for _ in range(2):
        out = generate(model, FakeTokenizer(), "x" * 40, max_tokens=5, max_context=64)
        assert len(out.tokens) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "max_context is 64, but the model supports 32 tokens: answers beyond may be poor"
    ]


def test_a_max_context_beyond_the_position_table_is_refused() -> None:
    model = FakeModel(context_length=32)
    model.info = replace(model.info, position_count=48)
    assert generate(model, FakeTokenizer(), "x" * 40, max_tokens=5, max_context=48).usage.completion_tokens == 5
    with pytest.raises(UsageError, match="max_context is 49; this model has 48 positions"):
        generate(model, FakeTokenizer(), "x", max_context=49)


@pytest.mark.parametrize(
    ("rows", "asked", "way"),
    [
        (None, None, "a max_context above 32 (answers may be poor)"),
        (32, None, "a shorter prompt, a new conversation, or a model with a longer context"),
        (32, 20, "a max_context of up to 32"),
        (None, 20, "a max_context of up to 32"),
    ],
)
def test_a_full_context_is_an_error_whose_remedy_fits_the_model(rows: int | None, asked: int | None, way: str) -> None:
    model = FakeModel(context_length=32)
    model.info = replace(model.info, position_count=rows)
    with pytest.raises(DoesNotFitError) as error:
        stream(model, FakeTokenizer(), "x" * 40, max_context=asked)
    assert way in (error.value.remedy or "")


DETERMINISTIC = {"do_sample": False, "eos_token_id": [EOS]}


def configured(**config: Any) -> FakeModel:
    """A model scripted to answer abcabcabcabc, with these settings in its generation_config."""
    model = FakeModel(script=[*b"abcabcabcabc", EOS])
    model.info = replace(model.info, generation_config={**DETERMINISTIC, **config}, eos=frozenset({EOS}))
    return model


def test_settings_of_generation_config_apply_unless_an_option_overrides_them() -> None:
    model = configured(no_repeat_ngram_size=2)
    text = generate(model, FakeTokenizer(), "x").text
    assert (text[:4], text[4] != "b") == ("abca", True)
    assert generate(model, FakeTokenizer(), "x", no_repeat_ngram_size=0).text == "abcabcabcabc"
    assert generate(configured(suppress_tokens=[97]), FakeTokenizer(), "x", max_tokens=3).text[0] != "a"


def test_a_logit_bias_does_not_undo_the_checkpoints_suppress_tokens() -> None:
    out = generate(
        configured(suppress_tokens=[97]), FakeTokenizer(), "x", max_tokens=1, logit_bias={"97": 100, 98: 1e5}
    )
    assert out.text == "b"


def test_stop_strings_of_the_checkpoint_end_an_answer() -> None:
    assert generate(configured(stop_strings=["cab"]), FakeTokenizer(), "x").text == "ab"
    assert generate(configured(stop_strings="bca"), FakeTokenizer(), "x", stop=["c"]).text == "ab"


@pytest.mark.parametrize(
    ("config", "options", "count"),
    [
        ({"max_new_tokens": 5}, {}, 5),
        ({"max_new_tokens": 5}, {"max_tokens": 7}, 7),
        ({"max_new_tokens": 999}, {}, 12),
        ({"max_length": 6}, {}, 5),  # the prompt's token counts
        ({"max_length": 6}, {"max_tokens": 7}, 7),
        ({"max_length": 6, "max_new_tokens": 3}, {}, 3),
        ({"max_length": 1}, {}, 12),
    ],
)
def test_length_limits_of_generation_config_apply_unless_max_tokens_is_given(
    config: dict, options: dict, count: int
) -> None:
    assert len(generate(configured(**config), FakeTokenizer(), "x", **options).tokens) == count


def test_a_forced_end_token_finishes_with_the_reason_length() -> None:
    out = generate(configured(forced_eos_token_id=EOS), FakeTokenizer(), "x", max_tokens=4)
    assert (out.text, out.finish_reason, out.usage.completion_tokens) == ("abc", "length", 4)


def test_unsupported_settings_of_generation_config_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    model = configured(num_beams=4, top_p=7, temperature=0.0, penalty_alpha=0.6)
    for _ in range(3):
        generate(model, FakeTokenizer(), "x", max_tokens=1)
    assert [record.getMessage() for record in caplog.records] == [
        "generation_config.json: top_p = 7 is left out",
        "generation_config.json asks for penalty_alpha = 0.6, which macllm does not support",
        "generation_config.json asks for num_beams = 4; a decoder gets them only if they are asked for",
    ]


@pytest.mark.parametrize(
    ("prompt", "options", "match"),
    [
        ("", {}, "empty"),
        ([], {}, "no messages"),
        ("x", {"temperature": -1}, "temperature is -1"),
        ("x", {"tools": [{}]}, "chat template"),
        ("x", {"stop": ""}, "empty"),
        (Request(prompt=(1,)), {"max_tokens": 3}, "Request"),
        (Request(prompt=(1, 999)), {}, "token 999"),
        (Request(prompt=(-1,)), {}, "token -1"),
        (Request(prompt=()), {}, "empty"),
    ],
)
def test_an_invalid_request_is_refused_before_anything_is_computed(prompt: Any, options: dict, match: str) -> None:
    model = FakeModel(context_length=32)
    with pytest.raises(UsageError, match=match):
        stream(model, FakeTokenizer(), prompt, **options)
    assert model.positions == 0


def test_generate_and_stream_take_every_field_of_request_and_engine_options() -> None:
    options = {
        name: parameter
        for name, parameter in inspect.signature(macllm.stream).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert inspect.signature(macllm.generate).parameters == inspect.signature(macllm.stream).parameters
    carried = {field.name for owner in (Request, SamplingParams, EngineOptions) for field in fields(owner)}
    assert options.keys() == carried - {"prompt", "messages", "sampling", "answer_start", "adapter", "prefix_bytes"}
    assert all(parameter.default in (None, False) for parameter in options.values())


def test_options_of_none_change_nothing() -> None:
    names = inspect.signature(stream).parameters.keys() - {"model", "tokenizer", "prompt", "raw", "max_tokens"}
    model, tokenizer = FakeModel(), FakeTokenizer()
    model.info = replace(model.info, generation_config={"do_sample": False})
    plain = generate(model, tokenizer, "abc", max_tokens=5)
    assert generate(model, tokenizer, "abc", max_tokens=5, **dict.fromkeys(names)).tokens == plain.tokens


def test_a_text_prompt_goes_through_the_chat_template_unless_raw() -> None:
    tokenizer = FakeTokenizer()
    assert generate(FakeModel(), tokenizer, "hi", max_tokens=1).usage.prompt_tokens == 2
    tokenizer.chat_template = "a template"
    answered = generate(FakeModel(), tokenizer, "hi", max_tokens=1)
    asked = generate(FakeModel(), tokenizer, [{"role": "user", "content": "hi"}], max_tokens=1)
    assert answered.usage == asked.usage
    assert answered.usage.prompt_tokens > 2
    assert generate(FakeModel(), tokenizer, "hi", max_tokens=1, raw=True).usage.prompt_tokens == 2


def test_without_a_limit_on_tokens_the_answer_ends_with_the_context() -> None:
    request = Request(prompt=PROMPT, max_tokens=None, sampling=GREEDY)
    done = list(run(FakeModel(context_length=len(PROMPT) + 9), FakeTokenizer(), request))[-1]
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 9)


def test_options_win_over_generation_config_and_that_wins_over_our_defaults() -> None:
    model = FakeModel()
    model.info = replace(model.info, generation_config={"do_sample": False})
    greedy = generate(model, FakeTokenizer(), "abc", max_tokens=5)
    assert list(greedy.tokens) == plain_loop(model, tuple(b"abc"), 5)
    assert generate(model, FakeTokenizer(), "abc", max_tokens=5, temperature=1.5).tokens != greedy.tokens


def test_messages_go_through_the_chat_template() -> None:
    tokenizer = FakeTokenizer()
    messages = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.encode_chat(messages, tools=None, enable_thinking=False)
    out = generate(FakeModel(), tokenizer, messages, max_tokens=4, variables={"enable_thinking": False}, temperature=0)
    assert list(out.tokens) == plain_loop(FakeModel(), tuple(prompt), 4)
    assert out.usage.prompt_tokens == len(prompt)


class Template:
    """A chat template that names the tags of reasoning and tool calls."""

    sources = {"default": "<think> </think> <tool_call> </tool_call>"}  # noqa: RUF012


def test_reasoning_and_tool_calls_are_kept_apart_from_the_answer() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = Template()
    script = b'<think>hm</think>Yes.<tool_call>{"name": "a"}</tool_call><tool_call>{"name": "b"}</tool_call>'
    model = FakeModel(script=[*script, EOS], prompt_size=1)
    out = generate(model, tokenizer, "x", temperature=0, raw=True)
    assert (out.reasoning, out.text, out.tool_calls) == ("hm", "Yes.", ('{"name": "a"}', '{"name": "b"}'))
    assert out.finish_reason == "tool_calls"
    assert bytes(out.tokens) == script


def test_deltas_carry_the_index_of_their_tool_call() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = Template()
    script = b'Yes.<tool_call>{"name": "a"}</tool_call>\n<tool_call>{"name": "b"}</tool_call>'
    model = FakeModel(script=[*script, EOS], prompt_size=1)
    deltas = [event for event in stream(model, tokenizer, "x", temperature=0, raw=True) if isinstance(event, Delta)]
    texts: dict[int | None, str] = {}
    for delta in deltas:
        texts[delta.call] = texts.get(delta.call, "") + delta.text
        assert (delta.kind == "tool_call") == (delta.call is not None)
    assert texts == {None: "Yes.", 0: '{"name": "a"}', 1: '{"name": "b"}'}
    assert bytes(token for delta in deltas for token in delta.tokens) == script


def test_bare_json_is_a_tool_call_only_for_a_tool_of_the_request() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = type("Llama", (), {"sources": {"default": "ipython"}})()
    text = '{"name": "f", "parameters": {}}'
    for tools, found in ((), ()), (({"name": "f"},), (text,)), (({"name": "g"},), ()):
        messages = [{"role": "user", "content": "x"}]
        size = len(tokenizer.encode_chat(messages, tools=tools or None))
        model = FakeModel(script=[*text.encode(), EOS], prompt_size=size)
        out = generate(model, tokenizer, messages, tools=list(tools), temperature=0)
        assert out.tool_calls == found
        assert out.text == ("" if found else text)


def test_a_prompt_that_ends_inside_reasoning_is_continued_as_reasoning() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = Template()
    prompt = "Why?<think>\n"
    model = FakeModel(script=[*b"hm</think>So.", EOS], prompt_size=len(prompt))
    out = generate(model, tokenizer, prompt, temperature=0, raw=True)
    assert (out.reasoning, out.text) == ("hm", "So.")


def test_a_completion_is_its_text_and_carries_timing_and_usage() -> None:
    model = scripted(b"Hello", delay_seconds=0.02)  # one pass for the prompt and one for each token of the script
    began = time.perf_counter()
    out = macllm.generate(model, FakeTokenizer(), Request(prompt=PROMPT, sampling=GREEDY))
    elapsed = time.perf_counter() - began
    assert str(out) == f"{out}" == "Hello"
    assert out.usage == Usage(prompt_tokens=len(PROMPT), completion_tokens=6)
    assert out.timing.prefill_seconds >= 0.02
    assert out.timing.decode_seconds >= 4 * 0.02  # a pass may begin before the first token is shown
    assert out.timing.prefill_seconds + out.timing.decode_seconds <= elapsed
    assert out.timing.peak_bytes > 0
    assert out.timing.tokens_per_second(6) == 5 / out.timing.decode_seconds


def test_peak_bytes_excludes_memory_freed_before_the_completion() -> None:
    large = mx.zeros((64, 1 << 20))
    mx.eval(large)
    del large
    mx.clear_cache()
    out = generate(scripted(b"Hello"), FakeTokenizer(), Request(prompt=PROMPT, sampling=GREEDY))
    assert 0 < out.timing.peak_bytes < 128 << 20


def test_macllm_stream_ends_with_done() -> None:
    assert [type(event) for event in macllm.stream(FakeModel(), FakeTokenizer(), "x", max_tokens=1, temperature=0)][
        -1
    ] is Done


def test_decoding_that_stops_early_waits_for_the_token_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[mx.array] = []
    evaluated: list[mx.array] = []
    evaluate = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: evaluated.extend(arrays) or evaluate(*arrays))

    def sampler(logits: mx.array, step: int) -> mx.array:
        drawn.append(mx.argmax(logits))
        return drawn[-1]

    model = FakeModel()
    tokens = decode(model, model.make_cache(), model.table[1], sampler, max_tokens=8, alternatives=None)
    assert [next(tokens).token for _ in range(2)] == [int(each.item()) for each in drawn[:2]]
    tokens.close()
    assert len(drawn) == 3
    assert any(each is drawn[2] for each in evaluated)
