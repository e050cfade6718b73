"""Parameters of a draw."""

from __future__ import annotations

from typing import NamedTuple


class DrawParams(NamedTuple):
    """Sampling parameters of a draw, with the names of SamplingParams; the defaults change nothing.

    The numbers come first, in the order of the native kernel.
    """

    temperature: float = 1.0  # 0: the likeliest token
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_window: int = 0
    dry_breakers: tuple[int, ...] = ()
    bias: tuple[tuple[int, float], ...] = ()  # tokens of the vocabulary, and what is added to their logits

    @property
    def numbers(self) -> tuple[float, ...]:
        """All but breakers and biases."""
        return self[:-2]  # pyright: ignore[reportReturnType]

    @property
    def counts(self) -> bool:
        """True if any penalty counts tokens: repetition, presence or frequency."""
        return self.repetition_penalty != 1.0 or bool(self.presence_penalty or self.frequency_penalty)

    @property
    def windows(self) -> list[int]:
        """The window of each kind of penalty that there is; 0 is the whole history."""
        return [self.penalty_window] * self.counts + [self.dry_window] * bool(self.dry_multiplier)
