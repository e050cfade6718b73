"""`macllm runs`: runs by id, name or path, their state, following and stopping them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macllm import cli
from macllm.train.config import FinetuneConfig
from macllm.train.events import Step
from macllm.train.runs import registry
from macllm.train.runs.folder import lock
from tests.train.test_contract import VOCAB, masked, masked_events, small_config
from tests.train.toy import ToyLM

HOLDER = """
import signal, sys, time
from pathlib import Path
from macllm.train.runs.folder import lock
def end(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, end)
with lock(Path(sys.argv[1])):
    try:
        print("held", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    return replace(small_config(tmp_path), iters=6, steps_per_report=2, steps_per_eval=3)


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert cli.main(["runs", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_runs_are_listed_with_their_state_wherever_their_folders_lie(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked(config, ToyLM(VOCAB))
    masked(replace(config, adapter_path=str(tmp_path / "far/second")), ToyLM(VOCAB), stop=2)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    second, first = output(capsys, "ls", "--json")
    assert (first["state"], first["step"], first["steps"]) == ("finished", 6, 6)
    assert (second["state"], second["step"], second["folder"]) == ("stopped", 2, str(tmp_path / "far/second"))
    assert first["best_loss"] < first["loss"] * 2
    assert (first["command"], first["base"], first["id"]) == ("finetune", "maclet", registry.find("run").id)
    shutil.rmtree(tmp_path / "far")
    assert cli.main(["runs", "ls"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in listed] == ["missing", "finished"]
    assert "6/6" in listed[1]
    assert cli.main(["runs", "watch", second["id"]]) == 2
    assert f"macllm runs forget {second['id']}" in capsys.readouterr().err
    assert cli.main(["runs", "forget", second["id"], "run"]) == 0
    assert output(capsys, "ls", "--json") == []
    assert (tmp_path / "run/snapshots").is_dir()


def test_a_run_is_found_by_the_beginning_of_its_id_its_name_and_its_path(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    masked(config, ToyLM(VOCAB))
    whole = registry.entries()[0]
    for text in (whole.id, whole.id[:4], "run", str(tmp_path / "run")):
        assert registry.find(text) == whole
    monkeypatch.chdir(tmp_path)
    assert registry.find("./run") == whole
    masked(replace(config, adapter_path=str(tmp_path / "other/run")), ToyLM(VOCAB))
    monkeypatch.chdir("/")
    assert cli.main(["runs", "show", "run"]) == 2
    assert "the name of 2 runs" in capsys.readouterr().err
    assert cli.main(["runs", "show", "walk"]) == 2
    assert "no run 'walk'" in capsys.readouterr().err


def test_a_moved_folder_is_known_again_by_its_path_and_a_copy_gets_an_id_of_its_own(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    masked(config, ToyLM(VOCAB))
    before = registry.entries()[0]
    (tmp_path / "run").rename(tmp_path / "moved")
    assert registry.find(before.id).is_missing
    assert registry.find(str(tmp_path / "moved")).id == before.id
    assert registry.find(before.id).folder == str(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    masked(replace(config, adapter_path=str(tmp_path / "copy"), resume=True), ToyLM(VOCAB))
    assert len({entry.id for entry in registry.entries()}) == 2
    assert registry.find("copy").id != registry.find("moved").id == before.id


def test_a_name_comes_before_an_id_and_an_id_needs_four_characters(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    masked(config, ToyLM(VOCAB))
    whole = registry.entries()[0]
    named = replace(config, adapter_path=str(tmp_path / whole.id[:4]))
    masked(named, ToyLM(VOCAB))
    monkeypatch.chdir("/")
    assert registry.find(whole.id[:4]).folder == named.adapter_path
    assert registry.find(whole.id) == whole
    for text in (whole.id[:3], "", " ", "\0", "~nobody-of-this-name"):
        assert cli.main(["runs", "show", text]) == 2
    assert "an id needs 4 characters" in capsys.readouterr().err


def test_forgetting_a_copy_leaves_the_original_on_the_list(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked(config, ToyLM(VOCAB))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copy = str(tmp_path / "copy")
    assert cli.main(["runs", "forget", copy]) == 2
    assert "is not on the list" in capsys.readouterr().err
    assert cli.main(["runs", "forget", "--delete", "--yes", copy]) == 0
    assert not Path(copy).exists()
    assert [entry.folder for entry in registry.entries()] == [config.adapter_path]


def test_a_damaged_entry_hides_one_run_and_a_registry_that_cannot_be_written_none_of_the_work(
    config: FinetuneConfig, tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_home / "macllm").mkdir()
    (own_home / "macllm/runs").write_text("a file in place of the folder")
    masked(config, ToyLM(VOCAB))
    assert registry.entries() == []
    assert registry.find(str(tmp_path / "run")).command == "finetune"
    (own_home / "macllm/runs").unlink()
    masked(replace(config, resume=True), ToyLM(VOCAB))
    (entry,) = registry.entries()
    whole = (own_home / f"macllm/runs/{entry.id}.json").read_text().replace(entry.id, "33333333")
    late = whole.replace(f'"started": {entry.started}', '"started": 1e400')
    for name, text in (("00000000", "{"), ("11111111", '{"id": 3}'), ("22222222", "[]"), ("33333333", late)):
        (own_home / f"macllm/runs/{name}.json").write_text(text)
    assert registry.entries() == [entry]
    assert cli.main(["runs", "ls"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == len(said.err.splitlines()) == 1
    assert "the list of runs is not whole: cannot read" in said.err
    assert "and 3 more" in said.err


def test_a_run_is_shown_with_settings_environment_data_and_snapshots(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("HF_TOKEN", "secret")
    masked(config, ToyLM(VOCAB))
    shown = output(capsys, "show", "run", "--json")
    assert shown["settings"]["iters"] == 6
    assert [one["step"] for one in shown["snapshots"]] == [3, 4, 6]
    assert shown["data"]["rows"] == 24
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert shown["environment"] == environment
    assert environment["variables"] == {"OMP_NUM_THREADS": "2"}
    assert {"macllm", "mlx", "python", "system", "processor", "cores", "commit"} <= environment.keys()
    assert "secret" not in json.dumps(environment)
    assert str(Path.home()) not in json.dumps(environment)
    assert cli.main(["runs", "show", "run"]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("finished", "step 6/6", "24 examples", "snapshot  step 6", "iters = 6"))


def test_watching_prints_the_lines_of_the_training_command_and_a_curve(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from macllm.cli.training import narrate

    narrate(masked_events(config, ToyLM(VOCAB)), "")
    trained = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step")]
    assert cli.main(["runs", "watch", "run"]) == 0
    watched = capsys.readouterr().err.splitlines()
    assert [line for line in watched if line.startswith("step")] == trained
    assert "█" in watched[-1]
    assert cli.main(["runs", "watch", "run", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines == written


def test_a_running_run_is_followed_to_its_end_and_ctrl_c_leaves_it_alone(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def train() -> None:
        for event in masked_events(config, ToyLM(VOCAB)):
            if isinstance(event, Step) and event.step == 2:
                go.wait(20)

    thread = threading.Thread(target=train)
    thread.start()
    metrics = tmp_path / "run/metrics.jsonl"
    while not (metrics.is_file() and '"Step"' in metrics.read_text()):
        time.sleep(0.02)

    def interrupt(pace: object, seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("macllm.cli.watching.ReportPace.wait", interrupt)
        assert cli.main(["runs", "watch", "run"]) == 130
    assert output(capsys, "ls", "--json")[0]["state"] == "running"
    threading.Timer(0.2, go.set).start()
    assert cli.main(["runs", "watch", "run"]) == 0
    thread.join()
    assert "step 6/6" in capsys.readouterr().err


def test_stopping_ends_the_process_that_holds_the_run_and_no_other(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked(config, ToyLM(VOCAB), stop=2)
    assert cli.main(["runs", "stop", "run"]) == 2
    assert "is not running" in capsys.readouterr().err
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert output(capsys, "ls", "--json")[0]["pid"] == process.pid
        assert cli.main(["runs", "forget", "run"]) == 2
        assert output(capsys, "stop", "run", "--json")["state"] == "stopped"
        assert process.wait() == 0
    stale = tmp_path / "run/.lock"
    stale.write_text(str(os.getpid()))  # the number of a process that does not hold the lock
    assert cli.main(["runs", "stop", "run"]) == 2


def test_a_killed_run_has_crashed_and_one_that_failed_tells_its_error(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked(config, ToyLM(VOCAB), stop=2)
    (tmp_path / "run/snapshots/step-00000001").mkdir()
    (tmp_path / "run/snapshots/step-00000001/state.json").write_text('{"step": "first"}')
    (tmp_path / "run/environment.json").write_text('{"parent": "gone"}')
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"event": "Saved", "step": null, "path": ""}\n{"event": "Any"}\n{"event": "Evaluated"}\n[]\n')
    assert cli.main(["runs", "show", "run"]) == 0
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"event": "Step", "st')  # killed in the middle of a line
    assert output(capsys, "ls", "--json")[0]["state"] == "crashed"
    assert cli.main(["runs", "watch", "run"]) == 0
    assert "crashed, or was killed, after step 2; macllm runs resume" in capsys.readouterr().err
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('\n{"event": "RunFailed", "step": 2, "error": "the disk is full", "cause": null}\n')
    failed = output(capsys, "ls", "--json")[0]
    assert (failed["state"], failed["error"]) == ("failed", "the disk is full")
    assert cli.main(["runs", "watch", "run"]) == 0
    assert "step 2/6  failed: the disk is full" in capsys.readouterr().err


def test_an_error_and_an_interruption_are_the_last_line_of_the_metrics(config: FinetuneConfig, tmp_path: Path) -> None:
    with closing(masked_events(config, ToyLM(VOCAB))) as events:
        next(event for event in events if isinstance(event, Step))
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"event": "Stopped", "step": 2}


def test_a_step_that_is_interrupted_at_its_end_counts_as_done(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("macllm.train.loop.Trainer._advanced", interrupt)
    with pytest.raises(KeyboardInterrupt):
        masked(config, ToyLM(VOCAB))
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]) == {"event": "Stopped", "step": 1}
    assert (tmp_path / "run/snapshots/step-00000001").is_dir()


def test_a_folder_killed_before_its_settings_were_written_can_be_begun_again(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    (tmp_path / "run/snapshots").mkdir(parents=True)
    (tmp_path / "run/.lock").touch()
    masked(config, ToyLM(VOCAB))
    assert registry.find("run").name == "run"


def test_a_process_that_ends_soon_is_waited_for(tmp_path: Path) -> None:
    held = threading.Event()

    def hold() -> None:
        with lock(tmp_path):
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with lock(tmp_path):
        pass
    thread.join()
