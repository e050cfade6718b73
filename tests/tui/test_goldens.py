"""Text pictures of the screens in three sizes; WRITE_GOLDEN=1 writes them anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from macllm.chat.store import Store
from macllm_tui.outcomes import Choice, Question
from macllm_tui.screens.transcript_screen import WIDE
from macllm_tui.widgets import chat_rows, turns
from tests.chat.scripted_engine import ScriptedEngine, thinking
from tests.tui.conftest import Play, Stage
from tests.tui.golden import check, screen_text
from tests.tui.test_screens import asked

ANSWER = """The variance is \\(\\sigma^2 = d\\), so we divide by $\\sqrt{d}$:

- scores grow with **√d**
  - and softmax saturates

```python
scores = (q @ k.T) / mx.sqrt(d)
```

| heads | speed |
|---|---:|
| 8 | 61.4 |
"""


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
def test_the_screens_look_as_they_should(
    play: Play, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MACLLM_HOME", str(tmp_path))
    monkeypatch.setattr(turns, "duration_text", lambda seconds, fine=False: "4.1 s")
    monkeypatch.setattr(chat_rows, "day_text", lambda seconds, now: "Today")
    monkeypatch.setattr(chat_rows, "clock_text", lambda seconds: "14:02")
    store = Store()
    for texts in (("Loss goes NaN", "And with float32?"), ("A haiku about Metal, with a season in it",)):
        store.save(asked(*texts))
        store.flush()
    pictures: dict[str, str] = {}

    async def scenario(stage: Stage) -> None:
        async def picture(name: str, text: str) -> None:
            await stage.sees(text)
            before = ""
            while before != (now := screen_text(stage.app)):  # the conversation follows its end a little later
                before = now
                await stage.pilot.pause(0.04)
            pictures[name] = now

        await stage.idle()
        await picture("empty", "Ask anything")
        await stage.type("/m")
        await picture("menu", "› /model")
        stage.app.chat.prompt.put("")
        await stage.say("Why divide by the root?")
        await stage.idle()
        await stage.press("ctrl+t")
        await picture("answer", "61.4")
        if size[0] >= WIDE:
            await stage.press("ctrl+b")
            await picture("sidebar", "›   A haiku")
            await stage.press("ctrl+b")
        stage.app.chat.ask(Question("The context is full.", (Choice("drop the oldest"), Choice("new chat", "/clear"))))
        await picture("question", "new chat")
        await stage.press("escape")
        await stage.press("f1")
        await stage.type("temperature")
        await picture("help", "› /set")
        await stage.press("escape", "ctrl+p")
        await stage.type("haiku")
        await picture("palette", "› A haiku")
        await stage.press("escape", "ctrl+s")
        await picture("chats", "› A haiku")
        await stage.type("x?")
        await picture("nothing-found", "no conversation has")
        await stage.press("escape")
        stage.app.chat.action_run("/keys")
        await picture("keys", "› chat.stop")
        await stage.press("escape", "alt+up")
        await picture("block", "fold")

    engine = ScriptedEngine([thinking("The user asks about attention. "), *ANSWER.splitlines(keepends=True)])
    play(engine, scenario, size=size)
    for name, text in pictures.items():
        check(text, f"{name}-{size[0]}x{size[1]}")
