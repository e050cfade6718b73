"""Rewards: rules, functions in files, a judge, and their weighted sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm import checkpoint
from macllm.errors import DataError, DoesNotFitError, UsageError
from macllm.nn import lora
from macllm.train import objectives, pretrain
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.finetune import finetune
from macllm.train.objectives.prompts import to_prompt
from macllm.train.objectives.reward import reward
from macllm.train.rewards import Answers, Rewards, combined, identity
from macllm.train.rewards.functions import FileFunction
from macllm.train.rewards.judge import Judge
from macllm.train.rewards.model import RewardModel
from macllm.train.rewards.rules import ExactMatch, Format
from macllm.train.rows import Chat, PromptOnly, parse
from tests.train.recipes import write_recipe
from tests.train.toy import CharTokenizer, random_llama

FILE = """
def length(completions, **columns):
    return [len(text) for text in completions]

def matches(completions, target):
    return [None if text == "?" else float(text == want) for text, want in zip(completions, target)]

def broken(completions, target):
    return [1 / 0 for _ in completions]

def short(completions):
    return [1.0]

def leaves(completions):
    raise SystemExit(0)

def alone(completions):
    return 1.0

def later(completions):
    for text in completions:
        yield 1 / (len(text) - 1)

def needs(completions, nothing):
    return [1.0 for _ in completions]

def text(completions):
    return ["good" for _ in completions]

number = 3
"""


def answers(*texts: str, **columns: Any) -> Answers:
    return Answers("which?", texts, [[ord(c) for c in text] for text in texts], columns, "rows.jsonl:7")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(FILE)
    return tmp_path / "own.py"


def test_rules_reward_what_they_say() -> None:
    assert ExactMatch("answer")(answers("4", " 4\n", "44", answer=4)) == [1.0, 1.0, 0.0]
    assert Format(r"<think>.*</think>\d+")(answers("<think>a\nb</think>12 ", "12", "x<think></think>1")) == [1, 0, 0]
    with pytest.raises(DataError, match=r"rows.jsonl:7 has no column 'answer'"):
        ExactMatch("answer").check({"target": 4}, "rows.jsonl:7")
    for pattern, message in (("(", "not a regular expression"), ("", "has no pattern")):
        with pytest.raises(UsageError, match=message):
            Format(pattern)


def test_a_row_without_the_answer_of_exact_match_is_refused_before_training() -> None:
    config = FinetuneConfig(data="rows", objective="grpo", rewards=("exact_match",))
    learner = objectives.chosen(config, random_llama(vocab_size=130), CharTokenizer())  # type: ignore[arg-type]
    assert learner.examples(PromptOnly("2 + 2?", "a:1", columns={"answer": "4"}), CharTokenizer())
    with pytest.raises(DataError, match="a:2 has no column 'answer'"):
        learner.examples(PromptOnly("2 + 2?", "a:2"), CharTokenizer())


def test_a_function_gets_the_columns_that_it_takes(file: Path) -> None:
    assert FileFunction(f"{file}:length")(answers("ab", "", target="x")) == [2, 0]
    assert FileFunction(f"{file}:matches")(answers("x", "?", target="x", other=1)) == [1.0, None]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", r"own.py:broken failed for rows.jsonl:7\ncause: ZeroDivisionError: .* \(own.py:9\)"),
        ("later", r"own.py:later failed for rows.jsonl:7\ncause: ZeroDivisionError: .* \(own.py:22\)"),
        ("leaves", r"own.py:leaves failed for rows.jsonl:7\ncause: SystemExit: 0"),
        ("needs", r"missing 1 required positional argument: 'nothing'\n.*completion_ids, completions, prompts, target"),
        ("alone", "own.py:alone returned no list for rows.jsonl:7"),
        ("short", "gave 1 numbers for 2 answers to rows.jsonl:7"),
        ("text", "gave 'good' for an answer to rows.jsonl:7"),
    ],
)
def test_errors_of_a_function_name_the_row(function: str, message: str, file: Path) -> None:
    rewards = Rewards({f"{file}:{function}": FileFunction(f"{file}:{function}")}, [1.0])
    with pytest.raises(DataError, match=message):
        rewards(answers("a", "b", target="x"))


def test_errors_of_a_file_are_told_before_the_run(file: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        FileFunction(f"{file.parent}/none.py:length")
    with pytest.raises(UsageError, match="has no function 'number'") as found:
        FileFunction(f"{file}:number")
    assert "length" in str(found.value.remedy)
    for text, cause in (
        ("import nothing_of_this_name", r"nothing_of_this_name' \(own.py:1\)"),
        ("\nraise SystemExit", r"SystemExit.*\(own.py:2\)"),
        ("def length(:", "SyntaxError"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=f"cannot be run\ncause: .*{cause}"):
            FileFunction(f"{file}:length")
    for name in ("own.py", ":length", f"{file}:"):
        with pytest.raises(UsageError, match="names no function"):
            FileFunction(name)


def test_rewards_are_weighted_sums_and_nan_without_a_number() -> None:
    first = [1.0, None, None, 2.0, float("inf"), np.float32(1)]
    second = [1, 2, None, float("nan"), 0, True]
    both = Rewards({"a": lambda _: first, "b": lambda _: second}, [2.0, 0.5])
    np.testing.assert_array_equal(both(answers(*"abcdef")), [2.5, 1.0, np.nan, np.nan, np.nan, 2.5])


def test_the_judge_is_the_model_without_its_adapter() -> None:
    class Words(CharTokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return {" Yes": [3], " No": [4]}.get(text) or super().encode(text, add_special_tokens)

    with pytest.raises(UsageError, match="two tokens"):
        Judge(random_llama(vocab_size=130), CharTokenizer(), "")  # type: ignore[arg-type]
    model, tokenizer = random_llama(vocab_size=130), Words()
    judge = Judge(model, tokenizer, "{prompt} {completion}?")  # type: ignore[arg-type]
    found = judge(answers("a", "bb"))
    logits = [model(mx.array([tokenizer.encode(text)]))[0, -1] for text in ("which? a?", "which? bb?")]
    wanted = [float(mx.softmax(mx.array([each[3], each[4]]))[0]) for each in logits]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    with pytest.raises(DoesNotFitError, match=r"the judge's question about rows.jsonl:7 has"):
        judge(answers("a" * (model.info.context_length or 0)))
    literal = Judge(model, tokenizer, "{prompt} {completion}?")  # type: ignore[arg-type]
    asked = Answers("{completion}", ["{prompt}"], [[1]], {}, "rows.jsonl:1")
    logits = model(mx.array([tokenizer.encode("{completion} {prompt}?")]))[0, -1]
    np.testing.assert_allclose(literal(asked), [float(mx.softmax(mx.array([logits[3], logits[4]]))[0])], rtol=1e-5)
    lora.apply(model, rank=2, alpha=2.0)
    for layer in lora.adapters(model).values():
        layer.lora_b = mx.ones_like(layer.lora_b)
    assert judge(answers("a", "bb")) == found


def test_the_rewards_of_settings_are_found_by_name(file: Path) -> None:
    names = ("exact_match", "format:[0-9]+", f"{file}:length")
    config = FinetuneConfig(data="r", objective="grpo", rewards=names, reward_weights=("1", "0.5", "-0.25"))
    rewards = combined(config, random_llama(), CharTokenizer())  # type: ignore[arg-type]
    np.testing.assert_allclose(rewards(answers("12", "x", answer=12)), [1 + 0.5 - 0.5, -0.25])
    before = identity(names)
    file.write_text(FILE + "\n")
    assert [a == b for a, b in zip(before, identity(names), strict=True)] == [True, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "grpo has no reward"),
        ({"rewards": ("good",)}, "unknown reward 'good'"),
        ({"rewards": ("judge", "judge")}, "twice"),
        ({"rewards": ("judge",), "judge": "nice?"}, "lacks {completion}"),
        ({"rewards": ("exact_match",), "judge": "nice {completion}?"}, "judge has no effect"),
        ({"rewards": ("exact_match",), "reward_weights": ("1", "2")}, "a number for each reward"),
        ({"rewards": ("exact_match",), "reward_weights": ("nan",)}, "reward_weights cannot be"),
        ({"rewards": ("exact_match",), "num_generations": 1}, "num_generations cannot be 1"),
        ({"rewards": ("exact_match",), "method": "full"}, "kl_coefficient needs an adapter"),
        ({"rewards": ("judge",), "method": "full", "kl_coefficient": 0.0}, "judge needs an adapter"),
        ({"rewards": ("exact_match",), "gae_lambda": 0.5}, "gae_lambda has no effect"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FinetuneConfig(data="rows", objective="grpo", **settings)


def test_a_recipe_names_functions_relative_to_its_folder(file: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('data = "r.jsonl"\nobjective = "grpo"\nrewards = ["own.py:length", "judge"]\n')
    assert FinetuneConfig.load(tmp_path / "run.toml").rewards == (f"{file.resolve()}:length", "judge")


def test_other_columns_of_a_prompt_reach_the_reward() -> None:
    row = parse({"prompt": "2+2", "answer": "4", "level": 3, "tools": None}, "rows:1")
    assert row == PromptOnly("2+2", "rows:1", columns={"answer": "4", "level": 3})
    prompt = to_prompt(row, CharTokenizer(), None)  # type: ignore[arg-type]
    assert prompt.columns == {"answer": "4", "level": 3}
    assert prompt.tokens.tolist() == [1, *map(ord, "2+2")]
    assert prompt.num_target_tokens == 4
    assert prompt.cut(0, 2).num_target_tokens == 0
    assert prompt.fingerprint() != to_prompt(PromptOnly("2+2", "rows:1"), CharTokenizer(), None).fingerprint()  # type: ignore[arg-type]


def test_a_prompt_is_rendered_up_to_the_answer() -> None:
    def write(messages: Any, answer_next: bool) -> str:
        return "".join(f"[{m['role'][0]}]{m['content']}" for m in messages) + "[a]" * answer_next

    tokenizer: Any = CharTokenizer(write)
    for asked in ("hi", [{"role": "user", "content": "hi"}]):
        prompt = to_prompt(PromptOnly(asked, "rows:1"), tokenizer, None)
        assert tokenizer.decode(prompt.tokens.tolist()) == "[u]hi[a]"
    with pytest.raises(DataError, match="kind chat"):
        to_prompt(Chat([{"role": "user", "content": "hi"}], None, "rows:1"), tokenizer, None)
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>"}]
    with pytest.raises(DataError, match="rows:1 has a prompt that ends with an assistant's turn"):
        to_prompt(PromptOnly(turns, "rows:1"), tokenizer, None)


@pytest.mark.slow
def test_a_run_is_rewarded_by_a_reward_model_and_exports_no_value_head(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    base = pretrain.train(PretrainConfig.load(tmp_path / "recipe.toml", output=tmp_path / "base", iters=1)) / "model"
    shared = {"model": str(base), "iters": 2, "batch_size": 2, "rank": 2}
    judge = finetune(objective="reward", data=str(tmp_path / "pairs.jsonl"), adapter_path=str(tmp_path / "j"), **shared)
    model = RewardModel(str(judge))
    asked = Answers("1+1", ["2", "nine"], [[1], [2]], {}, "here")
    wanted = reward(
        *checkpoint.load(base, adapter=judge),
        [[{"role": "user", "content": "1+1"}, {"role": "assistant", "content": text}] for text in ("2", "nine")],
    )
    np.testing.assert_allclose(model(asked), wanted, rtol=1e-6)
    prompts = {"data": str(tmp_path / "prompts.jsonl"), "max_completion_length": 4, "rewards": [f"model:{judge}"]}
    for method, more in (("lora", {}), ("full", {"kl_coefficient": 0.0})):
        settings = {**shared, **prompts, **more} if method == "lora" else {**shared, **prompts, **more, "rank": None}
        made = finetune(objective="ppo", method=method, adapter_path=str(tmp_path / method), **settings)  # type: ignore[arg-type]
        names = [name for path in made.glob("*.safetensors") for name in mx.load(str(path))]
        assert names
        assert not [name for name in names if "value" in name and "v_proj" not in name]
        kept = mx.load(str(tmp_path / method / "snapshots/step-00000002/weights.safetensors"))
        assert "value_head.weight" in kept
    loaded, _ = checkpoint.load(tmp_path / "full/model")
    assert not hasattr(loaded, "value_head")
    with pytest.raises(UsageError, match="no reward model"):
        RewardModel(str(base))
