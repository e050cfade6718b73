"""Allowed values of the numbers in a request and in the options of an engine."""

from __future__ import annotations

import math
from typing import Any

from macllm.errors import UsageError

LARGEST_SEED = 2**32 - 1

# name: smallest, whether that itself is allowed, largest
RANGES: dict[str, tuple[float, bool, float]] = {
    "temperature": (0, True, 100),
    "top_k": (0, True, math.inf),
    "top_p": (0, True, 1),
    "min_p": (0, True, 1),
    "typical_p": (0, True, 1),
    "xtc_probability": (0, True, 1),
    "xtc_threshold": (0, True, 1),
    "repetition_penalty": (0, False, 100),
    "presence_penalty": (-100, True, 100),
    "frequency_penalty": (-100, True, 100),
    "penalty_window": (0, True, math.inf),
    "dry_multiplier": (0, True, 100),
    "dry_base": (1, True, 100),
    "dry_allowed_length": (1, True, math.inf),
    "dry_window": (0, True, math.inf),
    "no_repeat_ngram_size": (0, True, math.inf),
    "encoder_no_repeat_ngram_size": (0, True, math.inf),
    "min_length": (0, True, math.inf),
    "min_new_tokens": (0, True, math.inf),
    "forced_bos_token_id": (0, True, math.inf),
    "max_tokens": (1, True, math.inf),
    "logprobs": (0, True, math.inf),
    "max_context": (1, True, math.inf),
    "prefill_step": (1, True, math.inf),
    "prefix_bytes": (0, True, math.inf),
    "num_beams": (1, True, 1024),
    "length_penalty": (-100, True, 100),
    "num_return_sequences": (1, True, 1024),
    "seed": (0, True, LARGEST_SEED),
}
OPTIONAL = frozenset({"seed", "logprobs", "max_context", "max_tokens", "forced_bos_token_id"})
WHOLE = OPTIONAL | {
    "top_k",
    "penalty_window",
    "dry_allowed_length",
    "dry_window",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "prefill_step",
    "prefix_bytes",
    "num_beams",
    "num_return_sequences",
}
EARLY_STOPPING = (False, True, "never")
COLDEST = 1e-4  # colder than this, logits / temperature can leave float32


def allows(name: str, value: Any) -> bool:
    """True where the option `name` can have this value."""
    low, low_allowed, high = RANGES[name]
    if not isinstance(value, int if name in WHOLE else int | float) or isinstance(value, bool):
        return False
    return (value >= low if low_allowed else value > low) and value <= high


def check_range(name: str, value: Any) -> None:
    """Raise UsageError, with the range, for a value that the option `name` cannot have."""
    if allows(name, value):
        return
    low, low_allowed, high = RANGES[name]
    kind = "a whole number" if name in WHOLE else "a number"
    lower = f"from {low:g}" if low_allowed else f"above {low:g}"
    upper = "" if high == math.inf else f" to {high:.10g}" if low_allowed else f" and at most {high:.10g}"
    raise UsageError(f"{name} is {shown(value)}; it must be {kind} {lower}{upper}")


def shown(value: Any) -> str:
    """A value as an error quotes it, in at most 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
