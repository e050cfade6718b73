"""Prefix caches: KV caches of recent completions, reused for prompts with the same beginning."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from macllm.nn.protocol import ModelCache

KEPT_TOKENS = 64  # tokens after a common prefix that are worth a copy of the prefix, at least
KEPT_SHARE = 8  # and at least one token for this many of the prefix


@dataclass(frozen=True, eq=False)
class _Entry:
    """A cache of some kind, and the tokens in it."""

    tokens: tuple[int, ...]
    cache: ModelCache
    kind: Hashable


class PrefixCache:
    """KV caches by their tokens, one for each branch of a conversation.

    The cache of the newest completion is always kept, and of the others those used last, as far as they fit into
    `capacity_bytes`. A cache is handed out uncut where all its tokens begin the prompt, else as a fork if the rest of
    its tokens is long enough to be worth keeping, so that going back to the longer branch finds it. One that cannot be
    cut back later, because a window or a recurrence forgets, is forked as well.
    """

    def __init__(self, capacity_bytes: int = 0) -> None:
        self._capacity_bytes = capacity_bytes
        self._entries: list[_Entry] = []  # the one used last at the end
        self._kind: Hashable = None  # of the cache that was handed out last
        self._kinds: dict[int, Hashable] = {}  # of those that are handed out, by id

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the cache that was used last."""
        return self.sequences[-1] if self._entries else ()

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """The tokens in every cache, that used last at the end."""
        return [entry.tokens for entry in self._entries]

    @property
    def nbytes(self) -> int:
        """Bytes reserved by all caches. They share no arrays: a fork has its own from its first step on."""
        return sum(entry.cache.nbytes for entry in self._entries)

    def acquire(
        self, prompt: Sequence[int], kind: Hashable, make_cache: Callable[[], ModelCache]
    ) -> tuple[ModelCache, int]:
        """A cache with the longest reusable beginning of `prompt`, and the number of its tokens.

        The last token of the prompt is never reused: its logits begin the completion. The cache that is handed out
        belongs to the caller until `release`; the others are then within the capacity.
        """
        self._kind = kind
        best, reused = self._longest(tuple(prompt), kind)
        if best is None:
            cache = make_cache()
        else:
            self._entries.remove(best)
            cache = best.cache
            if self._is_kept(best, reused):
                self._entries.append(best)
                cache = cache.fork()
            cache.cut(reused)
        self._kinds[id(cache)] = kind
        self._evict()
        return cache, reused

    def keep(self, tokens: Sequence[int], cache: ModelCache) -> None:
        """Keep a fork of the caller's `cache` of the first `tokens`, if it cannot be cut back later."""
        if _forgets(cache) and cache.nbytes <= self._capacity_bytes:
            kind = self._kinds.get(id(cache), self._kind)
            self._entries.append(_Entry(tuple(tokens[: cache.length]), cache.fork(), kind))
            self._evict()

    def release(self, tokens: Sequence[int], cache: ModelCache) -> None:
        """Keep `cache`, which holds the first `cache.length` of `tokens`, as the one used last."""
        new = _Entry(tuple(tokens[: cache.length]), cache, self._kinds.pop(id(cache), self._kind))
        if not new.tokens:
            return
        for entry in self._entries:
            if _holds(entry, new):
                self._entries.remove(entry)
                self._entries.append(entry)
                return
        self._entries = [entry for entry in self._entries if not _holds(new, entry)]
        self._entries.append(new)

    def _longest(self, prompt: tuple[int, ...], kind: Hashable) -> tuple[_Entry | None, int]:
        """The entry that can be cut back to the longest prefix of `prompt`, one without a rest if possible."""
        best, found = None, (0, False)
        for entry in reversed(self._entries):
            shared = min(common_prefix(entry.tokens, prompt), len(prompt) - 1)
            if entry.kind != kind or shared < found[0]:
                continue
            length = entry.cache.nearest(shared)
            if length and (length, length == len(entry.tokens)) > found:
                best, found = entry, (length, length == len(entry.tokens))
        return best, found[0]

    def _is_kept(self, entry: _Entry, reused: int) -> bool:
        """True if the cache, with the tokens after the first `reused`, is worth a copy of those."""
        rest = len(entry.tokens) - reused
        is_worth = _forgets(entry.cache) if rest == 0 else rest >= max(KEPT_TOKENS, reused // KEPT_SHARE)
        return is_worth and entry.cache.nbytes <= self._capacity_bytes

    def _evict(self) -> None:
        """Drop caches, the one used longest ago first, until the rest fits."""
        while self.nbytes > self._capacity_bytes:
            del self._entries[0]


def _forgets(cache: ModelCache) -> bool:
    """True if the cache cannot be cut back far."""
    return cache.length > 1 and cache.nearest(1) == 0


def _holds(longer: _Entry, shorter: _Entry) -> bool:
    """True if `longer` can be cut back to `shorter`."""
    size = len(shorter.tokens)
    same = longer.kind == shorter.kind and common_prefix(longer.tokens, shorter.tokens) == size
    return same and longer.cache.nearest(size) == size


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix, by bisection: comparing slices is fast."""
    a, b = tuple(a), tuple(b)
    same, size = 0, min(len(a), len(b))
    while same < size:
        half = (same + size + 1) // 2
        if a[same:half] == b[same:half]:
            same = half
        else:
            size = half - 1
    return same
