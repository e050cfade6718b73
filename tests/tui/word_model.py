"""A slow model that says the same word for ever, for an engine in a process of its own."""

from __future__ import annotations

from tests.generation.generate_fakes import FakeModel, FakeTokenizer


def load(model_name: str, adapter: str | None = None) -> tuple[FakeModel, FakeTokenizer]:
    """Load it: five tokens a word, some 50 a second."""
    return FakeModel(script=tuple(b"word " * 2000), delay_seconds=0.02, context_length=20_000), FakeTokenizer()
