"""Idle work of an engine: its start, its interruption and its failures."""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from macllm.generation.contract import OnStatus, Status
from macllm.generation.engines import owner
from macllm.generation.engines.idle import KernelTrial
from macllm.generation.engines.process import ProcessEngine
from macllm.generation.engines.thread import ThreadEngine
from macllm.generation.request import Request, SamplingParams
from macllm.ops import dispatch
from tests.generation import generate_fakes as fakes

GREEDY = SamplingParams(temperature=0.0)
QUIET = 0.05


class Work:
    """Idle work that records its calls."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()

    def resume(self) -> None:
        self.calls.put(("resume", time.monotonic()))

    def pause(self) -> None:
        self.calls.put(("pause", time.monotonic()))

    def next(self) -> tuple[str, float]:
        return self.calls.get(timeout=10)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def engine(work: Work, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadEngine]:
    monkeypatch.setattr(owner, "QUIET_SECONDS", QUIET)
    engine = ThreadEngine(lambda: fakes.load("slow"), "slow", work)
    yield engine
    engine.close()


def ask(engine: ThreadEngine, tokens: int = 2) -> None:
    for _ in engine.submit(Request(prompt=(1, 2), max_tokens=tokens, sampling=GREEDY)):
        pass


def test_idle_work_begins_after_the_first_answer_and_a_pause(engine: ThreadEngine, work: Work) -> None:
    assert engine.info.model_name == "slow"
    with pytest.raises(queue.Empty):
        work.calls.get(timeout=4 * QUIET)
    ask(engine)
    answered = time.monotonic()
    word, at = work.next()
    assert (word, at > answered + QUIET / 2) == ("resume", True)
    with pytest.raises(queue.Empty):
        work.calls.get(timeout=4 * QUIET)


def test_a_request_pauses_idle_work_before_anything_is_computed(engine: ThreadEngine, work: Work) -> None:
    ask(engine)
    assert work.next()[0] == "resume"
    asked = time.monotonic()
    ask(engine, tokens=20)
    answered = time.monotonic()
    word, at = work.next()
    assert word == "pause"
    assert asked <= at < (asked + answered) / 2
    assert work.next()[0] == "resume"


def test_idle_work_does_not_resume_between_queued_requests(engine: ThreadEngine, work: Work) -> None:
    streams = [engine.submit(Request(prompt=(1, n), max_tokens=2, sampling=GREEDY)) for n in range(4)]
    for stream in streams:
        assert [*stream]
    answered = time.monotonic()
    word, at = work.next()
    assert (word, at > answered) == ("resume", True)


def test_closing_pauses_idle_work(engine: ThreadEngine, work: Work) -> None:
    ask(engine)
    assert work.next()[0] == "resume"
    engine.close()
    assert work.next()[0] == "pause"


@pytest.fixture
def undecided_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the model has requested a kernel that is still undecided."""
    monkeypatch.setattr(dispatch, "undecided", Counter({"qmv float16 1": 3}))


WORK = Work()
STATUS = Status("trying", transient=True)


def make_work(on_status: OnStatus) -> Work:
    on_status(STATUS)
    return WORK


def fail_to_make(on_status: OnStatus) -> Work:
    raise OSError("no such thing")


@pytest.mark.usefixtures("undecided_kernel")
def test_a_trial_is_loaded_by_its_name_once() -> None:
    statuses: list[Status] = []
    trial = KernelTrial("test_idle:make_work", statuses.append)
    trial.pause()
    for _ in range(2):
        trial.resume()
        trial.pause()
    assert [WORK.next()[0] for _ in range(4)] == ["resume", "pause"] * 2
    assert statuses == [STATUS]


def test_a_trial_without_undecided_kernels_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "undecided", Counter())
    trial = KernelTrial("no.such.module:at_all", lambda statuses: pytest.fail("nothing to report"))
    trial.resume()
    trial.pause()


@pytest.mark.usefixtures("undecided_kernel")
@pytest.mark.parametrize("name", ["no.such.module:at_all", "test_idle:nothing", "test_idle:fail_to_make"])
def test_a_trial_that_fails_is_logged_once_and_the_engine_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(owner, "QUIET_SECONDS", 0.0)
    engine = ThreadEngine(lambda: fakes.load("quick"), "quick", KernelTrial(name, lambda statuses: None))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            ask(engine)
            time.sleep(0.05)
        engine.close()
    assert [record.message for record in caplog.records] == ["Metal kernels cannot be tested"]


@pytest.mark.skipif(sys.platform != "linux", reason="on a Mac there are kernels to try")
def test_on_linux_an_engine_never_loads_its_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The trial's module ends the process, which the engine would report."""
    (tmp_path / "deadly.py").write_text("import os\nos._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    engine = ProcessEngine("quick", loader="tests.generation.generate_fakes:load", trial="deadly:trial")
    for _ in range(2):
        assert [*engine.submit(Request(prompt=(1, 2), max_tokens=2, sampling=GREEDY))]
        time.sleep(1.3)
    assert engine.usage().limit_bytes > 0
    engine.close()


def test_the_trial_that_chat_names_can_be_loaded() -> None:
    code = "from macllm.chat.options import TRIAL; from importlib import import_module as load; "
    code += "module, _, name = TRIAL.partition(':'); print(getattr(load(module), name)(print).pause())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("None\n", "")
