"""The command that prints the tables."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.tables import __main__ as command
from tests.tables import kills, objectives
from tests.tables.table import Table


def a_table(held: bool | None) -> Table:
    return Table("Title", ["one", "two"], [["a", "b | c"]], "a limit", held, {"number": 1})


@pytest.mark.parametrize(("held", "verdict"), [(True, "held"), (False, "**missed**"), (None, "none, ")])
def test_a_table_states_its_limit_its_verdict_and_the_machine(
    held: bool | None, verdict: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "TABLES", {"gradients": lambda quick, say: say("working") or a_table(held)})
    assert command.main(["gradients"]) == int(held is False)
    printed = capsys.readouterr()
    assert "| one | two |\n| --- | --- |\n| a | b / c |" in printed.out
    assert f"Limit: a limit. Verdict: {verdict}" in printed.out
    assert "Linux" in printed.out or "Darwin" in printed.out
    assert printed.err == "working\n"
    last = json.loads(printed.out.splitlines()[-1])
    assert last["tables"]["gradients"]["values"] == {"number": 1}
    assert last["tables"]["gradients"]["held"] is held


def test_a_table_that_cannot_be_measured_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(quick: bool, say: Any) -> Table:
        raise RuntimeError("no peft")

    monkeypatch.setattr(command, "TABLES", {"one": fails, "two": lambda quick, say: a_table(True)})
    assert command.main([]) == 1
    printed = capsys.readouterr().out
    assert "Not measured: RuntimeError: no peft" in printed
    assert "## Title" in printed


def test_a_name_that_no_table_has_is_refused() -> None:
    with pytest.raises(SystemExit):
        command.main(["gradient"])


def test_the_quick_trajectories_are_printed_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trajectories", "--quick"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["tables"]["trajectories"]["held"]
    assert "trajectories: 2 x 4 rows, LoRA" in printed.err


@pytest.mark.slow
def test_ten_runs_of_the_table_of_kills_end_as_one_that_nothing_stopped() -> None:
    said: list[str] = []
    assert kills.table(True, said.append).held, said


def test_a_failed_comparison_or_nothing_learned_misses_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    close = {"loss": 1e-8, "gradient": 2e-6, "own_gradient": 0.0}
    far = {"loss": 0.5, "gradient": 0.5, "own_gradient": 0.0}  # of a test that passes with a bug put back
    learned = {"one": {"shown": "0.5 to 0.9", "held": True}}
    monkeypatch.setattr(objectives, "PROOFS", {"one": objectives.Proof("torch", "test_one")})
    monkeypatch.setattr(objectives, "learned", lambda scripts, say: dict(learned))
    passed = [{"test": "test_one[a]", **close}, {"test": "test_one[bug]", **far}]
    for found, held in ((passed, True), ([*passed, {"test": "test_one[b]", "failed": True}], False), ([], False)):
        monkeypatch.setattr(objectives, "measured", lambda tests, say, found=found: found)
        made = objectives.table(False, print)
        assert made.held is held
    monkeypatch.setattr(objectives, "measured", lambda tests, say: passed)
    assert objectives.table(False, print).rows == [["one", "torch", "1", "1.0e-08", "2.0e-06", "1 seen", "0.5 to 0.9"]]
    learned["one"] = {"shown": "0.5 to 0.5", "held": False}
    assert objectives.table(False, print).held is False


def test_two_scripts_run_at_once_and_one_that_fails_shows_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        both.wait(timeout=60)
        name = command[-1].rpartition(".")[2]
        if name == "broken":
            return subprocess.CompletedProcess(command, 1, "", "some lines\nKeyError: 'x'\n")
        last = json.dumps({"objectives": {name: {"shown": "0.9", "held": True}}})
        return subprocess.CompletedProcess(command, 0, f"progress\n{last}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    found = objectives.learned([Path("one.py"), Path("broken.py"), Path("two.py"), Path("three.py")], lambda text: None)
    assert list(found) == ["one", "broken", "two", "three"]
    assert found.pop("broken") == {"shown": "KeyError: 'x'", "held": False}
    assert all(each["held"] for each in found.values())
