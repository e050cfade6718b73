"""Speed of LoRA steps on short chat rows, packed and padded.

A model of SmolLM-135M's shape in float32, and rows whose lengths are log-normal (median 60 tokens, sigma 0.7), the
second half of each supervised. `padded` has batches of 8 rows of similar lengths, two a step; `packed` has one row of
1,024 tokens. Both take turns; speed counts the rows' tokens, not padding. Options: `--model FOLDER --rounds 7 --median
60`. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from timing import Series, print_json, print_table, take_turns

from macllm.checkpoint import load_model
from macllm.nn import lora
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Advanced, Counts
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import Batch, CausalLM
from macllm.train.render import Example

ROWS, SIGMA, BIN = 2000, 0.7, 1024
SETTINGS = {
    "padded": {"batch_size": 8, "grad_accumulation_steps": 2},
    "packed": {"batch_size": 1, "packing": True, "max_seq_length": BIN},
}


def rows(median: float, vocab_size: int) -> list[Example]:
    """Rows of random tokens."""
    random = np.random.default_rng(0)
    lengths = np.clip(np.exp(random.normal(np.log(median), SIGMA, ROWS)), 8, BIN).astype(int)
    return [
        Example(random.integers(0, vocab_size, n).astype(np.int32), np.arange(n) >= n // 2, "here:1") for n in lengths
    ]


def speed(folder: Path, examples: list[Example], settings: dict[str, int]) -> Callable[[], float]:
    """Tokens a second of the next step."""
    model = load_model(folder)
    lora.apply(model, rank=16, alpha=32)
    config = TrainConfig(data="random", iters=10**6, steps_per_report=10**6, steps_per_eval=0, save_every=0, **settings)  # type: ignore[arg-type]
    trainer = Trainer.of(model, CausalLM(), config, Dataset(examples, [], Counts()))
    events = trainer.run()
    next(events)  # a summary, before the first step

    def step() -> float:
        batches = list(trainer.passes.source.batches(trainer.state.step, model))
        tokens = sum(_real(batch) for batch in batches)
        began = time.perf_counter()
        while not isinstance(next(events), Advanced):
            pass
        return tokens / (time.perf_counter() - began)

    return step


def _real(batch: Batch) -> int:
    if batch.segments is not None:
        return sum(map(sum, batch.segments.lengths))
    return sum(int(np.flatnonzero(row).max()) + 1 for row in batch.weights)


def main() -> None:
    """Measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description="Speed of packed and padded steps.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--median", type=float, default=60)
    options = parser.parse_args()
    if options.model is None:
        from shapes import checkpoint

        options.model = checkpoint("M", "f32", Path(tempfile.gettempdir()) / "macllm-bench")
    vocab_size = load_model(options.model).info.vocab_size
    examples = rows(options.median, vocab_size)
    found = take_turns({name: speed(options.model, examples, each) for name, each in SETTINGS.items()}, options.rounds)
    print_table(found, "tokens/s")
    pairs = zip(found["packed"].values, found["padded"].values, strict=True)
    ratio = Series(tuple(packed / padded for packed, padded in pairs))
    print(f"packed over padded: {ratio.median:.2f} ({min(ratio.values):.2f} to {max(ratio.values):.2f})")
    print_json(Path(__file__).stem, {"lora": found}, {"packed over padded": ratio.median})


if __name__ == "__main__":
    main()
