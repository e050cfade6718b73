"""Files of Finder, notebooks and interrupted programs beside a model's own are ignored."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macllm import checkpoint, hub
from macllm.text.template import ChatTemplate
from macllm.weights.safetensors import load_file, save_file, save_folder
from tests.families.golden import golden

TOKENS = mx.array([[5, 6, 7, 8]])
# RFC 1740: magic, version, filler, two entries
HEAD = bytes.fromhex("0005160700020000") + b"Mac OS X        "
DOUBLE = HEAD + bytes.fromhex("0002" + "0000000900000032" + "00000eb0") + b"\xb0" * 4000


def add_appledouble_files(folder: Path) -> None:
    for path in [p for p in folder.rglob("*") if not p.name.startswith("._")]:
        path.with_name(f"._{path.name}").write_bytes(DOUBLE)


def add_stray_files(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(DOUBLE)
    (folder / ".ipynb_checkpoints").mkdir(exist_ok=True)
    (folder / ".ipynb_checkpoints" / "config-checkpoint.json").write_text("{")


def sharded(folder: Path) -> Path:
    """A checkpoint in two shards, without an index."""
    golden("llama").write(folder)
    tensors = load_file(folder / "model.safetensors")
    save_folder({name: array + 0 for name, array in tensors.items()}, folder, {"format": "pt"}, max_shard_bytes=60_000)
    return folder


def test_a_folder_with_appledouble_files_loads(tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path)
    add_appledouble_files(folder)
    add_stray_files(folder)
    np.testing.assert_array_equal(
        np.array(checkpoint.load_model(folder)(TOKENS)), np.array(golden("llama").model()(TOKENS))
    )


@pytest.mark.parametrize(
    "name",
    [
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "original/consolidated.00.pth",
        "model.safetensors.tmp",
        "model.safetensors.incomplete",
        "model-00001-of-00002.safetensors.part",
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
        ".ipynb_checkpoints/model-00001-of-00002-checkpoint.safetensors",
        "model-00001-of-00009 2.safetensors",
    ],
)
def test_files_of_other_programs_are_not_loaded_as_weights(name: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    (folder / "model.safetensors.index.json").unlink()
    stray = folder / name
    stray.parent.mkdir(exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({"model.norm.weight": mx.zeros(48)}, stray, {"format": "mlx"})
    else:
        stray.write_bytes(DOUBLE)
    got = np.array(checkpoint.load_model(folder)(TOKENS))
    np.testing.assert_allclose(got, np.array(golden("llama").model()(TOKENS)), atol=1e-5)


def test_the_layout_comes_from_the_metadata_of_the_loaded_file(tmp_path: Path) -> None:
    """GPT-2's matrices are transposed in mlx-lm's layout; a neighbour's metadata must not decide."""
    folder = golden("gpt2").write(tmp_path)
    save_file({"a": mx.zeros(1)}, folder / "adapters.safetensors", {"format": "mlx"})
    np.testing.assert_array_equal(
        np.array(checkpoint.load_model(folder)(TOKENS)), np.array(golden("gpt2").model()(TOKENS))
    )


def test_appledouble_files_are_not_read_as_templates(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("{{ messages[0].content }}!")
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    add_appledouble_files(tmp_path)
    add_stray_files(tmp_path / "additional_chat_templates")
    chat = ChatTemplate.from_folder(tmp_path, {}, {})
    assert chat is not None
    assert chat.sources == {"default": "{{ messages[0].content }}", "rag": "{{ messages[0].content }}!"}


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of a file system without links: two revisions of o/m, stray files everywhere."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repo = tmp_path / "hub" / "models--o--m"
    for letter, revision in (("a", "main"), ("b", "old")):
        snapshot = golden("llama").write(repo / "snapshots" / (letter * 40))
        (snapshot / "tokenizer.json").write_text("{}")
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / revision).write_text(letter * 40)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "orphan").write_text("x")
    for folder in (repo, repo / "refs", repo / "snapshots", repo / "blobs", tmp_path / "hub"):
        add_stray_files(folder)
    add_appledouble_files(tmp_path / "hub")
    return repo


def test_a_cache_with_strays_is_listed_and_checked(cached: Path) -> None:
    named = [model for model in hub.list_models() if model.name == "o/m"]
    assert [(model.revision, model.problem) for model in named] == [("main", None), ("old", None)]
    assert {check.file for check in hub.verify("o/m")} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert {name for name, _ in hub.describe("o/m").files} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert hub.resolve("o/m").name == "a" * 40


def test_revisions_are_removed_one_by_one_from_a_cache_with_strays(cached: Path) -> None:
    hub.remove("o/m@main")
    assert [path.name for path in (cached / "refs").iterdir() if path.name[0] != "."] == ["old"]
    assert (cached / "snapshots" / ("b" * 40)).is_dir()
    hub.remove("o/m@old")
    assert not cached.exists()


def test_an_output_folder_with_only_stray_files_counts_as_empty(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from macllm.cli.fuse import command

    add_stray_files(tmp_path)
    (tmp_path / "._x").write_bytes(DOUBLE)
    arguments = ["--output", str(tmp_path), "--adapter", str(tmp_path / "none")]
    assert "already exists" not in str(CliRunner().invoke(command, arguments).exception)
    (tmp_path / "mine.txt").write_text("x")
    assert "already exists" in str(CliRunner().invoke(command, arguments).exception)
