"""One list of all that a chat can use: the cache, folders of others, adapters, and the catalogue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macllm.chat import model_columns as columns
from macllm.chat import options
from macllm.chat.models import (
    UsableModel,
    chosen_adapter,
    chosen_model,
    first_offer,
    remember_offer,
    usable_models,
)
from macllm.errors import ModelNotFoundError
from macllm.generation.engines import process
from macllm.generation.request import Done
from macllm.hub import cache_folder, places, speeds
from macllm.hub.fit import Fit
from macllm.hub.shape import ModelShape
from macllm.hub.speeds import ModelSpeed
from tests.chat.scripted_engine import ScriptedEngine

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 32768,
    "quantization": {"bits": 4, "group_size": 64},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def safetensors(shape: tuple[int, ...] = (4, 8)) -> bytes:
    data = np.zeros(shape, np.float16).tobytes()
    header = json.dumps({"w": {"dtype": "F16", "shape": list(shape), "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def write_model(folder: Path, config: dict[str, Any] | str | None = None, weights: bytes | None = None) -> Path:
    folder.mkdir(parents=True)
    content = config if isinstance(config, str) else json.dumps(CONFIG if config is None else config)
    (folder / "config.json").write_text(content)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors() if weights is None else weights)
    return folder


def write_cached(repo: str, **parts: Any) -> Path:
    root = cache_folder() / f"models--{repo.replace('/', '--')}"
    folder = write_model(root / "snapshots" / COMMIT, **parts)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return folder


def write_adapter(folder: Path, base: str = "org/model", weights: str = "adapters.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"model": base, "lora_parameters": {"scale": 2.0}}))
    (folder / weights).write_bytes(safetensors())
    return folder


def named(name: str) -> UsableModel:
    (found,) = [model for model in usable_models() if model.name == name]
    return found


def test_the_list_has_the_bundled_model_first_and_the_catalogue_last() -> None:
    found = usable_models()
    assert found[0].name == "maclet"
    assert found[0].problem is None
    assert found[0].shape.context_tokens == 1024
    kinds = [model.kind for model in found]
    assert kinds == sorted(kinds, key=["bundled", "catalogue"].index)


def test_a_cached_model_has_size_context_fit_and_measured_speed() -> None:
    folder = write_cached("org/model")
    speeds.record("org/model", 61.0, 100)
    model = named("org/model")
    assert (model.kind, model.path, model.commit, model.revision) == ("cached", folder, COMMIT, "main")
    assert model.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert (model.shape.context_tokens, model.shape.quantization) == (32768, "4-bit")
    assert model.fit == Fit(32768, whole=True)
    assert model.speed == ModelSpeed(61.0, True)


def test_a_revision_other_than_main_is_part_of_the_name() -> None:
    folder = write_cached("org/model")
    (folder.parent.parent / "refs" / "main").unlink()
    assert named(f"org/model@{COMMIT}").problem is None


@pytest.mark.parametrize("place", [".lmstudio/models", ".cache/lm-studio/models"])
def test_models_of_lm_studio_are_listed_in_place(place: str, home: Path) -> None:
    folder = write_model(home / place / "publisher" / "name")
    model = named(str(folder))
    assert (model.kind, model.title, model.problem) == ("folder", "name", None)
    assert not cache_folder().exists()


def test_lm_studios_own_settings_say_where_its_models_are(home: Path, tmp_path: Path) -> None:
    studio = tmp_path / "studio"
    studio.mkdir()
    (studio / "settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "big")}))
    home.mkdir()
    (home / ".lmstudio-home-pointer").write_text(f"{studio}\n")
    write_model(studio / "models" / "a" / "one")
    write_model(tmp_path / "big" / "b" / "two")
    assert {model.title for model in usable_models() if model.kind == "folder"} == {"one", "two"}


def test_folders_that_the_user_names_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "one" / "m")
    write_model(tmp_path / "two")
    write_adapter(tmp_path / "one" / "deep" / "notes")
    monkeypatch.setenv("MACLLM_MODELS", f"{tmp_path / 'one'}:{tmp_path / 'two'}:{tmp_path / 'missing'}")
    found = [model for model in usable_models() if model.kind in ("folder", "adapter")]
    assert {(model.kind, model.title) for model in found} == {("folder", "m"), ("folder", "two"), ("adapter", "notes")}


def test_a_linked_folder_is_listed_once_under_its_own_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(home / "one")
    (home / "a-link").symlink_to(folder)
    (home / "a-loop").symlink_to(home)
    (home / "a-dangling-link").symlink_to(home / "nowhere")
    (home / "itself").symlink_to(home / "itself")
    monkeypatch.setenv("MACLLM_MODELS", str(home))
    assert [model.name for model in usable_models() if model.kind == "folder"] == [str(folder)]


def test_models_of_ollama_are_listed_with_the_reason_against_them(home: Path) -> None:
    folder = home / ".ollama" / "models" / "manifests" / "registry.ollama.ai" / "library" / "llama3.2"
    folder.mkdir(parents=True)
    (folder / "3b").write_text(json.dumps({"layers": [{"size": 5}, {"size": 7}]}))
    (folder / "broken").write_text("{")
    model = named("ollama:llama3.2:3b")
    assert (model.size_bytes, model.problem) == (12, "Ollama's GGUF; macllm reads safetensors")
    assert not [model.name for model in usable_models() if "broken" in model.name]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"config": "{"}, "config.json cannot be read"),
        ({"config": "[]"}, "config.json is not an object"),
        ({"config": "[" * 100_000}, "config.json cannot be read"),
        ({"config": '{"model_type": "\\ud800"}'}, "is not supported"),
        ({"config": {"model_type": "whisper"}}, "the family whisper is not supported"),
        ({"config": {"model_type": "bert"}}, "an encoder"),
        ({"config": {}}, "no model_type"),
        ({"weights": safetensors()[:-3]}, "truncated"),
        ({"weights": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"}, "Git LFS"),
        ({"weights": b""}, "0 bytes"),
    ],
)
def test_a_broken_model_is_listed_with_its_reason(parts: dict[str, Any], reason: str, home: Path) -> None:
    folder = write_model(home / ".lmstudio" / "models" / "a" / "broken", **parts)
    write_cached("org/broken", **parts)
    for name in (str(folder), "org/broken"):
        assert reason in (named(name).problem or "")
        assert named(name).fit is None
    assert usable_models()[0].name == "maclet"


def test_gguf_is_named_and_not_read(home: Path) -> None:
    folder = home / ".lmstudio" / "models" / "a" / "gguf"
    folder.mkdir(parents=True)
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(96))
    assert (named(str(folder)).problem, named(str(folder)).size_bytes) == ("GGUF; macllm reads safetensors", 100)


def test_an_unfinished_download_replaces_the_catalogues_entry() -> None:
    name = "mlx-community/Qwen3-8B-4bit"
    folder = write_cached(name)
    plan = {"revision": "main", "files": {"config.json": [1, "0" * 40], "model.safetensors": [5, "0" * 64]}}
    (folder.parent.parent / ".macllm").mkdir()
    (folder.parent.parent / ".macllm" / f"{COMMIT}.json").write_text(json.dumps(plan))
    assert (named(name).problem, named(name).unfinished) == ("2 of 2 files are missing", True)


def test_adapters_are_listed_with_their_base_and_their_reason() -> None:
    good = write_adapter(places.data_folder() / "adapters" / "notes")
    peft = write_adapter(places.data_folder() / "adapters" / "peft", weights="adapter_model.safetensors")
    run = write_adapter(Path("run").absolute(), base="maclet")
    here = write_adapter(Path("my-adapter").absolute())
    assert (named(str(good)).base, named(str(good)).problem) == ("org/model", None)
    assert named(str(peft)).problem is None
    assert columns.status_text(named(str(run))) == "for maclet"
    assert named(str(here)).problem is None


def test_files_that_vanish_while_they_are_read_are_a_reason_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    write_cached("org/model")
    folder = write_adapter(places.data_folder() / "adapters" / "notes")

    def vanished(path: Path) -> list[tuple[str, int]]:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("macllm.chat.models.model_files", vanished)
    assert named("org/model").problem == "cannot be read: No such file or directory"
    assert named(str(folder)).problem is None


def test_an_unreadable_folder_is_left_out(home: Path) -> None:
    locked = home / ".lmstudio" / "models" / "a"
    locked.mkdir(parents=True)
    locked.chmod(0)
    try:
        assert usable_models()[0].name == "maclet"
    finally:
        locked.chmod(0o700)


def test_a_name_is_found_whole_in_any_case_or_by_its_last_part() -> None:
    models = [UsableModel("org/Model-4bit", "cached", 1), UsableModel("other/thing", "cached", 1)]
    for name in ("org/Model-4bit", "ORG/model-4BIT", "model-4bit", " Model-4bit/ "):
        assert chosen_model(name, models).name == "org/Model-4bit"


def test_an_unknown_name_suggests_the_nearest() -> None:
    models = [UsableModel("org/Qwen3-8B-4bit", "cached", 1), UsableModel("/a/notes", "adapter", 1)]
    with pytest.raises(ModelNotFoundError) as caught:
        chosen_model("qwen3-8b", models)
    assert caught.value.remedy == "/model org/Qwen3-8B-4bit"
    with pytest.raises(ModelNotFoundError) as caught:
        chosen_adapter("note", models)
    assert caught.value.remedy == "/adapter /a/notes"
    with pytest.raises(ModelNotFoundError, match="no adapter"):
        chosen_adapter("zzzzzzzz", models)


def test_a_name_that_several_have_is_not_guessed() -> None:
    models = [UsableModel("a/same", "cached", 1), UsableModel("b/same", "cached", 1)]
    with pytest.raises(ModelNotFoundError) as caught:
        chosen_model("same", models)
    assert caught.value.remedy == "a/same or b/same"


def test_the_first_start_offers_the_best_models_that_fit_once() -> None:
    speeds.record_machine(bandwidth=100e9, memory_limit=12_000_000_000)
    offered = first_offer(None)
    assert offered
    assert all(model.kind == "catalogue" and model.fit and not model.fit.over_bytes for model in offered)
    assert offered[0].size_bytes == max(model.size_bytes for model in offered)
    assert columns.offer_text(offered[0]).startswith("Qwen3-8B-4bit: 4.6 GB, ~22 tok/s; ")
    assert first_offer("maclet") == offered
    remember_offer()
    assert first_offer(None) == []


def test_files_that_macllm_cannot_read_do_not_stop_the_offer(home: Path) -> None:
    folder = home / ".lmstudio" / "models" / "a" / "gguf"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"GGUF")
    speeds.record_machine(memory_limit=12_000_000_000)
    assert first_offer(None)


def test_nothing_is_offered_to_those_who_have_or_name_a_model(home: Path) -> None:
    assert first_offer("org/model") == []
    write_model(home / ".lmstudio" / "models" / "a" / "one")
    assert first_offer(None) == []


@pytest.mark.parametrize(
    ("fit", "text"),
    [
        (None, "-"),
        (Fit(32768, whole=True), "✔ all"),
        (Fit(92_000), "✔ to 92k"),
        (Fit(2100), "◐ to 2.1k"),
        (Fit(None), "✔ weights"),
        (Fit(0, over_bytes=7_500_000_000), "✘ 7.5 GB over"),
    ],
)
def test_the_fit_is_said_in_words(fit: Fit | None, text: str) -> None:
    model = UsableModel("m", "cached", 1, fit=fit)
    assert columns.fit_text(model, marks=True) == text
    assert columns.fit_text(model) == text.lstrip("✔◐✘ ")


@pytest.mark.parametrize(
    ("speed", "text"), [(None, "-"), (ModelSpeed(61.4, True), "61"), (ModelSpeed(4.04, False), "~4.0")]
)
def test_an_estimated_speed_is_marked(speed: ModelSpeed | None, text: str) -> None:
    assert columns.speed_text(UsableModel("m", "cached", 1, speed=speed)) == text


@pytest.mark.parametrize(
    ("tokens", "text"), [(32768, "32k"), (131072, "128k"), (512, "512"), (4096, "4k"), (10_000, "10k"), (None, "-")]
)
def test_a_context_is_shown_as_people_call_it(tokens: int | None, text: str) -> None:
    assert columns.context_text(UsableModel("m", "cached", 1, shape=ModelShape(context_tokens=tokens))) == text


def test_listing_imports_no_mlx() -> None:
    code = (
        "import sys; from macllm.chat import models, model_columns; models.usable_models(); print('mlx' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(("system", "limit"), [("linux", None), ("darwin", 8_000_000_000)])
def test_the_speed_of_a_chats_answers_is_kept(system: str, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ProcessEngine", lambda *_, **__: ScriptedEngine(["word "] * 30))
    monkeypatch.setattr(options.sys, "platform", system)
    session = options.open_session(options.ChatOptions(model="scripted"))
    assert speeds.load().tokens_per_second == {}
    (done,) = [event for event in session.reply("Hi") if isinstance(event, Done)]
    rate = done.timing.tokens_per_second(done.usage.completion_tokens)
    assert speeds.load().tokens_per_second == {"scripted": round(rate, 2)}
    assert speeds.load().memory_limit == limit
