"""An engine without a model: it says what the test wrote down, when the test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from macllm.errors import DoesNotFitError, EngineCrashedError
from macllm.generation.contract import EngineInfo, MemoryUse
from macllm.generation.request import Delta, Done, Event, Prefill, Request, SamplingParams, Timing, Usage

Step = str | Delta | Prefill | float | BaseException | threading.Event


class ScriptedEngine:
    """Each answer is a list of steps: a text or event to send, seconds or an Event to wait for, an error to raise."""

    def __init__(self, *answers: Sequence[Step], context_length: int | None = 1000, step_seconds: float = 0.0) -> None:
        self.answers = list(answers)
        self.info = EngineInfo("scripted", context_length, 100, 1_000_000, True, SamplingParams(temperature=0.5))
        self.step_seconds = step_seconds
        self.requests: list[Request] = []
        self.rendered: list[list[dict[str, str]]] = []
        self.cancels = 0
        self.closed = False
        self._cancelled = threading.Event()

    def submit(self, request: Request) -> Iterator[Event]:
        if self.closed:
            raise EngineCrashedError("the engine is closed")
        self._cancelled.clear()
        self.requests.append(request)
        self.rendered.append([dict(message) for message in request.messages])
        prompt = sum(len(message["content"].split()) + 1 for message in request.messages)
        limit = self.info.context_length
        if limit is not None and prompt >= limit:
            raise DoesNotFitError(f"the prompt has {prompt} tokens; the context holds {limit}", remedy="less")
        steps = self.answers.pop(0) if self.answers else ["ok"]
        return self._events(request, prompt, steps)

    def _events(self, request: Request, prompt: int, steps: Sequence[Step]) -> Iterator[Event]:
        limit = self.info.context_length
        room = 10_000 if limit is None else limit - prompt
        most = room if request.max_tokens is None else request.max_tokens
        count = 0
        for step in steps:
            if self._waits(step) or self._cancelled.is_set():
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
        reason = "cancelled" if self._cancelled.is_set() else "length" if count >= most else "stop"
        yield Done(reason, Usage(prompt, count), Timing(0.25, 0.5, 5_000_000), request.sampling.seed or 7)

    def _waits(self, step: Step) -> bool:
        """Wait as a step asks; whether the answer was cancelled meanwhile."""
        if isinstance(step, threading.Event):
            while not step.wait(0.005):
                if self._cancelled.is_set():
                    return True
            return False
        return self._cancelled.wait(step if isinstance(step, float) else self.step_seconds)

    def usage(self) -> MemoryUse:
        return MemoryUse(2_000_000_000, 3_000_000_000, 8_000_000_000)

    def cancel(self) -> None:
        self.cancels += 1
        self._cancelled.set()

    def close(self) -> None:
        self._cancelled.set()
        self.closed = True


def thinking(text: str) -> Delta:
    """A piece of reasoning."""
    return Delta(text, "reasoning", (0,))


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    """Poll until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
