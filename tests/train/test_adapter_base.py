"""An adapter knows its base: other weights, and tokens without a row, are told or refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from macllm import adapter, checkpoint
from macllm.adapter import BASE
from macllm.errors import CheckpointError, DataError, UsageError
from macllm.generation.contract import Status
from macllm.generation.engines.process import ProcessEngine
from macllm.nn import lora
from macllm.train.config import FinetuneConfig
from macllm.train.finetune import finetune
from macllm.weights.fingerprint import fingerprint
from macllm.weights.safetensors import load_folder, save_file, save_folder
from tests.train.recipes import CONFIG, chat, write_recipe
from tests.train.test_adapter import make


def trained(folder: Path, base: Path, **more: object) -> Path:
    settings = {"iters": 2, "rank": 2, "batch_size": 2, "keys": ("q_proj",), "num_layers": 1}
    files = {"model": base, "data": base / "fact.jsonl", "adapter_path": folder / "adapter"}
    return finetune(FinetuneConfig.load(**(settings | files | more)))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint of random weights with a byte tokenizer, and rows."""
    folder = tmp_path / "base"
    folder.mkdir()
    write_recipe(folder)
    checkpoint.save(make(CONFIG), None, folder)
    return folder


def change(base: Path) -> None:
    """Change the weights by a little, as training does."""
    tensors = load_folder(base)
    mx.eval(tensors)
    save_folder({name: tensor * 1.01 for name, tensor in tensors.items()}, base)


def test_a_fingerprint_depends_on_weights_and_config_but_not_on_files_and_versions(base: Path) -> None:
    first = fingerprint(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}, indent=3))
    tensors = load_folder(base)
    mx.eval(tensors)
    save_folder(tensors, base, {"format": "pt", "by": "another tool"}, max_shard_bytes=20_000)
    assert not (base / "model.safetensors").exists()
    assert fingerprint(base) == first
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert fingerprint(base) != first
    (base / "config.json").write_text(json.dumps(config))
    assert fingerprint(base) == first
    change(base)
    assert fingerprint(base) != first


@pytest.mark.parametrize("count", [8, 1024, 1025, 5000])
def test_a_fingerprint_reads_the_first_and_the_last_value_of_a_tensor(tmp_path: Path, count: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = set()
    for values in ([0] * count, [1] + [0] * (count - 1), [0] * (count - 1) + [1]):
        save_file({"w": mx.array(values, mx.bfloat16)}, tmp_path / "model.safetensors")
        found.add(fingerprint(tmp_path))
    assert len(found) == 3


def test_an_adapter_over_changed_weights_is_told_and_over_its_own_is_not(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained(tmp_path, base)
    assert json.loads((folder / "adapter_config.json").read_text())[BASE] == fingerprint(base)
    with caplog.at_level(logging.WARNING, "macllm"):
        checkpoint.load(base, folder)
        assert caplog.messages == []
        change(base)
        checkpoint.load(base, folder)
    (message,) = caplog.messages
    assert message.startswith(f"{folder}: the weights in {base} are not those that the adapter was trained on")


def test_an_adapter_without_a_fingerprint_is_loaded_without_a_word(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained(tmp_path, base)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config[BASE]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING, "macllm"):
        adapter.attach(checkpoint.load(base)[0], folder, base)
    assert caplog.messages == []


def test_an_adapter_of_another_chat_template_is_told(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained(tmp_path, base)
    model, _ = checkpoint.load(base)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}\n"}))
    with caplog.at_level(logging.WARNING, "macllm"):
        adapter.attach(model, folder, base)
        assert caplog.messages == []
        (folder / "chat_template.jinja").write_text("{{ tools }}")
        adapter.attach(model, folder, base, "again")
    (message,) = caplog.messages
    assert message.startswith(f"{folder}: the adapter was trained with another chat template than the model in {base}")


def test_an_adapter_over_another_model_than_its_config_names_is_told(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make(CONFIG)
    lora.apply(model, rank=2, alpha=2.0)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    change(other)
    for form in ("mlx", "peft"):
        adapter.save(model, tmp_path / form, {"model": str(base)}, form)
        with caplog.at_level(logging.WARNING, "macllm"):
            checkpoint.load(base, tmp_path / form)
            assert caplog.messages == []
            checkpoint.load(other, tmp_path / form)
        (message,) = caplog.messages
        assert message.startswith(f"{tmp_path / form}: the weights in {other} are not those")
        caplog.clear()


def test_tokens_that_the_model_lacks_are_told(tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make(CONFIG)
    lora.apply(model, rank=2, alpha=2.0)
    adapter.save(model, tmp_path / "adapter", {"model": str(base)}, "peft")
    content = json.loads((base / "tokenizer.json").read_text())
    for added in (next(iter(content["model"]["vocab"])), "<tool>"):
        content["added_tokens"].append({**content["added_tokens"][-1], "content": added})
        (tmp_path / "adapter/tokenizer.json").write_text(json.dumps(content))
        with caplog.at_level(logging.WARNING, "macllm"):
            adapter.attach(make(CONFIG), tmp_path / "adapter", base)
    (message,) = caplog.messages
    assert f"tokens that the tokenizer in {base} does not have: <tool>; " in message


def test_a_run_is_not_resumed_on_changed_weights(tmp_path: Path, base: Path) -> None:
    trained(tmp_path, base)
    change(base)
    with pytest.raises((CheckpointError, UsageError), match="another run") as caught:
        trained(tmp_path, base, resume=True, iters=4)
    assert "base was 'sha256:" in (caught.value.cause or "")


def test_tokens_without_a_row_in_the_embedding_are_refused_with_the_sizes(tmp_path: Path, base: Path) -> None:
    path = base / "tokenizer.json"
    content = json.loads(path.read_text())
    rows = checkpoint.load(base)[0].info.vocab_size
    count = len(content["model"]["vocab"])
    for number in range(count, rows + 1):
        content["added_tokens"].append({**content["added_tokens"][-1], "id": number, "content": f"<{number}>"})
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"has {rows + 1} tokens, the embedding of .* only {rows} rows"):
        trained(tmp_path, base)


def test_a_token_with_an_id_beyond_the_embedding_is_refused_in_a_row(tmp_path: Path, base: Path) -> None:
    """Few tokens, and a gap before the last one."""
    path = base / "tokenizer.json"
    content = json.loads(path.read_text())
    rows = checkpoint.load(base)[0].info.vocab_size
    content["added_tokens"].append({**content["added_tokens"][-1], "id": rows + 5, "content": "<far>"})
    path.write_text(json.dumps(content))
    (tmp_path / "far.jsonl").write_text(chat("one", "two<far>"))
    with pytest.raises(DataError, match=rf"far\.jsonl:1 has token {rows + 5}, the embedding of .* only {rows} rows"):
        trained(tmp_path, base, data=tmp_path / "far.jsonl")


def test_a_conversation_is_told_of_another_base(tmp_path: Path, base: Path) -> None:
    folder = trained(tmp_path, base)
    change(base)
    told: list[Status] = []
    engine = ProcessEngine(str(base), str(folder), on_status=told.append)
    try:
        assert engine.info.model_name == str(base)
    finally:
        engine.close()
    assert [status.transient for status in told if "are not those that the adapter" in status.text] == [False]
