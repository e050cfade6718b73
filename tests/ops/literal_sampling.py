"""Filters and penalties in float64, written from their papers, slow and simple."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def nucleus(order: np.ndarray, probabilities: np.ndarray, mass: float) -> np.ndarray:
    """The shortest prefix of `order` with at least `mass`; one token or more, all if none suffices."""
    total, kept = 0.0, []
    for token in order:
        kept.append(token)
        total += probabilities[token]
        if total >= mass:
            break
    mask = np.zeros(len(probabilities), dtype=bool)
    mask[kept] = True
    return mask


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    mask = np.zeros(len(logits), dtype=bool)
    mask[np.argsort(-logits, kind="stable")[:k]] = True
    return mask


def top_p(logits: np.ndarray, p: float) -> np.ndarray:
    return nucleus(np.argsort(-logits, kind="stable"), softmax(logits), p)


def min_p(logits: np.ndarray, p: float) -> np.ndarray:
    probabilities = softmax(logits)
    return probabilities >= p * probabilities.max()


def typical(logits: np.ndarray, p: float) -> np.ndarray:
    probabilities = softmax(logits)
    with np.errstate(divide="ignore"):
        surprise = -np.log(probabilities)
    entropy = sum(q * s for q, s in zip(probabilities, surprise, strict=True) if q > 0)
    return nucleus(np.argsort(np.abs(surprise - entropy), kind="stable"), probabilities, p)


def xtc(logits: np.ndarray, threshold: float) -> np.ndarray:
    """All tokens but those above the least likely one that reaches the threshold."""
    probabilities = softmax(logits)
    viable = [logit for logit, probability in zip(logits, probabilities, strict=True) if probability >= threshold]
    least = min(viable, default=np.inf)
    return np.array([logit <= least for logit in logits])


def restrict(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, logits, -np.inf)


def distribution(logits: np.ndarray, *, temperature=1.0, k=0, p=1.0, m=0.0, t=1.0) -> np.ndarray:
    """Probabilities of the draw, with the filters in their documented order."""
    logits = logits.astype(np.float64) / temperature
    if k:
        logits = restrict(logits, top_k(logits, k))
    if p < 1:
        logits = restrict(logits, top_p(logits, p))
    if m:
        logits = restrict(logits, min_p(logits, m))
    if t < 1:
        logits = restrict(logits, typical(logits, t))
    return softmax(logits)


def counted(
    logits: np.ndarray, history: list[int], *, repetition=1.0, presence=0.0, frequency=0.0, window=0
) -> np.ndarray:
    logits = logits.astype(np.float64).copy()
    recent = history[-window:] if window else history
    for token in set(recent):
        logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
        logits[token] -= frequency * recent.count(token) + presence
    return logits


def dry(logits: np.ndarray, history: list[int], *, multiplier, base, allowed, window=0, breakers=()) -> np.ndarray:
    """DRY penalty: compare the end of the history with the tokens before every earlier position."""
    logits = logits.astype(np.float64).copy()
    recent = history[-window:] if window else history
    longest: dict[int, int] = {}
    for position in range(len(recent) - 1):
        length = 0
        while length <= position:
            a, b = recent[position - length], recent[len(recent) - 1 - length]
            if a != b or b in breakers:
                break
            length += 1
        following = recent[position + 1]
        if length and following not in breakers:
            longest[following] = max(longest.get(following, 0), length)
    for token, length in longest.items():
        if length >= allowed:
            logits[token] -= multiplier * base ** (length - allowed)
    return logits
