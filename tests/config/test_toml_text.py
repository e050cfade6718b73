"""Editing TOML by hand: lines are found, and an edit changes nothing else."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macllm.config.toml_text import line_numbers, with_value, without_value
from macllm.errors import UsageError

TEXT = """\
# My settings
[chat]
model = "org/name"   # don't "change" this # really
system = '''
You are
[not a table]
terse.'''

[sampling]
temperature = 0.5
suppress_tokens = [
  1,  # one
  2,
]

# The end
[presets.code]
temperature = 0
"""


def test_each_key_is_found_on_its_line() -> None:
    lines = line_numbers(TEXT)
    assert lines["chat", "model"] == 3
    assert lines["chat", "system"] == 4
    assert lines["sampling", "suppress_tokens"] == 11
    assert lines["presets", "code"] == 17
    assert ("not a table",) not in lines


@pytest.mark.parametrize(
    ("path", "value", "before", "after"),
    [
        (("sampling", "temperature"), 0.7, "temperature = 0.5", "temperature = 0.7"),
        (("chat", "model"), "x", 'model = "org/name"   # don', 'model = "x"   # don'),
        (("sampling", "suppress_tokens"), (3,), "[\n  1,  # one\n  2,\n]", "[3]"),
        (("sampling", "top_k"), 4, "  2,\n]\n", "  2,\n]\ntop_k = 4\n"),
        (("presets", "code", "system"), 'a "b"', "= 0\n", '= 0\nsystem = "a \\"b\\""\n'),
        (("ui", "theme"), "light", "= 0\n", '= 0\n\n[ui]\ntheme = "light"\n'),
        (("presets", "a b", "seed"), 1, "= 0\n", '= 0\n\n[presets."a b"]\nseed = 1\n'),
        (("chat", "plain"), True, "terse.'''\n", "terse.'''\nplain = true\n"),
    ],
)
def test_a_value_is_set_and_all_other_text_stays(path: tuple[str, ...], value: object, before: str, after: str) -> None:
    at = TEXT.rindex(before)
    assert with_value(TEXT, path, value) == TEXT[:at] + after + TEXT[at + len(before) :]


def test_setting_and_unsetting_a_new_key_gives_the_old_text() -> None:
    assert without_value(with_value(TEXT, ("sampling", "seed"), 5), ("sampling", "seed")) == TEXT


def test_a_text_without_its_last_newline_gets_one() -> None:
    assert with_value("[ui]", ("ui", "theme"), "dark") == '[ui]\ntheme = "dark"\n'
    assert with_value("", ("ui", "theme"), "dark") == '[ui]\ntheme = "dark"\n'


def test_windows_lines_stay_windows_lines() -> None:
    text = with_value('[ui]\r\ntheme = "dark" # x\r\n', ("ui", "theme"), "light")
    assert with_value(text, ("chat", "plain"), True) == '[ui]\r\ntheme = "light" # x\r\n\r\n[chat]\r\nplain = true\r\n'


@pytest.mark.parametrize("text", ['chat = { model = "a" }\n', 'chat = { model = "a", system = "b" }\n'])
def test_inline_tables_are_left_to_the_hand(text: str) -> None:
    for name in ("model", "preset"):
        with pytest.raises(UsageError, match="cannot edit") as caught:
            with_value(text, ("chat", name), "b")
        assert "by hand" in str(caught.value)


def test_a_dotted_key_is_set_and_unset() -> None:
    text = 'chat.model = "a"  # x\n'
    assert with_value(text, ("chat", "model"), "b") == 'chat.model = "b"  # x\n'
    assert without_value(text, ("chat", "model")) == ""


def test_unsetting_an_absent_key_is_refused() -> None:
    with pytest.raises(UsageError, match=r"chat\.preset is not set"):
        without_value(TEXT, ("chat", "preset"))


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = words | st.integers(-9, 9) | st.floats(-2, 2) | st.booleans() | st.lists(st.integers(0, 9), max_size=3)
tables = st.dictionaries(st.sampled_from(["a", "b-c", "d e"]), values, max_size=3)


@given(st.dictionaries(st.sampled_from(["t", "u"]), tables), st.sampled_from("tuv"), words, values)
def test_any_value_set_is_read_back_beside_the_others(
    content: dict[str, dict[str, object]], table: str, name: str, value: object
) -> None:
    text = "# start\n"
    for each, inner in content.items():
        for key, old in inner.items():
            text = with_value(text, (each, key), old)
    changed = tomllib.loads(with_value(text, (table, name), value))
    expected = {each: dict(inner) for each, inner in content.items() if inner}
    expected.setdefault(table, {})[name] = value
    assert changed == expected
    assert with_value(text, (table, name), value).startswith("# start\n")
