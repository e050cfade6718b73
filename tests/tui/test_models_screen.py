"""The models screen, with a fake list and downloads that never touch a network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from textual.app import App
from textual.events import Key

from macllm import hub
from macllm.chat.models import UsableModel
from macllm.chat.session import Session
from macllm.errors import NetworkError
from macllm.hub.downloads import Downloads, DownloadStatus
from macllm.hub.fit import Fit
from macllm.hub.shape import ModelShape
from macllm.hub.speeds import ModelSpeed
from macllm_tui.screens.models import ModelsScreen
from macllm_tui.themes import THEMES
from tests.chat.scripted_engine import ScriptedEngine
from tests.tui.golden import check, screen_text

SHAPE = ModelShape("qwen3", 40960, 36, "4-bit", (), False)
MODELS = [
    UsableModel("maclet", "bundled", 10_500_000, ModelShape("llama", 512, 6, "f16"), Fit(512, whole=True)),
    UsableModel(
        "org/Qwen3-4B-4bit", "cached", 2_263_000_000, SHAPE, Fit(40960, whole=True), ModelSpeed(61.4, True),
        commit="9c925d6a",
    ),
    UsableModel("scripted", "cached", 4_600_000_000, SHAPE, Fit(92_000)),
    UsableModel("/Users/me/.lmstudio/models/a/broken", "folder", 5_000, problem="config.json is missing"),
    UsableModel("/data/adapters/notes", "adapter", 16_000_000, base="org/Qwen3-4B-4bit"),
    UsableModel(
        "org/Qwen3-14B-4bit", "catalogue", 8_308_000_000, SHAPE, Fit(6_000), ModelSpeed(18.2, False),
        licence="Apache-2.0", use="harder questions in 24 GB",
    ),
    UsableModel("org/Qwen3-32B-4bit", "catalogue", 18_430_000_000, SHAPE, Fit(0, 7_500_000_000), licence="Apache-2.0"),
]  # fmt: skip


class FakeDownloads(Downloads):
    """Downloads that move when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def start(self, name: str) -> None:
        self.calls.append(("start", name))
        self.set(DownloadStatus(name, "running"))

    def pause(self, name: str) -> None:
        self.calls.append(("pause", name))

    def cancel(self, name: str) -> None:
        self.calls.append(("cancel", name))
        self.set(DownloadStatus(name, "cancelled"))

    def set(self, status: DownloadStatus) -> None:
        self._tell(status)


class Host(App[None]):
    CSS_PATH = Path(__file__).parents[2] / "tui" / "macllm.tcss"
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, screen: ModelsScreen) -> None:
        super().__init__()
        self.shown, self.results = screen, list[str | None]()
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = "macllm-dark"

    def on_mount(self) -> None:
        self.push_screen(self.shown, self.results.append)


class Table:
    """The screen with the actions of a user."""

    def __init__(self, app: Host, pilot: object, downloads: FakeDownloads) -> None:
        self.app, self.pilot, self.downloads = app, pilot, downloads

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)  # type: ignore[attr-defined]
        await self.pilot.pause()  # type: ignore[attr-defined]

    def text(self) -> str:
        return screen_text(self.app)

    async def sees(self, text: str) -> None:
        async with asyncio.timeout(5):
            while text not in self.text():
                await self.pilot.pause(0.01)  # type: ignore[attr-defined]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Host]:
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")

    def play(
        scenario: Callable[[Table], Awaitable[None]],
        argument: str = "",
        size: tuple[int, int] = (120, 40),
        models: Sequence[UsableModel] = MODELS,
    ) -> Host:
        downloads = FakeDownloads()
        screen = ModelsScreen(Session(ScriptedEngine()), argument, lister=lambda: models, downloads=downloads)
        app = Host(screen)

        async def main() -> None:
            async with app.run_test(size=size, notifications=True) as pilot:
                table = Table(app, pilot, downloads)
                if models:
                    await table.sees(models[0].title)
                await scenario(table)

        asyncio.run(main())
        return app

    return play


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40)])
def test_the_list_fits_its_window(run: Callable[..., Host], size: tuple[int, int]) -> None:
    async def scenario(table: Table) -> None:
        await table.press("down", "down", "down", "down", "down")
        table.downloads.set(DownloadStatus("org/Qwen3-14B-4bit", "running", 5_068_000_000, 8_308_000_000, 42e6))
        await table.sees("61 %")
        check(table.text(), f"models-{size[0]}x{size[1]}")

    run(scenario, size=size)


def test_enter_loads_a_model_and_applies_an_adapter(run: Callable[..., Host]) -> None:
    async def load(table: Table) -> None:
        await table.press("down", "enter")

    async def apply(table: Table) -> None:
        await table.press(*"notes", "enter")

    assert run(load).results == ["/model org/Qwen3-4B-4bit"]
    assert run(apply).results == ["/adapter /data/adapters/notes"]


def test_typing_filters_and_tab_shows_the_next_part(run: Callable[..., Host]) -> None:
    async def scenario(table: Table) -> None:
        await table.press("1", "4", "b")
        assert "Qwen3-14B" in table.text()
        assert "Qwen3-4B" not in table.text()
        await table.press("backspace", "backspace", "backspace", "tab")
        assert "Models: local" in table.text()
        assert "notes" not in table.text()
        await table.press("tab")
        assert "notes" in table.text()
        assert "maclet" not in table.text()
        await table.press("escape")

    assert run(scenario).results == [None]


def test_letters_show_parts_and_orders_and_may_begin_a_word(run: Callable[..., Host]) -> None:
    async def scenario(table: Table) -> None:
        await table.press("r")
        assert "Models: remote" in table.text()
        await table.press("r", "s")
        assert "Models: all, by size" in table.text()
        screen = table.app.shown
        screen._viewed_at = 0.0  # long ago
        await table.press("s", "s", *"llama")
        assert "Models: all, by size" in table.text()  # the word took back what its first letters did
        await table.press(*["backspace"] * 7, "l")
        screen._viewed_at = 0.0
        await table.press(*"qwen")
        assert "Models: local" in table.text()
        assert "Qwen3-4B" in table.text()

    run(scenario)


def test_a_model_that_is_unusable_or_too_large_says_why_and_is_not_loaded(run: Callable[..., Host]) -> None:
    large = UsableModel("org/large", "cached", 90_000_000_000, SHAPE, Fit(0, 7_500_000_000))

    async def scenario(table: Table) -> None:
        await table.press(*"broken", "enter")
        assert "broken cannot be used: config.json is missing" in table.text()
        await table.press(*["backspace"] * 6, *"org/large", "enter")
        assert "large needs 7.5 GB more memory than there is; Qwen3-14B-4bit fits. Enter again" in table.text()
        await table.press("enter")

    assert run(scenario, models=[*MODELS, large]).results == ["/model org/large"]


def test_get_asks_then_downloads_pauses_and_goes_on(run: Callable[..., Host]) -> None:
    name = "org/Qwen3-14B-4bit"

    async def scenario(table: Table) -> None:
        calls = table.downloads.calls
        await table.sees("Download Qwen3-14B-4bit (8.3 GB)?")
        assert calls == []
        await table.press("g")
        assert calls == [("start", name)]
        await table.press("p")
        assert calls[-1] == ("pause", name)
        table.downloads.set(DownloadStatus(name, "paused", 4_154_000_000, 8_308_000_000))
        await table.sees("50 %  paused")
        await table.press("p")
        assert calls[-1] == ("start", name)
        error = NetworkError("the hub is gone", cause="no route", remedy="later")
        table.downloads.set(DownloadStatus(name, "failed", 1, 2, error=error))
        await table.sees("the hub is gone · no route · g tries again")
        await table.press("x", "x")
        assert calls[-1] == ("cancel", name)

    run(scenario, argument=name)


def test_a_download_that_ends_after_the_screen_is_closed_leaves_a_note(run: Callable[..., Host]) -> None:
    async def scenario(table: Table) -> None:
        await table.press("escape")
        ended = DownloadStatus("org/[b]thing", "done")
        await asyncio.to_thread(table.downloads.set, ended)
        await table.sees("org/[b]thing is here")

    run(scenario)


def test_an_unfinished_download_goes_on(run: Callable[..., Host]) -> None:
    model = UsableModel("org/part", "cached", 5, problem="1 of 5 files are missing", unfinished=True)

    async def scenario(table: Table) -> None:
        assert "1 of 5 files are missing; g goes on" in table.text()
        await table.press("enter")
        assert "Go on with the download of part?" in table.text()
        await table.press("enter")
        assert table.downloads.calls == []
        await table.press("g")
        assert table.downloads.calls == [("start", "org/part")]

    run(scenario, models=[model])


def test_a_model_that_is_in_no_list_can_be_got_by_name(run: Callable[..., Host]) -> None:
    async def scenario(table: Table) -> None:
        await table.sees("Download thing?")
        await table.press("enter", "g")
        assert table.downloads.calls == [("start", "other/thing")]

    run(scenario, argument="other/thing")


def test_a_word_that_begins_with_the_letter_of_an_action_is_typed_all_the_same(run: Callable[..., Host]) -> None:
    async def scenario(table: Table) -> None:
        await table.press("down", "down", "down", "down", "down", *"gemma")
        assert "gemma" in table.text()
        assert "no model matches" in table.text()
        assert table.downloads.calls == []

    run(scenario)


def test_remove_asks_and_refuses_the_model_in_use(run: Callable[..., Host], monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(hub, "remove", lambda name: removed.append(name) or 2_263_000_000)

    async def scenario(table: Table) -> None:
        await table.press("x")
        assert "maclet is not in the cache" in table.text()
        await table.press("down", "x")
        assert "Remove Qwen3-4B-4bit, 2.3 GB?" in table.text()
        await table.press("down", "x", "x")
        assert "scripted is in use" in table.text()
        assert removed == []
        await table.press("up", "x", "x")
        await table.sees("freed 2.3 GB")

    run(scenario)
    assert removed == ["org/Qwen3-4B-4bit"]


def test_keys_that_come_in_a_burst_act_in_their_order(run: Callable[..., Host]) -> None:
    async def scenario(table: Table) -> None:
        for key, character in (("down", None), ("x", "x")):
            table.app.post_message(Key(key, character))
        await table.sees("Remove Qwen3-4B-4bit")
        await table.press("down")
        assert "Remove" not in table.text()

    run(scenario)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["ok", "ok"], "all 2 files are intact"),
        (["ok", "damaged"], "file-1 is damaged · macllm models verify --repair"),
    ],
)
def test_verify_names_the_damaged_files(
    states: list[str], said: str, run: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [hub.FileCheck(f"file-{n}", 9, state) for n, state in enumerate(states)]  # type: ignore[arg-type]
    monkeypatch.setattr(hub, "verify", lambda name: iter(checks))

    async def scenario(table: Table) -> None:
        await table.press("down", "v")
        await table.sees(said)

    run(scenario)
