from __future__ import annotations

import json
import random
import time

import pytest
from conftest import BUILDERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_corpus import CORPUS

from macllm.text.decoding import ReplaceInText, StripEachToken, StripText, decoder_stages
from macllm.text.detokenizer import Detokenizer
from macllm.text.tokenizer import Tokenizer

OPENED: dict[str, Tokenizer] = {}


@pytest.fixture
def opened(folders) -> dict[str, Tokenizer]:
    if not OPENED:
        OPENED.update({name: Tokenizer.from_folder(folders[name]) for name in BUILDERS})
    return OPENED


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = False) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    return [*(detokenizer.add(index) for index in ids), detokenizer.finish()]


def test_streamed_pieces_of_texts_join_to_their_decoding(opened: dict[str, Tokenizer]) -> None:
    for name, tokenizer in opened.items():
        for text in CORPUS:
            ids = tokenizer.encode(text)
            for skip in (False, True):
                assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip), (name, text)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), size=st.integers(0, 24), bytes_share=st.floats(0, 1))
def test_streamed_pieces_of_random_tokens_join_to_their_decoding(
    opened: dict[str, Tokenizer], seed: int, size: int, bytes_share: float
) -> None:
    draw = random.Random(seed)
    for name, tokenizer in opened.items():
        low = [index for index in range(270) if (tokenizer.id_to_token(index) or "").startswith("<0x")] or range(270)
        ids = [
            draw.choice(low) if draw.random() < bytes_share else draw.randrange(tokenizer.vocab_size + 3)
            for _ in range(size)
        ]
        skip = draw.random() < 0.5
        pieces = stream(tokenizer, ids, skip)
        assert "".join(pieces) == tokenizer.decode(ids, skip), (name, ids)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40))
def test_streamed_text_is_a_prefix_of_the_decoding_at_every_token(opened: dict[str, Tokenizer], text: str) -> None:
    for name in ("byte-level tokenizer.json", "llama tokenizer.model", "bert vocab.txt cased", "marian"):
        tokenizer = opened[name]
        ids = tokenizer.encode(text)
        shown = ""
        for count, piece in enumerate(stream(tokenizer, ids)[:-1], start=1):
            shown += piece
            assert tokenizer.decode(ids[:count]).startswith(shown), name


def test_an_incomplete_character_is_never_replaced_early(opened: dict[str, Tokenizer]) -> None:
    for name in ("byte-level tokenizer.json", "gpt2 vocab.json", "llama tokenizer.model", "gemma tokenizer.json"):
        tokenizer = opened[name]
        ids = tokenizer.encode("x \U0001f9ff\U00020000\U0010ffff y", add_special_tokens=False)
        assert len(ids) > 10, "the characters must be bytes for this test to mean anything"
        pieces = stream(tokenizer, ids)
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) == "x \U0001f9ff\U00020000\U0010ffff y"


def test_an_unfinished_character_ends_as_replacement_characters(opened: dict[str, Tokenizer]) -> None:
    tokenizer = opened["llama tokenizer.model"]
    ids = [tokenizer.token_to_id(token) or 0 for token in ("▁a", "<0xE2>", "<0x82>")]
    assert stream(tokenizer, ids) == ["a", "", "", "\ufffd\ufffd"]


PREFIX_STABLE = {  # tokenizers whose decoding of the first tokens begins the decoding of all
    *("llama tokenizer.json", "llama tokenizer.model", "llama tokenizer.model legacy", "gemma tokenizer.model"),
    *("byte-level tokenizer.json", "gpt2 vocab.json", "t5 spiece.model", "bert vocab.txt"),
}


def test_a_prompt_and_its_streamed_continuation_join_to_the_decoding_of_both(opened: dict[str, Tokenizer]) -> None:
    for name in sorted(PREFIX_STABLE):
        tokenizer = opened[name]
        for text in CORPUS[::3]:
            ids = tokenizer.encode(text[:200])
            for cut in range(1, len(ids), 3):
                head = ids[:cut]
                if tokenizer.special_ids.issuperset(head) or "\ufffd" in tokenizer.decode(head):
                    continue
                detokenizer = tokenizer.detokenizer(after=head)
                rest = "".join(detokenizer.add(index) for index in ids[cut:]) + detokenizer.finish()
                assert tokenizer.decode(head) + rest == tokenizer.decode(ids), (name, text, cut)


def test_a_continuation_keeps_the_space_before_its_first_word_and_an_answer_drops_it(
    opened: dict[str, Tokenizer],
) -> None:
    for name in ("llama tokenizer.model", "llama tokenizer.json", "t5 spiece.model", "t5 tokenizer.json"):
        tokenizer = opened[name]
        word = tokenizer.encode("the quick", add_special_tokens=False)
        begin = [index for index in (tokenizer.bos_token_id,) if index is not None]
        before = tokenizer.encode("Paris is", add_special_tokens=False)
        for after, space in (((), ""), (begin, ""), (before, " "), ([*begin, *before], " "), (before * 50, " ")):
            detokenizer = tokenizer.detokenizer(after=after)
            assert "".join(map(detokenizer.add, word)) + detokenizer.finish() == f"{space}the quick", (name, after)


def test_a_continuation_completes_a_character_that_its_prompt_began(opened: dict[str, Tokenizer]) -> None:
    for name in ("byte-level tokenizer.json", "llama tokenizer.model"):
        tokenizer = opened[name]
        ids = tokenizer.encode("x \U0001f9ff", add_special_tokens=False)
        detokenizer = tokenizer.detokenizer(after=ids[:-2])
        assert "".join(map(detokenizer.add, ids[-2:])) + detokenizer.finish() == "\U0001f9ff"
    detokenizer = Detokenizer(str, None, decode=lambda ids: "-".join(map(str, ids)), after=[1, 2])
    assert detokenizer.add(3) + detokenizer.finish() == "-3"


def test_every_token_of_plain_text_yields_text_at_once(opened: dict[str, Tokenizer]) -> None:
    tokenizer = opened["byte-level tokenizer.json"]
    ids = tokenizer.encode("The quick brown fox jumps.", add_special_tokens=False)
    pieces = stream(tokenizer, ids)
    assert all(pieces[:-1])
    assert pieces[-1] == ""


def test_the_cost_of_a_token_does_not_grow_with_the_text(opened: dict[str, Tokenizer]) -> None:
    tokenizer = opened["llama tokenizer.model"]
    ids = tokenizer.encode("The quick brown fox jumps over the lazy dog 👋🏽. ", add_special_tokens=False) * 400
    detokenizer = tokenizer.detokenizer()
    times = []
    for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
        start = time.thread_time()
        for index in half:
            detokenizer.add(index)
        times.append(time.thread_time() - start)
    assert times[1] < 3 * times[0] + 0.05


def test_a_finished_detokenizer_refuses_tokens(opened: dict[str, Tokenizer]) -> None:
    detokenizer = opened["gpt2 vocab.json"].detokenizer()
    detokenizer.add(5)
    detokenizer.finish()
    assert detokenizer.finish() == ""
    with pytest.raises(ValueError, match="finish"):
        detokenizer.add(5)


DECODERS = {
    "BPEDecoder": {"type": "BPEDecoder", "suffix": "</w>"},
    "Metaspace": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
    "WordPiece": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "Strip left": {"type": "Strip", "content": "a", "start": 1, "stop": 0},
    "Strip left after Fuse": {
        "type": "Sequence",
        "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": "a", "start": 2, "stop": 0}],
    },
    "Replace after Fuse": {
        "type": "Sequence",
        "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "ab"}, "content": "c"}],
    },
    "ByteFallback": {"type": "ByteFallback"},
    "ByteLevel": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "none": None,
    "unknown here": {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": True},
}
TOKENS = [
    "a",
    "b",
    "ab",
    "aa",
    "▁",
    "▁a",
    "##b",
    "b</w>",
    "</w>",
    "<0xE2>",
    "<0x82>",
    "<0xAC>",
    "<0x41>",
    "Ġ",
    "âĤ¬",
    "é",
]
TOKENS += [".", "'", "n't", "do", "not", " ", "  a", ""]


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None, max_examples=200)
@given(tokens=st.lists(st.sampled_from(TOKENS), max_size=12))
def test_each_decoder_streams_the_text_that_the_tokenizers_library_decodes(name: str, tokens: list[str]) -> None:
    import tokenizers

    vocab = {token: index for index, token in enumerate(TOKENS)}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="a"))
    description = {**json.loads(library.to_str()), "decoder": DECODERS[name]}
    library = tokenizers.Tokenizer.from_str(json.dumps(description))
    ids = [vocab[token] for token in tokens]
    detokenizer = Detokenizer(library.id_to_token, decoder_stages(DECODERS[name]), decode=library.decode)
    pieces = [*(detokenizer.add(index) for index in ids), detokenizer.finish()]
    assert "".join(pieces) == library.decode(ids, skip_special_tokens=False)


@settings(deadline=None)
@given(
    pieces=st.lists(st.text("ab ", max_size=4), max_size=10),
    old=st.sampled_from(["a", "ab", "aab", "aa", "abab", " b"]),
)
def test_replacing_in_a_stream_equals_replacing_in_the_text(pieces: list[str], old: str) -> None:
    stage = ReplaceInText(old, "X")
    out = [part for piece in pieces for part in stage.push(piece)] + list(stage.close())
    assert "".join(out) == "".join(pieces).replace(old, "X")


@settings(deadline=None)
@given(pieces=st.lists(st.text("ab", max_size=4), max_size=10), left=st.integers(0, 3), right=st.integers(0, 3))
def test_stripping_a_stream_equals_stripping_the_text(pieces: list[str], left: int, right: int) -> None:
    def stripped(text: str) -> str:
        text = text[min(left, len(text) - len(text.lstrip("a"))) :]
        return text[: len(text) - min(right, len(text) - len(text.rstrip("a")))]

    stage = StripText("a", left, right)
    assert "".join(part for piece in pieces for part in stage.push(piece)) == stripped("".join(pieces))
    each = StripEachToken("a", left, right)
    assert [part for piece in pieces for part in each.push(piece)] == [stripped(piece) for piece in pieces]
