"""Commands on a small model: stdout, stderr and exit codes."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from macllm import cli
from macllm.text.tokenizer import Tokenizer

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows and a model after two steps of `macllm train` on them."""
    folder = tmp_path_factory.mktemp("trained")
    bundled = Path(__file__).resolve().parents[2] / "models/maclet"
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(bundled / name, folder / "tokenizer")
    bundled_config = json.loads((bundled / "config.json").read_text())
    sizes = {name: bundled_config[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "config.json").write_text(json.dumps(TINY | sizes))
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(6):
            turns = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": "A number."}]
            file.write(json.dumps({"messages": turns}) + "\n")
    recipe = 'config = "config.json"\ntokenizer = "tokenizer"\ndata = "rows.jsonl"\noutput = "run"\nbatch_size = 2\n'
    (folder / "recipe.toml").write_text(recipe)
    assert cli.main(["train", str(folder / "recipe.toml"), "--iters", "2", "--output", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def model(trained: Path) -> Path:
    return trained / "run/model"


def test_train_prints_its_folder_to_stdout_and_progress_to_stderr(
    trained: Path, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    ran = run("train", trained / "recipe.toml", "--iters", 3, "--steps-per-report", 1, "--output", tmp_path / "run")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'run'}\n")
    assert "6 examples" in ran.err
    assert [line.split()[1] for line in ran.err.splitlines() if "  loss " in line] == ["1/3", "2/3", "3/3"]


def test_an_existing_run_is_not_overwritten_and_the_error_names_resume(
    trained: Path, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    train = ("train", trained / "recipe.toml", "--output", tmp_path / "run", "--schedule", "constant", "--warmup", 0)
    assert run(*train, "--iters", 1).code == 0
    again = run(*train, "--iters", 1)
    assert again.code == 2
    assert "--resume" in again.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_leaves_a_snapshot_and_a_usable_model(
    number: signal.Signals, code: int, trained: Path, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    train = ["train", str(trained / "recipe.toml"), "--output", str(tmp_path / "run"), "--iters", "100000"]
    command = [sys.executable, "-m", "macllm", *train, "--steps-per-report", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        while "  loss " not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        output = process.stderr.read().splitlines()
        assert process.stdout
        assert process.stdout.read() == ""
    assert process.returncode == code
    assert output[-1] == f"stopped; macllm runs resume {tmp_path / 'run'} continues it"
    assert not [line for line in output if "Traceback" in line]
    assert run("generate", "-m", tmp_path / "run/model", "-n", 2, "hi").code == 0
    (snapshot,) = (tmp_path / "run/snapshots").iterdir()
    assert int(snapshot.name.rpartition("-")[2]) >= 1


def test_generate_prints_one_newline_at_the_end_and_a_seed_replays_it(model: Path, run: Callable[..., Outcome]) -> None:
    first, second = (run("generate", "-m", model, "-n", 8, "--seed", 5, "hello") for _ in range(2))
    assert first.code == 0
    assert first.err == ""
    assert first.out.strip()
    assert first.out.endswith("\n")
    assert not first.out.endswith("\n\n")
    assert first == second
    assert run("generate", "-m", model, "-n", 8, "--seed", 6, "hello").out != first.out


def test_json_is_one_object_that_agrees_with_the_text(model: Path, run: Callable[..., Outcome]) -> None:
    text = run("generate", "-m", model, "-n", 8, "--seed", 5, "hello").out
    ran = run("generate", "-m", model, "-n", 8, "--seed", 5, "--json", "--logprobs", 3, "hello")
    answer = json.loads(ran.out)
    assert answer["text"] == text.removesuffix("\n")
    assert answer["seed"] == 5
    assert answer["finish_reason"] in ("length", "stop")
    assert len(answer["logprobs"]) == answer["usage"]["completion_tokens"] - (answer["finish_reason"] == "stop")
    best = answer["logprobs"][0]["alternatives"]
    assert [rival["logprob"] for rival in best] == sorted((rival["logprob"] for rival in best), reverse=True)
    assert len(best) == 3


def test_tool_calls_are_listed_as_json_and_paragraphs_of_the_text(
    model: Path, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from macllm.generation import stream
    from macllm.generation.request import Delta, Events

    def calling(*arguments: object, **options: object) -> Events:
        yield Delta("hm", "reasoning")
        yield Delta("Let me look.")
        for call, text in enumerate(('{"name": "f"}', '{"name": "g"}')):
            yield Delta(text[:5], "tool_call", call=call)
            yield Delta(text[5:], "tool_call", call=call)

    monkeypatch.setattr(stream, "stream", calling)
    answer = json.loads(run("generate", "-m", model, "--json", "hello").out)
    assert (answer["text"], answer["reasoning"]) == ("Let me look.", "hm")
    assert answer["tool_calls"] == ['{"name": "f"}', '{"name": "g"}']
    assert run("generate", "-m", model, "hello").out == 'Let me look.\n\n{"name": "f"}\n\n{"name": "g"}\n'


def test_verbose_prints_the_speed_to_stderr(model: Path, run: Callable[..., Outcome]) -> None:
    ran = run("generate", "-m", model, "-n", 4, "-v", "hello")
    assert "tokens/s" in ran.err
    assert "tokens/s" not in ran.out


def test_raw_continues_the_text_and_a_dash_reads_it_from_stdin(
    model: Path, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = run("generate", "-m", model, "-n", 5, "--temperature", 0, "--raw", "naïve 数")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("naïve 数".encode()), encoding="ascii"))
    assert run("generate", "-m", model, "-n", 5, "--temperature", 0, "--raw", "-").out == given.out
    usage = json.loads(run("generate", "-m", model, "-n", 1, "--json", "--raw", "hi").out)["usage"]
    answered = json.loads(run("generate", "-m", model, "-n", 1, "--json", "hi").out)["usage"]
    assert usage["prompt_tokens"] < answered["prompt_tokens"]


def test_a_system_prompt_reaches_the_template(model: Path, run: Callable[..., Outcome]) -> None:
    tokenizer = Tokenizer.from_folder(model)
    prompts = {
        (): "<|user|> hi<|end|><|assistant|>",
        ("--system", "Answer in one word."): "<|system|> Answer in one word.<|end|><|user|> hi<|end|><|assistant|>",
    }
    for flags, prompt in prompts.items():
        usage = json.loads(run("generate", "-m", model, "-n", 1, "--json", *flags, "hi").out)["usage"]
        assert usage["prompt_tokens"] == len(tokenizer.encode(prompt, add_special_tokens=False))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([""], 2, "prompt is empty"),
        ([" \n"], 2, "prompt is empty"),
        (["--raw", ""], 2, "prompt is empty"),
        (["--temperature", "-1", "x"], 2, "temperature"),
        (["--max-tokens", "0", "x"], 2, "max_tokens"),
        (["--kv-bits", "3", "x"], 2, "kv_bits"),
        (["--top-p", "2", "x"], 2, "top_p"),
        (["--seed", "-1", "x"], 2, "seed"),
        (["--logit-bias", "999999=1", "x"], 2, "logit_bias"),
        (["--logprobs", "2", "x"], 2, "--json"),
        (["--raw", "--system", "y", "x"], 2, "--system"),
        (["--adapter", "nowhere", "x"], 3, "no adapter in nowhere"),
        (["word " * 400], 4, "256"),
        (["--max-context", "20", "word " * 40], 4, "20"),
        (["--max-context", "0", "x"], 2, "max_context"),
        (["\udcff"], 2, "not UTF-8"),
    ],
    ids=lambda value: (
        " ".join(value)[:30].strip().encode("ascii", "replace").decode() if isinstance(value, list) else None
    ),
)
def test_invalid_arguments_of_generate_are_errors_with_their_exit_code(
    arguments: list[str], code: int, words: str, model: Path, run: Callable[..., Outcome]
) -> None:
    ran = run("generate", "-m", model, *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("error: ")
    assert words in ran.err


@pytest.mark.parametrize("command", [["generate", "x"], ["chat", "x"], ["finetune", "--data", "rows.jsonl"]])
@pytest.mark.parametrize("name", ["org/nothing", "./nowhere"])
def test_a_missing_model_exits_with_3_when_the_network_is_off(
    command: list[str], name: str, run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    ran = run(command[0], "--model", name, *command[1:])
    assert (ran.code, ran.out) == (3, "")
    assert "try: " in ran.err


def test_an_adapter_is_trained_used_and_merged(
    trained: Path, model: Path, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    adapter, fused = tmp_path / "adapter", tmp_path / "fused"
    settings = ("--iters", 80, "--learning-rate", 0.003, "--batch-size", 6, "--rank", 8)
    ran = run("finetune", "--lora", "-m", model, "-d", trained / "rows.jsonl", "--adapter-path", adapter, *settings)
    assert (ran.code, ran.out) == (0, f"{adapter}\n")
    assert f"macllm chat --model {model} --adapter {adapter}" in ran.err

    ask = ("-n", 6, "--temperature", 0, "What is 3?")
    before = run("generate", "-m", model, *ask).out
    adapted = run("generate", "-m", model, "--adapter", adapter, *ask).out
    assert adapted == "A number.\n"
    assert before != adapted

    merged = run("fuse", "--adapter", adapter, "--output", fused)
    assert (merged.code, merged.out) == (0, f"{fused}\n")
    cost, hint = merged.err.splitlines()
    assert cost.startswith("merged 14 layers: KL ")
    assert hint == f"try it: macllm chat --model {fused}"
    assert run("generate", "-m", fused, *ask).out == adapted
    again = run("fuse", "--adapter", adapter, "--output", fused)
    assert again.code == 2
    assert f"already exists\ntry: macllm fuse --adapter {adapter} --output {fused}-2\n" in again.err


def test_models_ls_show_and_get_agree_on_the_bundled_models(run: Callable[..., Outcome]) -> None:
    listed = run("models", "ls").out.splitlines()
    assert listed[0].split() == ["name", "weights", "size", "context", "fits", "tok/s", "status"]
    assert listed[1].split() == ["maclet", "f16", "7.7", "MB", "1k", "all", "-", "bundled"]
    assert "mlx-community/Qwen3-8B-4bit" in run("models", "ls", "--all").out
    found = json.loads(run("models", "ls", "--json").out)
    assert [each["name"] for each in found] == ["maclet", "maclet-moe", "maclet-text2text", "maclet-encoder"]
    for each in found:
        shown = json.loads(run("models", "show", each["name"], "--json").out)
        same = ["name", "path", "kind", "family", "weights", "context_tokens"]
        assert [shown[name] for name in same] == [each[name] for name in same]
        assert each["kind"] == "bundled"
        assert run("models", "get", each["name"]).out.strip() == each["path"]
    assert found[0]["fitting_tokens"] == 1024
    assert json.loads(run("models", "show", "--json").out)["name"] == "maclet"
    assert "family      llama" in run("models", "show").out


@pytest.mark.parametrize("command", ["rm", "verify"])
def test_the_bundled_model_cannot_be_removed_or_verified(command: str, run: Callable[..., Outcome]) -> None:
    ran = run("models", command, "maclet")
    assert (ran.code, ran.out) == (2, "")
    assert "only" in ran.err


def test_doctor_prints_the_same_facts_as_text_and_as_json(run: Callable[..., Outcome]) -> None:
    facts = json.loads(run("doctor", "--json").out)
    assert facts["mlx"]["computes"] == "yes"
    assert facts["machine"]["memory_bytes"] > 0
    text = run("doctor").out
    for group, values in facts.items():
        assert f"{group}\n" in text
        assert all(str(value) in text for name, value in values.items() if isinstance(value, str))


@pytest.mark.parametrize(
    "config",
    ['{"text_config": null, "quantization": [4]}', '{"text_config": [1]}', '{"quantization": "q4"}', "[1]", "{"],
)
def test_models_show_accepts_malformed_configs(config: str, tmp_path: Path, run: Callable[..., Outcome]) -> None:
    (tmp_path / "config.json").write_text(config)
    shown = run("models", "show", tmp_path)
    assert (shown.code, shown.err) == (0, "")
    assert "config.json" in shown.out


def test_models_without_a_command_lists_its_commands(run: Callable[..., Outcome]) -> None:
    alone = run("models")
    assert (alone.code, alone.err) == (0, "")
    assert "verify" in alone.out


@pytest.mark.parametrize("wrong", [["-n", "0"], ["--temperature", "nan"], ["--kv-bits", "3"], ["--stop", ""]])
def test_generate_refuses_wrong_values_before_it_loads_anything(
    wrong: list[str], run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macllm.cli.generate.fetch", lambda name: pytest.fail("a model was looked for"))
    ran = run("generate", "hello", *wrong)
    assert ran.code == 2
    assert "it must be" in ran.err or "is empty" in ran.err
