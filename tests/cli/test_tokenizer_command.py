"""`macllm tokenizer`: files, report, steps of a word, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from macllm import cli

TEXT = "The quick brown fox jumps over the lazy dog. Lower, slower, lowest; newer, newest, widest.\n" * 30


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": "slowest and newest"}) + "\n")
    return tmp_path


def test_a_tokenizer_is_trained_on_several_files_reported_and_shown(
    texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tokenizer", "train", "a.txt", "rows.jsonl", "--text-feature", "body", "--valid", "a.txt"]
    assert cli.main([*arguments, "--vocab-size", "300", "--chat", "-o", "out"]) == 0
    out, err = capsys.readouterr()
    assert "300 tokens in out" in err
    assert [line.split(":")[0] for line in out.splitlines()] == ["training", "held out"]
    assert "tokens per word" in out
    assert "0 unknown (0.00%)" in out
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert cli.main(["tokenizer", "show", "out", "lowest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lowest  BPE"
    assert lines[2].split() == ["l", "o", "w", "e", "s", "t"]
    assert "rank" in lines[3]
    assert lines[-2].startswith("  tokens  ")
    assert cli.main([*arguments, "-o", "out"]) == 2
    assert "has a tokenizer already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "steps", "size"), [("bpe", "merges", 300), ("unigram", "edges", 44), ("wordpiece", "matches", 70)]
)
def test_json_has_the_report_and_the_steps(
    kind: str, steps: str, size: int, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main(["tokenizer", "train", "a.txt", "--type", kind, "--vocab-size", str(size), "-o", "t", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["vocab_size"], report["held_out"], report["training"]["unknown"]) == (size, None, 0)
    assert report["training"]["size_bytes"] == len(TEXT)
    assert cli.main(["tokenizer", "show", "t", "newest", "lower", "--json"]) == 0
    words = json.loads(capsys.readouterr().out)
    assert [word["word"] for word in words] == ["newest", "lower"]
    assert all(part[steps] for word in words for part in word["parts"])
    assert all(len(word["ids"]) == len(word["tokens"]) for word in words)


def test_wrong_options_and_templates_exit_with_2(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (texts / "bad.jinja").write_text("{% for")
    for arguments, message in (
        (["a.txt", "--vocab-size", "20"], "is too small"),
        (["a.txt", "--byte-fallback"], "no effect"),
        (["a.txt", "--chat-template", "bad.jinja"], "template"),
        (["missing.txt"], "no file or folder"),
        (["a.txt", "--valid", "missing.txt"], "no file"),
    ):
        assert cli.main(["tokenizer", "train", *arguments, "-o", "new"]) == 2, arguments
        assert message in capsys.readouterr().err
    assert not (texts / "new").exists()


def test_the_lattice_of_a_real_sentencepiece_model_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenizer", "show", "maclet", "tokenizers\x1b日"]) == 0
    out = capsys.readouterr().out
    assert "rank" in out
    assert "\x1b" not in out
    assert out.splitlines()[-1].startswith("  ids ")
