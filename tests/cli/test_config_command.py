"""`macllm config`, and the settings as defaults of `chat` and `generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from macllm.chat.options import ChatOptions
from macllm.cli import main
from macllm.config.settings import config_path

TEXT = """\
# Mine
[chat]
system = "Be brief."
[sampling]
temperature = 0.25  # cool
top_k = 5
[keys]
stop = "ctrl+x"
[presets.code]
system = "Write code."
seed = 3
"""


@pytest.fixture
def file() -> Path:
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEXT)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[Any, str]]:
    values = json.loads(run(capsys, "config", "show", "--json", *arguments))
    return {key: (found["value"], found["origin"]) for key, found in values.items()}


def test_the_path_is_printed_before_the_file_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "config", "path") == f"{config_path()}\n"
    assert not config_path().exists()


def test_every_value_is_shown_with_its_origin(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACLLM_TOP_P", "0.5")
    found = shown(capsys, "--preset", "code")
    assert found["sampling.temperature"] == (0.25, f"{file}, line 5")
    assert found["sampling.top_p"] == (0.5, "environment MACLLM_TOP_P")
    assert found["sampling.seed"] == (3, f"preset code, {file}, line 11")
    assert found["chat.system"] == ("Write code.", f"preset code, {file}, line 10")
    assert found["chat.preset"] == ("code", "flag --preset")
    assert found["sampling.min_p"] == (0.0, "generation_config.json of maclet")
    assert found["sampling.xtc_probability"] == (0.0, "default")
    assert found["keys.chat.stop"] == ("ctrl+x", f"{file}, line 8")
    assert found["keys.chat.help"] == ("f1", "default")
    assert found["presets.code.seed"] == (3, f"{file}, line 11")


def test_a_model_brings_its_generation_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "top_k": 7}')
    found = shown(capsys, "--model", str(tmp_path))
    assert found["sampling.top_k"] == (7, f"generation_config.json of {tmp_path}")
    assert found["chat.model"] == (str(tmp_path), "flag --model")


@pytest.mark.parametrize(("key", "rows"), [("sampling.temperature", 1), ("ui", 2), ("keys.stop", 1)])
def test_one_setting_or_table_is_shown(capsys: pytest.CaptureFixture[str], file: Path, key: str, rows: int) -> None:
    out = run(capsys, "config", "show", key)
    assert len(out.splitlines()) == rows
    assert {"ui": '"auto"', "keys.stop": '"ctrl+x"'}.get(key, "0.25") in out


def test_an_unknown_setting_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "unset"):
        err = run(capsys, "config", command, "sampling.temprature", code=2)
        assert "temprature" in err
    assert "try: sampling.temperature" in run(capsys, "config", "set", "sampling.temprature", "1", code=2)
    assert "try: sampling.temperature" in run(capsys, "config", "show", "temprature", code=2)


def test_values_are_set_and_unset_in_the_file(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    run(capsys, "config", "set", "sampling.temperature", "0.75")
    run(capsys, "config", "set", "chat.plain", "yes")
    run(capsys, "config", "set", "presets.code.top_p", "0.5")
    run(capsys, "config", "set", "keys.send", "alt+s")
    run(capsys, "config", "unset", "sampling.top_k")
    changed = TEXT.replace("0.25", "0.75").replace("top_k = 5\n", "")
    changed = changed.replace('brief."\n', 'brief."\nplain = true\n').replace('x"\n', 'x"\nsend = "alt+s"\n')
    assert file.read_text() == changed + "top_p = 0.5\n"


def test_the_first_setting_makes_the_file_and_a_link_stays_a_link(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(capsys, "config", "set", "ui.theme", "light")
    assert config_path().read_text() == '[ui]\ntheme = "light"\n'
    config_path().rename(tmp_path / "dotfile")
    config_path().symlink_to(tmp_path / "dotfile")
    run(capsys, "config", "set", "ui.theme", "dark")
    assert config_path().is_symlink()
    assert (tmp_path / "dotfile").read_text() == '[ui]\ntheme = "dark"\n'


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ui.theme", "drak", "try: dark"),
        ("sampling.top_p", "2", "it must be a number from 0 to 1"),
        ("keys.stop", "ctrl+i", "terminals send the same"),
        ("keys.stpo", "ctrl+x", "did you mean stop?"),
        ("theme", "dark", "try: ui.theme"),
    ],
)
def test_a_wrong_value_is_refused_and_the_file_stays(
    capsys: pytest.CaptureFixture[str], file: Path, key: str, value: str, message: str
) -> None:
    assert message in run(capsys, "config", "set", key, value, code=2)
    assert file.read_text() == TEXT


def options_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> ChatOptions:
    seen: list[ChatOptions] = []
    monkeypatch.setattr("macllm_tui.run_chat", lambda options, opener: seen.append(options) or 0)
    assert main(["chat", *arguments]) == 0
    return seen[0]


def test_chat_takes_its_defaults_from_the_file(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    options = options_of(monkeypatch, "hello")
    assert (options.system, options.sampling, options.plain, options.theme) == (
        "Be brief.", {"temperature": 0.25, "top_k": 5}, False, "auto",
    )  # fmt: skip
    assert options.config.keys == {"stop": "ctrl+x"}
    options = options_of(monkeypatch, "--preset", "code", "--top-k", "0", "--theme", "light", "--plain")
    assert options.preset is not None
    assert options.preset.name == "code"
    assert (options.system, options.seed, options.theme, options.plain) == ("Write code.", 3, "light", True)
    assert options.sampling == {"temperature": 0.25, "top_k": 0}


def test_a_flag_turns_off_what_the_file_turns_on(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text("[chat]\nplain = true\n")
    assert options_of(monkeypatch).plain
    assert not options_of(monkeypatch).sidebar
    monkeypatch.setenv("MACLLM_SIDEBAR", "1")
    assert options_of(monkeypatch).sidebar
    assert not options_of(monkeypatch, "--no-plain").plain


@pytest.mark.parametrize("command", [["chat", "hello"], ["generate", "hello"]])
def test_a_wrong_file_stops_a_command_with_its_line(
    capsys: pytest.CaptureFixture[str], file: Path, command: list[str]
) -> None:
    file.write_text("[chat]\nmodle = 3\n")
    err = run(capsys, *command, code=2)
    assert "config.toml, line 2: unknown setting chat.modle" in err
    assert "try: chat.model" in err


def test_generate_takes_model_and_sampling_but_not_the_settings_of_chats(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("macllm.cli.generate._run", lambda text, options: seen.append(options))
    monkeypatch.setenv("MACLLM_PLAIN", "neither")
    monkeypatch.setenv("MACLLM_MODEL", "org/other")
    file.write_text(TEXT.replace("[chat]", '[chat]\npreset = "code"\nmax_tokens = 3'))
    run(capsys, "generate", "hello", "--top-k", "1")
    assert (seen[0].model, seen[0].system) == ("org/other", None)
    assert seen[0].request == {"temperature": 0.25, "top_k": 1}
