"""Table of errors against transformers: `python -m tests.families.table`.

For every case: the largest difference of logits from transformers, that of decoding through a cache in random
chunks from the full pass, each over the largest logit, and for one case a family the largest relative
difference of any parameter's gradient. The last line is one JSON object.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from macllm import checkpoint
from tests.families.oracles import CASES, Case, batch, write
from tests.families.test_parity import compared, gradient_errors, our_logits, theirs_logits
from tests.nn.test_cache import LENGTH, chunks, in_chunks, tokens_for


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def cached_error(case: Case, model) -> float | None:
    """Cached decoding against the full pass, the worst of three chunkings; None without a cache."""
    if case.kind == "encoder" or "both-ways" in case.name:
        return None
    tokens = tokens_for(case)
    if case.kind == "text-to-text":
        source = tokens_for(case, length=17, seed=2) % 80
        want, start = np.array(model(tokens, source=source)), lambda: model.start(source)
    else:
        want, start = np.array(model(tokens)), lambda: model.make_cache(max_context=LENGTH)
    return max(relative(in_chunks(model, tokens, start(), chunks(LENGTH, seed)), want) for seed in range(3))


def row(case: Case) -> dict[str, float | None]:
    """The errors of one case."""
    b = batch(case)
    with tempfile.TemporaryDirectory() as folder:
        theirs = write(case, Path(folder))
        ours = checkpoint.load_model(Path(folder))
    real = compared(case, b)
    want = theirs_logits(case, theirs, b).detach().numpy()[real]
    return {
        "parity": relative(np.array(our_logits(case, ours, b))[real], want),
        "cached": cached_error(case, ours),
        "gradient": max(gradient_errors(case, theirs, ours).values()) if case.main else None,
    }


if __name__ == "__main__":
    rows = {case.name: row(case) for case in CASES}
    print(f"{'case':30s} {'parity':>8s} {'cached':>8s} {'gradient':>8s}")
    for name, errors in rows.items():
        cells = ("-" if error is None else f"{error:.1e}" for error in errors.values())
        print(f"{name:30s} " + " ".join(f"{cell:>8s}" for cell in cells))
    print(json.dumps(rows, default=float))
