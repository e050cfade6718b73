"""A model that says one answer with reasoning, tool calls and cut characters."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import mlx.core as mx

from macllm.text.tokenizer import Tokenizer
from tests.generation.generate_fakes import FakeModel

MESSAGES = ({"role": "user", "content": "Why?"},)
ANSWER = (
    "<think>Hm, wäre 🙂</think>\n\nEs heißt 日本語.\n"
    '<tool_call>\n{"name": "look", "arguments": "ß"}\n</tool_call>\n'
    '<tool_call>\n{"name": "wait"}\n</tool_call>'
)
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"
    "{# <think> </think> <tool_call> </tool_call> #}"
)


@lru_cache
def tokenizer() -> Tokenizer:
    """The bundled tokenizer, whose rare characters are bytes, with a template that names tags."""
    source, folder = Path("models/maclet"), Path(mkdtemp())
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return Tokenizer.from_folder(folder)


@lru_cache
def script() -> tuple[int, ...]:
    return tuple(tokenizer().encode(ANSWER, add_special_tokens=False))


class ScriptedModel(FakeModel):
    """Says the script, whatever the tokens before it: only their number counts."""

    def __init__(self) -> None:
        super().__init__(tokenizer().vocab_size)
        prompt = len(tokenizer().encode_chat(MESSAGES))
        said = mx.array([0] * (prompt - 1) + [*script(), tokenizer().eos_token_id, 0])
        self.table = (said[:, None] == mx.arange(tokenizer().vocab_size)).astype(mx.float32)

    def hidden(self, tokens: mx.array, cache: Any = None) -> mx.array:
        before = cache.length
        cache.tokens = mx.concatenate([cache.tokens, tokens[0].astype(mx.int32)])
        return self.table[before : before + tokens.size][None]


@lru_cache
def model() -> ScriptedModel:
    return ScriptedModel()
