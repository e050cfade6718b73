"""Kernels compiled in the background: no needless waits, and no change within a completion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import macllm
from macllm import checkpoint
from macllm.ops import cpu
from macllm.ops.cpu import build, estimate
from macllm.weights.header import read_header
from tests.compiling import cache_files, cached_objects, running_compilers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux")

Compiler = Callable[[float], Path]


def run(code: str, **environment: str) -> tuple[str, str]:
    command = [sys.executable, "-c", "import time\nfrom macllm.ops import cpu\n" + code]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_asking_for_missing_kernels_does_not_block_and_leaves_no_process(compiler: Compiler) -> None:
    log = compiler(60)
    code = """
began = time.monotonic()
print(cpu.available(), cpu.reason(), time.monotonic() - began < 2)
time.sleep(1)
print(cpu.available(), cpu.compiling().beside, cpu.compiling().over)
"""
    assert run(code) == ("False None True\nFalse True False\n", "")
    assert not running_compilers(log)
    assert cache_files() == ["lock"]


def test_kernels_compiled_during_a_completion_are_used_after_it(compiler: Compiler) -> None:
    compiler(0)
    code = """
with cpu.held(), cpu.held():
    while not cpu.compiling().over:
        time.sleep(0.05)
    print(cpu.available())
print(cpu.available())
"""
    assert run(code) == ("False\nTrue\n", "")


def test_a_running_completion_keeps_its_implementation(compiler: Compiler) -> None:
    """Two completions of the library that are read in turn; the third gets the kernels."""
    compiler(0)
    code = """
import macllm
from macllm.ops import dispatch
model, tokenizer = macllm.load()
def start():
    return iter(macllm.stream(model, tokenizer, "What is a KV cache?", temperature=0, max_tokens=12))
def served():
    import mlx.core as mx
    return dispatch.native(mx.zeros(1)) is not None
first = start()
next(first)
while not cpu.compiling().over:
    time.sleep(0.05)
second = start()
next(second)
print(served())
texts = ["".join(event.text for event in each if hasattr(event, "text")) for each in (first, second)]
print(texts[0] == texts[1])
third = start()
next(third)
print(served())
third.close()
"""
    assert run(code) == ("False\nTrue\nTrue\n", "")


def test_waiting_takes_over_a_background_compilation(compiler: Compiler) -> None:
    log = compiler(0.02)
    code = """
cpu.available()
while cpu.compiling().done < 3:
    time.sleep(0.02)
print(cpu.prepare(lambda done, total: None), cpu.available())
"""
    assert run(code) == ("None True\n", "")
    assert cache_files() == ["lock", build.library().name]
    ended = len(log.read_text().split()) - len(build.objects()) - 1
    assert 0 <= ended <= os.cpu_count()
    assert len(cached_objects()) == len(build.objects())


def test_waiting_without_a_watcher_is_logged(compiler: Compiler) -> None:
    compiler(0)
    out, told = run("cpu.prepare_for(10**12, 0); print(cpu.available())")
    assert out == "True\n"
    assert told == "compiling the CPU kernels for this machine, once: about a minute\n"
    assert run("cpu.prepare_for(10**12, 0); print(cpu.available())") == ("True\n", "")


def test_a_watcher_gets_the_start_the_steps_and_the_end(compiler: Compiler) -> None:
    compiler(0)
    code = """
cpu.watch(lambda state: print(state.done, state.total, state.beside, state.over))
cpu.prepare_for(1000, 0)
while not cpu.compiling().over:
    time.sleep(0.05)
time.sleep(0.2)
"""
    lines = run(code)[0].splitlines()
    total = len(build.objects()) + 1
    assert lines[0] == f"0 {total} True False"
    assert lines[-1] == f"{total} {total} True True"


def test_a_cancelled_compilation_prints_nothing(compiler: Compiler) -> None:
    compiler(60)
    code = "print(cpu.available()); cpu.end(); print(cpu.available(), cpu.reason())"
    assert run(code) == ("False\nFalse the compilation was ended\n", "")


def test_training_waits_for_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class WaitedError(Exception):
        pass

    def wait() -> None:
        raise WaitedError

    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setattr(cpu, "wait", wait)
    with pytest.raises(WaitedError):
        macllm.finetune(data=str(tmp_path), adapter_path=str(tmp_path / "run"), model="maclet")


def test_a_failed_background_compilation_is_reported_at_its_end(compiler: Compiler) -> None:
    compiler(0)
    path = Path(os.environ["CXX"])
    path.write_text(
        path.read_text().replace("sleep", "case $* in *rows.cpp*) echo error: no >&2; exit 1;; esac\nsleep")
    )
    code = """
cpu.available()
while not cpu.compiling().over:
    time.sleep(0.05)
print(cpu.available(), cpu.available(), cpu.reason())
"""
    out, told = run(code)
    assert out == "False False the compiler failed: error: no\n"
    assert told.count("without native CPU kernels, slower: ") == 1


@pytest.mark.parametrize(
    ("floats", "packed", "waits"),
    [(10**7, 0, False), (135 * 10**6, 0, False), (7 * 10**9, 0, True), (0, 10**7, False), (0, 10**9, True)],
)
def test_loading_waits_if_compiling_is_faster(floats: int, packed: int, waits: bool) -> None:
    answer = estimate.answer_seconds(floats, packed, cores=2, openblas=True)
    assert (answer > estimate.compile_seconds(27, 27, cores=2)) == waits
    assert answer > estimate.compile_seconds(0, 27, cores=2)
    assert estimate.answer_seconds(floats, packed, cores=2, openblas=False) >= answer


def test_the_estimate_gets_the_parameter_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(cpu, "prepare_for", lambda *numbers: told.append(numbers))
    folder = repository / "models" / "maclet"
    checkpoint.load_model(folder)
    infos = read_header(folder / "model.safetensors").values()
    (found,) = told
    assert sum(found) == sum(estimate_size(info.shape) for info in infos)


def estimate_size(shape: tuple[int, ...]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size
