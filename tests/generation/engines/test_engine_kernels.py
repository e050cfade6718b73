"""Compilation of kernels in the background of an engine: answers, progress, no process left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from macllm.generation.contract import Status
from macllm.generation.engines.process import ProcessEngine
from macllm.generation.request import Delta, Request, SamplingParams
from macllm.ops.cpu import build
from tests.compiling import cache_files, running_compilers, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux")

Compiler = Callable[[float], Path]


def loads(folder: Path) -> list[str]:
    """The implementation at each load of the model, in the engine's process."""
    path = folder / "loads"
    return path.read_text().split() if path.exists() else []


def open_engine(statuses: list[Status], name: str = "quick", loader: str = "load_small") -> ProcessEngine:
    return ProcessEngine(name, loader=f"tests.generation.generate_fakes:{loader}", on_status=statuses.append)


def answer(engine: ProcessEngine, prompt: tuple[int, ...] = (1, 2, 3)) -> list[int]:
    events = engine.submit(Request(prompt=prompt, max_tokens=5, sampling=SamplingParams(temperature=0.0)))
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


def test_a_small_model_answers_while_its_kernels_are_compiled(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once kernels are compiled, the model is reloaded between two completions and answers the same."""
    monkeypatch.setenv("LOADS", str(tmp_path / "loads"))
    compiler(0.05)
    statuses: list[Status] = []
    engine = open_engine(statuses)
    first = answer(engine)
    assert loads(tmp_path) == ["stock"]
    wait_for(lambda: len(loads(tmp_path)) == 2)
    assert loads(tmp_path) == ["stock", "native"]
    assert answer(engine) == first
    engine.close()
    assert all(each.transient for each in statuses)
    texts = [each.text for each in statuses]
    total = len(build.objects()) + 1
    assert texts[0] == f"compiling the CPU kernels, once: 0 of {total}"
    assert texts[-2:] == [f"compiling the CPU kernels, once: {total} of {total}", ""]
    statuses.clear()
    engine = open_engine(statuses)
    assert answer(engine) == first
    engine.close()
    assert not statuses
    assert loads(tmp_path) == ["stock", "native", "native"]


def test_a_large_model_waits_for_its_kernels(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADS", str(tmp_path / "loads"))
    compiler(0.02)
    statuses: list[Status] = []
    engine = open_engine(statuses, loader="load_large")
    assert engine.info.model_name == "quick"
    assert loads(tmp_path) == ["native"]
    engine.close()
    assert [each.text for each in statuses][-1] == ""


def test_a_model_that_cannot_be_reloaded_keeps_answering(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOADS", str(tmp_path / "loads"))
    compiler(0.02)
    statuses: list[Status] = []
    engine = open_engine(statuses, "once")
    first = answer(engine)
    wait_for(lambda: len(loads(tmp_path)) == 2)
    assert answer(engine) == first
    engine.close()


@pytest.mark.parametrize("variable", ["MACLLM_NATIVE_CACHE", "CXX"])
def test_an_unusable_compiler_or_cache_is_reported_once(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACLLM_NATIVE_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setenv(variable, "/proc/kernels")
    monkeypatch.setenv("PATH", "/nowhere")
    if variable == "MACLLM_NATIVE_CACHE":
        monkeypatch.setenv("CXX", sys.executable)
    statuses: list[Status] = []
    engine = open_engine(statuses)
    assert answer(engine)
    engine.close()
    (only,) = [each for each in statuses if each.text]
    assert not only.transient
    assert only.text.startswith("without native CPU kernels, slower: ")


@pytest.mark.parametrize("size", ["small", "large"])
def test_closing_during_the_compilation_leaves_no_files_and_no_compilers(size: str, compiler: Compiler) -> None:
    log = compiler(60)
    engine = ProcessEngine("quick", loader=f"tests.generation.generate_fakes:load_{size}")
    wait_for(lambda: running_compilers(log))
    start = time.monotonic()
    engine.close()
    assert time.monotonic() - start < 10
    assert not running_compilers(log)
    assert cache_files() == ["lock"]


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_parents_death_ends_the_compilation(size: str, compiler: Compiler) -> None:
    log = compiler(60)
    code = f"""if True:
        import time
        from macllm.generation.engines.process import ProcessEngine
        engine = ProcessEngine("quick", loader="tests.generation.generate_fakes:load_{size}")
        engine.info
        time.sleep(60)
    """
    folder = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        wait_for(lambda: running_compilers(log))
        parent.kill()
    wait_for(lambda: not running_compilers(log) and cache_files() == ["lock"])
