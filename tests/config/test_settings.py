"""The configuration file, the environment, and the order in which values count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macllm.config.schema import SETTINGS
from macllm.config.settings import ConfigFile, Preset, config_path, from_environment, load, parse, resolve
from macllm.errors import UsageError

TEXT = """\
[chat]
model = "org/name"
adapter = "mine"
system = "Be brief."
max_tokens = 100
[sampling]
temperature = 0.5
top_k = 40
suppress_tokens = [1, 2]
[ui]
theme = "light"
[keys]
stop = "ctrl+x"
blocks.copy = "y"
[presets.code]
system = "Write code."
temperature = 0
[presets.empty]
"""


def read(text: str) -> ConfigFile:
    return parse(text, Path("/etc/config.toml"))


def test_a_file_is_read_into_tables() -> None:
    config = read(TEXT)
    assert config.values["sampling.temperature"] == 0.5
    assert config.values["sampling.suppress_tokens"] == (1, 2)
    assert config.keys == {"stop": "ctrl+x", "blocks.copy": "y"}
    assert config.presets["code"] == Preset("code", "Write code.", {"temperature": 0})
    assert config.presets["empty"] == Preset("empty")
    assert config.origin("ui.theme") == "/etc/config.toml, line 11"


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ('[chat]\n\nmodle = "a"', "line 3: unknown setting chat.modle", "chat.model"),
        ("[chat]\ntemperature = 1", "line 2: unknown setting chat.temperature", "sampling.temperature"),
        ("[sampling]\ntemprature = 1", "line 2: unknown setting sampling.temprature", "sampling.temperature"),
        ("[smapling]\ntop_k = 1", "line 1: unknown table [smapling]", "[sampling]"),
        ("[frobnicate]", "line 1: unknown table [frobnicate]", "one of [chat], [sampling], [ui], [keys], [presets]"),
        ('model = "a"', "line 1: unknown table [model]", "chat.model"),
        ("chat = 3", "line 1: chat: it is 3; it must be a table", None),
        ("[chat]\nmodel = 3", "line 2: chat.model: model is 3; it must be a text in quotes", None),
        ('[chat]\nplain = "yes"', "line 2: chat.plain: plain is 'yes'; it must be true or false", None),
        ("[chat]\nmax_tokens = 0", "chat.max_tokens: max_tokens is 0; it must be a whole number from 1", None),
        ("[sampling]\ntop_p = 1.5", "line 2: sampling.top_p: top_p is 1.5; it must be a number from 0 to 1", None),
        ("[sampling]\ntop_k = 1.5", "sampling.top_k: top_k is 1.5; it must be a whole number from 0", None),
        ("[sampling]\ntemperature = true", "temperature is True; it must be a number from 0 to 100", None),
        ("[sampling]\ntemperature = 1e-9", "it must be 0, or from 0.0001 to 100", "temperature 0 takes the likeliest"),
        ("[sampling]\nsuppress_tokens = ['a']", "sampling.suppress_tokens: suppress_tokens has 'a'", None),
        ('[ui]\ntheme = "drak"', "line 2: ui.theme: theme is 'drak'", "dark"),
        ("[keys]\nstop = 3", "line 2: keys.stop: it is 3", None),
        ("[presets]\ncode = 3", "line 2: presets.code: it is 3; it must be a table", None),
        ("[presets.code]\nsytem = 'a'", "line 2: unknown setting presets.code.sytem", "presets.code.system"),
        ("[presets.code]\ntop_p = 2", "line 2: presets.code.top_p: top_p is 2", None),
        ("[chat\nmodel = 3", "/etc/config.toml is not TOML", None),
    ],
)
def test_a_wrong_file_is_refused_with_line_key_and_the_nearest_name(
    text: str, message: str, remedy: str | None
) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert caught.value.message.startswith("/etc/config.toml")
    assert message in caught.value.message
    assert remedy is None or (caught.value.remedy or "").startswith(remedy)


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(UsageError, match="line 2") as caught:
        read("[chat]\nmodel = maclet\n")
    assert caught.value.exit_code == 2


def test_the_file_lies_in_the_home_of_macllm_or_in_xdg_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MACLLM_HOME", str(tmp_path))
    assert config_path() == tmp_path / "config.toml"
    monkeypatch.delenv("MACLLM_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert config_path() == tmp_path / "xdg" / "macllm" / "config.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert config_path() == Path.home() / ".config" / "macllm" / "config.toml"


def test_an_absent_file_is_empty_and_an_unreadable_one_an_error(tmp_path: Path) -> None:
    assert load(tmp_path / "config.toml") == ConfigFile(tmp_path / "config.toml")
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path)
    (tmp_path / "config.toml").write_bytes(b"[chat]\nmodel = '\xff'\n")
    with pytest.raises(UsageError, match="line 2: this is not UTF-8"):
        load(tmp_path / "config.toml")


def resolved(key: str, **options: Any) -> tuple[Any, str] | None:
    found = resolve(read(TEXT), options.pop("flags", {}), options.pop("environ", {}), **options)
    return (found[key].value, found[key].source) if key in found else None


def test_a_flag_wins_over_the_environment_and_that_over_the_file() -> None:
    key, environ = "sampling.temperature", {"MACLLM_TEMPERATURE": "0.8"}
    assert resolved(key) == (0.5, "/etc/config.toml, line 7")
    assert resolved(key, environ=environ) == (0.8, "environment MACLLM_TEMPERATURE")
    assert resolved(key, environ=environ, flags={key: 1.0}) == (1.0, "flag --temperature")
    assert resolved(key, flags={key: None}) == (0.5, "/etc/config.toml, line 7")
    assert resolved("sampling.min_p") is None


def test_a_preset_counts_where_it_is_named() -> None:
    key, environ = "sampling.temperature", {"MACLLM_TEMPERATURE": "0.8"}
    assert resolved(key, preset="code") == (0, "preset code, /etc/config.toml, line 17")
    assert resolved(key, preset="code", environ=environ) == (0, "preset code, /etc/config.toml, line 17")
    assert resolved(key, preset="code", flags={key: 1.0}) == (1.0, "flag --temperature")
    assert resolved(key, environ={"MACLLM_PRESET": "code"}) == (0, "preset code, /etc/config.toml, line 17")
    assert resolved(key, environ=environ | {"MACLLM_PRESET": "code"}) == (0.8, "environment MACLLM_TEMPERATURE")
    assert resolved("sampling.top_k", preset="code") == (40, "/etc/config.toml, line 8")
    assert resolved("chat.system", preset="code") == ("Write code.", "preset code, /etc/config.toml, line 16")


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no preset is named cod") as caught:
        resolved("chat.system", preset="cod")
    assert caught.value.remedy == "code"


def test_an_adapter_goes_with_its_model() -> None:
    assert resolved("chat.adapter") == ("mine", "/etc/config.toml, line 3")
    assert resolved("chat.adapter", flags={"chat.model": "other"}) is None
    assert resolved("chat.adapter", environ={"MACLLM_MODEL": "other"}) is None
    assert resolved("chat.adapter", flags={"chat.model": "other", "chat.adapter": "b"}) == ("b", "flag --adapter")
    assert resolved("chat.adapter", environ={"MACLLM_ADAPTER": "c"}) == ("c", "environment MACLLM_ADAPTER")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("MACLLM_PLAIN", "1", True),
        ("MACLLM_PLAIN", "off", False),
        ("MACLLM_SEED", "7", 7),
        ("MACLLM_TOP_P", "0.5", 0.5),
        ("MACLLM_SUPPRESS_TOKENS", "1,2", (1, 2)),
        ("MACLLM_MODEL", "", None),
    ],
)
def test_environment_variables_are_read_by_their_type(name: str, text: str, value: object) -> None:
    assert list(from_environment({name: text}).values()) == ([] if value is None else [value])


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(UsageError, match=r"MACLLM_TOP_P is '1,5'; it must be a number from 0 to 1"):
        from_environment({"MACLLM_TOP_P": "1,5"})


def test_no_two_settings_share_a_variable() -> None:
    assert len({each.variable for each in SETTINGS.values()}) == len(SETTINGS)
    taken = {"MACLLM_HOME", "MACLLM_METAL", "MACLLM_NATIVE", "MACLLM_NATIVE_CACHE"}
    assert taken.isdisjoint(each.variable for each in SETTINGS.values())
