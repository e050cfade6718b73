"""A fake engine without a model that plays scripted answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from macllm.errors import DoesNotFitError, EngineCrashedError, MacllmError
from macllm.generation.contract import EngineInfo, MemoryUse
from macllm.generation.request import Delta, Done, Event, Prefill, Request, SamplingParams, Timing, Usage

Step = str | Delta | Prefill | float | BaseException | threading.Event


class ScriptedEngine:
    """Answers are lists of steps: text or event to send, seconds or Event to wait, or error to raise."""

    def __init__(self, *answers: Sequence[Step], context_length: int | None = 1000, step_seconds: float = 0.0) -> None:
        self.answers = list(answers)
        self.info = EngineInfo("scripted", context_length, 100, 1_000_000, True, SamplingParams(temperature=0.5))
        self.step_seconds = step_seconds
        self.requests: list[Request] = []
        self.rendered: list[list[dict[str, str]]] = []
        self.completions: list[ScriptedCompletion] = []
        self.activated: list[str | None] = []
        self.unloadable: dict[str, MacllmError] = {}  # errors of adapters by name
        self.closed = False

    def submit(self, request: Request) -> ScriptedCompletion:
        if self.closed:
            raise EngineCrashedError("the engine is closed")
        self.requests.append(request)
        self.rendered.append([dict(message) for message in request.messages])
        prompt = sum(len(message["content"].split()) + 1 for message in request.messages)
        limit = self.info.context_length
        if limit is not None and prompt >= limit:
            raise DoesNotFitError(f"the prompt has {prompt} tokens; the context holds {limit}", remedy="less")
        room = 10_000 if limit is None else limit - prompt
        steps = self.answers.pop(0) if self.answers else ["ok"]
        self.completions.append(ScriptedCompletion(request, prompt, room, steps, self.step_seconds))
        return self.completions[-1]

    def activate(self, adapter: str | None) -> None:
        if (error := self.unloadable.get(adapter or "")) is not None:
            raise error
        self.activated.append(adapter)
        self.info = replace(self.info, adapter=adapter)

    def usage(self) -> MemoryUse:
        return MemoryUse(2_000_000_000, 3_000_000_000, 8_000_000_000)

    def close(self) -> None:
        for completion in self.completions:
            completion.cancel()
        self.closed = True


class ScriptedCompletion:
    """Events of one scripted answer."""

    def __init__(self, request: Request, prompt: int, room: int, steps: Sequence[Step], step_seconds: float) -> None:
        self._seed, self._prompt, self._step_seconds = request.sampling.seed or 7, prompt, step_seconds
        self._cancelled = threading.Event()
        self._events = self._made(steps, room if request.max_tokens is None else request.max_tokens)

    def __iter__(self) -> ScriptedCompletion:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        self._cancelled.set()
        self._events.close()

    def _made(self, steps: Sequence[Step], most: int) -> Generator[Event, None, None]:
        count = 0
        for step in steps:
            if self._waits(step) or self.is_cancelled:
                break
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, str):
                step = Delta(step, tokens=(count,))
            if isinstance(step, Delta | Prefill):
                count += isinstance(step, Delta)
                yield step
            if count >= most:
                break
        reason = "cancelled" if self.is_cancelled else "length" if count >= most else "stop"
        yield Done(reason, Usage(self._prompt, count), Timing(0.25, 0.5, 5_000_000), self._seed)

    def _waits(self, step: Step) -> bool:
        """Wait for a step. Returns True if the answer was cancelled meanwhile."""
        if isinstance(step, threading.Event):
            while not step.wait(0.005):
                if self.is_cancelled:
                    return True
            return False
        return self._cancelled.wait(step if isinstance(step, float) else self._step_seconds)


def thinking(text: str) -> Delta:
    """A piece of reasoning."""
    return Delta(text, "reasoning", (0,))


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    """Poll until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)
