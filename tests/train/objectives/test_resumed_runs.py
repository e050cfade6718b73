"""A run of any objective that is interrupted within a step ends as one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from macllm.train import finetune, pretrain
from macllm.train.config import FinetuneConfig, PretrainConfig, TrainConfig
from macllm.train.config.objective import FinetuneObjective, PretrainObjective
from macllm.train.events import Prepared
from macllm.train.passes import Passes
from macllm.weights.safetensors import load_file
from tests.train.labelled_base import labelled_texts, tagged_words, write_decoder, write_encoder, write_rows
from tests.train.recipes import write_texts

STEPS = 4
STEPS_ON_ANSWERS = 2  # of a rollout: one is interrupted between two steps, the next one before its first step
COMMANDS = {
    "finetune": (finetune, FinetuneConfig, get_args(FinetuneObjective)),
    "train": (pretrain, PretrainConfig, get_args(PretrainObjective)),
}
REWARD = "def varied(completions):\n    return [float(len(set(text))) for text in completions]\n"
GENERATED = {"num_generations": 3, "num_iterations": STEPS_ON_ANSWERS, "max_completion_length": 4}
TEACHER = {"teacher": "decoder/model", "teacher_first": True, "teacher_top": 3}
DATA = {
    **dict.fromkeys(("sft", "distil", "clm"), "decoder/train.jsonl"),
    **dict.fromkeys(("dpo", "kto", "orpo", "simpo", "reward"), "decoder/pairs.jsonl"),
    **dict.fromkeys(("grpo", "ppo"), "decoder/prompts.jsonl"),
    **dict.fromkeys(("mlm", "span", "infill"), "texts/texts.jsonl"),
    "seq2seq": "texts/words.jsonl",
    "classify": "classify.jsonl",
    "tag": "tag.jsonl",
}
MODELS = {"classify": "encoder", "tag": "encoder", "seq2seq": "text-to-text"}
CONFIGS = {"clm": "decoder/config.json", "mlm": "texts/encoder.json"}
PATHS = {"data", "model", "teacher", "config", "tokenizer"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("resumed")
    write_decoder(made / "decoder")
    write_encoder(made / "encoder")
    write_rows(made / "classify.jsonl", labelled_texts(16))
    write_rows(made / "tag.jsonl", tagged_words(16))
    (made / "texts").mkdir()
    write_texts(made / "texts")
    (made / "reward.py").write_text(REWARD)
    of_t5 = {"objective": "seq2seq", "config": made / "texts/t5.json", "tokenizer": made / "texts", "iters": 1}
    pretrain.train(PretrainConfig.load(data=made / DATA["seq2seq"], output=made / "text-to-text", **of_t5))
    return made


def settings(command: str, objective: str, folder: Path) -> dict[str, Any]:
    """The settings of a run, with dropout in adapters and an evaluation in the middle."""
    found: dict[str, Any] = {"objective": objective, "data": DATA[objective]}
    if command == "train":
        tokenizer = "decoder" if objective == "clm" else "texts"
        found |= {"config": CONFIGS.get(objective, "texts/t5.json"), "tokenizer": tokenizer}
    else:
        found |= {"model": f"{MODELS.get(objective, 'decoder')}/model", "rank": 2, "alpha": 4.0, "dropout": 0.1}
    found |= TEACHER if objective == "distil" else {}
    found |= {"rewards": (f"{folder}/reward.py:varied",), **GENERATED} if objective in ("grpo", "ppo") else {}
    found = {name: folder / value if name in PATHS else value for name, value in found.items()}
    return found | {
        "iters": STEPS, "batch_size": 2, "grad_accumulation_steps": 2, "learning_rate": 0.01, "valid_fraction": 0.2,
        "max_seq_length": 32, "steps_per_report": 1, "steps_per_eval": 2, "save_every": 0, "select": "last",
    }  # fmt: skip


def interrupt(module: Any, config: TrainConfig, step: int) -> None:
    """Interrupt a step that has its batches and its gradients, before the weights change."""
    gradients = Passes.gradients

    def interrupted(passes: Passes[Any], number: int, weights: Any) -> Any:
        found = gradients(passes, number, weights)
        if number == step - 1:
            raise KeyboardInterrupt
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passes, "gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(module.events(config))


def end(out: Path) -> dict[str, Any]:
    """All tensors of the result and of the last snapshot, and every report but for times and memory."""
    found: dict[str, Any] = {"reports": []}
    for folder in (out, out / "model", out / f"snapshots/step-{STEPS:08}"):
        for path in folder.glob("*.safetensors"):
            found |= {f"{path.relative_to(out)} {name}": memoryview(one).tobytes()
                      for name, one in load_file(path).items()}  # fmt: skip
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        if line["event"] in ("Step", "Evaluated"):
            found["reports"].append({k: v for k, v in line.items() if k not in ("tokens_per_second", "peak_bytes")})
    return found


@pytest.mark.parametrize(
    ("command", "objective"), [(command, one) for command, (*_, names) in COMMANDS.items() for one in names]
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    command: str, objective: str, folder: Path, tmp_path: Path
) -> None:
    module, kind, _ = COMMANDS[command]
    whole, parted = ({kind._folder: tmp_path / name} for name in ("whole", "parted"))
    given = settings(command, objective, folder)
    list(module.events(kind.load(**given, **whole)))
    stops = (STEPS_ON_ANSWERS, STEPS_ON_ANSWERS + 1) if "rewards" in given else (3,)
    for number, stop in enumerate(stops):
        interrupt(module, kind.load(**({"resume": True} if number else given), **parted), stop)
    begun, *_ = (event for event in module.events(kind.load(**parted, resume=True)) if isinstance(event, Prepared))
    assert begun.first_step == stops[-1] - 1
    wanted = end(tmp_path / "whole")
    assert len({report["loss"] for report in wanted["reports"]}) > STEPS
    assert any("optimizer" in name for name in wanted)
    assert end(tmp_path / "parted") == wanted
