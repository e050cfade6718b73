"""`macllm` with a scripted engine in place of a model: python scripted_cli.py ANSWERS ARGUMENTS…

ANSWERS is JSON: for each answer a list of texts, seconds to wait (null: forever), or {"think": text}, {"crash": text}.
"words in a process" and "words in a thread" are real engines, whose model says the same word for ever.
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import macllm.generation.engines.process
from macllm.cli import main
from macllm.errors import EngineCrashedError, ModelNotFoundError
from macllm.generation.contract import Status
from macllm.generation.engines.process import ProcessEngine
from macllm.generation.engines.thread import ThreadEngine
from tests.chat.scripted_engine import ScriptedEngine, Step, thinking


def step(item: Any) -> Step:
    if item is None:
        return threading.Event()
    if isinstance(item, dict):
        return (
            thinking(item["think"]) if "think" in item else EngineCrashedError(item["crash"], cause="why", remedy="x")
        )
    return item


class Engine(ScriptedEngine):
    """Scripted engine that also reports status, which line mode must not print during answers."""

    def __init__(
        self, model_name: str, adapter: str | None = None, trial: str | None = None, on_status: Any = None
    ) -> None:
        self.on_status = on_status
        if adapter == "missing":
            raise ModelNotFoundError("There is no adapter missing.")
        super().__init__(*[[step(item) for item in answer] for answer in json.loads(sys.argv[1])])
        self.info = replace(self.info, adapter=adapter)

    def submit(self, request: Any) -> Any:
        for text in ("trying something", ""):
            self.on_status(Status(text, transient=True))
        if "--show-prompt" in sys.argv:
            print(request.messages[-1]["content"], file=sys.stderr, flush=True)
        return super().submit(request)

    def close(self) -> None:
        super().close()
        with suppress(OSError):  # the terminal may be gone
            print("engine closed\n", end="", file=sys.stderr, flush=True)


def words(model_name: str, adapter: str | None = None, trial: str | None = None, on_status: Any = None) -> Any:
    """An engine whose model says the same word for ever."""
    if "thread" in sys.argv[1]:
        from tests.tui.word_model import load

        return ThreadEngine(lambda: load("words"), "words")
    return ProcessEngine("words", loader="tests.tui.word_model:load", on_status=on_status)


if __name__ == "__main__":
    kind = words if "words in a" in sys.argv[1] else Engine
    macllm.generation.engines.process.ProcessEngine = kind  # type: ignore[misc, assignment]
    arguments = [argument for argument in sys.argv[2:] if argument != "--show-prompt"]
    sys.exit(main(arguments))
