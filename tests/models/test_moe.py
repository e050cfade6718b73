"""maclet-moe: its data, the measurement of its routers, and its answers."""

from __future__ import annotations

import math
import random
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import macllm
from macllm.hub.names import bundled_models
from macllm.nn.routing import record
from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.plain import plain_questions
from macllm_models.maclet.questions import kept_from_training
from macllm_models.maclet.topics import normalized
from macllm_models.siblings import chats, routing

NAME = "maclet-moe"
made = pytest.mark.skipif(NAME not in bundled_models(), reason="not made yet")


def test_held_out_rows_are_never_trained(tmp_path: Path) -> None:
    chats.make(tmp_path, variations=3)
    rows = {name: routing.rows(tmp_path / f"{name}.jsonl") for name in ("train", *routing.HELDOUT)}
    asked = {name: {normalized(row["messages"][0]["content"]) for row in found if "messages" in row}
             for name, found in rows.items()}  # fmt: skip
    told = "\n".join(row["text"] for row in rows["train"] if "text" in row)
    assert len(asked["heldout_chats"]) > 20
    assert not asked["train"] & asked["heldout_chats"]
    assert not asked["train"] & kept_from_training()
    assert set(plain_questions(Guide(random.Random(0)).topics)) - kept_from_training() <= asked["train"]
    assert len(rows["heldout_texts"]) > 50
    assert [row for row in rows["heldout_texts"] if row["text"] in told] == []


def test_the_load_counts_the_chosen_experts() -> None:
    class Router:
        def __call__(self, tokens: mx.array) -> None:
            record(mx.array([[[3.0, 2.0, 1.0, 0.0], [3.0, 0.0, 2.0, 1.0]]]), 2)

    class Letters:
        def encode(self, text: str) -> list[int]:
            return [0, 1]

    found = routing.load(Router(), Letters(), ["a text", "another"])
    np.testing.assert_array_equal(found.shares, [[0.5, 0.25, 0.25, 0.0]])
    assert found.entropies[0] == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(4))


@made
def test_every_expert_of_every_layer_works_on_held_out_texts() -> None:
    model, tokenizer = macllm.load(NAME)
    _, texts = chats.texts(Guide(random.Random(0)))
    found = routing.load(model, tokenizer, texts)
    assert found.shares.shape == (3, 8)
    assert found.shares.min() > 0.001
    assert found.entropies.min() > 0.8


@made
@pytest.mark.parametrize("question", ["What is attention?", "how do i quit the chat", "What's LoRA?"])
def test_a_plain_question_gets_the_answer_that_was_taught(question: str) -> None:
    model, tokenizer = macllm.load(NAME)
    taught = {chats.answer(topic) for topic in Guide(random.Random(0)).topics}
    told = macllm.generate(model, tokenizer, question, temperature=0.0, max_tokens=80).text
    assert told.strip() in taught


@made
def test_another_subject_is_refused() -> None:
    model, tokenizer = macllm.load(NAME)
    told = macllm.generate(model, tokenizer, "Who painted the Mona Lisa?", temperature=0.0, max_tokens=80).text
    assert told.startswith("I do not know that.")
