"""Prefix cache: the KV cache of the last completion, reused for prompts that begin with its tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from macllm.nn.protocol import ModelCache


class PrefixCache:
    """The KV cache of the last completion and the tokens in it; one conversation at a time."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._cache: ModelCache | None = None
        self._kind: Hashable = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the cache."""
        return tuple(self._tokens)

    def acquire(
        self, prompt: Sequence[int], kind: Hashable, make_cache: Callable[[], ModelCache]
    ) -> tuple[ModelCache, int]:
        """A cache with the reusable beginning of `prompt`, and the number of its tokens.

        The last token of the prompt is never reused: its logits begin the completion. A cache of another `kind`, or one
        that cannot be cut back to a common prefix, is dropped. The prefix cache is empty until `release`.
        """
        cache, tokens, self._cache = self._cache, self._tokens, None
        self._tokens = []
        if cache is not None and kind == self._kind:
            shared = min(common_prefix(tokens, prompt), len(prompt) - 1)
            reused = cache.nearest(shared)
            if reused:
                cache.cut(reused)
                return cache, reused
        self._kind = kind
        return make_cache(), 0

    def release(self, tokens: Sequence[int], cache: ModelCache) -> None:
        """Keep `cache` for the next turn; it holds the first `cache.length` of `tokens`."""
        self._tokens, self._cache = list(tokens[: cache.length]), cache


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    shared = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        shared += 1
    return shared
