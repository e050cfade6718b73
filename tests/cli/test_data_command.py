"""`macllm data`: reports of checks, their masks and exit codes, and data by a model's judgement."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from macllm import cli
from macllm.train.check import checking

ROWS = [
    {"messages": [{"role": "user", "content": f"What is {n}?\x1b[2J"}, {"role": "assistant", "content": "A number."}]}
    for n in range(4)
]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_report_has_a_histogram_and_masks_in_marks(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", "rows.jsonl", "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert "4 rows: 4 chat" in out
    assert "█ 4" in out
    assert "⟦A│ number│.│<|end|>⟧" in out
    assert "\x1b" not in out
    assert "␛" in out
    assert out.endswith("nothing found\n")


def test_masks_are_colored_on_a_terminal_unless_no_color(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    monkeypatch.setenv("TERM", "xterm")
    for plain in ("", "1"):
        monkeypatch.setenv("NO_COLOR", plain)
        monkeypatch.setattr(sys, "stdout", Terminal())
        assert cli.main(["data", "check", "rows.jsonl"]) == 0
        shown[plain] = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[32mA\x1b[0m" in shown[""]
    assert "⟦" not in shown[""]
    assert "⟦A│ number" in shown["1"]
    assert "\x1b[" not in shown["1"]
    assert re.sub(r"\x1b\[\d+m", "", shown[""]).replace("│", "") == re.sub("[⟦⟧│]", "", shown["1"])


def test_errors_that_stop_a_run_give_exit_code_1_with_every_place(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (rows / "rows.jsonl").open("a") as file:
        file.write('{"text": 1}\n{\n')
    assert cli.main(["data", "check", "rows.jsonl"]) == 1
    out = capsys.readouterr().out
    assert "rows.jsonl:5: text is not a string" in out
    assert "rows.jsonl:6 is not JSON" in out
    assert cli.main(["data", "check", "nowhere.jsonl"]) == 2
    (rows / "good.jsonl").write_text(json.dumps(ROWS[0]))
    assert cli.main(["data", "check", "good.jsonl", "--against", "rows.jsonl"]) == 2
    assert "rows.jsonl:5: text is not a string" in capsys.readouterr().err
    (rows / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}))
    assert cli.main(["data", "check", "pairs.jsonl"]) == 1


def test_json_has_the_numbers_of_the_text(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (rows / "rows.jsonl").write_text((rows / "rows.jsonl").read_text() + json.dumps(ROWS[0]) + "\n")
    assert cli.main(["data", "check", "rows.jsonl", "--json", "--max-seq-length", "14"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["splits"][0]["rows"], found["splits"][0]["duplicate_rows"]) == (5, 1)
    assert found["max_seq_length"] == 14
    assert {finding["code"] for finding in found["findings"]} >= {"truncated", "duplicates"}
    assert found["shown"] == []


def test_json_is_written_where_rows_and_names_have_lone_surrogates(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"\xff.jsonl")
    Path(name).write_text('{"\\ud800": "a"}\n')
    assert cli.main(["data", "check", name, "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["places"][0].startswith(f"{name}:1 has no known columns: it has \ud800")


def test_the_context_of_the_model_limits_rows_as_in_a_run(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", "rows.jsonl", "--json", "--max-seq-length", "1000000"]) == 0
    from macllm import load

    assert json.loads(capsys.readouterr().out)["max_seq_length"] == load()[0].info.context_length


def test_an_interrupt_ends_a_check_quietly(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        work = checking(*arguments, **keywords)
        yield next(work)
        raise KeyboardInterrupt

    monkeypatch.setattr("macllm.train.check.checking", interrupted)
    assert cli.main(["data", "check", "rows.jsonl"]) == 130
    assert capsys.readouterr() == ("", "")


def test_without_a_subcommand_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data"]) == 0
    assert "check" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "column"), [("critique", "answer"), ("prefer", "answers")])
def test_a_model_judges_its_own_answers(
    name: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("principles.toml").write_text('[[principle]]\nname = "short"\ntext = "Be short."\n')
    Path("prompts.jsonl").write_text('{"prompt": "What is RoPE?"}\n{"prompt": "What is GQA?"}\n')
    given = ["data", name, "prompts.jsonl", "-p", "principles.toml", "-n", "8", "-o", "made.jsonl", "--json"]
    assert cli.main(given) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 2
    files = [path for path in (Path("made.jsonl"), Path("made.skipped.jsonl")) if path.exists()]
    made = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert len(made) == 2
    assert all(column in row for row in made)
    before = files[0].read_bytes()
    assert cli.main([*given, "--seed", "1"]) == 2
    assert "other prompts, principles or settings" in capsys.readouterr().err
    assert cli.main(given) == 0
    assert files[0].read_bytes() == before
