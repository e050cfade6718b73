"""The cache of encoded rows: the same examples and runs with and without it, and no error of its own."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from macllm import cli
from macllm.errors import DataError
from macllm.text.tokenizer import Tokenizer
from macllm.train import data, encoding_cache, rows
from macllm.train import finetune as finetuning
from macllm.train.config import FinetuneConfig, PretrainConfig, TrainConfig
from macllm.train.events import Saved
from macllm.train.finetune import finetune
from macllm.train.objectives import clm
from macllm.train.objectives.clm import CausalLM
from macllm.train.pretrain import train
from macllm.train.render import Example
from tests.train.recipes import write_recipe

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
TALK = [*CHAT, {"role": "user", "content": "so?"}, {"role": "assistant", "content": "ok", "weight": 0.5}]
ROWS: list[dict[str, Any]] = [
    {"messages": CHAT}, {"messages": TALK}, {"text": "a text", "tools": []}, {"prompt": "p", "completion": "c"},
    {"messages": CHAT[:1]}, {"text": "x" * 99}, {"messages": CHAT},
    {"messages": [CHAT[0], {**CHAT[1], "reasoning_content": "hm"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_recipe(folder)
    return folder


@pytest.fixture
def tokenizer(recipe: Path) -> Tokenizer:
    config = PretrainConfig.load(recipe / "recipe.toml")
    return Tokenizer.from_folder(config.tokenizer)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Places of the rows that are encoded."""
    done: list[str] = []
    encode = clm.to_examples

    def to_examples(row: Any, *arguments: Any) -> list[Example]:
        done.append(row.where)
        return encode(row, *arguments)

    monkeypatch.setattr(clm, "to_examples", to_examples)
    return done


def write(path: Path, values: list[dict[str, Any]] = ROWS) -> Path:
    path.mkdir(exist_ok=True)
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    with gzip.open(path / "valid.jsonl.gz", "wt") as file:
        file.write(json.dumps({"messages": CHAT}) + "\n")
    return path


def load(path: Path, tokenizer: Tokenizer, **settings: Any) -> data.Dataset[Example]:
    config = TrainConfig(data=str(path), **settings)
    return data.load(config, CausalLM(config.mask_prompt, config.now), tokenizer)


def contents(made: data.Dataset[Example]) -> list[Any]:
    examples = [(e.fingerprint(), e.where, e.splittable, e.ends, e.tokens.dtype) for e in (*made.train, *made.valid)]
    return [made.fingerprint(), made.counts, made.valid_counts, examples]


@pytest.mark.parametrize(
    "settings", [{}, {"mask_prompt": False}, {"max_seq_length": 12, "long_rows": "split"}, {"max_seq_length": 5}]
)
def test_cached_rows_are_those_that_were_encoded_and_are_not_encoded_again(
    tmp_path: Path, tokenizer: Tokenizer, encodings: list[str], settings: dict[str, Any]
) -> None:
    some = [row for row in ROWS if settings.get("mask_prompt", True) or row.get("messages") is not TALK]
    path = write(tmp_path / "rows", some)
    plain = load(path, tokenizer, cache_gb=0, **settings)
    assert encoding_cache.entries() == []
    first = load(path, tokenizer, **settings)
    assert len(encodings) == 2 * (len(some) + 1)
    second = load(path, tokenizer, **settings)
    assert len(encodings) == 2 * (len(some) + 1)
    assert contents(plain) == contents(first) == contents(second)
    assert (second.counts.unused_column_rows, second.counts.unwritten_rows) == (1, 1)
    moved = load((tmp_path / "rows").rename(tmp_path / "moved"), tokenizer, **settings)
    assert len(encodings) == 2 * (len(some) + 1)
    assert {e.where.partition(":")[0] for e in moved.train} == {str(tmp_path / "moved" / "train.jsonl")}


def test_lengths_and_held_out_rows_are_decided_after_the_cache(
    tmp_path: Path, tokenizer: Tokenizer, encodings: list[str]
) -> None:
    path = write(tmp_path)
    (path / "valid.jsonl.gz").unlink()
    settings: list[dict[str, Any]] = [
        {"valid_fraction": 0.3}, {"valid_fraction": 0.3, "seed": 1}, {"max_seq_length": 9}
    ]  # fmt: skip
    plain = [contents(load(path, tokenizer, cache_gb=0, **each)) for each in settings]
    encodings.clear()
    assert [contents(load(path, tokenizer, **each)) for each in settings] == plain
    assert len(encodings) == len(ROWS)


def test_other_rows_settings_or_tokenizers_are_encoded_anew(
    recipe: Path, tmp_path: Path, tokenizer: Tokenizer, encodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows", [row for row in ROWS if row.get("messages") is not TALK])
    load(path, tokenizer)

    def anew(other: Tokenizer = tokenizer, **settings: Any) -> bool:
        encodings.clear()
        load(path, other, **settings)
        return bool(encodings)

    assert not anew()
    assert anew(mask_prompt=False)
    assert not anew(date="2026-01-31")  # this template writes no date
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for file in tokenizer.folder.iterdir():
        if file.suffix in (".json", ".jinja"):
            (folder / file.name).write_bytes(file.read_bytes())
    assert not anew(Tokenizer.from_folder(folder))
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text("{}")  # a run beside its tokenizer
    assert not anew(Tokenizer.from_folder(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"unread": 1}))
    assert anew(Tokenizer.from_folder(folder))
    config["chat_template"] = "{{ strftime_now('%Y') }}" + config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert anew(Tokenizer.from_folder(folder), date="2026-01-31")
    assert anew(Tokenizer.from_folder(folder), date="2027-01-31")
    (path / "train.jsonl").write_text((path / "train.jsonl").read_text().replace("a text", "a Text"))
    assert anew()
    monkeypatch.setattr("macllm.train.encoded._code_hash", lambda module: "other")
    assert anew()


def test_invalid_rows_are_refused_and_not_cached(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, [*ROWS, {"text": 1}])
    for _ in range(2):
        with pytest.raises(DataError, match=r"train\.jsonl:9"):
            load(path, tokenizer)


def test_a_damaged_or_foreign_file_is_encoded_again_and_replaced(
    tmp_path: Path, tokenizer: Tokenizer, encodings: list[str]
) -> None:
    path = write(tmp_path)
    whole = contents(load(path, tokenizer))
    entry = max(encoding_cache.entries(), key=lambda each: each[1])[0]
    good = entry.read_bytes()
    positions = [*range(0, 60), *range(60, len(good), 97), len(good) - 1]
    damaged = [good[:at] + bytes((good[at] ^ 0x41,)) + good[at + 1 :] for at in positions]
    for content in (*damaged, b"", good[:-1], good + b"x", good[: len(good) // 2], b"\x80\x04pickle", os.urandom(99)):
        entry.write_bytes(content)
        assert encoding_cache.load(entry.stem, lambda *found: found) is None
    encodings.clear()
    assert contents(load(path, tokenizer)) == whole
    assert len(encodings) == len(ROWS)
    assert entry.read_bytes() == good
    entry.rename(entry.with_name(f"{'0' * 64}.rows"))
    assert encoding_cache.load("0" * 64, lambda *found: found) is None


def _without_places(header: Any) -> None:
    del header["places"]


def _infinite(header: Any) -> None:
    header["arrays"]["tokens"][1] = [float("inf")]


def _shorter(header: Any) -> None:
    header["places"] = header["places"][1:]


@pytest.mark.parametrize("change", [list, str, _without_places, _infinite, _shorter])
def test_an_intact_file_with_another_header_is_encoded_again(
    tmp_path: Path, tokenizer: Tokenizer, encodings: list[str], change: Any
) -> None:
    path = write(tmp_path)
    whole = contents(load(path, tokenizer))
    entry = max(encoding_cache.entries(), key=lambda each: each[1])[0]
    magic, packed = entry.read_bytes()[:-32].split(b"\n", 1)
    size = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + size])
    head = json.dumps(change(header) or header).encode()
    content = magic + b"\n" + len(head).to_bytes(8, "little") + head + packed[8 + size :]
    entry.write_bytes(content + hashlib.sha256(content).digest())
    (encoding_cache.folder() / "folder.rows").mkdir()
    encodings.clear()
    assert contents(load(path, tokenizer)) == whole
    assert len(encodings) == len(ROWS)
    encoding_cache.clear()


def test_the_same_bytes_in_another_form_are_other_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = '{"text": "one"}\n{"text": "two"}\n'
    for _ in range(2):
        for name, count in (("a.jsonl", 2), ("a.txt", 1), ("b.jsonl", 2)):
            (tmp_path / name).write_text(lines)
            assert load(tmp_path / name, tokenizer).counts.rows == count


def test_code_that_is_not_known_and_the_clock_are_not_cached(
    tmp_path: Path, tokenizer: Tokenizer, encodings: list[str]
) -> None:
    path = write(tmp_path)

    @dataclass(frozen=True)
    class Own(CausalLM):
        pass

    class OwnTokenizer(Tokenizer):
        pass

    dated = Tokenizer.from_folder(tokenizer.folder)
    assert dated.chat_template is not None
    dated.chat_template.sources["default"] = "{{ strftime_now('%Y') }}" + dated.chat_template.source
    config = TrainConfig(data=str(path))
    for objective, own in (
        (CausalLM(), OwnTokenizer.from_folder(tokenizer.folder)), (Own(), tokenizer), (CausalLM(), dated)
    ):  # fmt: skip
        for _ in range(2):
            encodings.clear()
            data.load(config, objective, own)
            assert len(encodings) == len(ROWS) + 1
    assert encoding_cache.entries() == []


def test_a_file_that_changes_before_it_is_read_is_not_cached(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    read = rows.read

    def changed(source: Any, **keywords: Any) -> Any:
        path.write_text('{"text": "two"}\n')
        return read(source, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(rows, "read", changed)
        two = contents(load(path, tokenizer))
    path.write_text('{"text": "one"}\n')
    assert contents(load(path, tokenizer)) == contents(load(path, tokenizer, cache_gb=0)) != two


def test_a_full_or_unwritable_disk_only_means_no_cache(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows")
    whole = contents(load(path, tokenizer, cache_gb=0))

    def full(*_arguments: Any, **_keywords: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("macllm.files.os.fsync", full)
        assert contents(load(path, tokenizer)) == whole
        assert encoding_cache.entries() == []
    with monkeypatch.context() as patch:
        patch.setattr(encoding_cache, "_SPARE_BYTES", 1 << 60)
        assert contents(load(path, tokenizer)) == whole
        assert encoding_cache.entries() == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MACLLM_HOME", str(tmp_path / "file"))
    assert contents(load(path, tokenizer)) == whole
    assert encoding_cache.entries() == []


def test_the_longest_unused_files_make_room(tmp_path: Path, tokenizer: Tokenizer) -> None:
    paths = [write(tmp_path / str(n), [{"text": f"{n}" * 2000}]) for n in range(3)]
    for path in paths:
        (path / "valid.jsonl.gz").unlink()
    load(paths[0], tokenizer)
    ((oldest, size),) = encoding_cache.entries()
    room = 2.5 * size / 1e9
    load(paths[1], tokenizer, cache_gb=room)
    os.utime(oldest, (1, 1))
    load(paths[0], tokenizer, cache_gb=room)  # used: the newest now
    load(paths[2], tokenizer, cache_gb=room)
    assert len(encoding_cache.entries()) == 2
    assert oldest.exists()
    load(write(tmp_path / "big", [{"text": "a" * 20_000}]), tokenizer, cache_gb=room)
    assert oldest.exists()
    abandoned = encoding_cache.folder() / ".x.tmp"
    abandoned.write_text("")
    os.utime(abandoned, (time.time() - 9999,) * 2)
    load(write(tmp_path / "3", [{"text": "d" * 2000}]), tokenizer, cache_gb=room)
    assert not abandoned.exists()


def test_several_runs_at_once_read_and_write_the_same_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path)
    whole = contents(load(path, tokenizer, cache_gb=0))
    seen: list[bool] = []

    def run() -> None:
        for _ in range(6):
            seen.append(contents(load(path, tokenizer)) == whole)
            encoding_cache.clear()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 18


def test_a_run_and_its_resumption_end_in_the_same_bytes_with_and_without_the_cache(
    recipe: Path, tmp_path: Path, encodings: list[str]
) -> None:
    base = train(PretrainConfig.load(recipe / "recipe.toml", output=tmp_path / "base", iters=2)) / "model"

    def config(name: str, **changes: Any) -> FinetuneConfig:
        settings = {"model": base, "iters": 4, "save_every": 2, "rank": 2, "learning_rate": 0.01}
        return FinetuneConfig.load(data=recipe / "fact.jsonl", adapter_path=tmp_path / name, **settings, **changes)

    def interrupted(settings: FinetuneConfig) -> None:
        with closing(finetuning.events(settings)) as events:
            next(event for event in events if isinstance(event, Saved))

    encoding_cache.clear()
    finetune(config("straight", cache_gb=0))
    interrupted(config("cold"))
    count = len(encodings)
    finetune(replace(config("cold"), resume=True))
    interrupted(config("warm"))
    assert len(encodings) == count
    finetune(replace(config("warm"), resume=True, cache_gb=0))
    written = {(tmp_path / name / "adapters.safetensors").read_bytes() for name in ("straight", "cold", "warm")}
    assert len(written) == 1


def test_the_cache_is_shown_and_cleared(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    load(write(tmp_path), tokenizer)
    assert cli.main(["data", "cache", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["folder"], shown["files"]) == (str(encoding_cache.folder()), 2)
    assert shown["size_bytes"] == sum(path.stat().st_size for path in encoding_cache.folder().iterdir())
    assert cli.main(["data", "cache", "--clear"]) == 0
    assert "0 files, 0 B" in capsys.readouterr().out
    assert encoding_cache.entries() == []
