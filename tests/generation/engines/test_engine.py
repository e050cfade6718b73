"""The thread engine and the process engine, held to the same claims."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from macllm.child import portable
from macllm.errors import CheckpointError, DoesNotFitError, EngineCrashedError, UsageError
from macllm.generation.contract import Engine, EngineInfo, EngineOptions
from macllm.generation.engines.process import ProcessEngine
from macllm.generation.engines.thread import ThreadEngine
from macllm.generation.request import Delta, Done, Event, Prefill, Request, SamplingParams
from macllm.generation.sampling.defaults import OURS
from macllm.generation.stream import run
from tests.generation import generate_fakes as fakes

GREEDY = SamplingParams(temperature=0.0)
PROMPT = tuple(b"a prompt of some length for the engines")
KINDS = ["thread", "process"]


def make(kind: str, name: str = "quick", **options: Any) -> Engine:
    if kind == "thread":
        return ThreadEngine(lambda: fakes.load(name), name, **options)
    return ProcessEngine(name, loader="tests.generation.generate_fakes:load", **options)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MACLLM_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(kind: str) -> Iterator[Engine]:
    """An engine of 20 ms per step, shared by the tests, which therefore use different prompts."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("MACLLM_HOME", folder)
        engine = make(kind, "slow")
    yield engine
    engine.close()


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


def expected(prompt: tuple[int, ...], count: int) -> list[int]:
    model, tokenizer = fakes.load("quick")
    return tokens_of(list(run(model, tokenizer, Request(prompt=prompt, max_tokens=count, sampling=GREEDY))))


def test_the_engine_describes_its_model(engine: Engine) -> None:
    table_bytes = 997 * 257 * 4
    assert engine.info == EngineInfo("slow", 4096, 257, table_bytes, False, OURS)


def test_turns_give_the_tokens_of_a_fresh_model_and_reuse_the_cache(engine: Engine) -> None:
    prompt, held = (0, *PROMPT), 0
    for _ in range(4):
        events = list(engine.submit(Request(prompt=prompt, max_tokens=7, sampling=GREEDY)))
        assert tokens_of(events) == expected(prompt, 7)
        done = events[-1]
        assert isinstance(done, Done)
        assert done.usage.cached_tokens == held
        held = len(prompt) + 6
        prompt = (*prompt, *tokens_of(events), *b" and")


def test_the_engine_renders_messages_with_the_variables_of_the_request(engine: Engine) -> None:
    messages = ({"role": "user", "content": "hi"},)
    request = Request(messages=messages, variables={"enable_thinking": True}, max_tokens=1)
    *_, done = engine.submit(request)
    assert isinstance(done, Done)
    assert done.usage.prompt_tokens == len("[user]hi{'tools': None, 'enable_thinking': True}")


def test_an_engine_applies_its_options_to_every_completion(kind: str) -> None:
    engine = make(kind, options=EngineOptions(prefill_step=16))
    for prompt in (PROMPT, PROMPT[::-1]):
        events = list(engine.submit(Request(prompt=prompt, max_tokens=1)))
        assert [event.done for event in events if isinstance(event, Prefill)] == [0, 16, 32, 39]
    engine.close()


def test_two_conversations_of_one_engine_both_reuse_their_caches(kind: str) -> None:
    for capacity, reuses in ((None, True), (0, False)):
        engine, prompts = make(kind, options=EngineOptions(prefix_bytes=capacity)), [PROMPT, PROMPT[::-1]]
        for turn in range(3):
            for n, prompt in enumerate(prompts):
                events = list(engine.submit(Request(prompt=prompt, max_tokens=7, sampling=GREEDY)))
                assert tokens_of(events) == expected(prompt, 7)
                done = events[-1]
                assert isinstance(done, Done)
                assert done.usage.cached_tokens == (len(prompt) - 5 if reuses and turn else 0)
                prompts[n] = (*prompt, *tokens_of(events), *b" and")
        engine.close()


def test_memory_use_can_be_read_during_a_completion(engine: Engine) -> None:
    events = engine.submit(Request(prompt=PROMPT, max_tokens=200))
    next(events)
    began = time.perf_counter()
    use = engine.usage()
    assert time.perf_counter() - began < 1.0
    assert 0 < use.active_bytes <= use.limit_bytes
    assert use.peak_bytes > 0
    events.close()


@pytest.mark.parametrize("events_read", [0, 1, 2, 5])
def test_a_closed_iterator_frees_the_engine_within_a_step(engine: Engine, events_read: int) -> None:
    events = engine.submit(Request(prompt=PROMPT, max_tokens=3000, sampling=GREEDY))
    for _ in range(events_read):
        next(events)
    events.close()
    assert list(events) == []
    began = time.perf_counter()
    again = list(engine.submit(Request(prompt=PROMPT, max_tokens=4, sampling=GREEDY)))
    assert time.perf_counter() - began < 2.0
    assert tokens_of(again) == expected(PROMPT, 4)


def test_dropping_an_iterator_frees_the_engine(engine: Engine) -> None:
    iterator = iter(engine.submit(Request(prompt=PROMPT, max_tokens=3000)))
    next(iterator)
    del iterator
    assert len(tokens_of(list(engine.submit(Request(prompt=PROMPT, max_tokens=2))))) == 2


@pytest.mark.parametrize("delay_seconds", [0.0, 0.03, 0.1])
def test_cancelling_at_any_moment_keeps_the_partial_answer(engine: Engine, delay_seconds: float) -> None:
    events = engine.submit(Request(prompt=PROMPT, max_tokens=3000, sampling=GREEDY))
    timer = threading.Timer(delay_seconds, events.cancel)
    timer.start()
    made = list(events)
    timer.join()
    assert isinstance(made[-1], Done)
    assert made[-1].finish_reason == "cancelled"
    shown = tokens_of(made)
    assert len(shown) < 60
    assert shown == expected(PROMPT, 60)[: len(shown)]
    following = list(engine.submit(Request(prompt=(*PROMPT, *shown, 7), max_tokens=2, sampling=GREEDY)))
    assert tokens_of(following) == expected((*PROMPT, *shown, 7), 2)
    if shown:
        assert following[-1].usage.cached_tokens == len(PROMPT) + len(shown)


@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
def test_cancelling_a_completion_that_has_ended_does_nothing(engine: Engine, read: bool) -> None:
    ended = engine.submit(Request(prompt=PROMPT, max_tokens=2, sampling=GREEDY))
    made = list(ended) if read else []
    following = engine.submit(Request(prompt=PROMPT, max_tokens=8, sampling=GREEDY))
    first = next(following)  # comes once the engine has made all of `ended`
    ended.cancel()
    made += list(ended)
    ended.close()
    assert tokens_of(made) == expected(PROMPT, 2)
    assert tokens_of([first, *following]) == expected(PROMPT, 8)


@pytest.mark.parametrize("method", ["cancel", "close"])
@pytest.mark.parametrize("victim", ["running", "queued"])
def test_cancelling_one_completion_leaves_the_others_alone(engine: Engine, victim: str, method: str) -> None:
    prompts = {"running": (5, *PROMPT), "queued": (6, *PROMPT)}
    made: dict[str, list[Event]] = {}
    clients = {name: engine.submit(Request(prompt=prompts[name], max_tokens=8, sampling=GREEDY)) for name in prompts}
    first = next(clients["running"])
    readers = [
        threading.Thread(target=lambda name=name: made.update({name: list(clients[name])}))
        for name in clients
        if name != victim
    ]
    for reader in readers:
        reader.start()
    getattr(clients[victim], method)()
    made[victim] = list(clients[victim])
    for reader in readers:
        reader.join()
    (other,) = prompts.keys() - {victim}
    assert tokens_of([first, *made[other]]) == expected(prompts[other], 8)
    assert made[other][-1].finish_reason == "length"
    if method == "close":
        assert made[victim] == []
    else:
        assert made[victim][-1].finish_reason == "cancelled"
        assert len(tokens_of(made[victim])) < 8


def test_cancelling_a_queued_completion_keeps_the_cache_of_the_running_one(engine: Engine) -> None:
    prompt = (9, *PROMPT)
    running = engine.submit(Request(prompt=prompt, max_tokens=6, sampling=GREEDY))
    queued = engine.submit(Request(prompt=(8, *PROMPT), max_tokens=6, sampling=GREEDY))
    queued.cancel()
    answer = tokens_of(list(running))
    (done,) = queued
    assert done.usage.completion_tokens == 0
    following = list(engine.submit(Request(prompt=(*prompt, *answer, 7), max_tokens=1, sampling=GREEDY)))
    assert following[-1].usage.cached_tokens == len(prompt) + len(answer) - 1


def test_the_events_of_a_step_are_one_message(kind: str) -> None:
    engine = make(kind, "reasons")
    events = engine.submit(Request(prompt=(0,), max_tokens=3, sampling=GREEDY))
    next(engine.submit(Request(prompt=(0,), max_tokens=1)))  # comes once the engine has made all of `events`
    messages = events._messages.qsize()
    made = list(events)
    assert [event.kind for event in made if isinstance(event, Delta)] == [
        "reasoning",
        "reasoning",
        "content",
        "content",
    ]
    assert (len(made), messages) == (2 + 4 + 1, 2 + 3 + 1)  # of the prompt, of three tokens, and Done
    engine.close()


def test_a_second_request_waits_for_the_first(engine: Engine) -> None:
    first = engine.submit(Request(prompt=PROMPT, max_tokens=12, sampling=GREEDY))
    second = engine.submit(Request(prompt=PROMPT[:9], max_tokens=5, sampling=GREEDY))
    assert tokens_of(list(second)) == expected(PROMPT[:9], 5)
    assert tokens_of(list(first)) == expected(PROMPT, 12)


def test_an_invalid_request_leaves_the_engine_usable(engine: Engine) -> None:
    with pytest.raises(UsageError, match="empty") as error:
        list(engine.submit(Request(prompt=())))
    assert error.value.remedy
    assert len(tokens_of(list(engine.submit(Request(prompt=PROMPT, max_tokens=2))))) == 2


def test_a_model_that_cannot_be_loaded_raises_its_error_at_every_call(kind: str) -> None:
    engine = make(kind, "damaged")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="damaged") as error:
            list(engine.submit(Request(prompt=PROMPT)))
        assert (error.value.cause, error.value.remedy) == ("the test needs it", "nothing")
    with pytest.raises(CheckpointError):
        _ = engine.info
    engine.close()


def test_a_closed_engine_refuses_requests_and_leaves_no_empty_log(kind: str, home: Path) -> None:
    engine = make(kind)
    assert engine.info
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.submit(Request(prompt=PROMPT))
    assert list(home.rglob("*.log")) == []


def test_an_exception_of_the_loader_keeps_its_traceback() -> None:
    engine = make("thread", "bug")
    with pytest.raises(ZeroDivisionError) as error:
        _ = engine.info
    assert "generate_fakes.py" in str(error.traceback[-1].path)
    abroad = pickle.loads(pickle.dumps(portable(error.value)))
    assert isinstance(abroad, ZeroDivisionError)
    assert "generate_fakes.py" in "".join(abroad.__notes__)
    engine.close()


def test_an_exception_that_cannot_be_pickled_becomes_its_name_and_message() -> None:
    class LocalError(Exception):
        pass

    abroad = pickle.loads(pickle.dumps(portable(LocalError("what happened"))))
    assert str(abroad) == "LocalError: what happened"


def test_closing_during_a_completion_ends_it(kind: str) -> None:
    engine = make(kind, "slow")
    events = engine.submit(Request(prompt=PROMPT, max_tokens=3000))
    next(events)
    began = time.perf_counter()
    engine.close()
    assert time.perf_counter() - began < 2.0
    with suppress(UsageError):  # a process ends at once, a thread still yields its last events
        assert isinstance(list(events)[-1], Done)


def test_a_killed_child_is_an_error_and_the_next_call_starts_another() -> None:
    engine = make("process", "slow")
    events = engine.submit(Request(prompt=PROMPT, max_tokens=3000, sampling=GREEDY))
    next(events)
    os.kill(engine._child.process.pid, signal.SIGINT)  # as the terminal sends it: the child ignores it
    for _ in range(3):
        next(events)
    os.kill(engine._child.process.pid, signal.SIGKILL)
    with pytest.raises(EngineCrashedError, match="slow") as error:
        list(events)
    assert "SIGKILL" in error.value.cause
    assert error.value.remedy
    again = list(engine.submit(Request(prompt=PROMPT, max_tokens=4, sampling=GREEDY)))
    assert tokens_of(again) == expected(PROMPT, 4)
    engine.close()


def test_the_stderr_of_a_crashed_child_is_in_its_log(home: Path) -> None:
    engine = make("process", "exits")
    with pytest.raises(EngineCrashedError) as error:
        _ = engine.info
    assert "exit code 9" in error.value.cause
    (log,) = (home / "logs").glob("engine-*.log")
    assert str(log) in error.value.cause
    assert log.read_text() == "last words\n"
    engine.close()


@pytest.fixture
def stopped() -> Iterator[ProcessEngine]:
    """An engine whose child has its model loaded and reads nothing, for at most 10 seconds."""
    engine = ProcessEngine("quick", loader="tests.generation.generate_fakes:load")
    assert engine.info
    pid = engine._child.process.pid
    waking = threading.Timer(10, os.kill, (pid, signal.SIGCONT))
    os.kill(pid, signal.SIGSTOP)
    waking.start()
    yield engine
    waking.cancel()
    engine.close()


LONG = ({"role": "user", "content": "word " * (1 << 20)},)  # 5 MB, where a pipe's buffer has less than 1 MB


def test_submitting_a_long_conversation_does_not_wait_for_a_child_that_does_not_read(stopped: ProcessEngine) -> None:
    began = time.monotonic()
    long = stopped.submit(Request(messages=LONG))
    cancelled = stopped.submit(Request(prompt=PROMPT, sampling=GREEDY))
    cancelled.cancel()
    last = stopped.submit(Request(prompt=PROMPT, max_tokens=4, sampling=GREEDY))
    assert time.monotonic() - began < 2
    os.kill(stopped._child.process.pid, signal.SIGCONT)
    with pytest.raises(DoesNotFitError):
        list(long)
    *_, done = cancelled
    assert (done.finish_reason, done.usage.completion_tokens) == ("cancelled", 0)
    assert tokens_of(list(last)) == expected(PROMPT, 4)


def test_a_child_that_dies_before_it_has_read_a_conversation_is_an_error_of_its_completion(
    stopped: ProcessEngine,
) -> None:
    long = stopped.submit(Request(messages=LONG))
    os.kill(stopped._child.process.pid, signal.SIGKILL)
    with pytest.raises(EngineCrashedError, match="SIGKILL"):
        list(long)
    again = stopped.submit(Request(prompt=PROMPT, max_tokens=4, sampling=GREEDY))
    assert tokens_of(list(again)) == expected(PROMPT, 4)


def test_a_request_that_has_no_pickle_is_an_error_of_its_completion() -> None:
    engine = make("process")
    events = engine.submit(Request(prompt=PROMPT, variables={"lock": threading.Lock()}))
    with pytest.raises(UsageError, match="cannot be sent") as error:
        list(events)
    assert "pickle" in error.value.cause
    assert len(tokens_of(list(engine.submit(Request(prompt=PROMPT, max_tokens=2))))) == 2
    engine.close()


def program(kind: str, body: str) -> list[str]:
    made = {
        "thread": "ThreadEngine(lambda: load('slow'), 'slow')",
        "process": "ProcessEngine('slow', loader='tests.generation.generate_fakes:load')",
    }
    source = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        import os, signal
        from macllm.generation.engines.thread import ThreadEngine
        from macllm.generation.engines.process import ProcessEngine
        from macllm.generation.request import Request
        if {kind!r} == 'thread':
            from tests.generation.generate_fakes import load
        engine = {made[kind]}
        events = engine.submit(Request(prompt=(1, 2, 3), max_tokens=3))
    """
    return [sys.executable, "-c", textwrap.dedent(source) + textwrap.dedent(body)]


def exits(kind: str, bodies: list[str]) -> list[tuple[int, bytes]]:
    """Exit codes and stderr of programs with these bodies, run at the same time."""
    runs = [subprocess.Popen(program(kind, body), stderr=subprocess.PIPE) for body in bodies]
    return [(each.communicate(timeout=100)[1], each.returncode)[::-1] for each in runs]


BODIES = ["list(events)", "next(events)", "list(events); engine.close()", "del engine", ""]


def test_a_program_exits_cleanly_with_an_unfinished_completion_or_a_closed_engine(kind: str) -> None:
    assert exits(kind, BODIES[1:3]) == [(0, b"")] * 2


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_ten_programs_at_once_exit_cleanly(kind: str, body: str) -> None:
    assert exits(kind, [body] * 10) == [(0, b"")] * 10


def test_the_parent_imports_no_mlx_and_its_death_ends_the_child() -> None:
    body = """
        next(events)
        assert not [name for name in sys.modules if name.startswith("mlx")]
        print(engine._child.process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    parent = subprocess.run(program("process", body), capture_output=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    child, until = int(parent.stdout), time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if "\nState:\tZ" in (Path("/proc") / str(child) / "status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the child is still running")


def test_the_engines_thread_clears_its_mlx_streams_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, one in five programs aborts at exit."""
    import mlx.core as mx

    ended_in, clear_streams = [], mx.clear_streams
    monkeypatch.setattr(mx, "clear_streams", lambda: (ended_in.append(threading.current_thread()), clear_streams()))
    engine = make("thread")
    list(engine.submit(Request(prompt=PROMPT, max_tokens=2)))
    engine.close()
    assert ended_in == [engine._thread]
    assert not engine._thread.is_alive()
