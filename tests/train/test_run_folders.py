"""Folders of runs: others' files, links, changed data, moved and finished runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macllm.errors import UsageError
from macllm.train.config import FinetuneConfig
from macllm.train.events import Evaluated, Finished, Prepared, Step
from macllm.train.runs import registry
from macllm.train.runs.history import status
from tests.train.test_contract import VOCAB, masked, small_config
from tests.train.test_kills import results
from tests.train.toy import ToyLM


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    return replace(small_config(tmp_path), iters=4, save_every=2, steps_per_eval=2, steps_per_report=2)


def run(config: FinetuneConfig, stop: int | None = None) -> list[Any]:
    return masked(config, ToyLM(VOCAB), stop)


@pytest.mark.parametrize(
    ("changes", "cause"), [({"data": "other.jsonl"}, "rows was"), ({"seed": 5}, "seed was 0, is 5")]
)
def test_a_run_is_not_resumed_with_other_rows_or_settings(
    config: FinetuneConfig, tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    run(config, stop=2)
    (tmp_path / "other.jsonl").write_text('{"text": "abc"}\n' * 24)
    changes = {name: str(tmp_path / value) if name == "data" else value for name, value in changes.items()}
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=rf"has another run\n.*{cause}"):
        run(replace(config, resume=True, **changes))
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_a_run_goes_on_with_the_same_rows_and_base_at_other_paths(config: FinetuneConfig, tmp_path: Path) -> None:
    run(config)
    halved = replace(config, adapter_path=str(tmp_path / "half"))
    run(halved, stop=2)
    (tmp_path / "elsewhere").mkdir()
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    run(replace(halved, resume=True, data=str(tmp_path / "elsewhere"), model="renamed"))
    assert results(halved) == results(config)


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors"])
def test_a_run_is_not_begun_in_the_folder_of_a_model(config: FinetuneConfig, tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(UsageError, match="already has a model"):
        run(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_run_is_not_begun_at_a_file_or_below_one(config: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file is a file"):
        run(replace(config, adapter_path=str(tmp_path / "file")))
    with pytest.raises(UsageError, match="cannot write to the folder"):
        run(replace(config, adapter_path=str(tmp_path / "file/run")))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="cannot write to the folder"):
        run(replace(config, adapter_path=str(tmp_path / "link")))
    with pytest.raises(UsageError, match="is not UTF-8"):
        run(replace(config, adapter_path=str(tmp_path / "non\udcffutf")))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_goes_on_through_a_link_and_after_a_move_to_the_same_end(config: FinetuneConfig, tmp_path: Path) -> None:
    run(config)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    linked = replace(config, adapter_path=str(tmp_path / "link"))
    run(linked, stop=2)
    assert registry.find(str(tmp_path / "link")).folder == str(tmp_path / "disk")
    before = registry.find("disk").id
    (tmp_path / "disk").rename(tmp_path / "moved")
    moved = replace(config, adapter_path=str(tmp_path / "moved"), resume=True)
    run(moved)
    assert results(moved) == results(config)
    assert registry.find("moved").id == before


def test_a_finished_run_that_is_resumed_stays_as_it_is(config: FinetuneConfig, tmp_path: Path) -> None:
    run(config)
    end, before = results(config), status(registry.find("run"))
    events = run(replace(config, resume=True))
    assert not [event for event in events if isinstance(event, Step | Evaluated)]
    assert isinstance(events[-1], Finished)
    assert next(event.first_step for event in events if isinstance(event, Prepared)) == 4
    assert results(config) == end
    after = status(registry.find("run"))
    assert replace(after, changed=before.changed) == before


def test_a_path_whose_bytes_are_not_utf8_is_kept_in_the_settings(config: FinetuneConfig, tmp_path: Path) -> None:
    folder = tmp_path / "rows\udcff"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes((tmp_path / "train.jsonl").read_bytes())
    config = replace(config, data=str(folder))
    run(config, stop=2)
    assert json.loads((tmp_path / "run/run.json").read_text())["data"] == str(folder)
    run(replace(config, resume=True))
