from __future__ import annotations

import gzip
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from macllm.errors import DataError
from macllm.train import rows

TWO = [{"text": "one"}, {"prompt": "p", "completion": "c"}]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def lines(values: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def test_lines_with_a_byte_order_mark_and_empty_lines_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"text": "one"}', "", '{"text": "two"}')
    assert rows.read(path) == [rows.PlainText("one", f"{path}:1"), rows.PlainText("two", f"{path}:3")]


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", "[" * 100_000, '{"text": ' + "1" * 5000 + "}"], ids=lambda line: line[:10]
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}', line)
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        rows.read(path)


def test_a_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\xff"}\n')
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"a\.jsonl:1"):
        rows.read(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.txt"):
        rows.read(tmp_path / "a.txt")


def test_a_name_that_an_object_has_twice_is_refused(tmp_path: Path) -> None:
    for line in ('{"text": "a", "text": "b"}', '{"text": "a", "more": [{"text": 1, "x": 2, "text": 3}]}'):
        with pytest.raises(DataError, match=r"a\.jsonl:1 has 'text' twice"):
            rows.read(write(tmp_path / "a.jsonl", line))


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        rows.read(write(tmp_path / "a.jsonl", ""))
    with pytest.raises(DataError, match="no rows"):
        rows.read(write(tmp_path / "a.json", "[]"))


def test_compressed_lines_are_read_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(TWO)))
    assert [type(row) for row in rows.read(path)] == [rows.PlainText, rows.PromptCompletion]
    path.write_bytes(gzip.compress(lines(TWO) + b"odd\n"))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:3"):
        rows.read(path)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"no gzip", lambda data: data[:12] + b"\xff"])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(lines(TWO))))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
        rows.read(path)


def test_a_json_file_is_a_list_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(TWO, indent=1))
    assert [row.where for row in rows.read(path)] == [f"{path}[0]", f"{path}[1]"]
    path.write_bytes(lines(TWO))
    assert [row.where for row in rows.read(path)] == [f"{path}:1", f"{path}:2"]
    path.write_text('[{"text": "t"}, 1]')
    with pytest.raises(DataError, match=r"a\.json\[1\]"):
        rows.read(path)
    path.write_text('[{"text": "t"},')
    with pytest.raises(DataError, match=r"a\.json is not JSON"):
        rows.read(path)


def test_each_text_file_of_a_folder_is_a_row(tmp_path: Path) -> None:
    for name, text in (("b.txt", "two\nlines"), ("a.txt", "\ufeffone"), (".hidden.txt", "x"), ("c.md", "x")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    train, valid = rows.find_files(str(tmp_path), "")
    assert (train, valid) == (tmp_path, None)
    one, two = tmp_path / "a.txt", tmp_path / "b.txt"
    assert rows.read(train) == [rows.PlainText("one", str(one)), rows.PlainText("two\nlines", str(two))]
    assert rows.read(two) == [rows.PlainText("two\nlines", str(two))]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".txt", "/a.txt"])
def test_a_folder_gives_its_training_and_validation_files(tmp_path: Path, ending: str) -> None:
    with pytest.raises(DataError, match=r"no train\.jsonl"):
        rows.find_files(str(tmp_path), "")
    found = []
    for name in ("train", "valid"):
        path = tmp_path / f"{name}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        found.append(path.parent if ending.startswith("/") else path)
        assert rows.find_files(str(tmp_path), "") == (found[0], found[1] if found[1:] else None)
    assert rows.find_files(str(found[0]) if found[0].is_file() else str(tmp_path), str(found[1])) == tuple(found)


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev", "eval"])
def test_validation_rows_have_several_names_of_which_a_folder_has_one(tmp_path: Path, name: str) -> None:
    train = write(tmp_path / "train.jsonl", '{"text": "t"}')
    for ending in (".jsonl", ".json.gz"):
        valid = write(tmp_path / f"{name}{ending}", "")
        assert rows.find_files(str(tmp_path), "") == (train, valid)
        assert rows.find_files(str(tmp_path), str(train)) == (train, train)
        other = write(tmp_path / ("val.txt" if name != "val" else "dev.txt"), "")
        with pytest.raises(DataError, match=rf"both .*{name}"):
            rows.find_files(str(tmp_path), "")
        other.unlink()
        valid.unlink()
    write(tmp_path / "train.json", "[]")
    with pytest.raises(DataError, match=r"both train\.jsonl and train\.json"):
        rows.find_files(str(tmp_path), "")


def test_texts_that_are_named_as_a_split_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("a", "b", "valid", "test"):
        write(tmp_path / f"{name}.txt", name)
    train, valid = rows.find_files(str(tmp_path), "")
    assert [row.where for row in rows.read(train)] == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert (str(train), valid) == (str(tmp_path), tmp_path / "valid.txt")


def test_missing_files_are_named(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", '{"text": "t"}')
    for data, valid in ((tmp_path / "absent", ""), (train, tmp_path / "absent")):
        with pytest.raises(DataError, match="absent"):
            rows.find_files(str(data), str(valid))


def test_a_named_pipe_is_refused_as_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    good = write(tmp_path / "a.jsonl", '{"text": "t"}')
    for data, valid in ((tmp_path / "pipe", ""), (good, tmp_path / "pipe")):
        with pytest.raises(DataError, match="is not a file"):
            rows.find_files(str(data), str(valid))


def test_the_first_row_is_read_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "", '{"text": "t"}', "odd")
    assert [row.where for row in rows.read(path, most=1)] == [f"{path}:2"]
    with pytest.raises(DataError, match=":3"):
        rows.read(path)


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.jsonl.zst", "zstandard")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    for module in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).touch()
    with pytest.raises(DataError) as raised:
        rows.read(tmp_path / name)
    assert package in str(raised.value.cause)
    assert raised.value.remedy == "pip install 'macllm[data]'"


@pytest.mark.skipif(importlib.util.find_spec("zstandard") is None, reason="needs the extra `data`")
def test_zstandard_files_are_read_as_lines(tmp_path: Path) -> None:
    import zstandard  # pyright: ignore[reportMissingImports]

    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(lines(TWO)))
    assert [row.where for row in rows.read(path)] == [f"{path}:1", f"{path}:2"]
    many = zstandard.ZstdCompressor().compress(lines([{"text": str(n)} for n in range(9000)]))
    path.write_bytes(many + many)
    assert len(rows.read(path)) == 18_000
    for damaged in (b"no zstandard", many[:-3], many[:99], many + many[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read .*a\.jsonl\.zst"):
            rows.read(path)


@pytest.mark.skipif(importlib.util.find_spec("zstandard") is None, reason="needs the extra `data`")
def test_lines_that_were_flushed_before_a_file_was_cut_are_not_taken_for_all(tmp_path: Path) -> None:
    import zstandard  # pyright: ignore[reportMissingImports]

    writer = zstandard.ZstdCompressor().compressobj()
    packed = writer.compress(lines(TWO)) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl\.zst") as raised:
        rows.read(tmp_path / "a.jsonl.zst")
    assert raised.value.cause == "it ends within a compressed frame"


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs the extra `data`")
def test_parquet_files_are_read_without_the_nulls_that_arrow_adds(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    chats = [
        {
            "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}],
            "text": None,
        },
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "g", "arguments": {"y": "z"}}}]}]},
        {"text": "t"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), path)
    first, second, third = rows.read(path)
    assert isinstance(first, rows.Chat)
    assert isinstance(second, rows.Chat)
    assert first.messages[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert second.messages[0]["tool_calls"][0]["function"] == {"name": "g", "arguments": {"y": "z"}}
    assert third == rows.PlainText("t", f"{path}[2]")
    good = path.read_bytes()
    for damaged in (b"no parquet", b"", good[:-5], good[: len(good) // 2], good[:-60] + b"\xff" * 40 + good[-20:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read .*a\.parquet"):
            rows.read(path)
    far = pyarrow.array([10**15], pyarrow.timestamp("ms"))  # after the year 9999
    pyarrow.parquet.write_table(pyarrow.table({"text": ["t"], "far": far}), path)
    assert rows.read(path) == [rows.PlainText("t", f"{path}[0]")]
    kind, value = pyarrow.int32(), 1
    for _ in range(150):
        kind, value = pyarrow.struct([("a", kind)]), {"a": value}
    pyarrow.parquet.write_table(pyarrow.table({"text": ["t"], "deep": pyarrow.array([value], kind)}), path)
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet"):
        rows.read(path)
    pyarrow.parquet.write_table(pyarrow.table([["a"], ["b"]], names=["text", "text"]), path)
    with pytest.raises(DataError, match="column 'text' twice"):
        rows.read(path)
