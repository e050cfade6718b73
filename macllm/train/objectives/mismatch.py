"""Answers to other prompts, as unrelated outputs: one for each prompt, the same in the whole run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from macllm.errors import DataError
from macllm.train.render import Example

_ORDER = 2**63 + 7  # second word of the Philox key


def prompt_length(example: Example) -> int:
    """Number of tokens before the first supervised one."""
    return int(example.loss_mask.argmax()) if example.loss_mask.any() else len(example)


def joined(asked: Example, answered: Example, longest: int) -> Example:
    """The prompt of one example with the answer of another, cut to `longest` tokens."""
    at, start = prompt_length(asked), prompt_length(answered)
    weights = np.concatenate([np.zeros(at, np.float32), answered.loss_weights[start:]])[:longest]
    tokens = np.concatenate([asked.tokens[:at], answered.tokens[start:]])[:longest]
    learned = weights > 0
    return Example(tokens, learned, asked.where, weights=None if np.array_equal(weights, learned) else weights)


def partners(examples: Sequence[Example], seed: int) -> list[int]:
    """For each example the number of another one with another prompt, a function of `seed`.

    Each answer is taken once, unless more than half of the examples have the same prompt. Raises DataError if all have.
    """
    groups: dict[bytes, list[int]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(example.tokens[: prompt_length(example)].tobytes(), []).append(number)
    if len(groups) < 2:
        raise DataError(
            "all rows have the same prompt",
            cause="the KL divergence is estimated on answers to other prompts",
            remedy="rows with different prompts, or pairs of answers with --objective dpo",
        )
    random = np.random.Generator(np.random.Philox(key=np.array([seed, _ORDER], dtype=np.uint64)))
    members = list(groups.values())
    order = [number for at in random.permutation(len(members)) for number in members[at]]
    largest = max(members, key=len)
    others = sorted(set(order).difference(largest))
    of_largest, found = set(largest), [0] * len(order)
    for at, number in enumerate(order):
        partner = order[(at + len(largest)) % len(order)]
        # Two members of one group are less than its size apart, so only the largest can meet itself.
        is_own = number in of_largest and partner in of_largest
        found[number] = others[at % len(others)] if is_own else partner
    return found
