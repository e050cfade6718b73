"""A fake model whose logits depend on all tokens so far, and a fake tokenizer of given pieces."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.errors import CheckpointError, MacllmError
from macllm.nn.info import ModelInfo
from macllm.ops import cpu

EOS = 256


class FakeCache:
    """A cache that holds the tokens it was fed."""

    max_context: int | None = None

    def __init__(self, can_cut: bool = True, kv_bits: int | None = None) -> None:
        self.tokens = mx.zeros(0, dtype=mx.int32)
        self.kv_bits = kv_bits
        self._can_cut = can_cut

    @property
    def length(self) -> int:
        return self.tokens.size

    @property
    def state(self) -> list[mx.array]:
        return [self.tokens]

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes

    def fork(self) -> FakeCache:
        fork = FakeCache(self._can_cut, self.kv_bits)
        fork.tokens = self.tokens
        return fork

    def nearest(self, length: int) -> int:
        return length if self._can_cut or length == self.length else 0

    def cut(self, length: int) -> None:
        if self.nearest(length) != length:
            raise MacllmError("cannot cut")
        self.tokens = self.tokens[:length]


class FakeModel(nn.Module):
    """Logits are a row of a random table, chosen by a checksum of all tokens: one wrong token shows.

    With a `script`, the tokens after a prompt of `prompt_size` are those, as long as they last.
    """

    def __init__(
        self,
        vocab_size: int = 257,
        *,
        context_length: int | None = None,
        script: Sequence[int] = (),
        prompt_size: int = 1,
        can_cut: bool = True,
        delay_seconds: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        table = np.random.default_rng(seed).normal(size=(997, vocab_size)) * 3
        if vocab_size > EOS:
            table[:, EOS] = -30
        self.table = mx.array(table.astype(np.float32))
        self.info = ModelInfo(vocab_size=vocab_size, context_length=context_length)
        self.caches: list[FakeCache] = []
        self.positions = 0  # computed in total
        self._script, self._prompt_size, self._can_cut, self._delay = tuple(script), prompt_size, can_cut, delay_seconds

    def make_cache(self, max_context: int | None = None, kv_bits: int | None = None) -> FakeCache:
        self.caches.append(FakeCache(self._can_cut, kv_bits))
        return self.caches[-1]

    def hidden(self, tokens: mx.array, cache: FakeCache | None = None) -> mx.array:
        cache = cache or FakeCache()
        before = cache.length
        cache.tokens = mx.concatenate([cache.tokens, tokens[0].astype(mx.int32)])
        self.positions += tokens.size
        time.sleep(self._delay)
        weighed = (cache.tokens + 1) * (mx.arange(cache.length) % 31 + 1)
        rows = self.table[mx.cumsum(weighed)[before:] % 997]
        for n in range(tokens.size):
            at = before + n + 1 - self._prompt_size
            if 0 <= at < len(self._script):
                rows = rows.at[n, self._script[at]].add(1e4)
        return rows[None]

    def logits(self, hidden: mx.array) -> mx.array:
        return hidden

    def __call__(self, tokens: mx.array, cache: FakeCache | None = None) -> mx.array:
        return self.logits(self.hidden(tokens, cache))


class FakeTokenizer:
    """Token n is piece n; without pieces, byte n. `EOS` is the end token."""

    def __init__(self, pieces: Sequence[bytes] | None = None, special: frozenset[int] = frozenset({EOS})) -> None:
        self.pieces = [bytes([byte]) for byte in range(256)] if pieces is None else list(pieces)
        self.special_ids = special
        self.eos_token_id = EOS
        self.bos_token_id = self.pad_token_id = None
        self.chat_template = None
        self.vocab_size = 257
        self.continued: tuple[int, ...] | None = None  # `after` of the last detokenizer

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[Any], **variables: Any) -> list[int]:
        return self.encode("".join(f"[{message['role']}]{message['content']}" for message in messages) + str(variables))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[index] for index in ids).decode(errors="replace")

    def id_to_token(self, index: int) -> str | None:
        return "<eos>" if index == EOS else str(self.pieces[index])

    def token_to_id(self, token: str) -> int | None:
        return EOS if token == "<eos>" else None

    def detokenizer(self, *, after: Sequence[int] = ()) -> FakeDetokenizer:
        self.continued = tuple(after)
        return FakeDetokenizer(self.pieces)


class FakeDetokenizer:
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        return self._decoder.decode(self._pieces[token_id])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def load(model_name: str, adapter: str | None = None) -> tuple[FakeModel, FakeTokenizer]:
    """Loader for a ProcessEngine's child; the model's name selects the behaviour."""
    if model_name == "damaged":
        raise CheckpointError("the checkpoint is damaged", cause="the test needs it", remedy="nothing")
    if model_name == "bug":
        raise ZeroDivisionError("a bug")
    if model_name == "exits":
        os.write(2, b"last words\n")
        os._exit(9)
    if model_name == "reasons":  # its second token ends the reasoning and begins the answer
        tokenizer = FakeTokenizer([b"p", b"<think>a", b"b</think>c"], special=frozenset())
        tokenizer.chat_template = "<think></think>"
        return FakeModel(3, script=[1, 2, 0]), tokenizer
    return FakeModel(delay_seconds=0.02 if model_name == "slow" else 0.0, context_length=4096), FakeTokenizer()


def load_small(model_name: str, adapter: str | None = None) -> tuple[FakeModel, FakeTokenizer]:
    """A model too small to wait for kernels. `$LOADS` records the implementation at each load."""
    return _load_of_size(1000, model_name, adapter)


def load_large(model_name: str, adapter: str | None = None) -> tuple[FakeModel, FakeTokenizer]:
    """A model so large that it waits for kernels."""
    return _load_of_size(10**12, model_name, adapter)


def _load_of_size(parameters: int, model_name: str, adapter: str | None) -> tuple[FakeModel, FakeTokenizer]:
    cpu.prepare_for(parameters, 0)
    if path := os.environ.get("LOADS"):
        seen = Path(path)
        again = seen.exists()
        with seen.open("a") as file:
            file.write("native\n" if cpu.available() else "stock\n")
        if model_name == "once" and again:
            raise CheckpointError("the checkpoint is gone")
    return load(model_name, adapter)
