"""`macllm scaling` on files and on folders of runs."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from macllm import cli
from macllm.evaluate.scaling.laws import PUBLISHED, ChinchillaLaw
from macllm.files import write_json


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of runs at six budgets, of the law of Besiroglu et al."""
    monkeypatch.chdir(tmp_path)
    law, lines = PUBLISHED["epoch"], ["params,tokens,loss"]
    for flops in np.geomspace(1e18, 1e21, 6):
        best, _ = law.optimum(flops)
        for parameters in best * np.geomspace(0.3, 3, 7):
            tokens = flops / 6 / parameters
            lines.append(f"{parameters},{tokens},{law.loss(float(parameters), float(tokens))}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines))
    return path


def test_json_has_the_constants_and_the_best_sizes(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scaling", str(table), "--samples", "20", "--flops", "5.76e23", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    law = found["laws"]["chinchilla"]
    assert (law["e"], law["a"], law["b"]) == pytest.approx((1.8172, 482.01, 2085.43), rel=1e-4)
    assert law["intervals"]["alpha"] == pytest.approx([0.3478, 0.3478], rel=1e-4)
    sizes = {each["by"]: each["parameters"] for each in found["optimal"]}
    assert sizes["chinchilla"] == pytest.approx(7.225e10, rel=1e-3)
    assert f"{sizes['hoffmann, published']:.3e}" == "4.031e+10"
    assert found["points"] == 42


def test_the_text_shows_laws_sizes_and_a_plot(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scaling", str(table), "--samples", "0", "--svg", "plot.svg"]) == 0
    out = capsys.readouterr().out
    assert "42 points: " in out
    assert "best size at 1e21 FLOPs" in out
    assert "approach 2" in out
    assert "Loss by training compute" in out
    circles = [each for each in ElementTree.parse("plot.svg").iter() if each.tag.endswith("circle")]
    assert len(circles) == 42


def test_evaluations_of_runs_are_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    law = PUBLISHED["epoch"]
    assert isinstance(law, ChinchillaLaw)
    for number, parameters in enumerate((1_000_000, 3_000_000, 9_000_000)):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        write_json(folder / "run.json", {"batch_size": 8, "grad_accumulation_steps": 2})
        counts = dict.fromkeys(
            ("supervised_tokens", "truncated_rows", "lost_tokens", "split_rows", "dropped_rows", "unsupervised_rows",
             "expanded_rows", "valid_rows", "trained_parameters", "first_step"), 0,
        )  # fmt: skip
        prepared = {
            "event": "Prepared",
            "rows": 100,
            "tokens": 50_000,
            "parameters": parameters,
            "steps": 400,
            **counts,
        }
        losses = [
            {
                "event": "Evaluated",
                "step": step,
                "loss": law.loss(parameters, step * 16 * 500),
                "tokens": 9,
                "best": True,
            }
            for step in (100, 200, 300, 400)
        ]
        losses.append({"event": "Evaluated", "step": 500, "loss": None, "tokens": 9, "best": False})  # diverged
        start = {"event": "Evaluated", "step": 0, "loss": 9.0, "tokens": 9, "best": True}
        lines = [json.dumps(each) for each in (prepared, start, *losses)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    folders = [str(tmp_path / f"run{number}") for number in range(3)]
    assert cli.main(["scaling", *folders, "--samples", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (tmp_path / "run0" / "run.json").unlink()
    assert cli.main(["scaling", *folders]) == 2
    assert "cannot read the settings of the run" in capsys.readouterr().err
    assert found["points"] == 12
    assert found["laws"]["chinchilla"]["e"] == pytest.approx(law.e, rel=1e-3)
    assert "parabola" in found["failed"]["approach 2"] or "budgets" in found["failed"]["approach 2"]


def test_wrong_sources_are_refused(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "few.csv").write_text("n,d,loss\n1e6,1e7,3\n2e6,2e7,2.9\n")
    (tmp_path / "folder").mkdir()
    for source, message in (("few.csv", "2 runs are too few"), ("folder", "has no run"), ("none", "cannot read none")):
        assert cli.main(["scaling", source]) != 0
        assert message in capsys.readouterr().err
