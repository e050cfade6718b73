"""Decoders beat bigrams on held-out text, and the balance loss evens the load of experts.

The texts are those of `tests.learning.pretraining`. The bounds are the entropies of the held-out tokens' own
frequencies: of single tokens, and of tokens given the one before, which no unigram and no bigram model gets below. The
load of an expert is its share of the held-out tokens' choices, and the evenness of a layer the entropy of the loads
relative to its largest value, log E.

    python -m tests.learning.language
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macllm.checkpoint import load
from macllm.nn.routing import collecting
from macllm.ops.cross_entropy import cross_entropy
from macllm.train.pretrain import train
from tests.learning.pretraining import LENGTH, SEEDS, VOCAB, WIDTH, entropy, settings, written

EXPERTS, BALANCE = 8, 0.03
CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": LENGTH, "tie_word_embeddings": True,
}  # fmt: skip
DENSE = {**CONFIG, "model_type": "llama"}
ROUTED = {
    **CONFIG, "model_type": "mixtral", "intermediate_size": WIDTH, "num_hidden_layers": 1,
    "num_local_experts": EXPERTS, "num_experts_per_tok": 2,
}  # fmt: skip
RECIPE: dict[str, Any] = {"iters": 400, "batch_size": 16, "learning_rate": 5e-3, "init_std": 0.05}


def measured(folder: Path, model: Any, tokenizer: Any) -> dict[str, float]:
    """The loss of the held-out tokens and both bounds, in nats, and the evenness of the least even layer."""
    rows = [json.loads(line)["text"] for line in (folder / "valid.jsonl").read_text().splitlines()]
    encoded = [np.array(tokenizer.encode(row)[:LENGTH]) for row in rows]
    total, choices = 0.0, dict[int, np.ndarray]()
    for tokens in encoded:
        with collecting() as routed:
            logits = model(mx.array(tokens[None, :-1]))[0]
        total += cross_entropy(logits, mx.array(tokens[1:])).sum().item()
        for layer, (scores, top_k) in enumerate(routed):
            best = np.argsort(np.array(scores[0]), axis=-1)[:, -top_k:]
            choices[layer] = choices.get(layer, 0) + np.bincount(best.reshape(-1), minlength=EXPERTS)
    before, after = (np.concatenate([tokens[own] for tokens in encoded]) for own in (slice(-1), slice(1, None)))
    single, pairs = entropy(np.bincount(after)), entropy(np.bincount(before * VOCAB + after))
    found = {"loss": total / len(after), "unigram": single, "bigram": pairs - entropy(np.bincount(before))}
    even = {"evenness": min(map(entropy, choices.values())) / math.log(EXPERTS)} if choices else {}
    return {name: round(value, 3) for name, value in (found | even).items()}


def learned(model: dict[str, Any], seed: int, **changes: Any) -> dict[str, float]:
    """The measures of a run on the texts."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder)
        (folder / "clm.json").write_text(json.dumps(model))
        config = settings(folder, "clm", seed, **RECIPE | changes)
        train(config)
        found = measured(folder, *load(Path(config.output) / "model"))
    return {**found, "cpu_seconds": round(time.process_time() - began)}


def main() -> None:
    """Print the measures of all runs, and one JSON line."""
    runs = {
        "dense": (DENSE, {}),
        "experts": (ROUTED, {"iters": 120}),
        "balanced experts": (ROUTED, {"iters": 120, "router_aux_loss_coef": BALANCE}),
    }
    found: dict[str, list[dict[str, float]]] = {}
    for name, (model, changes) in runs.items():
        for seed in SEEDS:
            found.setdefault(name, []).append(learned(model, seed, **changes))
            print(name, seed, found[name][-1], flush=True)
    loss, bound = max(each["loss"] for each in found["dense"]), found["dense"][0]["bigram"]
    clm = {
        "shown": f"{loss:.2f} nats a token (worst of {len(SEEDS)} seeds), the best bigram model {bound:.2f}, "
        f"the best unigram model {found['dense'][0]['unigram']:.2f}",
        "held": loss < bound,
    }
    free, even = ([each["evenness"] for each in found[name]] for name in ("experts", "balanced experts"))
    cost = max(b["loss"] - a["loss"] for a, b in zip(found["experts"], found["balanced experts"], strict=True))
    routed = {
        "shown": f"entropy of the experts' loads {min(even):.2f} to {max(even):.2f} of the largest, without balance "
        f"loss {min(free):.2f} to {max(free):.2f}; held-out loss {cost:+.3f} at most",
        "held": min(even) > 0.97 and max(free) < min(even) and cost < 0.1,
    }
    print(json.dumps({"objectives": {"clm": clm, "clm with experts": routed}, "measured": found}))


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    main()
