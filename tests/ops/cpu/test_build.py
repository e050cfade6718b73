"""Compilation of the kernels: once, complete, by one process at a time, without leftovers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from macllm.ops.cpu import build, machine
from tests.compiling import cache_files, cached_objects, running_compilers, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux")

Compiler = Callable[[float], Path]
SHOW = """if True:
    from macllm.ops import cpu
    notice = cpu.prepare(lambda done, total: None)
    if notice:
        cpu.log.warning(notice)
    print(cpu.available(), cpu.available(), cpu.reason())
"""
SERVED = "True True None\n"
NOTICE = "without native CPU kernels, slower: "


def start(code: str = SHOW, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str = SHOW, **environment: str) -> tuple[str, str]:
    with start(code, **environment) as process:
        told = process.communicate()
    assert process.returncode == 0, told
    return told


def test_two_processes_at_once_compile_once(compiler: Compiler) -> None:
    log = compiler(0.05)
    processes = [start(), start()]
    assert [process.communicate(timeout=100) for process in processes] == [(SERVED, "")] * 2
    files = len(build.KERNELS) + len(list(build.HERE.glob("bindings/*.cpp"))) + 1
    assert len(log.read_text().split()) == files + 1
    assert cache_files() == ["lock", build.library().name]
    assert run() == (SERVED, "")
    assert len(log.read_text().split()) == files + 1


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed"])
def test_a_damaged_module_is_compiled_again(damage: str, compiler: Compiler) -> None:
    log = compiler(0)
    run()
    module, before = build.library(), len(log.read_text().split())
    content = module.read_bytes()
    half = len(content) // 2
    damaged = {"cut": content[:half], "emptied": b"", "changed": content[:half] + b"?" * 99 + content[half + 99 :]}
    module.write_bytes(damaged[damage])
    assert not build.whole(module)
    assert run() == (SERVED, "")
    assert module.read_bytes() == content
    assert len(log.read_text().split()) == before + 1  # the linker


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed", "sealed"])
def test_a_damaged_object_file_is_compiled_again(damage: str, compiler: Compiler) -> None:
    """Also one that was damaged before it was sealed, which only the linker detects."""
    log, script = compiler(0), Path(os.environ["CXX"])
    links = 'grep -qs xyzzy -- "$@" && { echo error: not an object >&2; exit 1; }'
    script.write_text(script.read_text().replace("sleep", f"{links}\nsleep"))
    run()
    before, path = len(log.read_text().split()), build.objects()[3].path
    content = path.read_bytes()
    damaged = {"cut": content[:-1], "emptied": b"", "changed": b"?" + content[1:], "sealed": b"xyzzy"}
    path.write_bytes(damaged[damage])
    if damage == "sealed":
        build.seal(path)
    build.library().unlink()
    assert run() == (SERVED, "")
    assert len(log.read_text().split()) == before + (2 if damage != "sealed" else before + 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_leaves_no_files_and_no_compilers(number: signal.Signals, compiler: Compiler) -> None:
    log = compiler(60)
    command = [sys.executable, "-m", "macllm", "doctor", "--build"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: running_compilers(log))
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    assert process.returncode in (130, 143)
    assert "Traceback" not in told
    assert not running_compilers(log)
    assert cache_files() == ["lock"]


def test_a_killed_process_ends_its_compilers_and_the_next_removes_its_files(compiler: Compiler) -> None:
    log = compiler(60)
    with start() as process:
        wait_for(lambda: running_compilers(log))
        process.kill()
    wait_for(lambda: not running_compilers(log) and cache_files() == ["lock"])
    (build.library().parent / "tmpleft").mkdir()
    compiler(0)
    assert run() == (SERVED, "")
    assert cache_files() == ["lock", build.library().name]


def test_an_interrupted_compilation_continues_from_its_finished_files(compiler: Compiler) -> None:
    log = compiler(0.2)
    with start() as process:
        wait_for(lambda: len(cached_objects()) > 3)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    done, made = len(cached_objects()), len(log.read_text().split())
    assert not running_compilers(log)
    assert cache_files() == ["lock"]
    compiler(0)
    assert run() == (SERVED, "")
    assert len(log.read_text().split()) - made == len(build.objects()) + 1 - done
    assert cached_objects() == sorted(Path(part.arguments[1]).stem for part in build.objects())


def test_old_object_files_of_a_source_are_removed(compiler: Compiler) -> None:
    compiler(0)
    folder = build.objects()[0].path.parent
    folder.mkdir(parents=True)
    for number in range(5):
        (folder / f"rope-{number}.o").touch()
        os.utime(folder / f"rope-{number}.o", (number, number))
    run()
    assert sorted(path.name for path in folder.glob("rope-?.o")) == ["rope-3.o", "rope-4.o"]


def test_a_failing_compiler_is_reported_once_and_stops_the_others(compiler: Compiler) -> None:
    log = compiler(60)
    path = Path(os.environ["CXX"])
    fails = f"case $* in *{build.KERNELS[0]}.cpp*) echo oh, an error >&2; exit 1;; esac"
    path.write_text(path.read_text().replace("sleep", f"{fails}\nsleep"))
    out, told = run()
    assert out == "False False the compiler failed: oh, an error\n"
    assert told.count(NOTICE) == 1
    assert not running_compilers(log)
    assert cache_files() == ["lock"]


@pytest.mark.parametrize("folder", ["/proc/kernels", "/dev/null/kernels"])
def test_an_unwritable_cache_is_reported_once(folder: str) -> None:
    out, told = run(MACLLM_NATIVE_CACHE=folder)
    assert out.startswith(f"False False cannot write {folder}")
    assert told.count(NOTICE) == 1
    assert "MACLLM_NATIVE_CACHE" in told


def in_a_mount(options: str, folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where `folder` is mounted for it alone. Skips where that is not allowed."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    script = f"mount {options} {folder} && {command}"
    environment = os.environ | {"MACLLM_NATIVE_CACHE": str(folder)}
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], env=environment, capture_output=True, text=True)


def test_a_full_disk_is_reported_once(tmp_path: Path, compiler: Compiler) -> None:
    compiler(0)
    small = tmp_path / "small"
    small.mkdir()
    done = in_a_mount("-t tmpfs -o size=64k tmpfs", small, f"'{sys.executable}' -c '{SHOW}'; ls {small}/*")
    assert "No space left on device" in done.stdout
    assert done.stdout.startswith("False False")
    assert done.stderr.count(NOTICE) == 1
    left = done.stdout.split("\n", 1)[1].replace(str(small), "")
    assert ".so" not in left
    assert "tmp" not in left


def test_a_compiled_module_in_a_read_only_cache_is_used(tmp_path: Path, compiler: Compiler) -> None:
    compiler(0)
    run()
    cache = build.cache_folder()
    read_only = f"--bind {cache} {cache} && mount -o remount,ro,bind"
    done = in_a_mount(read_only, cache, f"touch {cache}/x; '{sys.executable}' -c '{SHOW}'")
    assert done.stdout == SERVED
    assert "Read-only" in done.stderr
    build.library().unlink()
    done = in_a_mount(read_only, cache, f"'{sys.executable}' -c '{SHOW}'")
    assert done.stdout.startswith("False False cannot write")
    assert done.stderr.count(NOTICE) == 1


def test_another_cpu_compiler_or_instruction_set_has_another_module(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [build.library()]
    compiler(0)
    monkeypatch.setenv("MACLLM_NATIVE_CACHE", str(paths[0].parent.parent))
    paths.append(build.library())
    monkeypatch.setenv("MACLLM_NATIVE_ARCH", "x86-64-v3")
    paths.append(build.library())
    monkeypatch.setenv("MACLLM_NATIVE_FLAGS", "-g")
    paths.append(build.library())
    monkeypatch.setattr(build, "_cpu", lambda: "model name: another")
    paths.append(build.library())
    assert len(set(paths)) == len(paths)


@pytest.mark.skipif(build.platform.machine() != "x86_64", reason="these are names of x86")
def test_the_instruction_set_is_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("x86-64-v4", "x86-64-v3", "x86-64-v2"):
        monkeypatch.setenv("MACLLM_NATIVE_ARCH", name)
        found.append(build.instruction_set())
    assert found == ["AVX-512", "AVX2", "plain"]
    monkeypatch.setenv("MACLLM_NATIVE_ARCH", "pdp-11")
    with pytest.raises(build.BuildError, match="pdp-11"):
        build.instruction_set()


ANSWER = ("generate", "--json", "--temperature", "0", "-n", "12", "What is a KV cache?")


def answer(**environment: str) -> tuple[dict[str, object], str]:
    command = [sys.executable, "-m", "macllm", *ANSWER]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


def test_the_answer_is_equal_without_a_compiler_and_with_an_unwritable_cache() -> None:
    want, told = answer()
    assert not told
    for environment, notices in (
        ({"PATH": "/nowhere", "CXX": ""}, 1),
        ({"MACLLM_NATIVE_CACHE": "/proc/kernels"}, 1),
        ({"MACLLM_NATIVE": "0"}, 0),
    ):
        got, told = answer(**environment)
        assert got["text"] == want["text"]
        assert len(told.splitlines()) == told.count(NOTICE) == notices, told


@pytest.mark.parametrize(
    ("asked", "threads"),
    [
        ("3", 3),
        ("0", 1),
        ("100000", 1024),
        ("1" + "0" * 30, 1024),
        ("-3", None),
        ("²", None),
        ("abc", None),
        ("", None),
    ],
)
def test_threads_follow_omp_num_threads_up_to_a_limit(
    asked: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert machine.compute_threads() == (machine.physical_cores() if threads is None else threads)
