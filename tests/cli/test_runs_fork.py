"""`macllm runs fork`, `resume` and `compare` on runs of a small model."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlx.utils import tree_flatten

from macllm import cli
from macllm.errors import UsageError
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.events import Step
from macllm.train.runs import registry
from macllm.train.runs.compare import compare
from macllm.train.runs.fork import changed_config
from tests.train.test_contract import VOCAB, lines, masked, small_config
from tests.train.toy import ToyLM


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    config = replace(small_config(tmp_path), iters=8, steps_per_report=2, steps_per_eval=4, keep=9)
    masked(config, ToyLM(VOCAB))
    return config


def fork(tmp_path: Path, run: str, *sets: str) -> FinetuneConfig:
    """Fork into the folder "fork", and give the config that resumes it."""
    changes = [argument for one in sets for argument in ("--set", one)]
    assert cli.main(["runs", "fork", run, "-o", str(tmp_path / "fork"), "--no-start", *changes]) == 0
    return FinetuneConfig.load(resume=True, adapter_path=str(tmp_path / "fork"))


def bytes_of(model: ToyLM) -> list[bytes]:
    return [memoryview(array).tobytes() for _, array in tree_flatten(model.parameters())]


def test_a_fork_without_changes_goes_on_as_the_run_itself(config: FinetuneConfig, tmp_path: Path) -> None:
    whole, branch = ToyLM(VOCAB), ToyLM(VOCAB, seed=3)
    masked(replace(config, adapter_path=str(tmp_path / "whole"), select="last"), whole)
    masked(fork(tmp_path, "run@4", "select=last"), branch)
    assert bytes_of(branch) == bytes_of(whole)
    assert [line["step"] for line in lines(config, Step)] == [2, 4, 6, 8]
    assert (tmp_path / "run/snapshots/step-00000008").is_dir()


def test_a_changed_number_of_steps_or_epochs_replaces_the_other_one(config: FinetuneConfig, tmp_path: Path) -> None:
    parent = registry.find("run")
    changed = changed_config(parent, tmp_path / "a", ("epochs=3",))
    assert (changed.iters, changed.epochs) == (0, 3.0)
    stored = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(stored | {"iters": 0, "epochs": 10.0}))
    changed = changed_config(parent, tmp_path / "a", ("iters=12",))
    assert (changed.iters, changed.epochs) == (12, 0.0)
    assert changed_config(parent, tmp_path / "a", ("seed=1",)).epochs == 10.0


def test_a_fork_has_changed_settings_its_parent_and_an_id_of_its_own(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forked = fork(tmp_path, "run", "learning_rate=0.001", "iters=12", "optimizer=lion")
    assert (forked.learning_rate, forked.iters, forked.seed) == (0.001, 12, config.seed)
    events = masked(forked, ToyLM(VOCAB))
    assert [event.step for event in events if isinstance(event, Step)] == [10, 12]
    parent, child = registry.find("run"), registry.find("fork")
    assert parent.id != child.id
    assert registry.read_about(child.path)["parent"] == {"run": parent.id, "folder": parent.folder, "step": 8}
    capsys.readouterr()
    assert cli.main(["runs", "compare", "run", "fork", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {"iters": [8, 12], "learning_rate": [0.03, 0.001], "optimizer": ["adamw", "lion"]}
    assert found["loss"]["10"][0] is None
    assert found["loss"]["2"][1] is None
    assert cli.main(["runs", "compare", "run", "fork"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("learning_rate", "0.03", "12/12", "step 10", "best validation loss"))
    assert cli.main(["runs", "show", "fork"]) == 0
    assert "forked from step 8 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "sets", "message"),
    [
        ("run@5", [], "no snapshot of step 5"),
        ("run", [], "no step is left after step 8"),
        ("run@4", ["rnk=3"], "unknown setting 'rnk'"),
        ("run@4", ["iters"], "cannot read 'iters'"),
        ("walk@4", [], "no run 'walk'"),
    ],
)
def test_a_fork_that_cannot_be_is_one_error_and_leaves_no_folder(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, sets: list[str], message: str
) -> None:
    changes = [argument for one in sets for argument in ("--set", one)]
    assert cli.main(["runs", "fork", run, "-o", str(tmp_path / "fork"), *changes]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "fork").exists()
    assert cli.main(["runs", "fork", "run@4", "-o", str(tmp_path / "run")]) == 2


def test_a_fork_whose_rows_leave_no_step_is_an_error_and_goes_on_with_more_epochs(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    forked = fork(tmp_path, "run", "epochs=0.1")
    with pytest.raises(UsageError, match=r"no step is left after step 8\ncause: .* the run has 1 steps"):
        masked(forked, ToyLM(VOCAB))
    longer = FinetuneConfig.load(resume=True, adapter_path=forked.adapter_path, iters=10)
    assert [event.step for event in masked(longer, ToyLM(VOCAB)) if isinstance(event, Step)] == [10]


def test_a_fork_into_another_model_is_refused(config: FinetuneConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the snapshot of step 4 does not fit.*\ncause: only one of them has"):
        masked(fork(tmp_path, "run@4"), ToyLM(VOCAB, dim=8))


def test_paths_of_a_fork_are_those_of_its_parent_or_relative_to_where_it_is_begun(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/more.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path / "elsewhere")
    parent = registry.find("run")
    assert changed_config(parent, tmp_path / "fork", ()).data == config.data
    changed = changed_config(parent, tmp_path / "fork", ("data=more.jsonl",))
    assert changed.data == str(tmp_path / "elsewhere/more.jsonl")


def test_relative_paths_of_a_parent_are_those_of_its_folder_and_missing_ones_of_this(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "base").mkdir()
    changes = {"data": "train.jsonl", "valid": "hf:some/rows", "model": "base"}
    (tmp_path / "run/run.json").write_text(json.dumps(settings | changes))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    parent = replace(registry.find("run"), directory=str(tmp_path))
    found = changed_config(parent, tmp_path / "fork", ())
    assert (found.data, found.valid) == (str(tmp_path / "train.jsonl"), "hf:some/rows")
    assert isinstance(found, FinetuneConfig)
    assert found.model == str(tmp_path / "base")
    changed = changed_config(parent, tmp_path / "fork", ("data=train.jsonl", "model=maclet"))
    assert changed.data == str(tmp_path / "elsewhere/train.jsonl")
    assert isinstance(changed, FinetuneConfig)
    assert changed.model == "maclet"


@pytest.mark.parametrize(
    ("sets", "length"),
    [((), (8, 1.0)), (("epochs=2",), (0, 2.0)), (("iters=0", "epochs=2"), (0, 2.0)), (("iters=12",), (12, 1.0))],
)
def test_a_changed_length_of_a_run_replaces_that_of_its_parent(
    tmp_path: Path, sets: tuple[str, ...], length: tuple[int, float]
) -> None:
    stored = PretrainConfig(data="rows.jsonl", iters=8, output=str(tmp_path)).as_dict()  # has epochs, unused
    (tmp_path / "run.json").write_text(json.dumps(stored))
    parent = registry.RegisteredRun("", str(tmp_path), "train", 0.0, directory=str(tmp_path))
    found = changed_config(parent, tmp_path / "fork", sets)
    assert (found.iters, found.epochs) == length
    resumed = PretrainConfig.load(None, sets, resume=True, output=str(tmp_path))
    assert (resumed.iters, resumed.epochs) == length


def test_a_fork_of_a_damaged_snapshot_or_on_a_full_disk_leaves_no_folder(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    command = ["runs", "fork", "run@4", "-o", str(tmp_path / "new/fork"), "--no-start"]
    with monkeypatch.context() as patch:
        patch.setattr("macllm.train.runs.fork.write_json", full)
        assert cli.main(command) == 4
    assert not (tmp_path / "new").exists()
    (tmp_path / "run/snapshots/step-00000004/weights.safetensors").write_bytes(b"")
    assert cli.main(command) != 0
    assert "weights.safetensors has changed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_run_is_resumed_from_any_folder_with_its_own_settings(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("macllm.cli.finetune.start", started.append)
    monkeypatch.chdir("/")
    assert cli.main(["runs", "resume", "run"]) == 0
    (resumed,) = started
    assert resumed == replace(config, resume=True, date=resumed.date)
    assert str(Path.cwd()) == registry.find("run").directory


def test_the_same_data_is_no_difference_however_its_path_is_written_and_another_of_that_name_is(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    fork(tmp_path, "run@4")
    parent, child = registry.find("run"), registry.find(str(tmp_path / "fork"))
    settings = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(settings | {"data": "."}))
    assert compare(replace(parent, directory=str(tmp_path)), child).settings == {}
    elsewhere = compare(replace(parent, directory="/"), replace(parent, directory=str(tmp_path)))
    assert elsewhere.settings == {"data": ("/", str(tmp_path))}
