"""`macllm models` against a hub on 127.0.0.1."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_commands import Outcome, run  # noqa: F401 - a fixture
from tests.hub.conftest import hub, model_files  # noqa: F401 - a fixture
from tests.hub.loopback import LoopbackHub, Repo

NAME = "org/tiny"
Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def served(hub: LoopbackHub) -> LoopbackHub:  # noqa: F811
    tags = ["safetensors", "license:apache-2.0", "4-bit"]
    hub.repos["org/tiny-4bit"] = Repo(model_files(), listing={"downloads": 12_345, "tags": tags})
    return hub


def test_get_verify_and_rm_print_json(run: Run) -> None:  # noqa: F811
    got = json.loads(run("models", "get", NAME, "--json").out)
    assert got == {"name": NAME, "path": run("models", "get", NAME).out.strip()}
    checks = json.loads(run("models", "verify", NAME, "--json").out)
    assert {check["file"]: check["status"] for check in checks} == dict.fromkeys(
        ("config.json", "model.safetensors", "tokenizer.json"), "ok"
    )
    assert json.loads(run("models", "rm", NAME, "--yes", "--json").out)["freed_bytes"] > 300_000


def test_rm_asks_and_removes_nothing_without_a_terminal(run: Run) -> None:  # noqa: F811
    run("models", "get", NAME)
    refused = run("models", "rm", NAME)
    assert (refused.code, "try: macllm models rm --yes org/tiny" in refused.err) == (2, True)
    assert run("models", "verify", NAME).code == 0
    assert run("models", "rm", "--yes", NAME).code == 0
    assert run("models", "rm", NAME).code == 3


def test_search_finds_models_by_words_with_their_licence_and_state(run: Run) -> None:  # noqa: F811
    run("models", "get", NAME)
    lines = run("models", "search", "org", "tiny").out.splitlines()
    assert lines[1].split() == ["org/tiny", "-", "0", "-", "on", "disk"]
    assert lines[2].split() == ["org/tiny-4bit", "4-bit", "12k", "apache-2.0", "remote"]
    found = json.loads(run("models", "search", "4bit", "--json").out)
    assert [(model["name"], model["is_here"]) for model in found] == [("org/tiny-4bit", False)]
    none = run("models", "search", "nothing")
    assert (none.code, none.out, "no model with nothing" in none.err) == (0, "", True)


def test_a_search_that_cannot_be_done_is_a_network_error(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    served: LoopbackHub,
) -> None:
    served.repos["org/tiny"].listing["id"] = 7
    invalid = run("models", "search", "tiny")
    assert (invalid.code, "invalid answer" in invalid.err) == (5, True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = run("models", "search", "tiny")
    assert (offline.code, "macllm is offline" in offline.err) == (5, True)


def test_default_is_printed_set_and_unset(run: Run) -> None:  # noqa: F811
    assert run("models", "default").out == "maclet\n"
    missing = run("models", "default", NAME)
    assert (missing.code, "try: macllm models get org/tiny" in missing.err) == (3, True)
    run("models", "get", NAME)
    assert run("models", "default", NAME).out == f"{NAME}\n"
    assert json.loads(run("models", "default", "--json").out)["name"] == NAME
    assert json.loads(run("config", "show", "chat.model", "--json").out)["chat.model"]["value"] == NAME
    assert run("models", "default", "--unset").out == "maclet\n"


def test_names_of_folders_cannot_command_the_terminal(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MACLLM_MODELS", str(tmp_path))
    lines = len(run("models", "ls").out.splitlines())
    for name in (b"\x1b[31mred\nline", b"\xff\xfe"):
        (tmp_path / os.fsdecode(name)).mkdir()
        (tmp_path / os.fsdecode(name) / "config.json").write_text('{"model_type": "\\ud800"}')
    listed = run("models", "ls")
    assert (listed.code, "\x1b" in listed.out, len(listed.out.splitlines())) == (0, False, lines + 2)
    listed.out.encode()
