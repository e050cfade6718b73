"""Table of mlx-lm's classes against transformers: `python -m tests.families.foreign_table [NAME ...]`.

For every family that mlx-lm's classes run, a tiny random checkpoint as transformers writes it: the largest
difference of logits from transformers at 13 and at 1,100 positions and that of decoding through caches from the
full pass, each over the largest logit; or why the checkpoint is refused.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from macllm import checkpoint
from macllm.errors import CheckpointError
from tests.families.foreign import CASES, FIRST, write

LENGTH, SHORT, BOUND = 1100, 13, 1e-4
CHUNKS = (5, 1, 1000, 1, 1, 30, 1)  # beyond position 1,024 with single tokens


@dataclass(frozen=True)
class Row:
    """The result of one family: differences over the largest logit, or the reason of a refusal."""

    name: str
    short: float = 0.0
    long: float = 0.0
    cached: float = 0.0
    refused: str | None = None

    @property
    def right(self) -> bool:
        """True if the checkpoint loads and every difference is within the bound."""
        return self.refused is None and max(self.short, self.long, self.cached) < BOUND


def row(name: str) -> Row:
    """Compare one family with transformers."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        theirs = write(name, Path(folder))
        tokens = np.random.default_rng(1).integers(3, 90, (1, LENGTH))
        with torch.no_grad():
            wants = [
                theirs(torch.from_numpy(tokens[:, :n]), use_cache=False).logits[0].float().numpy()
                for n in (SHORT, LENGTH)
            ]
        try:
            ours = checkpoint.load_model(Path(folder))
        except CheckpointError as error:
            return Row(name, refused=error.cause or str(error))
    largest = np.abs(wants[1]).max()
    full = np.array(ours(mx.array(tokens)).astype(mx.float32))[0]
    short = np.array(ours(mx.array(tokens[:, :SHORT])).astype(mx.float32))[0]
    cache, parts, at = ours.make_cache(), [], 0
    # Cached keys keep the rotation of the length at which they were computed, as in transformers.
    fixed = CASES[name].get("rope_parameters", {}).get("rope_type") not in ("dynamic", "longrope")
    for n in CHUNKS if fixed else (LENGTH,):
        parts.append(np.array(ours(mx.array(tokens[:, at : at + n]), cache=cache).astype(mx.float32))[0])
        at += n
    return Row(
        name,
        short=float(np.abs(short - wants[0]).max() / largest),
        long=float(np.abs(full - wants[1]).max() / largest),
        cached=float(np.abs(np.concatenate(parts) - full[:at]).max() / largest),
    )


def line(r: Row) -> str:
    """One row of a Markdown table."""
    cells = (f"{value:.0e}" if r.refused is None else "" for value in (r.short, r.long, r.cached))
    verdict = "no" if r.refused else "yes" if r.right else "WRONG"
    return f"| {r.name} | {verdict} | {' | '.join(cells)} | {r.refused or ''} |"


def show(names: list[str]) -> bool:
    """Print the Markdown table and a summary. Returns True if no row is wrong."""
    print("| family | loads | 13 positions | 1,100 positions | caches | why refused |")
    print("|---|---|---|---|---|---|")
    rows = []
    for name in names:
        rows.append(row(name))
        print(line(rows[-1]), flush=True)
    first = [r for r in rows if r.name in FIRST]
    print(f"\n{sum(r.right for r in first)} of {len(first)} of the first families are right,")
    print(f"{sum(r.right for r in rows)} of {len(rows)} of all; {sum(bool(r.refused) for r in rows)} are refused.")
    return all(r.right or r.refused for r in rows)


if __name__ == "__main__":
    import logging
    import warnings

    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    wanted = sys.argv[1:] or [*FIRST, *(name for name in CASES if name not in FIRST)]
    sys.exit(not show(wanted))
