from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macllm.errors import CheckpointError, DoesNotFitError, ModelNotFoundError
from macllm.weights.safetensors import load_file, load_folder, read_header, read_metadata, save_file, save_folder

INDEX = "model.safetensors.index.json"


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "F32", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def same(left: mx.array, right: mx.array) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bool(mx.array_equal(left, right))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def every_dtype() -> dict[str, mx.array]:
    rows = np.arange(-6, 6).reshape(3, 4)
    kinds = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
    kinds += ["float16", "bfloat16", "float32", "complex64"]
    tensors = {kind: mx.array(np.abs(rows)).astype(getattr(mx, kind)) for kind in kinds}
    return tensors | {
        "bool": mx.array([[True, False, True]]),
        "scalar": mx.array(2.5),
        "empty": mx.zeros((0, 3)),
        "strided": mx.array(rows.astype(np.float32)).T,
        'näme with "quotes" and \\': mx.array([1.0]),
    }


# Reading


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    tensors = every_dtype()
    save_file(tensors, tmp_path / "x.safetensors", {"format": "mlx"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(loaded[name], tensor), name


def test_loading_reads_no_data_until_an_array_is_evaluated(tmp_path):
    path = tmp_path / "model.safetensors"
    size = 64_000_000
    write_raw(path, {"w": entry(0, size, "U8", [size])})
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + size)
    before = mx.get_active_memory()
    tensors = load_folder(tmp_path)
    assert tensors["w"].shape == (size,)
    assert mx.get_active_memory() - before < 1000
    mx.eval(tensors["w"])
    assert mx.get_active_memory() - before >= size


def test_float64_becomes_float32_and_its_neighbours_stay(tmp_path):
    values = np.array([1.5, -2.25, 1e-3])
    data = values.tobytes() + np.array([7, 2**40], "<i8").tobytes() + np.array([0x3FC0, 0x4000], "<u2").tobytes()
    path = write_raw(
        tmp_path / "model.safetensors",
        {"d": entry(0, 24, "F64", [3, 1]), "i": entry(24, 40, "I64", [2]), "h": entry(40, 44, "BF16", [2])},
        data,
    )
    loaded = load_file(path)
    assert same(loaded["d"], mx.array(values.astype(np.float32)).reshape(3, 1))
    assert same(loaded["i"], mx.array([7, 2**40], dtype=mx.int64))
    assert same(loaded["h"], mx.array([1.5, 2.0], dtype=mx.bfloat16))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"])
def test_floats_of_eight_bits_and_less_are_refused_not_taken_for_integers(tmp_path, dtype):
    path = write_raw(tmp_path / "model.safetensors", {"w": entry(0, 4, dtype, [8 if dtype == "F4" else 4])}, bytes(4))
    with pytest.raises(CheckpointError, match=f"'w' is stored as {dtype}"):
        load_file(path)


def test_shards_without_an_index_and_old_names_are_found(tmp_path):
    save_file({"a": mx.ones(1)}, tmp_path / "weights.00.safetensors")
    save_file({"b": mx.ones(1)}, tmp_path / "weights.01.safetensors")
    assert load_folder(tmp_path).keys() == {"a", "b"}
    save_file({"c": mx.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"d": mx.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    assert load_folder(tmp_path).keys() == {"c", "d"}
    save_file({"e": mx.ones(1)}, tmp_path / "model.safetensors")
    assert load_folder(tmp_path).keys() == {"e"}


def test_a_folder_without_weights_is_an_error_that_names_the_expected_file(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors") as caught:
        load_folder(tmp_path)
    assert caught.value.exit_code == 3


def test_one_tensor_in_two_shards_is_refused(tmp_path):
    save_file({"a": mx.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"a": mx.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="'a' is in two files"):
        load_folder(tmp_path)


# The index


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "sharded"
    save_folder({f"t{i}": mx.full((10,), i, dtype=mx.float32) for i in range(5)}, folder, max_shard_bytes=80)
    return folder


def rewrite_index(folder: Path, **weight_map: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].update(weight_map)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/../../outside.safetensors", "", "..", "a\0b", "link.safetensors"],
)
def test_an_index_that_points_outside_its_folder_is_refused(sharded, name):
    save_file({"t0": mx.ones(1)}, sharded.parent / "outside.safetensors")
    (sharded / "link.safetensors").symlink_to(sharded.parent / "outside.safetensors")
    rewrite_index(sharded, t0=name)
    with pytest.raises(CheckpointError, match="outside of the model folder"):
        load_folder(sharded)


def test_the_links_of_the_hugging_face_cache_are_followed(sharded, tmp_path):
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, path in enumerate(sorted(sharded.iterdir())):
        path.rename(repo / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert len(load_folder(snapshot)) == 5
    link = tmp_path / "mine"
    link.symlink_to(snapshot)
    assert len(load_folder(link)) == 5


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 3 weight files are missing, the first is model-00002-of-00003"):
        load_folder(sharded)


def test_a_single_file_wins_over_an_index_whose_shards_are_missing(sharded):
    for path in sharded.glob("model-*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="3 of 3"):
        load_folder(sharded)
    save_file({"whole": mx.ones(1)}, sharded / "model.safetensors")
    assert load_folder(sharded).keys() == {"whole"}


def test_a_tensor_that_is_not_in_its_indexed_shard_is_named(sharded):
    first = sorted(load_file(sharded / "model-00001-of-00003.safetensors"))[0]
    rewrite_index(sharded, **{first: "model-00002-of-00003.safetensors"})
    with pytest.raises(CheckpointError, match=rf"'{first}' is not in model-00002-of-00003"):
        load_folder(sharded)


def test_a_tensor_that_only_the_index_lists_is_logged(sharded, caplog):
    """The second name of a tied matrix, stored once; a model that needs the tensor fails to load."""
    names = load_folder(sharded).keys()
    rewrite_index(sharded, absent="model-00002-of-00003.safetensors")
    assert load_folder(sharded).keys() == names
    assert "'absent' is not in model-00002-of-00003" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"t0": "model-00001-of-00003.safetensors", "t0": "model-00001-of-00003.safetensors"}}',
        "[" * 100_000,
    ],
)
def test_an_unsound_index_is_refused(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is not a valid index"):
        load_folder(sharded)


# Writing


def test_a_small_model_is_one_file_without_an_index(tmp_path):
    assert save_folder(every_dtype(), tmp_path / "deep" / "model") == [
        tmp_path / "deep" / "model" / "model.safetensors"
    ]
    assert names(tmp_path / "deep" / "model") == {"model.safetensors"}
    assert read_metadata(tmp_path / "deep" / "model" / "model.safetensors") == {"format": "mlx"}


def test_shards_stay_below_their_limit_and_the_index_names_each_tensor(sharded):
    assert sorted(names(sharded)) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + [INDEX]
    index = json.loads((sharded / INDEX).read_text())
    assert index["metadata"] == {"total_parameters": 50, "total_size": 200}
    for name, shard in index["weight_map"].items():
        assert name in read_header(sharded / shard)
    for name, tensor in load_folder(sharded).items():
        assert same(tensor, mx.full((10,), int(name[1]), dtype=mx.float32))


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path):
    save_folder({"a": mx.zeros(100), "b": mx.zeros(1), "c": mx.zeros(1)}, tmp_path, max_shard_bytes=8)
    assert {name: len(read_header(tmp_path / name)) for name in names(tmp_path) if name != INDEX} == {
        "model-00001-of-00002.safetensors": 1,
        "model-00002-of-00002.safetensors": 2,
    }


def test_the_same_tensors_give_the_same_bytes_whatever_their_order(tmp_path):
    tensors = every_dtype()
    save_file(tensors, tmp_path / "a", {"x": "1", "a": "2"})
    save_file(dict(reversed(tensors.items())), tmp_path / "b", {"a": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    for info in read_header(tmp_path / "a").values():
        width = info.size_bytes // max(1, np.prod(info.shape, dtype=int)) or 1
        assert info.offset_bytes % width == 0


def test_lazily_loaded_weights_can_be_saved_over_their_own_folder(sharded):
    lazy = load_folder(sharded)
    save_folder(lazy | {"t0": lazy["t0"] + 1}, sharded)
    assert names(sharded) == {"model.safetensors"}
    again = load_folder(sharded)
    assert [again[f"t{i}"][0].item() for i in range(5)] == [1, 1, 2, 3, 4]
    save_folder(again, sharded, max_shard_bytes=40)
    assert len(names(sharded)) == 6
    assert [load_folder(sharded)[f"t{i}"][0].item() for i in range(5)] == [1, 1, 2, 3, 4]


def test_saving_removes_only_the_weights_it_replaces(tmp_path):
    for name in ("config.json", "adapters.safetensors", "model-mine.safetensors", "model.safetensors.old"):
        (tmp_path / name).write_bytes(b"keep")
    save_folder({"a": mx.zeros(10)}, tmp_path, max_shard_bytes=8)
    save_folder({"a": mx.zeros(10), "b": mx.zeros(10)}, tmp_path, max_shard_bytes=8)
    save_folder({"a": mx.zeros(10)}, tmp_path)
    kept = {"config.json", "adapters.safetensors", "model-mine.safetensors", "model.safetensors.old"}
    assert names(tmp_path) == kept | {"model.safetensors"}


@pytest.mark.parametrize(("old_bytes", "new_bytes"), [(40, 10**9), (10**9, 40), (40, 80), (10**9, 10**9)])
def test_a_save_interrupted_between_two_files_leaves_the_old_or_the_new(tmp_path, monkeypatch, old_bytes, new_bytes):
    steps = 0

    def interrupting(act, last):
        def step(path, *args, **options):
            nonlocal steps
            steps += not path.name.endswith(".tmp") or act is replace
            if steps == last:
                raise KeyboardInterrupt
            return act(path, *args, **options)

        return step

    replace, unlink = Path.replace, Path.unlink
    found = []
    for last in range(1, 20):
        folder, steps = tmp_path / str(last), 0
        save_folder({f"t{i}": mx.zeros(10) for i in range(3)}, folder, max_shard_bytes=old_bytes)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interrupting(replace, last))
            patch.setattr(Path, "unlink", interrupting(unlink, last))
            try:
                save_folder({f"t{i}": mx.ones(10) for i in range(3)}, folder, max_shard_bytes=new_bytes)
            except KeyboardInterrupt:
                pass
            else:
                break
        read = load_folder(folder)
        assert read.keys() == {"t0", "t1", "t2"}
        (value,) = {float(tensor[0].item()) for tensor in read.values()}
        found.append(value)
    assert found == sorted(found)
    assert found[0] == 0.0
    assert last < 19


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_an_interrupted_save_over_shards_of_the_same_name_is_an_error_until_it_is_repeated(tmp_path, monkeypatch, last):
    old, new = ({f"t{i}": value(10) for i in range(3)} for value in (mx.zeros, mx.ones))
    save_folder(old, tmp_path, max_shard_bytes=40)
    replace, steps = Path.replace, iter(range(1, 9))

    def interrupting(path, target):
        if next(steps) == last:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupting)
        with pytest.raises(KeyboardInterrupt):
            save_folder(new, tmp_path, max_shard_bytes=40)
    with pytest.raises(CheckpointError, match="has weights of two checkpoints"):
        load_folder(tmp_path)
    save_folder(new, tmp_path, max_shard_bytes=40)
    assert all(tensor.tolist() == [1.0] * 10 for tensor in load_folder(tmp_path).values())
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize("shard_bytes", [10**9, 40])
def test_weights_are_synced_before_they_are_renamed_into_place(tmp_path, monkeypatch, shard_bytes):
    synced, unready, sync, replace = set(), [], os.fsync, Path.replace

    def note(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def named(path, target):
        if path.stat().st_ino not in synced:
            unready.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "replace", named)
    save_folder({f"t{i}": mx.ones(10) for i in range(3)}, tmp_path, max_shard_bytes=shard_bytes)
    assert unready == []
    assert tmp_path.stat().st_ino in synced
    synced.clear()
    save_file({"a": mx.ones(3)}, tmp_path / "cache.safetensors")
    assert unready == []
    assert tmp_path.stat().st_ino in synced


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_full_disk_leaves_the_folder_as_it_was(sharded, monkeypatch, failing):
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}
    calls = 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DoesNotFitError, match="is full") as caught:
        save_folder({f"t{i}": mx.zeros(10) for i in range(5)}, sharded, max_shard_bytes=80)
    assert caught.value.exit_code == 4
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before


def test_a_file_size_limit_leaves_no_files(tmp_path):
    program = f"""
import resource, signal, sys
import mlx.core as mx
from macllm.errors import DoesNotFitError
from macllm.weights.safetensors import save_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_folder({{"a": mx.zeros(1000), "b": mx.zeros(100_000)}}, {str(tmp_path)!r}, max_shard_bytes=5000)
except DoesNotFitError as error:
    sys.exit(error.exit_code)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 4
    assert names(tmp_path) == set()


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        save_folder({"a": mx.zeros(10)}, tmp_path)
    assert names(tmp_path) == set()


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write weights"):
        save_folder({"a": mx.zeros(1)}, tmp_path / "file" / "model")


@pytest.mark.parity
def test_the_safetensors_library_reads_our_files_and_we_read_its_files(tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file as reference_save
    from safetensors.torch import load_file as reference_load

    tensors = every_dtype()
    save_file(tensors, tmp_path / "ours", {"format": "pt"})
    theirs = reference_load(tmp_path / "ours")
    assert theirs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        kind = str(theirs[name].dtype).removeprefix("torch.")
        assert str(tensor.dtype) == f"mlx.core.{kind}"
        assert tuple(theirs[name].shape) == tensor.shape
        assert theirs[name].reshape(-1).tolist() == tensor.reshape(-1).tolist(), name
    with safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    arrays = {f"a{kind}": np.arange(6, dtype=kind).reshape(2, 3) for kind in ("f4", "f8", "i8", "u1", "i2")}
    reference_save(arrays, tmp_path / "theirs")
    loaded = load_file(tmp_path / "theirs")
    for name, array in arrays.items():
        assert np.array_equal(np.array(loaded[name]), array)


def test_a_file_that_mlx_saved_without_metadata_loads(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a": mx.arange(3)})
    assert read_metadata(tmp_path / "model.safetensors") == {}
    assert load_folder(tmp_path)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "Git LFS pointer"),
        ("{}", "it has no weight_map"),
    ],
)
def test_an_unsound_index_is_refused_with_its_cause(text: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a valid index") as raised:
        load_folder(tmp_path)
    assert cause in (raised.value.cause or "")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), "model.safetensors.index.json"),
        (("model-Q4_K_M.gguf", "._model-Q4_K_M.gguf"), "only model-Q4_K_M.gguf"),
        (("pytorch_model.bin", "consolidated.safetensors"), "only consolidated.safetensors, pytorch_model.bin"),
        (tuple(f"pytorch_model-{n}.bin" for n in range(5)), "only pytorch_model-0.bin, pytorch_model-1.bin and 3 more"),
    ],
)
def test_weights_in_another_layout_are_named(names: tuple[str, ...], told: str, tmp_path: Path) -> None:
    for name in (*names, "training_args.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match="has no weights") as caught:
        load_folder(tmp_path)
    assert (caught.value.cause or "").endswith(told)
