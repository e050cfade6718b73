"""Replay of answers with the recorded model, settings and seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from macllm.generation.request import CallLines, Delta, Request

from .conversation import Conversation, Node, Origin

if TYPE_CHECKING:
    from macllm.generation.contract import Engine


@dataclass(frozen=True)
class Replay:
    """An answer made again. `number` is its place in the path, from 1."""

    number: int
    node: Node
    text: str
    tokens: tuple[int, ...]

    @property
    def difference(self) -> int | None:
        """The first place, from 0, where the tokens differ; None if all are equal."""
        old, new = self.node.turn.tokens, self.tokens
        if old == new:
            return None
        pairs = zip(old, new, strict=False)
        return next((n for n, (before, after) in enumerate(pairs) if before != after), min(len(old), len(new)))


def answers(conversation: Conversation) -> list[tuple[int, Node, Origin]]:
    """The answers of the path that can be made again, with their places: those with tokens and an origin."""
    path = enumerate(conversation.path, 1)
    return [
        (number, node, node.turn.origin)
        for number, node in path
        if node.turn.role == "assistant" and node.turn.origin is not None and node.turn.tokens
    ]


def request(conversation: Conversation, node: Node, origin: Origin) -> Request:
    """The request that made an answer; one that was stopped ends after as many tokens."""
    turn = node.turn
    before = replace(conversation.at(node.parent), system=origin.system)
    most = origin.max_tokens
    if turn.finish not in ("stop", "length", "tool_calls"):
        most = len(turn.tokens)
    elif most is not None and most < len(turn.tokens):  # the answer was continued
        most = len(turn.tokens) + (turn.finish != "length")
    return Request(
        messages=tuple(before.messages),
        max_tokens=most,
        sampling=replace(origin.sampling, seed=turn.seed if turn.seed is not None else origin.sampling.seed),
    )


def replay(engine: Engine, conversation: Conversation, number: int, node: Node, origin: Origin) -> Replay:
    """Make one answer again, with its adapter. Raises: MacllmError of the engine."""
    if engine.info.adapter != origin.adapter:
        engine.activate(origin.adapter)
    lines, texts, tokens = CallLines(), list[str](), list[int]()
    with closing(engine.submit(request(conversation, node, origin))) as events:
        for event in events:
            if isinstance(event, Delta):
                tokens.extend(event.tokens)
                if event.kind != "reasoning":
                    texts.append(lines.text(event))
    return Replay(number, node, "".join(texts), tuple(tokens))


def by_model(conversation: Conversation) -> Iterator[tuple[Origin, list[tuple[int, Node, Origin]]]]:
    """Runs of answers in the path that one model made, with any adapters."""
    run: list[tuple[int, Node, Origin]] = []
    for each in answers(conversation):
        if run and run[0][2].model != each[2].model:
            yield run[0][2], run
            run = []
        run.append(each)
    if run:
        yield run[0][2], run
