"""One trajectory from settings that must not change it.

A small Llama with an adapter, or all its weights, on eight rows: each step sees all of them, whatever the sizes of
micro-batches. Each way of computing is compared with the plain one, step by step. `bias` is the mean of the signed
residuals: rounding cancels in it, a one-sided error does not.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from macllm.nn import lora, loss
from macllm.nn.models import DecoderLM
from macllm.ops import query_blocks
from macllm.ops.dispatch import using
from macllm.train import pretrain
from macllm.train.config import TrainConfig
from macllm.train.contract import Loss
from macllm.train.data import Dataset
from macllm.train.events import Counts, Step
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM
from macllm.train.render import Example
from macllm.train.snapshot import Snapshots
from tests.tables.table import Say, Table

LARGEST, BIAS = 5e-6, 5e-7  # of the loss of a step: its residual, and the mean residual of all steps
STEPS = 50
LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
CONFIG = TrainConfig(data="rows", iters=STEPS, batch_size=8, learning_rate=1e-3, steps_per_report=1, save_every=7)


class _Recipe:
    config, init_std, seed = "config.json", 0.2, 0


@contextmanager
def chunked_loss() -> Iterator[None]:
    """Chunks of seven rows of logits, computed again for the gradients."""
    sizes = {"_CHUNK_BYTES": 0, "_FEWEST_ROWS": 7, "_RECOMPUTED_BYTES": 0}
    with patch.multiple(loss, **sizes):
        yield


def stock() -> AbstractContextManager[None]:
    """MLX's own operations in place of kernels."""
    return using("stock")


@contextmanager
def blocked_attention() -> Iterator[None]:
    """MLX's own operations, and attention by blocks of five queries."""
    with using("stock"), patch.multiple(query_blocks, SHORTEST=8, _SIZE=5):
        yield


def compiled() -> AbstractContextManager[None]:
    """Losses and gradients from a function that MLX compiles, one for each batch."""
    return patch.object(nn, "value_and_grad", _compiled)  # type: ignore[return-value]


@contextmanager
def compiled_stock() -> Iterator[None]:
    """MLX's own operations, compiled: MLX fuses some of them."""
    with using("stock"), compiled():
        yield


def _compiled(model: nn.Module, loss: Callable[[Any], Loss]) -> Callable[[Any], tuple[Loss, Any]]:
    def run(batch: Any) -> tuple[Loss, Any]:
        units: list[float] = []

        def numerator(weights: dict[str, mx.array]) -> mx.array:
            model.update(tree_unflatten(list(weights.items())))
            found = loss(batch)
            units.append(found.denominator)
            return found.numerator

        weights: Any = dict(tree_flatten(model.trainable_parameters()))
        value, gradients = mx.compile(mx.value_and_grad(numerator))(weights)
        model.update(tree_unflatten(list(weights.items())))  # it had those that were traced
        return Loss(value, units[0]), tree_unflatten(list(gradients.items()))

    return run


@dataclass(frozen=True)
class Way:
    """Settings, a context and a stop that leave the trajectory as it is.

    `exact` demands the same bits.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    stop: int | None = None
    exact: bool = False


WAYS = {
    "2 x 4 rows": Way({"batch_size": 4, "grad_accumulation_steps": 2}),
    "8 x 1 row": Way({"batch_size": 1, "grad_accumulation_steps": 8}),
    "3 + 3 + 2 rows": Way({"batch_size": 3, "grad_accumulation_steps": 3}),
    "packed into one row": Way({"batch_size": 1, "packing": True, "max_seq_length": 128}),
    "packed into 2 + 1 rows of 40 tokens": Way(
        {"batch_size": 2, "grad_accumulation_steps": 2, "packing": True, "max_seq_length": 40}
    ),
    "loss in chunks": Way(context=chunked_loss),
    "layers checkpointed": Way({"grad_checkpoint": True}, exact=True),
    "compiled": Way(context=compiled),
    "compiled, MLX's operations": Way(context=compiled_stock),
    "MLX's operations": Way(context=stock),
    "MLX's operations, attention by blocks": Way(context=blocked_attention),
    "all of these": Way({"batch_size": 2, "grad_accumulation_steps": 4, "grad_checkpoint": True}, blocked_attention),
    "resumed after step 17": Way(stop=17, exact=True),
    "resumed, 2 x 4 rows, checkpointed": Way(
        {"batch_size": 4, "grad_accumulation_steps": 2, "grad_checkpoint": True}, stop=30
    ),
    "resumed, packed, checkpointed, attention by blocks": Way(
        {"batch_size": 4, "packing": True, "max_seq_length": 40, "grad_checkpoint": True}, blocked_attention, stop=30
    ),
}
QUICK = (
    "2 x 4 rows",
    "8 x 1 row",
    "packed into 2 + 1 rows of 40 tokens",
    "loss in chunks",
    "layers checkpointed",
    "compiled",
    "MLX's operations, attention by blocks",
)


@dataclass(frozen=True)
class Trajectory:
    """The losses of all steps, and a digest of the last weights."""

    losses: np.ndarray
    digest: str


@dataclass(frozen=True)
class Residual:
    """Largest and mean difference between the losses of two trajectories, relative to each loss."""

    largest: float
    bias: float
    same: bool  # the last weights have the same bits


def rows() -> list[Example]:
    """Eight rows of 2 to 23 tokens, each with a prompt."""
    random = np.random.default_rng(4)
    made = []
    for length, masked in ((23, 6), (2, 1), (9, 2), (17, 16), (13, 4), (20, 1), (5, 3), (11, 7)):
        tokens = (np.arange(length) * 3 + random.integers(50)) % 50
        made.append(Example(tokens.astype(np.int32), np.arange(length) >= masked, "here:1"))
    return made


def model(adapts: bool, dropout: float) -> DecoderLM:
    """A new model, the same at each call."""
    made = pretrain.new_model(LLAMA, _Recipe)  # type: ignore[arg-type]
    if adapts:
        lora.apply(made, rank=4, alpha=8, dropout=dropout)
    return made


def trajectory(way: Way, adapts: bool, dropout: float = 0.0, steps: int = STEPS) -> Trajectory:
    """The losses of a run."""
    config = replace(CONFIG, iters=steps, **way.settings)
    losses: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder, way.context():
        for stop in (way.stop, None) if way.stop else (None,):
            made = model(adapts, dropout)
            kept = Snapshots(Path(folder), 2, {}) if way.stop else None
            with closing(Trainer.of(made, CausalLM(), config, Dataset(rows(), [], Counts()), kept).run()) as events:
                for event in events:
                    if isinstance(event, Step):
                        losses[event.step] = event.loss
                        if event.step == stop:
                            break
    seen = hashlib.sha256()
    for name, array in sorted(tree_flatten(made.trainable_parameters())):
        seen.update(name.encode() + np.array(array).tobytes())
    return Trajectory(np.array([losses[step] for step in sorted(losses)]), seen.hexdigest())


def residual(plain: Trajectory, other: Trajectory) -> Residual:
    """The differences of `other` from `plain`."""
    relative = (other.losses - plain.losses) / plain.losses
    return Residual(float(np.abs(relative).max()), float(relative.mean()), plain.digest == other.digest)


def held(way: Way, found: Residual) -> bool:
    """True if the trajectory is the plain one."""
    return found.same if way.exact else found.largest <= LARGEST and abs(found.bias) <= BIAS


def compare(name: str, adapts: bool, steps: int = STEPS) -> Residual:
    """The residuals of a way of computing."""
    dropout = 0.1 if WAYS[name].exact and adapts else 0.0
    plain = trajectory(Way(), adapts, dropout, steps)
    return residual(plain, trajectory(WAYS[name], adapts, dropout, steps))


def table(quick: bool, say: Say) -> Table:
    """Residuals of every way; `quick` compares some, over five steps."""
    found: dict[str, Residual] = {}
    failed: list[str] = []
    for adapts in (False, True):
        for name in QUICK if quick else WAYS:
            title = f"{name}, {'LoRA' if adapts else 'all weights'}"
            say(f"trajectories: {title}")
            found[title] = compare(name, adapts, 5 if quick else STEPS)
            failed += [] if held(WAYS[name], found[title]) else [title]
    cells = [
        [title, f"{each.largest:.1e}", f"{each.bias:+.1e}", "same bits" if each.same else ""]
        for title, each in found.items()
    ]
    return Table(
        f"One trajectory: losses of {5 if quick else STEPS} steps against those of the plain way",
        ["way", "largest residual", "mean residual", "last weights"],
        cells,
        f"{LARGEST:.0e} and {BIAS:.0e} of the loss; layers checkpointed, and resumed: the same bits, with dropout too",
        not failed,
        {title: asdict(each) for title, each in found.items()},
    )
