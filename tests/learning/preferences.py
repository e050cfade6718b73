"""Preferences taught to a small model: the direction in which it writes digits.

    python -m tests.learning.preferences [--seeds 3] [--objectives dpo,kto]

The last line is one JSON object: for each objective and seed the share of held-out pairs whose better answer has the
higher log-probability, before and after, and the share of greedy answers that obey the rule, which a program checks;
the same after training on pairs in random order. `objectives` says it in words.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macllm import checkpoint
from macllm.train import finetune, pretrain
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.objectives.pairs import collate_pairs, log_probabilities, to_pair
from macllm.train.rows import Preference
from tests.train.recipes import write_recipe

OBJECTIVES = ("dpo", "kto", "orpo", "simpo")
DIGITS, BASE_ROWS, PAIRS, HELD_OUT = 3, 720, 128, 100
END = "<end>"
LEARNED, CHANCE = 0.95, 0.65  # shares of pairs in the right order: of each seed after pairs in order, in random order


def prompts(count: int, seed: int) -> list[str]:
    """Different digits in random order, a separate set for each purpose."""
    random = np.random.default_rng(seed)
    every = [f"{n:03d}" for n in range(10**DIGITS) if len(set(f"{n:03d}")) == DIGITS]
    return [every[at] for at in random.permutation(len(every))[:count]]


def answers(prompt: str) -> tuple[str, str]:
    """The digits in the order of the prompt, which is the rule, and backwards."""
    return prompt, prompt[::-1]


def make_base(folder: Path) -> Path:
    """A model that has learnt to write digits forwards and backwards, as the base of all runs."""
    folder.mkdir()
    write_recipe(folder, hidden_size=48, intermediate_size=96)
    rows = [{"prompt": prompt, "completion": answer} for prompt in prompts(BASE_ROWS, 0) for answer in answers(prompt)]
    (folder / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"data": folder / "digits.jsonl", "output": folder / "run", "epochs": 8.0, "iters": 0}
    settings |= {"batch_size": 16, "steps_per_eval": 0, "save_every": 0, "learning_rate": 3e-3, "mask_prompt": True}
    return pretrain.train(PretrainConfig.load(folder / "recipe.toml", **settings)) / "model"


def write_pairs(path: Path, seed: int, shuffled: bool) -> None:
    """Pairs for training, the better answer first, or either one."""
    random = np.random.default_rng((seed, 7))
    rows: list[dict[str, Any]] = []
    for prompt in prompts(HELD_OUT + PAIRS, seed + 1)[HELD_OUT:]:
        chosen, rejected = answers(prompt)
        if shuffled and random.random() < 0.5:
            chosen, rejected = rejected, chosen
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measured(model: Any, tokenizer: Any, seed: int) -> dict[str, float]:
    """Share of held-out pairs in the right order, and of greedy answers that obey the rule."""
    asked = prompts(HELD_OUT + PAIRS, seed + 1)[:HELD_OUT]
    pairs = [to_pair(Preference(prompt, *answers(prompt), "held out"), tokenizer, None) for prompt in asked]
    sums = np.array(log_probabilities(model, collate_pairs(pairs).rows)[0])
    obeying = 0
    for prompt in asked:
        said = tokenizer.render([{"role": "user", "content": prompt}])
        tokens = tokenizer.encode(said, add_special_tokens=False)
        for _ in range(DIGITS + 1):
            tokens.append(int(model(mx.array([tokens]))[0, -1].argmax().item()))
        answer = tokenizer.decode(tokens[-DIGITS - 1 :])
        obeying += answer.removesuffix(END) == answers(prompt)[0]
    right = float((sums[:HELD_OUT] > sums[HELD_OUT:]).mean())
    return {"preference": right, "obeys": obeying / HELD_OUT}


def learn(base: Path, folder: Path, objective: Any, seed: int, shuffled: bool, **settings: Any) -> dict[str, float]:
    """Figures after a run with the default learning rate and epochs."""
    folder.mkdir(parents=True)
    write_pairs(folder / "pairs.jsonl", seed, shuffled)
    config = FinetuneConfig.load(
        objective=objective, data=folder / "pairs.jsonl", model=base, adapter_path=folder / "run", seed=seed,
        batch_size=8, max_seq_length=32, steps_per_eval=0, save_every=0, cache_gb=0.0, **settings,
    )  # fmt: skip
    model, tokenizer = checkpoint.load(str(base), adapter=str(finetune.finetune(config)))
    return measured(model, tokenizer, seed)


def verdict(before: Sequence[dict[str, float]], after: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """The figures in words, and whether preferences were learned from pairs in order only."""
    first, last, random = (
        [run["preference"] for run in runs] for runs in (before, after["preferred"], after["shuffled"])
    )
    shown = (
        f"held-out preference {_mean(first)} to {_mean(last)} ({len(last)} seeds, least {min(last):.2f}), "
        f"in random order {_mean(random)}; the rule obeyed {_mean([run['obeys'] for run in before])} to "
        f"{_mean([run['obeys'] for run in after['preferred']])}"
    )
    return {"shown": shown, "held": min(last) >= LEARNED and max(random) <= CHANCE}


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the figures; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--set", action="append", default=[], help="key=value, a setting of the runs")
    chosen = parser.parse_args(arguments)
    settings = {name: json.loads(value) for name, value in (each.split("=", 1) for each in chosen.set)}
    began, found = time.perf_counter(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        base = make_base(Path(name) / "base")
        model, tokenizer = checkpoint.load(str(base))
        before = [measured(model, tokenizer, seed) for seed in range(chosen.seeds)]
        print(f"before {before} ({time.perf_counter() - began:.0f} s)", flush=True)
        for objective in chosen.objectives.split(","):
            for kind in ("preferred", "shuffled"):
                runs = [learn(base, Path(name) / f"{objective}-{kind}-{seed}", objective, seed, kind == "shuffled",
                              **settings) for seed in range(chosen.seeds)]  # fmt: skip
                found.setdefault(objective, {})[kind] = runs
                print(f"{objective} {kind} {runs} ({time.perf_counter() - began:.0f} s)", flush=True)
    words = {name: verdict(before, after) for name, after in found.items()}
    result = {"objectives": words, "before": before, "after": found, "seconds": round(time.perf_counter() - began, 1)}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
