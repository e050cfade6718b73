"""A language model of a few hundred weights, with a tokenizer and rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macllm.nn.models import DecoderLM
from macllm.train.pretrain import new_model
from macllm.train.render import Example

LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


class _Recipe:
    config, init_std, seed = "config.json", 0.3, 0


def random_llama(**changes: Any) -> DecoderLM:
    """A small llama with random weights, the same each time."""
    return new_model({**LLAMA, **changes}, _Recipe)  # type: ignore[arg-type]


class ToyLM(nn.Module):
    """A causal language model with dropout and a tied head."""

    def __init__(self, vocab_size: int = 32, dim: int = 16, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.mix = nn.Linear(dim, dim)
        self.norm = nn.RMSNorm(dim)
        self.dropout = nn.Dropout(dropout)
        keys = mx.random.split(mx.random.key(seed), 3)
        self.embedding.weight = mx.random.normal((vocab_size, dim), key=keys[0])
        self.mix.weight = mx.random.normal((dim, dim), key=keys[1])
        self.mix.bias = mx.random.normal((dim,), key=keys[2])

    def hidden(self, tokens: mx.array) -> mx.array:
        x = self.embedding(tokens)
        return self.norm(x + mx.cumsum(self.dropout(nn.silu(self.mix(x))), axis=1) * 0.1)

    def logits(self, hidden: mx.array) -> mx.array:
        return self.embedding.as_linear(hidden)


def arithmetic_rows(count: int, seed: int = 0, vocab_size: int = 32) -> list[Example]:
    """Rows that count up by three, of 2 to 19 tokens, some with a masked beginning."""
    random = np.random.default_rng(seed)
    rows = []
    for n in random.integers(2, 20, count):
        loss_mask = np.ones(n, dtype=bool)
        loss_mask[: 1 + int(random.integers(0, n - 1))] = False
        tokens = (np.arange(n) * 3 + random.integers(vocab_size)) % vocab_size
        rows.append(Example(tokens.astype(np.int32), loss_mask, "here:1"))
    return rows


class CharTemplate:
    """A chat template that is a function of the messages; what it puts between \x02 and \x03 is the assistant's."""

    sources: Mapping[str, str] = {}

    def __init__(self, write: Callable[[Any, bool], str], marks_generation: bool) -> None:
        self.write = write
        self.marks = marks_generation

    def marks_generation(self, tools: Any = None) -> bool:
        return self.marks

    def render_with_authors(self, messages: Any, *, tools: Any = None) -> tuple[str, list[tuple[int, int]], list[None]]:
        text, spans = self.render_with_spans(messages, tools=tools)
        return text, spans, [None] * len(spans)

    def render_with_spans(self, messages: Any, *, tools: Any = None) -> tuple[str, list[tuple[int, int]]]:
        text, spans = "", []
        for i, part in enumerate(self.write(messages, False).replace("\x03", "\x02").split("\x02")):
            if i % 2:
                spans.append((len(text), len(text) + len(part)))
            text += part
        return text, spans


class CharTokenizer:
    """One token a character; 0 ends a text."""

    eos_token_id: int | None = 0
    end_token_ids = frozenset({0})

    def __init__(self, write: Any = None, marks_generation: bool = False) -> None:
        self.chat_template = None if write is None else CharTemplate(write, marks_generation)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(c) for c in text]

    def offsets(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]] | None:
        return None

    def id_to_token(self, index: int) -> str | None:
        return chr(index)

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(t) for t in tokens)

    def render(self, messages: Any, *, tools: Any = None, add_generation_prompt: bool = True, **variables: Any) -> str:
        assert self.chat_template is not None
        return self.chat_template.write(messages, add_generation_prompt)
