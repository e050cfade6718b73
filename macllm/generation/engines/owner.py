"""Main loop of the thread that owns a model. MLX's arrays, streams and random state stay in it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..contract import EngineOptions, IdleWork
from .calls import Calls, EngineCall

QUIET_SECONDS = 1.0
"""Time without a call after which an engine is idle."""


def serve_calls(
    load: Callable[[], tuple[Any, Any]],
    model_name: str,
    options: EngineOptions,
    calls: Calls,
    idle: IdleWork | None = None,
    adapter: str | None = None,
) -> None:
    """Load the model, then answer calls until None arrives."""
    import mlx.core as mx

    from macllm.ops import cpu

    from .worker import Worker

    worker: Worker | None = None
    failure: BaseException | None = None
    answered = False
    try:
        worker = Worker(*load(), model_name, options, adapter)
    except BaseException as error:
        failure = error
    native = cpu.available()
    while (call := _next_call(calls, idle if answered else None)) is not None:
        try:
            if worker is not None and cpu.available() and not native:
                native = True
                with suppress(Exception):  # the loaded model keeps answering if its files are gone
                    # reload: native kernels use another weight layout
                    renewed = Worker(*load(), model_name, options, adapter)
                    if worker.adapter != adapter:
                        renewed.activate(worker.adapter)
                    worker = renewed
            if call.method == "renew":
                continue
            if worker is None:
                call.send(failure)
            else:
                _answer(worker, call)
                answered = answered or call.method == "run"
        except BaseException as error:
            call.send(error)
        del call
    del worker
    mx.synchronize()
    mx.clear_streams()  # a thread that used MLX and ends without this aborts the process at exit


def _answer(worker: Any, call: EngineCall) -> None:
    if call.method == "run":
        for step in worker.run(call.argument, call.cancelled.is_set):
            call.send(step)
        return
    if call.method == "activate":
        worker.activate(call.argument)
    call.send(worker.info())


def _next_call(calls: Calls, idle: IdleWork | None) -> EngineCall | None:
    """Wait for a call; idle work runs until one arrives."""
    if idle is None:
        return calls.get()
    with suppress(queue.Empty):
        return calls.get(timeout=QUIET_SECONDS)
    idle.resume()
    try:
        return calls.get()
    finally:
        idle.pause()
