"""Lines of the list of models, the commands that choose from it, and the question at the first start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from macllm.chat.models import UsableModel
from macllm.chat.session import Session
from macllm.errors import MacllmError, ModelNotFoundError, UsageError
from macllm.hub import places, speeds
from macllm.hub.downloads import DownloadStatus
from macllm.hub.fit import Fit
from macllm.hub.names import is_bundled
from macllm.hub.shape import ModelShape
from macllm.visible import cells
from macllm_tui import first_start, outcomes, slash
from macllm_tui.commands import models
from macllm_tui.text import model_table as table
from tests.chat.scripted_engine import ScriptedEngine
from tests.chat.test_models import write_adapter, write_cached, write_model

SHAPE = ModelShape("qwen3", 40960, 36, "4-bit")
MODELS = [
    UsableModel("maclet", "bundled", 10_500_000, SHAPE, Fit(512, whole=True)),
    UsableModel("org/A-name-that-is-much-too-long-for-any-column-4bit", "cached", 2_300_000_000, SHAPE, Fit(92_000)),
    UsableModel("/x/broken", "folder", 5, problem="a very long reason that no column of any list has room for"),
    UsableModel("/x/notes", "adapter", 16_000_000, base="org/A"),
    UsableModel("org/Remote-8B", "catalogue", 4_600_000_000, SHAPE, Fit(0, 7_500_000_000), use="code in 16 GB"),
]
MOVING = DownloadStatus("org/Remote-8B", "running", 61, 100, 0.5)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    models._listed.cache_clear()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize("width", range(38, 131))
def test_every_line_fits_its_width_and_names_its_model(width: int) -> None:
    made = table.layout(MODELS, width)
    for model in MODELS:
        for download in (None, MOVING):
            line = table.line(model, made, download)
            assert len(line) <= width
            assert line.startswith(model.title[:8])
    assert len(table.heading(made)) <= width


def test_a_row_takes_one_line_whatever_the_folder_is_called() -> None:
    odd = UsableModel("/x/\x1b[31mred\nline", "folder", 5, problem="a\nb")
    wide = UsableModel("/x/" + "語" * 40, "folder", 5)
    for width in (40, 56, 80, 130):
        made = table.layout([odd, wide], width)
        assert not set("\x1b\n") & set(table.line(odd, made) + "".join(table.details(odd)))
        assert cells(table.line(wide, made)) <= width


def test_a_narrow_list_says_in_the_fit_what_the_status_would_say() -> None:
    made = table.layout(MODELS, 56)
    assert "✘ unusable" in table.line(MODELS[2], made)
    assert "getting 61 %" in table.line(MODELS[4], made, MOVING)
    assert "✘ 7.5 GB over" in table.line(MODELS[4], made)


def test_the_filter_wants_every_word_and_the_part() -> None:
    def names(typed: str, part: table.Part = "all") -> list[str]:
        return [model.title for model in table.filtered(MODELS, typed, part)]

    assert names("") == [model.title for model in MODELS]
    assert names("ORG 8b") == ["Remote-8B"]
    assert names("code qwen3") == ["Remote-8B"]
    assert names("", "adapters") == ["notes"]
    assert names("", "local") == ["maclet", MODELS[1].title, "broken"]
    assert names("nothing") == []


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (DownloadStatus("m", "running"), "waiting for the hub"),
        (DownloadStatus("m", "running", 50, 100, 0.5), "▕█████     ▏  50 %  1 min 40 s left"),
        (DownloadStatus("m", "running", 4_000_000, 8_000_000, 1e6), "▕█████     ▏  50 %  4 s left  1.0 MB/s"),
        (DownloadStatus("m", "paused", 999, 1000), "▕█████████ ▏  99 %  paused"),
        (DownloadStatus("m", "cancelled"), "cancelled"),
    ],
)
def test_progress_is_a_bar_with_numbers(status: DownloadStatus, text: str) -> None:
    assert table.progress(status) == text
    for width in range(5, 40):
        assert len(table.progress(status, width)) <= max(width, len(text) if not status.total_bytes else 6)


def test_details_say_why_or_what_for() -> None:
    assert "cannot be used: a very long reason" in table.details(MODELS[2])[1]
    assert table.details(MODELS[4])[1] == "code in 16 GB · needs 7.5 GB more memory than there is"
    assert table.details(MODELS[1])[1] == "92,000 tokens of context fit into memory"
    assert table.details(MODELS[3])[1] == "for org/A"
    failed = DownloadStatus("m", "failed", error=MacllmError("gone", cause="no route"))
    assert table.details(MODELS[4], failed)[1] == "gone · no route · g tries again"


def run(line: str) -> outcomes.Outcome:
    found = slash.parse(line)
    assert found is not None
    command, argument = found
    return command(Session(ScriptedEngine()), argument)


def test_model_and_adapter_alone_open_the_screen() -> None:
    assert run("/model") == outcomes.Open("models")
    assert run("/adapter") == outcomes.Open("models", "adapters")


def test_model_switches_to_a_model_by_name_title_or_folder(home: Path) -> None:
    write_cached("org/Model-4bit")
    folder = write_model(home / "mine")
    assert run("/model org/Model-4bit") == outcomes.SwitchModel("org/Model-4bit")
    assert run("/model model-4bit") == outcomes.SwitchModel("org/Model-4bit")
    assert run(f"/model {folder}") == outcomes.SwitchModel(str(folder))
    assert run("/model maclet") == outcomes.SwitchModel("maclet")


def test_a_model_that_is_not_here_is_shown_before_it_is_downloaded() -> None:
    assert run("/model qwen3-8b-4bit") == outcomes.Open("models", "mlx-community/Qwen3-8B-4bit")
    assert run("/model other/thing") == outcomes.Open("models", "other/thing")


def test_an_unknown_or_unusable_model_is_an_error_with_a_remedy(home: Path) -> None:
    write_cached("org/broken", config={"model_type": "whisper"})
    with pytest.raises(UsageError, match="cannot be used") as caught:
        run("/model broken")
    assert caught.value.cause == "the family whisper is not supported"
    with pytest.raises(ModelNotFoundError) as unknown:
        run("/model maclett")
    assert unknown.value.remedy == "/model maclet"


def test_adapter_keeps_the_model_and_changes_the_adapter(home: Path) -> None:
    folder = write_adapter(home / "adapters" / "notes")
    assert run(f"/adapter {folder}") == outcomes.Activate(str(folder))
    assert run("/adapter none") == run("/adapter off") == outcomes.Activate(None)
    with pytest.raises(ModelNotFoundError):
        run("/adapter notes")


def test_an_adapter_of_a_run_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    folder = write_adapter(home / "adapters" / "notes")
    broken = write_adapter(home / "adapters" / "broken", weights="other.safetensors")
    monkeypatch.setenv("MACLLM_MODELS", str(home))
    assert run("/adapter notes:0.5") == outcomes.Activate(f"{folder}:0.5")
    with pytest.raises(UsageError, match=f"{broken.name} cannot be used"):
        run("/adapter broken")


def test_names_of_models_and_adapters_complete_the_commands(home: Path) -> None:
    write_cached("org/Model-4bit")
    write_cached("org/broken", config="{")
    folder = write_adapter(places.data_folder() / "adapters" / "notes")
    values = models.COMMANDS[0].values
    assert values is not None
    found = list(values(None, ""))
    assert all(is_bundled(name) for name in found[: found.index("org/Model-4bit")])
    assert found[0] == "maclet"
    assert values(None, "")["org/Model-4bit"].startswith("on disk, ")
    adapters = models.COMMANDS[1].values
    assert adapters is not None
    assert adapters(None, "") == {str(folder): "for org/model", "off": "the model alone"}
    assert adapters(None, "/x/a ") == {f"/x/a {folder}": "for org/model"}


def test_the_first_start_asks_once_which_model_to_get() -> None:
    speeds.record_machine(memory_limit=12_000_000_000)
    asked = first_start.question("maclet")
    assert asked is not None
    assert [choice.line for choice in asked.choices][-1] == ""
    for choice in asked.choices[:-1]:
        assert run(choice.line) == outcomes.Open("models", choice.line.removeprefix("/model "))
    assert first_start.question("maclet") is None
    assert json.loads((speeds.state_folder() / "offered.json").read_text()) == {"version": 1}


def test_a_first_start_without_the_catalogue_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(memory_bytes: int) -> None:
        raise ModelNotFoundError("the list of recommended models cannot be read")

    monkeypatch.setattr("macllm.chat.models.best_for", missing)
    assert first_start.question("maclet") is None


def test_the_first_start_asks_nothing_of_those_who_have_a_model() -> None:
    write_cached("org/model")
    assert first_start.question("maclet") is None
    assert first_start.question("org/model") is None


def test_an_order_keeps_the_parts_together() -> None:
    def titles(order: table.Order) -> list[str]:
        return [model.title[:7] for model in table.ordered(MODELS, order)]

    assert titles("listed") == ["maclet", "A-name-", "broken", "notes", "Remote-"]
    assert titles("size") == ["A-name-", "maclet", "broken", "notes", "Remote-"]


def test_a_model_that_is_too_large_names_the_largest_that_fits() -> None:
    assert table.too_large(MODELS[1], MODELS) == ""
    reason = "Remote-8B needs 7.5 GB more memory than there is"
    assert table.too_large(MODELS[4], MODELS) == f"{reason}; {MODELS[1].title} fits."
    assert table.too_large(MODELS[4], [MODELS[4]]) == f"{reason}."


def test_the_first_start_says_that_speeds_are_not_known() -> None:
    speeds.record_machine(memory_limit=12_000_000_000)
    asked = first_start.question("maclet")
    assert asked is not None
    assert "macllm bench" in asked.text
    (speeds.state_folder() / "offered.json").unlink()
    speeds.record_machine(bandwidth=100e9)
    asked = first_start.question("maclet")
    assert asked is not None
    assert "macllm bench" not in asked.text
