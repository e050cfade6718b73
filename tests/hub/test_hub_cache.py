from __future__ import annotations

import json
import os
import shutil

import pytest

from macllm import hub as macllm_hub
from macllm.errors import ModelNotFoundError, NetworkError, UsageError
from tests.hub.conftest import CONFIG, model_files
from tests.hub.loopback import COMMIT, OTHER_COMMIT, Repo

INDEX = "model.safetensors.index.json"


def foreign_snapshot(cache, files, repo="org/other", commit="b" * 40):
    """A snapshot as another tool leaves it: links and a ref, without macllm's list of files."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for number, (name, content) in enumerate(files.items()):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "blobs").mkdir(exist_ok=True)
        (folder / "blobs" / f"{number:040x}").write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(folder / "blobs" / f"{number:040x}", (snapshot / name).parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return snapshot


def models(name):
    return [model for model in macllm_hub.list_models() if model.name == name]


def sharded_files(shards=2):
    names = [f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]
    index = {"metadata": {}, "weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    rest = {name: content for name, content in model_files().items() if name != "model.safetensors"}
    return rest | {INDEX: json.dumps(index).encode()} | {name: os.urandom(5000) for name in names}


# Choice of files


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({"consolidated.safetensors": b"x"}, set()),
        ({"model.fp16.safetensors": b"x", "onnx/model.onnx": b"x", "original/params.json": b"{}"}, set()),
        ({"tf_model.h5": b"x", "model.gguf": b"x", "tokenizer.model": b"x"}, {"tokenizer.model"}),
        ({"additional_chat_templates/tool.jinja": b"x"}, {"additional_chat_templates/tool.jinja"}),
        ({"1_Pooling/config.json": b"{ }", "modules.json": b"[]"}, {"1_Pooling/config.json", "modules.json"}),
        ({"pytorch_model.bin.index.json": b"{}", "run.py": b"x", "training_args.bin": b"x"}, set()),
    ],
)
def test_only_the_needed_files_of_a_single_file_model_are_downloaded(hub, extra, wanted):
    hub.repos["org/tiny"].files.update(extra)
    folder = macllm_hub.resolve("org/tiny")
    got = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert got == {"config.json", "tokenizer.json", "model.safetensors"} | wanted


def test_only_the_shards_of_the_index_are_downloaded(hub):
    files = sharded_files() | {"consolidated.safetensors": b"x", "model-extra.safetensors": b"x"}
    hub.repos["org/tiny"] = Repo(files)
    folder = macllm_hub.resolve("org/tiny")
    shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", INDEX} | shards


def test_a_sharded_model_that_lacks_a_shard_on_the_hub_is_refused(hub):
    hub.repos["org/tiny"] = Repo(sharded_files())
    del hub.repos["org/tiny"].files["model-00002-of-00002.safetensors"]
    with pytest.raises(ModelNotFoundError, match="incomplete on the hub"):
        macllm_hub.resolve("org/tiny")


def test_an_index_without_its_shards_is_not_downloaded(hub):
    index = sharded_files()[INDEX]
    hub.repos["org/tiny"].files[INDEX] = index
    folder = macllm_hub.resolve("org/tiny")
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.mark.parametrize("index", [b"", b"[]", b'{"weight_map": 1}', b'{"weight_map": {"a": "../../x.safetensors"}}'])
def test_a_damaged_or_hostile_index_downloads_nothing(hub, index):
    files = sharded_files()
    del files["model-00001-of-00002.safetensors"], files["model-00002-of-00002.safetensors"]
    hub.repos["org/tiny"] = Repo(files | {INDEX: index})
    with pytest.raises(ModelNotFoundError):
        macllm_hub.resolve("org/tiny")
    assert not macllm_hub.cache_folder().exists()


def test_a_model_of_pickles_only_is_refused_with_the_files_it_has(hub):
    del hub.repos["org/tiny"].files["model.safetensors"]
    with pytest.raises(ModelNotFoundError, match=r"it has pytorch_model\.bin") as caught:
        macllm_hub.resolve("org/tiny")
    assert caught.value.exit_code == 3


def test_an_adapter_is_downloaded_without_a_model(hub):
    hub.repos["org/tiny"] = Repo({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    folder = macllm_hub.resolve("org/tiny")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert macllm_hub.resolve("org/tiny", offline=True) == folder


# Snapshots of other tools


def test_a_complete_snapshot_of_another_tool_is_used(hub):
    snapshot = foreign_snapshot(macllm_hub.cache_folder(), model_files())
    assert macllm_hub.resolve("org/other") == snapshot
    assert hub.requests == []


@pytest.mark.parametrize(
    "missing",
    [
        ["model.safetensors"],
        ["config.json"],
        ["tokenizer.json"],
        ["model-00001-of-00002.safetensors"],
        ["model-00001-of-00002.safetensors", INDEX],
    ],
)
def test_a_partial_snapshot_of_another_tool_is_completed_and_offline_refused(hub, missing):
    files = model_files() if missing[0] in model_files() else sharded_files()
    hub.repos["org/other"] = Repo(files, "b" * 40)
    foreign_snapshot(
        macllm_hub.cache_folder(), {name: content for name, content in files.items() if name not in missing}
    )
    with pytest.raises(ModelNotFoundError, match="incomplete on this machine"):
        macllm_hub.resolve("org/other", offline=True)
    folder = macllm_hub.resolve("org/other")
    for name in missing:
        assert (folder / name).read_bytes() == files[name]


def test_a_snapshot_with_a_dangling_link_is_incomplete(hub):
    snapshot = foreign_snapshot(macllm_hub.cache_folder(), model_files())
    (snapshot / "model.safetensors").resolve().unlink()
    with pytest.raises(ModelNotFoundError):
        macllm_hub.resolve("org/other", offline=True)


def test_hf_hub_offline_turns_the_network_off(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="macllm is offline"):
        macllm_hub.resolve("org/tiny")
    assert hub.requests == []


def test_the_offline_argument_overrides_the_environment(hub, monkeypatch):
    import huggingface_hub.constants  # noqa: F401  it reads the environment once, for the whole process

    for ask in (macllm_hub.resolve, macllm_hub.describe):
        with pytest.raises(ModelNotFoundError, match="macllm is offline"):
            ask("org/tiny", offline=True)
    assert hub.requests == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert macllm_hub.describe("org/tiny", offline=False).commit == COMMIT
    assert macllm_hub.resolve("org/tiny", offline=False).name == COMMIT


# List, describe, verify, remove


def test_models_are_listed_with_revision_size_and_state(hub):
    macllm_hub.resolve("org/tiny")
    foreign_snapshot(macllm_hub.cache_folder(), {"config.json": CONFIG})
    (tiny,) = models("org/tiny")
    files = hub.repos["org/tiny"].files
    assert (tiny.revision, tiny.commit, tiny.problem) == ("main", COMMIT, None)
    assert tiny.size_bytes == sum(len(files[name]) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    (other,) = models("org/other")
    assert other.problem == "the tokenizer is missing"


def test_an_old_commit_is_listed_by_its_commit(hub):
    macllm_hub.resolve("org/tiny")
    hub.repos["org/tiny"] = Repo(model_files(), OTHER_COMMIT)
    macllm_hub.download("org/tiny")
    assert {(model.revision, model.commit) for model in models("org/tiny")} == {
        (COMMIT, COMMIT),
        ("main", OTHER_COMMIT),
    }


def test_a_model_is_described_before_and_after_its_download(hub):
    before = macllm_hub.describe("org/tiny")
    assert before.path is None
    assert before.missing_bytes == before.size_bytes > 300_000
    assert before.config["model_type"] == "llama"
    assert not macllm_hub.cache_folder().exists()
    folder = macllm_hub.resolve("org/tiny")
    after = macllm_hub.describe("org/tiny", offline=True)
    assert (after.path, after.commit, after.missing_bytes) == (folder, COMMIT, 0)
    assert sorted(after.files) == sorted(before.files)
    assert after.config == before.config
    with pytest.raises(ModelNotFoundError):
        macllm_hub.describe("org/absent", offline=True)


def test_a_flipped_bit_is_found_and_repaired(hub):
    folder = macllm_hub.resolve("org/tiny")
    assert {checked.status for checked in macllm_hub.verify("org/tiny")} == {"ok"}
    for name in ("model.safetensors", "config.json"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).resolve().write_bytes(content)
    (folder / "tokenizer.json").unlink()
    found = {checked.file: checked.status for checked in macllm_hub.verify("org/tiny", repair=True)}
    assert found == {"config.json": "damaged", "model.safetensors": "damaged", "tokenizer.json": "missing"}
    with pytest.raises(ModelNotFoundError):
        macllm_hub.resolve("org/tiny", offline=True)
    macllm_hub.resolve("org/tiny")
    assert {checked.status for checked in macllm_hub.verify("org/tiny")} == {"ok"}


def test_only_cached_models_can_be_verified(hub, tmp_path):
    with pytest.raises(ModelNotFoundError):
        list(macllm_hub.verify("org/absent"))
    with pytest.raises(UsageError):
        list(macllm_hub.verify(str(tmp_path)))


def test_removing_a_model_leaves_the_others(hub):
    folder = macllm_hub.resolve("org/tiny")
    foreign_snapshot(macllm_hub.cache_folder(), model_files())
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert macllm_hub.remove("org/tiny") >= size
    assert models("org/tiny") == []
    assert models("org/other")[0].problem is None
    with pytest.raises(ModelNotFoundError):
        macllm_hub.remove("org/tiny")


def test_removing_a_revision_keeps_files_that_another_uses(hub):
    macllm_hub.resolve("org/tiny")
    weights = hub.repos["org/tiny"].files["model.safetensors"]
    hub.repos["org/tiny"] = Repo(model_files() | {"model.safetensors": weights, "config.json": b"{}"}, OTHER_COMMIT)
    new = macllm_hub.download("org/tiny")
    assert macllm_hub.remove(f"org/tiny@{COMMIT}") < 10_000
    assert [model.commit for model in models("org/tiny")] == [OTHER_COMMIT]
    assert macllm_hub.resolve("org/tiny", offline=True) == new
    assert (new / "model.safetensors").read_bytes() == weights
    with pytest.raises(ModelNotFoundError):
        macllm_hub.remove(f"org/tiny@{COMMIT}")
    macllm_hub.remove("org/tiny@main")
    assert models("org/tiny") == []


def test_removing_a_revision_removes_all_refs_to_its_commit_and_no_others(hub):
    hub.repos["org/tiny"].revisions = ("main", "v1", "refs/pr/1")
    macllm_hub.resolve("org/tiny@v1")
    macllm_hub.resolve("org/tiny@refs/pr/1")
    hub.repos["org/tiny"] = Repo(model_files(), OTHER_COMMIT)
    new = macllm_hub.resolve("org/tiny")
    folder = macllm_hub.cache_folder() / "models--org--tiny"
    macllm_hub.remove("org/tiny@v1")
    assert {path.name for path in folder.glob("refs/**/*") if path.is_file()} == {"main"}
    assert macllm_hub.resolve("org/tiny", offline=True) == new
    locks = macllm_hub.cache_folder() / ".locks" / folder.name
    assert locks.exists()
    macllm_hub.remove("org/tiny")
    assert not folder.exists()
    assert not locks.exists()


def test_the_size_of_a_model_counts_identical_files_once(hub):
    hub.repos["org/tiny"].files["tokenizer_config.json"] = hub.repos["org/tiny"].files["config.json"]
    macllm_hub.resolve("org/tiny")
    files = hub.repos["org/tiny"].files
    (tiny,) = models("org/tiny")
    assert tiny.size_bytes == sum(len(files[name]) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    assert macllm_hub.describe("org/tiny").size_bytes == tiny.size_bytes + len(files["config.json"])


def test_an_unfinished_download_can_be_removed(hub):
    hub.faults.drop_after["model.safetensors"] = [100_000, *[0] * 20]
    with pytest.raises(NetworkError):
        macllm_hub.resolve("org/tiny")
    assert macllm_hub.remove("org/tiny") > 100_000
    assert models("org/tiny") == []


def test_nothing_outside_the_cache_is_removed(hub, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    macllm_hub.cache_folder().mkdir(parents=True)
    kept = foreign_snapshot(macllm_hub.cache_folder(), model_files())
    for name, target in (("evil", tmp_path / "mine"), ("alias", kept.parent.parent)):
        (macllm_hub.cache_folder() / f"models--org--{name}").symlink_to(target)
        with pytest.raises(UsageError, match="link"):
            macllm_hub.remove(f"org/{name}")
    for name in (str(tmp_path / "mine"), "../../mine", "maclet"):
        with pytest.raises((UsageError, ModelNotFoundError)):
            macllm_hub.remove(name)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert (kept / "model.safetensors").exists()
    shutil.rmtree(tmp_path / "mine")
