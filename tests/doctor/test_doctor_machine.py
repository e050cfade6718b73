"""`macllm doctor` reports memory, disk, terminal and caches; on a Mac also the GPU's limits."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from macllm.cli import main
from macllm.doctor import machine as doctor_machine


def report(**environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "macllm", "doctor", "--json"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_facts_have_memory_disk_and_caches(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    facts = report(HF_HUB_CACHE=str(tmp_path / "hub"))
    assert 0 < facts["disk"]["free_bytes"] <= facts["disk"]["size_bytes"]
    assert facts["paths"]["model_cache"] == str(tmp_path / "hub")
    assert (facts["paths"]["cached_models"], facts["paths"]["cached_bytes"]) == (0, 0)
    assert facts["memory"]["used_by_mlx_bytes"] >= 0
    if sys.platform == "linux":
        assert 0 < facts["memory"]["available_bytes"] <= facts["machine"]["memory_bytes"]
        assert facts["metal"] == {"used": "no: they need a Mac"}


def test_a_containers_memory_limit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/sys/fs/cgroup/memory.max": "4096\n", "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   8 kB\n"}
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *how, **_: files.get(str(path)) or read(path, *how))
    memory = doctor_machine.facts()["memory"]
    assert (memory["container_limit_bytes"], memory["available_bytes"]) == (4096, 8192)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert "container_limit_bytes" not in doctor_machine.facts()["memory"]


def test_a_gpus_memory_limits_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"max_recommended_working_set_size": 12_000_000_000, "max_buffer_length": 9_000_000_000, "device_name": "M"}
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: info)
    facts = doctor_machine.facts()
    assert facts["memory"]["gpu_recommended_bytes"] == 12_000_000_000
    assert facts["memory"]["gpu_largest_array_bytes"] == 9_000_000_000
    assert facts["mlx"]["chip"] == "M"


@pytest.mark.parametrize(
    ("environment", "colours"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "16 million"),
        ({"TERM": "screen-256color"}, "256"),
        ({"TERM": "xterm"}, "16"),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, "none: TERM names no terminal"),
        ({}, "none: TERM names no terminal"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "none: NO_COLOR is set"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_colours_follow_the_environment(
    environment: dict[str, str], colours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert doctor_machine.facts()["terminal"]["colours"] == colours


def test_a_pipe_is_no_terminal() -> None:
    terminal = report(TERM="xterm", TMUX="")["terminal"]
    assert (terminal["terminals"], terminal["size"], terminal["kind"]) == ("none", None, "xterm")
    assert report(TMUX="/tmp/tmux-0/default,1,0")["terminal"]["inside"] == "tmux"


def test_a_terminal_has_a_size() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    command = [sys.executable, "-m", "macllm", "doctor"]
    names = "COLUMNS", "LINES", "NO_COLOR", "COLORTERM"
    environment = {name: value for name, value in os.environ.items() if name not in names}
    process = subprocess.Popen(
        command, env=environment | {"TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    output = b""
    try:
        while some := os.read(ours, 4096):
            output += some
    except OSError:  # Linux's sign that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    lines = [line.split(maxsplit=1) for line in output.decode().splitlines()]
    assert ["terminals", "stdin, stdout, stderr"] in lines
    assert ["size", "111 x 33"] in lines
    assert ["colours", "256"] in lines


def test_help_says_how_long_each_option_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("for a bug report", "Takes some minutes", "without names or paths", "(Linux)", "Print one JSON"):
        assert word in text


def test_a_token_is_found_where_downloads_find_it(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))

    def token() -> str:
        return doctor_machine.facts()["paths"]["hub_token"]

    assert token() == "not set"
    (tmp_path / "token").write_text("hf_secret\n")
    assert token() == "set"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert token() == "not used: HF_HUB_DISABLE_IMPLICIT_TOKEN"
    (tmp_path / "token").unlink()
    monkeypatch.delenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert token() == "set"
