"""Decoding speed of a whole model with and without Metal kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macllm.doctor.benchmark import PairTiming
    from macllm.nn.protocol import LanguageModel

PROMPT = "A language model predicts"
NEW_TOKENS = 64
BITS, GROUP = 4, 64


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding speed of the bundled 4-bit model, and the first token that differs."""

    dtype: str
    new_tokens: int
    tokens_per_second: float
    stock_tokens_per_second: float
    timing: PairTiming
    first_other_token: int | None

    def lines(self) -> list[str]:
        """The lines of the report."""
        agree = "the tokens are the same"
        if self.first_other_token is not None:
            agree = f"the tokens are the same up to token {self.first_other_token}, where rounding may decide"
        return [
            f"Decoding with the bundled model, {BITS} bit, {self.dtype}, {self.new_tokens} tokens:",
            f"  with kernels  {self.tokens_per_second:.0f} tokens/s",
            f"  without       {self.stock_tokens_per_second:.0f} tokens/s",
            f"  {self.timing}; {agree}",
        ]


def decoding(progress: Callable[[int, int], None] = lambda done, total: None) -> Decoding:
    """Decode with the bundled model, quantized in memory: alternate MLX's operations and our kernels.

    `progress` gets the rounds done and the rounds in all.
    """
    import mlx.core as mx

    from macllm.checkpoint import load
    from macllm.doctor.benchmark import WHOLE, time_pair
    from macllm.nn import quantize
    from macllm.ops.dispatch import using

    model, tokenizer = load()
    quantize.apply(model, bits=BITS, group_size=GROUP)
    mx.eval(model.parameters())
    prompt = tokenizer.encode(PROMPT)
    tokens: dict[str, list[int]] = {}
    done = 0

    def run(name: str, choice: Callable[[], AbstractContextManager[None]]) -> Callable[[], float]:
        def once() -> float:
            nonlocal done
            progress(done, 2 + 4 * WHOLE.turns)
            done += 1
            with choice():
                tokens[name], seconds = _decoded(model, prompt)
            return seconds

        return once

    timing = time_pair(run("kernels", _as_decided), run("stock", lambda: using("stock")))
    others = (i for i, (a, b) in enumerate(zip(tokens["kernels"], tokens["stock"], strict=True)) if a != b)
    return Decoding(
        str(model.hidden(mx.array([prompt])).dtype).removeprefix("mlx.core."),
        NEW_TOKENS,
        1 / timing.seconds,
        1 / timing.stock_seconds,
        timing,
        next(others, None),
    )


def _as_decided() -> AbstractContextManager[None]:
    """Use the kernels that decisions allow."""
    from macllm.ops.dispatch import using

    return using("native")


def _decoded(model: LanguageModel, prompt: list[int]) -> tuple[list[int], float]:
    """Greedily decoded tokens, and seconds per token after the first."""
    from macllm.generation.decode import decode, prefill
    from macllm.generation.request import SamplingParams
    from macllm.generation.sampling.sampler import Sampler

    cache = model.make_cache()
    greedy = Sampler(SamplingParams(temperature=0.0), 0, prompt, model.info.vocab_size or 256)
    steps = prefill(model, cache, prompt, len(prompt))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            logits = end.value
            break
    tokens = decode(model, cache, logits, greedy, max_tokens=NEW_TOKENS, alternatives=None)
    written = [next(tokens).token]
    began = time.perf_counter()
    written += [each.token for each in tokens]
    return written, (time.perf_counter() - began) / (NEW_TOKENS - 1)
