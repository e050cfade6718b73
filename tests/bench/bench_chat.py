"""Responsiveness of the full-screen chat, while a scripted engine answers at 200 tokens/s.

It runs in a pseudo-terminal. For lists, tables and code: milliseconds from a key press to its echo (95th percentile),
mean lag of the event loop, and the answer's text against its source. Then seconds to draw a conversation of 2,000
messages, and to the first paint of `macllm chat`, before its model is loaded. Takes a size as its argument: 120x40.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import signal
import statistics
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from timing import machine  # noqa: E402

TOKENS_PER_SECOND = 200
SECONDS = 8.0  # of each answer
KEY_SECONDS = 0.1  # between two key presses
KEYS = "αβγδεζηθικλμνξοπρστυφχψω"  # in no answer
PAINTS = 5
LIMITS = {"echo_ms": 50.0, "lag_ms": 10.0, "open_seconds": 1.0, "paint_seconds": 0.8}

SOURCES = {
    "list": "".join(f"- item {n} of the **list**, with some `code` in it\n  - and one below it\n" for n in range(400)),
    "table": "| name | value | remark |\n|---|---:|---|\n"
    + "".join(f"| row {n} | {n * n} | some words of a *remark* |\n" for n in range(400)),
    "code": "```python\n"
    + "".join(f"def function_{n}(x: int) -> int:\n    return x * {n}\n\n" for n in range(300))
    + "```",
}


def tokens_of(kind: str) -> list[str]:
    """The tokens of an answer, each of five characters."""
    source = SOURCES[kind]
    pieces = [source[at : at + 5] for at in range(0, len(source), 5)]
    return pieces[: int(SECONDS * TOKENS_PER_SECOND)]


def chat(kind: str, report: str) -> None:
    """Run the app in this terminal, and write its lag and losses to a file."""
    from macllm.chat.session import Session
    from macllm_tui.app import ChatApp
    from macllm_tui.widgets.stream_markdown import StreamMarkdown
    from tests.chat.scripted_engine import ScriptedEngine

    tokens = tokens_of(kind)
    engine = ScriptedEngine(tokens, context_length=None, step_seconds=1 / TOKENS_PER_SECOND)
    app = ChatApp(lambda on_status: Session(engine), model_name="scripted", prompt="Go")
    lags: list[float] = []

    async def watch() -> None:
        while (session := app.chat.session) is None or not session.turns:
            await asyncio.sleep(0.05)
        while app.chat._pending is not None:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            lags.append(time.perf_counter() - began - 0.01)
        await asyncio.sleep(0.5)
        drawn = app.chat.query(StreamMarkdown).last().source
        source = "".join(tokens)
        lost = source != session.turns[-1].content or source != drawn
        found = {"lag_ms": 1000 * statistics.mean(lags), "worst_lag_ms": 1000 * max(lags), "lost": lost}
        Path(report).write_text(json.dumps(found), encoding="utf-8")
        app.exit()

    async def main() -> None:
        watching = asyncio.create_task(watch())
        await app.run_async()
        await watching

    asyncio.run(main())


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, command: list[str], size: tuple[int, int], environment: dict[str, str] | None = None) -> None:
        self.began = time.perf_counter()
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm-256color", "COLORTERM": "truecolor", **(environment or {})})
            time.sleep(0.02)  # until the size is set
            os.execvp(command[0], command)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))

    def read(self, seconds: float) -> bytes | None:
        """Output within a time; b"" if there is none, None at the end."""
        if not select.select([self.file], [], [], max(seconds, 0))[0]:
            return b""
        try:
            return os.read(self.file, 65536) or None
        except OSError:
            return None

    def until(self, text: bytes, seconds: float = 30.0) -> float:
        """Seconds since the start of the program until it has written a text."""
        seen = b""
        while time.perf_counter() - self.began < seconds:
            if (piece := self.read(1.0)) is None:
                break
            seen += piece
            if text in seen:
                return time.perf_counter() - self.began
        raise RuntimeError(f"{text!r} did not come: {seen[-2000:]!r}")

    def close(self) -> None:
        """End the program."""
        os.kill(self.pid, signal.SIGTERM)
        end = time.perf_counter() + 5
        while self.read(0.1) is not None and time.perf_counter() < end:
            pass
        os.close(self.file)
        os.waitpid(self.pid, 0)


def answer(kind: str, size: tuple[int, int]) -> dict[str, Any]:
    """Echo, lag and losses during one answer."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        home = {"MACLLM_HOME": folder}
        terminal = Terminal([sys.executable, __file__, "--chat", kind, str(report)], size, home)
        terminal.until(b"tok/s")
        echoes: list[float] = []
        typed, seen, sent = 0, b"", 0.0
        waits = False
        while (piece := terminal.read(0.005)) is not None:
            now = time.perf_counter()
            seen += piece
            if waits and KEYS[typed % len(KEYS)].encode() in seen:
                echoes.append(1000 * (now - sent))
                typed, waits = typed + 1, False
            if not waits and now - sent > KEY_SECONDS and not report.exists():
                seen, sent, waits = b"", time.perf_counter(), True
                if typed % len(KEYS) == 0:
                    os.write(terminal.file, b"\x15")  # begins the line anew
                os.write(terminal.file, KEYS[typed % len(KEYS)].encode())
        os.waitpid(terminal.pid, 0)
        found = json.loads(report.read_text(encoding="utf-8"))
    return {"echo_ms": statistics.quantiles(echoes, n=20)[-1], "keys": len(echoes), **found}


def opening(size: tuple[int, int], messages: int = 2000) -> float:
    """Seconds to draw a conversation."""
    from macllm.chat.conversation import Conversation, Node, Turn
    from macllm.chat.session import Session
    from macllm_tui.app import ChatApp
    from tests.chat.scripted_engine import ScriptedEngine

    text = "# Answer\n\nSome **words** on it:\n\n- one\n- two\n\n```python\nx = 1\n```\n"
    nodes: dict[str, Node] = {}
    for n in range(messages):
        turn = (
            Turn(role="assistant", content=text, finish="stop") if n % 2 else Turn(role="user", content=f"Question {n}")
        )
        nodes[str(n)] = Node(str(n), str(n - 1) if n else None, turn, float(n))
    conversation = Conversation("long", 0.0, nodes=nodes, head=str(messages - 1))

    async def main() -> float:
        app = ChatApp(lambda on_status: Session(ScriptedEngine()), model_name="scripted")
        async with app.run_test(size=size) as pilot:
            while app.chat.session is None:
                await pilot.pause(0.01)
            began = time.perf_counter()
            app.chat.session.open(conversation)
            app.chat.redraw()
            await pilot.pause()
            seconds = time.perf_counter() - began
            assert f"Question {messages - 2}" in app.export_screenshot(simplify=False).replace("&#160;", " ")
            return seconds

    return asyncio.run(main())


def first_paint(size: tuple[int, int]) -> float:
    """Seconds from the start of `macllm chat` to its prompt."""
    with tempfile.TemporaryDirectory() as home:
        terminal = Terminal([sys.executable, "-m", "macllm", "chat"], size, {"MACLLM_HOME": home})
        try:
            return terminal.until(b"sk anything")  # the cursor may cover the first letter
        finally:
            terminal.close()


def main() -> None:
    """Measure, print a table and a line of JSON."""
    width, _, height = (sys.argv[1] if len(sys.argv) > 1 else "120x40").partition("x")
    size = int(width), int(height)
    paints = sorted(first_paint(size) for _ in range(PAINTS + 1))[:-1]  # the first one warms the files up
    answers = {kind: answer(kind, size) for kind in SOURCES}
    opened = opening(size)
    for kind, row in answers.items():
        print(
            f"{kind:6} echo {row['echo_ms']:6.1f} ms (95 %, {row['keys']} keys)   lag {row['lag_ms']:5.1f} ms mean, "
            f"{row['worst_lag_ms']:5.0f} ms at worst   {'TEXT LOST' if row['lost'] else 'nothing lost'}"
        )
    print(f"opening 2,000 messages {opened:.2f} s   first paint {statistics.median(paints):.2f} s")
    worst: Callable[[str], float] = lambda name: max(row[name] for row in answers.values())  # noqa: E731
    results = {
        "echo_ms": worst("echo_ms"),
        "lag_ms": worst("lag_ms"),
        "open_seconds": opened,
        "paint_seconds": statistics.median(paints),
    }
    met = {name: value < LIMITS[name] for name, value in results.items()}
    met["nothing_lost"] = not any(row["lost"] for row in answers.values())
    print("met" if all(met.values()) else f"NOT MET: {', '.join(name for name, value in met.items() if not value)}")
    print(json.dumps({"bench": Path(__file__).stem, **machine(), "answers": answers, "results": results, "met": met}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--chat"]:
        chat(*sys.argv[2:4])
    else:
        main()
