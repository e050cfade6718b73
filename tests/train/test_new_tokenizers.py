"""Tokenizers trained on texts: sizes, unknowns, determinism, errors, and agreement with transformers."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from macllm.errors import DataError, UsageError
from macllm.text.tokenizer import Tokenizer
from macllm.train.tokenizer import CHATML, TokenizerConfig, Trained, train

README = Path(__file__).parents[2] / "README.md"
SIZE = 700
CASES: dict[str, dict[str, Any]] = {
    "bpe": {"kind": "bpe", "chat_template": CHATML, "special_tokens": ("<|tool|>",)},
    "bpe-folded": {"kind": "bpe", "normalization": "nfkc", "lowercase": True, "add_eos": True},
    "unigram": {"kind": "unigram", "sentinels": 3, "normalization": "nfkc", "add_eos": True},
    "unigram-bytes": {"kind": "unigram", "byte_fallback": True, "chat_template": CHATML, "add_mask": True},
    "wordpiece": {"kind": "wordpiece", "normalization": "nfc"},
    "wordpiece-lower": {"kind": "wordpiece", "lowercase": True, "special_tokens": ("[X]",)},
}
HARD = [
    "", " ", "hello world", " leading", "trailing ", "two  spaces   three", "tab\there\n\nnew\nline\r\n", "naïve café",
    "a\u0301\u0308 b", "日本語 テキスト 中文字", "😀👩\u200d👩\u200d👧\u200d👦 🇩🇪", "don't I'll 3.14159", "▁under ▁▁",
    "X" * 200, "<|im_start|>user\nhi<|im_end|>", "<0x41> </s> <pad> [MASK] [UNK] <extra_id_2>",
    "\u200d\u00a0\ufeff\u2028", "x<|tool|>[X]y", "ﬁ Å ſ",
]  # fmt: skip


def made(folder: Path, **fields: Any) -> Trained:
    text = README.read_text(encoding="utf-8")
    (folder / "texts.txt").write_text(text + "naïve café 日本語 中文 😀\n" * 20, encoding="utf-8")
    given = {"data": (str(folder / "texts.txt"),), "output": str(folder / "out"), "vocab_size": SIZE, **fields}
    return train(TokenizerConfig(**given))


@pytest.mark.parametrize("case", CASES)
def test_a_vocabulary_has_the_size_asked_for_and_its_special_tokens_are_single(case: str, tmp_path: Path) -> None:
    fields = CASES[case]
    tokenizer = made(tmp_path, **fields).tokenizer
    config = TokenizerConfig(data=("x",), output="x", **fields)
    assert tokenizer.vocab_size == SIZE
    for token in (*config.named.values(), *config.extra):
        assert len(tokenizer.encode(f"a{token}b", add_special_tokens=False)) == 3
    assert [tokenizer.token_to_id(token) for token in config.extra] == list(range(SIZE - len(config.extra), SIZE))
    ends = {"bpe-folded": "<|endoftext|>", "unigram": "</s>"}
    last = tokenizer.id_to_token(tokenizer.encode("a")[-1])
    assert (last == (ends | dict.fromkeys(("wordpiece", "wordpiece-lower"), "[SEP]")).get(case)) == (
        not case.endswith(("bpe", "bytes"))
    )


@pytest.mark.parametrize("case", ["bpe", "unigram-bytes"])
def test_bytes_leave_no_text_unknown_and_restore_it(case: str, tmp_path: Path) -> None:
    result = made(tmp_path, **CASES[case])
    assert result.training.unknown == 0
    for text in HARD:
        if "▁" not in text and not text.startswith(" "):  # ▁ stands for a space in Unigram
            ids = result.tokenizer.encode(text, add_special_tokens=False)
            assert result.tokenizer.decode(ids) == text


def test_sentinel_0_has_the_last_id_as_in_t5(tmp_path: Path) -> None:
    tokenizer = made(tmp_path, **CASES["unigram"]).tokenizer
    assert [tokenizer.id_to_token(SIZE - 1 - number) for number in range(3)] == [f"<extra_id_{n}>" for n in range(3)]


def test_a_report_counts_tokens_words_bytes_and_unknowns(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"one two ab{'cd' * n}"}) + "\n" for n in range(9))
    )
    (tmp_path / "valid.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "one é two"}]}) + "\n")
    result = train(
        TokenizerConfig(
            data=(str(tmp_path / "rows.jsonl"),), valid=str(tmp_path / "valid.jsonl"), output=str(tmp_path / "out"),
            kind="wordpiece", vocab_size=28,
        )
    )  # fmt: skip
    held_out = result.held_out
    assert held_out is not None
    assert (held_out.texts, held_out.words, held_out.size_bytes, held_out.unknown) == (1, 3, 10, 1)
    assert held_out.tokens == len(result.tokenizer.encode("one é two", add_special_tokens=False))
    assert held_out.per_word == held_out.tokens / 3
    assert (result.training.texts, result.training.words, result.training.unknown) == (9, 27, 0)


def test_every_twentieth_piece_is_held_out_and_teaches_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": f"word{number % 20:02d} shared", "completion": ""} for number in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"data": (str(tmp_path / "rows.jsonl"),), "output": str(tmp_path / "out")}
    result = train(TokenizerConfig(**given, vocab_size=285))
    assert result.held_out is not None
    assert (result.held_out.texts, result.training.texts) == (5, 95)
    first, twentieth = (len(result.tokenizer.encode(text)) for text in ("word00", "word19"))
    assert first < twentieth


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_the_same_texts_give_the_same_bytes_in_another_process(kind: str, tmp_path: Path) -> None:
    made(tmp_path, kind=kind)
    program = (
        "import sys; from macllm.train.tokenizer import TokenizerConfig, train;"
        f"train(TokenizerConfig(data=(sys.argv[1],), output=sys.argv[2], kind={kind!r}, vocab_size={SIZE}))"
    )
    arguments = [str(tmp_path / "texts.txt"), str(tmp_path / "again")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_a_vocabulary_that_the_texts_cannot_fill_is_an_error_with_the_right_size(kind: str, tmp_path: Path) -> None:
    for size, word in ((8, "small"), (50_000, "large")):
        with pytest.raises(UsageError, match=f"is too {word}") as error:
            made(tmp_path, kind=kind, vocab_size=size)
        assert not (tmp_path / "out").exists()
    assert error.value.remedy is not None
    most = int(error.value.remedy.split()[1].rstrip(","))
    assert made(tmp_path, kind=kind, vocab_size=most).tokenizer.vocab_size == most


def test_bad_input_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\nbad\n')
    (tmp_path / "empty.txt").write_text("")
    given = {"output": str(tmp_path / "out")}
    for kind in ("bpe", "unigram", "wordpiece"):
        with pytest.raises(DataError, match=r"rows.jsonl:2 is not JSON"):
            train(TokenizerConfig(data=(str(tmp_path / "rows.jsonl"),), kind=kind, **given))
        with pytest.raises(DataError, match="no text in"):
            train(TokenizerConfig(data=(str(tmp_path / "empty.txt"),), kind=kind, **given))
    with pytest.raises(UsageError, match="byte-fallback has no effect"):
        TokenizerConfig(data=("x",), byte_fallback=True, **given)
    with pytest.raises(UsageError, match="add-mask has no effect"):
        TokenizerConfig(data=("x",), kind="wordpiece", add_mask=True, **given)
    with pytest.raises(UsageError, match="given twice"):
        TokenizerConfig(data=("x",), special_tokens=("<a>", "<a>"), **given)
    with pytest.raises(UsageError, match="no chat template"):
        TokenizerConfig(data=("x",), kind="wordpiece", chat_template=CHATML, **given)


def test_a_tokenizer_is_not_overwritten_and_a_full_disk_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path)
    before = (tmp_path / "out" / "tokenizer.json").read_bytes()
    with pytest.raises(UsageError, match="has a tokenizer already"):
        made(tmp_path, kind="unigram")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before

    written: list[Path] = []

    def full(path: Path, text: str, *, overwrite: bool) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_text(text)
        written.append(path)

    monkeypatch.setattr("macllm.train.tokenizer.training.write_text", full)
    with pytest.raises(OSError, match="No space"):
        made(tmp_path, output=str(tmp_path / "full"))
    assert written
    assert not (tmp_path / "full").exists()


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    assert made(tmp_path).tokenizer.vocab_size == SIZE
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_transformers_gives_the_same_ids_and_texts(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = made(tmp_path, **CASES[case]).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in HARD:
        for special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), text
            assert tokenizer.decode(ids) == theirs.decode(ids)
            assert tokenizer.decode(ids, True) == theirs.decode(ids, skip_special_tokens=True)
    assert len(theirs) == tokenizer.vocab_size
    assert set(tokenizer.special_ids) == set(theirs.all_special_ids)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert tokenizer.encode_chat(messages) == ids
        assert tokenizer.id_to_token(tokenizer.eos_token_id or 0) == "<|im_end|>"
    assert isinstance(tokenizer, Tokenizer)
