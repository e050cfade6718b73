"""Background compilation of kernels on the command line: the first answer does not wait for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from macllm.ops.cpu import build
from tests.compiling import cache_files, running_compilers, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux")

Compiler = Callable[[float], Path]
ANSWER = ("generate", "--temperature", "0", "-n", "12", "What is a KV cache?")


def macllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "macllm", *arguments], capture_output=True, text=True, timeout=100)


def test_the_first_answer_waits_for_no_compiler_and_leaves_none_running(compiler: Compiler) -> None:
    want = macllm(*ANSWER)
    assert not want.stderr
    log = compiler(60)
    got = macllm(*ANSWER)
    assert (got.returncode, got.stdout) == (0, want.stdout)
    total = len(build.objects()) + 1
    assert got.stderr.startswith(f"0 of {total} CPU kernel files compiled; ")
    assert len(got.stderr.splitlines()) == 1
    assert not running_compilers(log)
    assert cache_files() == ["lock"]


def test_the_chats_first_answer_waits_for_no_compiler_and_leaves_none_running(compiler: Compiler) -> None:
    log = compiler(60)
    got = macllm("chat", "--plain", "--temperature", "0", "--max-tokens", "12", "What is a KV cache?")
    assert got.returncode == 0
    assert got.stdout.strip()
    assert got.stderr.count("compiling the CPU kernels, once: 0 of") <= 1
    wait_for(lambda: not running_compilers(log))
    assert cache_files() == ["lock"]


@pytest.mark.parametrize("command", [("generate",), ("chat", "--plain")])
def test_without_a_compiler_the_first_answer_comes_with_one_notice(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACLLM_NATIVE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "/nowhere")
    got = macllm(*command, "--temperature", "0", "--max-tokens", "12", "What is a KV cache?")
    assert got.returncode == 0
    assert got.stdout.strip()
    (notice,) = [line for line in got.stderr.splitlines() if "native CPU kernels" in line]
    assert notice.startswith("without native CPU kernels, slower: there is no C++ compiler (install g++")
