from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import pytest

from macllm.errors import CheckpointError, ModelNotFoundError
from macllm.weights.header import TensorInfo, read_header, read_metadata
from macllm.weights.safetensors import save_file


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "F32", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_header_gives_dtype_shape_and_place_of_every_tensor(tmp_path):
    path = write_raw(
        tmp_path / "x.safetensors",
        {"__metadata__": {"format": "mlx"}, "b": entry(8, 16, "I64", [1]), "a": entry(0, 8, shape=[2, 1])},
        bytes(16),
    )
    start = path.stat().st_size - 16
    assert read_header(path) == {
        "a": TensorInfo("F32", (2, 1), start, 8),
        "b": TensorInfo("I64", (1,), start + 8, 8),
    }
    assert list(read_header(path)) == ["a", "b"]
    assert read_metadata(path) == {"format": "mlx"}


@pytest.mark.parametrize(
    ("header", "data_bytes", "cause"),
    [
        (b"{", 0, "not JSON"),
        (b"[]", 0, "not a JSON object"),
        (b"\xff{}", 0, "not JSON"),
        (b'{"a":' * 50_000, 0, "not JSON"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', 4, "not JSON"),
        (b'{"a":1,"a":2}', 0, "'a' occurs twice"),
        ({"a": 1}, 0, "'a' lacks"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "'a' lacks"),
        ({"a": entry(0, 4) | {"more": 1}}, 4, "'a' lacks"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, 4, "impossible offsets"),
        ({"a": entry(0, 4) | {"dtype": ["F32"]}}, 4, "unknown dtype"),
        ({"a": entry(0, 4, "F33")}, 4, "unknown dtype 'F33'"),
        ({"a": entry(-4, 0)}, 4, "impossible offsets"),
        ({"a": entry(4, 0, shape=[1])}, 4, "impossible offsets"),
        ({"a": entry(0, 4, shape=[-1])}, 4, "impossible shape"),
        ({"a": entry(0, 4, shape=[True])}, 4, "impossible shape"),
        ({"a": entry(0, 4, shape=[1.0])}, 4, "impossible shape"),
        ({"a": entry(0, 0, shape=[0, 2**31])}, 0, "impossible shape"),
        ({"a": entry(0, 8, shape=[3])}, 8, "needs 12 bytes, not 8"),
        ({"a": entry(0, 8, shape=[2**30, 2**30])}, 8, "bytes, not 8"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "'b' overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "'b' leaves a gap"),
        ({"a": entry(4, 8)}, 8, "'a' leaves a gap"),
        ({"a": entry(0, 4), "b": entry(4, 2**32)}, 8, "'b' ends at"),
        ({"a": entry(0, 4)}, 5, "1 bytes follow"),
        ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
        ({"__metadata__": ["a"]}, 0, "__metadata__"),
    ],
)
def test_unsound_headers_are_refused_by_name(tmp_path, header, data_bytes, cause):
    path = write_raw(tmp_path / "bad.safetensors", header, bytes(data_bytes))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert "bad.safetensors" in caught.value.message
    assert cause in caught.value.cause
    assert "download it again" in caught.value.remedy


def test_huge_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointError, match="claims 4611686018427387904"):
        read_header(path)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{}")
        file.truncate(200_000_000)  # sparse: takes no space
    with pytest.raises(CheckpointError, match="more than the 100000000 that the format allows"):
        read_header(path)
    path.write_bytes(struct.pack("<Q", 50_000_000) + b"{}")
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": mx.arange(5), "b": mx.ones((2, 3))}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_header(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError):
        read_header(path)


def test_a_flipped_header_bit_is_refused_or_changes_the_parsed_header(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"first": mx.arange(5), "second": mx.ones((2, 3))}, path, {"format": "mlx"})
    whole = bytearray(path.read_bytes())
    header, metadata = read_header(path), read_metadata(path)
    (length,) = struct.unpack("<Q", whole[:8])
    padding = len(whole[8 : 8 + length]) - len(bytes(whole[8 : 8 + length]).rstrip())
    silent = 0
    for bit in range((8 + length - padding) * 8):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        with suppress(CheckpointError):
            silent += (read_header(path), read_metadata(path)) == (header, metadata)
        whole[bit // 8] ^= 1 << bit % 8
    assert silent == 0


def test_a_missing_file_is_a_missing_model(tmp_path):
    with pytest.raises(ModelNotFoundError):
        read_header(tmp_path / "none.safetensors")


def test_a_named_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a file"):
        read_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
        (b"\xef\xbb\xbf\r\n<html><body>Sign in</body></html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "answer of a server"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"GGUF\x03\0\0\0" + bytes(60), "GGUF"),
        (b"Entry not found", "it is text, not the file itself: 'Entry not found'"),
        (
            b"Access to model o/m is restricted.\nSee",
            "it is text, not the file itself: 'Access to model o/m is restricted.'",
        ),
        ("Zugriff verweigert \u00fcber ".encode() + b"x" * 300, "it is text, not the file itself"),
        (b'{"error":"Repository not found"}', "answer of a server"),
        (b"\x80\x02}q\x00(X\x05\0\0\0model", "Python pickle"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
        (bytes(4096), "begins with zeros"),
    ],
)
def test_a_file_of_another_format_is_named_in_the_cause(start: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start)
    with pytest.raises(CheckpointError) as raised:
        read_header(path)
    assert kind in (raised.value.cause or "")
