from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from macllm import hub
from macllm.errors import ModelNotFoundError, UsageError
from macllm.hub import names


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("org/name", "org/name", "main"),
        ("gpt2", "gpt2", "main"),
        ("org/Name-1.5_b.v2@v1.0", "org/Name-1.5_b.v2", "v1.0"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
        ("https://huggingface.co/org/name", "org/name", "main"),
        ("hf.co/org/name", "org/name", "main"),
        (" org/name ", "org/name", "main"),
    ],
)
def test_names_are_parsed_into_repository_and_revision(text, repo, revision):
    assert hub.parse_name(text) == hub.ModelName(repo, revision)
    assert hub.parse_name(str(hub.parse_name(text))) == hub.parse_name(text)


@pytest.mark.parametrize(
    "text",
    ["", "@", "org/", "/name", "org/name/more", "../name", "org/..", "org/a..b", "a--b/c", "-a/b", "org/.hidden",
     "org/na me", "org/na\nme", "org/name\0", "ü/name", "a" * 97, "org\\name", "C:name",
     "org/name@", "org/name@..", "org/name@../x", "org/name@a/../b", "org/name@/x", "org/name@x/", "org/name@a//b",
     "org/name@x.lock", "org/name@.x", "org/name@a b", "org/name@a\0", "org/name@x@y"],
)  # fmt: skip
def test_names_that_are_unsafe_as_paths_are_refused(text):
    with pytest.raises(UsageError) as caught:
        hub.parse_name(text)
    assert caught.value.exit_code == 2


def test_a_path_to_a_model_resolves_to_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for name in (folder, str(folder), "./org/name", "org/name", folder / "model.safetensors", folder / "config.json"):
        assert hub.resolve(name, offline=True) == folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/org/name", offline=True) == folder


def test_a_folder_without_a_model_does_not_hide_a_name_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(ModelNotFoundError, match="not on this machine"):
        hub.resolve("org/name", offline=True)


@pytest.mark.parametrize("text", ["./absent", "/absent/model", "~/absent", "a/b/c", "model.safetensors", "../x"])
def test_a_missing_path_is_reported_as_a_missing_folder(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        hub.resolve(text)


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, text):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        hub.resolve(text)


def test_a_missing_package_of_the_bundled_model_is_named(monkeypatch):
    monkeypatch.setattr(names, "find_spec", lambda package: None)
    with pytest.raises(ModelNotFoundError, match="the bundled model maclet is not installed"):
        hub.resolve()


def test_a_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="safetensors"):
        hub.resolve(tmp_path / "model.gguf")


def test_the_bundled_model_has_a_name_and_is_the_default(tmp_path, monkeypatch):
    folder = tmp_path / "maclet"
    monkeypatch.setattr(names, "find_spec", lambda package: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    with pytest.raises(ModelNotFoundError, match="bundled"):
        hub.resolve()
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert hub.resolve() == hub.resolve("maclet") == folder
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert [(model.name, model.path) for model in hub.list_models()] == [("maclet", folder)]
    assert hub.describe().config["model_type"] == "llama"
    with pytest.raises(UsageError):
        hub.remove("maclet")


def test_a_sibling_of_the_bundled_model_is_found_by_its_name_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "find_spec", lambda package: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with pytest.raises(ModelNotFoundError, match="the bundled model maclet-encoder is not installed"):
        hub.resolve("maclet-encoder")
    assert hub.list_models() == []
    for folder in ("maclet", "siblings/encoder"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text('{"model_type": "bert"}')
    for resolve in (hub.resolve, hub.resolve_tokenizer):
        assert resolve("maclet-encoder") == tmp_path / "siblings" / "encoder"
    assert [model.name for model in hub.list_models()] == ["maclet", "maclet-encoder"]
    found = hub.describe("maclet-encoder")
    assert (found.name, found.config) == ("maclet-encoder", {"model_type": "bert"})
    for refused in (hub.remove, lambda name: next(hub.verify(name))):
        with pytest.raises(UsageError, match="maclet-encoder"):
            refused("maclet-encoder")
    with pytest.raises(ModelNotFoundError, match="maclet-encoder") as error:
        hub.resolve("maclet-encodr", offline=True)
    assert "maclet-encoder" in error.value.remedy
    with pytest.raises(ModelNotFoundError) as error:
        hub.resolve("./maclet-encoder")
    assert "the bundled model is maclet-encoder, without a path" in error.value.remedy


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/b"),
        ({"HF_HOME": "$HOME/d"}, "/home/me/d/hub"),
        ({"XDG_CACHE_HOME": "/e"}, "/e/huggingface/hub"),
        ({}, "/home/me/.cache/huggingface/hub"),
    ],
)
def test_the_cache_folder_follows_the_variables_of_hugging_face_tools(monkeypatch, variables, folder):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub.cache_folder() == Path(folder)


def test_local_models_are_found_without_network_and_array_libraries(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("a" * 40)
    program = (
        "import sys; from macllm import hub; print(hub.resolve('org/name'), len(hub.list_models()));"
        "assert not {'huggingface_hub', 'httpx', 'httpx2', 'mlx', 'tokenizers'} & sys.modules.keys()"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(str(snapshot))


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"])
def test_a_clone_without_git_lfs_is_an_error_that_names_its_pointers(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 10\n")
    with pytest.raises(ModelNotFoundError, match="pointer of Git LFS") as error:
        hub.resolve(str(tmp_path))
    assert "lfs pull" in error.value.remedy


@pytest.mark.parametrize("text", [".", "/"])
def test_describing_a_folder_without_a_model_is_an_error(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="not a model"):
        hub.describe(text)
