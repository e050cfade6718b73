"""The kernels are compiled by the engine's process, which tells how far it is and leaves nothing when it is ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from macllm.generation.engine import News
from macllm.generation.process import ProcessEngine
from macllm.ops.cpu import build
from tests.compiling import alive, cached, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux")

Compiler = Callable[[float], Path]
LOADER = "generate_fakes:load"


def test_the_model_is_loaded_after_the_kernels_and_the_parent_sees_them_come(compiler: Compiler) -> None:
    compiler(0.02)
    news: list[News] = []
    engine = ProcessEngine("quick", loader=LOADER, tell=news.append)
    assert engine.info.model_name == "quick"
    engine.close()
    assert all(each.passing for each in news)
    texts = [each.text for each in news]
    total = len(build.KERNELS) + len(list(build.HERE.glob("bindings*.cpp"))) + 2
    assert texts[0] == f"compiling the CPU kernels, once: 0 of {total}"
    assert texts[-2:] == [f"compiling the CPU kernels, once: {total} of {total}", ""]
    news.clear()
    engine = ProcessEngine("quick", loader=LOADER, tell=news.append)
    assert engine.info.model_name == "quick"
    engine.close()
    assert not news


def test_why_there_are_no_kernels_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACLLM_NATIVE_CACHE", "/proc/kernels")
    news: list[News] = []
    engine = ProcessEngine("quick", loader=LOADER, tell=news.append)
    assert engine.info.model_name == "quick"
    engine.close()
    (only,) = news
    assert not only.passing
    assert only.text.startswith("without native CPU kernels, slower: cannot write /proc/kernels")


def test_closing_during_the_compilation_leaves_no_files_and_no_compilers(compiler: Compiler) -> None:
    log = compiler(60)
    engine = ProcessEngine("quick", loader=LOADER)
    wait_for(lambda: alive(log))
    start = time.monotonic()
    engine.close()
    assert time.monotonic() - start < 10
    assert not alive(log)
    assert cached() == ["lock"]


def test_the_parents_death_ends_the_compilation(compiler: Compiler) -> None:
    log = compiler(60)
    code = f"""if True:
        from macllm.generation.process import ProcessEngine
        engine = ProcessEngine("quick", loader="{LOADER}")
        engine.info
    """
    folder = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        wait_for(lambda: alive(log))
        parent.kill()
    wait_for(lambda: not alive(log) and cached() == ["lock"])
