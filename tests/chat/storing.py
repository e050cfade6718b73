"""Processes that store conversations until they are killed: python storing.py FILE LOG.

Twenty-five times two at once. A conversation grows message by message. LOG gets a line "ID MESSAGES" once so many
are flushed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import macllm.chat.database
import macllm.chat.rows  # noqa: F401  # before the forks
from macllm.chat.conversation import Conversation, Turn
from macllm.chat.store import Store


def keep_storing(path: Path, log: Path) -> None:
    store = Store(path)
    with log.open("a") as file:
        while True:
            conversation = Conversation.begin()
            for number in range(1, 6):
                conversation = conversation.added(Turn(role="user", content=f"message {number} " * 40))
                store.save(conversation)
                store.flush()
                file.write(f"{conversation.id} {number}\n")
                file.flush()


def forked(path: Path, log: Path) -> int:
    if child := os.fork():
        return child
    keep_storing(path, log)
    os._exit(1)


def main(path: Path, log: Path) -> None:
    chance = random.Random(0)
    log.touch()
    for _ in range(25):
        size = log.stat().st_size
        children = [forked(path, log) for _ in range(2)]
        while log.stat().st_size == size:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.04)
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
