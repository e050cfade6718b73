"""One-line summary of an answer: tokens, speed, latency."""

from __future__ import annotations

from macllm.chat.conversation import Turn
from macllm.chat.options import short_name
from macllm.chat.transcript import ENDINGS
from macllm.units import count_text, duration_text, speed_text, tokens_text


def summarize(turn: Turn) -> str:
    """Adapter, tokens, speed, time to first token and ending of an answer; empty if nothing is known."""
    parts: list[str] = []
    if turn.origin is not None and turn.origin.adapter is not None:
        parts.append(f"with {short_name(turn.origin.adapter)}")
    if turn.usage is not None and turn.timing is not None:
        tokens = turn.usage.completion_tokens
        parts.append(tokens_text(tokens))
        if (speed := turn.timing.tokens_per_second(tokens)) > 0:
            parts.append(speed_text(speed))
        parts.append(f"first after {duration_text(turn.timing.prefill_seconds, fine=True)}")
        if turn.usage.cached_tokens:
            parts.append(f"reused {count_text(turn.usage.cached_tokens)} of {count_text(turn.usage.prompt_tokens)}")
    if turn.finish in ENDINGS:
        parts.append(ENDINGS[turn.finish])
    return " · ".join(parts)
