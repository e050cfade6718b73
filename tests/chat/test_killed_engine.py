"""A session whose engine is killed in the middle of an answer."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from macllm.chat.session import Session
from macllm.errors import EngineCrashedError
from macllm.generation.engines.process import ProcessEngine
from macllm.generation.request import SamplingParams


def test_a_killed_engine_leaves_the_partial_answer_which_its_successor_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACLLM_HOME", str(tmp_path))
    engine = ProcessEngine("slow", loader="tests.generation.generate_fakes:load")
    session = Session(engine, sampling=SamplingParams(temperature=0.0), max_tokens=16)
    events = session.reply("Why?")
    for _ in range(5):
        next(events)
    os.kill(engine._child.process.pid, signal.SIGKILL)
    with pytest.raises(EngineCrashedError):
        list(events)
    partial = session.turns[-1]
    assert partial.finish == "failed"
    assert 0 < len(partial.tokens) < 16
    session.max_tokens = 16 - len(partial.tokens)
    list(session.continue_answer())
    continued = session.turns[-1]
    assert continued.finish == "length"
    session.max_tokens = 16
    list(session.regenerate())
    assert session.turns[-1].tokens == continued.tokens
    assert session.turns[-1].content == continued.content
    session.close()
