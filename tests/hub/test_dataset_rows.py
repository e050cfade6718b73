"""Runs and checks on rows of a hub's dataset, with the commit kept."""

from __future__ import annotations

import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from macllm import cli
from macllm.errors import DataError
from macllm.train import pretrain as pretraining
from macllm.train import rows
from macllm.train.config import PretrainConfig
from macllm.train.events import Saved
from macllm.train.pretrain import train
from macllm.train.rows import hub as hub_rows
from tests.hub.loopback import COMMIT, OTHER_COMMIT, LoopbackHub, Repo
from tests.train.recipes import write_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "recipe"
    folder.mkdir()
    write_recipe(folder)
    return folder


@pytest.fixture
def repo(hub: LoopbackHub, recipe: Path) -> Repo:
    files = {f"{name}.jsonl": (recipe / f"{name}.jsonl").read_bytes() for name in ("train", "valid")}
    hub.repos["org/rows"] = Repo(files | {"test.jsonl": files["valid.jsonl"]}, kind="datasets")
    hub_rows._opened.cache_clear()
    return hub.repos["org/rows"]


def config(recipe: Path, out: Path, **changes: Any) -> PretrainConfig:
    settings = {"data": "hf:org/rows", "output": out, "iters": 4, "save_every": 2, "steps_per_eval": 0}
    return PretrainConfig.load(recipe / "recipe.toml", **(settings | changes))


def test_a_name_without_a_split_gives_training_and_validation_rows(hub: LoopbackHub, repo: Repo) -> None:
    train_rows, valid_rows = rows.find_files("hf:org/rows", "")
    assert str(train_rows) == f"hf:org/rows@{COMMIT}/train"
    assert str(valid_rows) == f"hf:org/rows@{COMMIT}/validation"
    assert rows.read(train_rows)[0].where == f"hf:org/rows@{COMMIT[:8]}/train.jsonl:1"
    assert "test.jsonl" not in hub.sent_bytes
    assert rows.find_files("hf:org/rows/train", "")[1] is None
    assert str(rows.find_files("hf:org/rows", "hf:org/rows/test")[1]) == f"hf:org/rows@{COMMIT}/test"


def test_a_run_keeps_its_commit_and_resumes_on_the_same_rows_offline(
    hub: LoopbackHub, repo: Repo, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(config(recipe, tmp_path / "straight"))
    with closing(pretraining.events(config(recipe, tmp_path / "cut"))) as events:
        next(event for event in events if isinstance(event, Saved))
    kept = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert (kept["data"], kept["valid"]) == (f"hf:org/rows@{COMMIT}", "")
    repo.revisions = (*repo.revisions, "dev")
    repo.commit, repo.files = OTHER_COMMIT, repo.files | {"train.jsonl": b'{"text": "other"}\n'}
    for number, given in enumerate([{"data": None}, {"data": "hf:org/rows@dev"}, {"data": "hf:org/rows"}]):
        hub_rows._opened.cache_clear()
        folder = (tmp_path / "cut").rename(tmp_path / f"cut{number}")
        if number == 2:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        train(PretrainConfig.load(**given, output=folder, resume=True, iters=4))
        ends = [(each / "model" / "model.safetensors").read_bytes() for each in (straight, folder)]
        assert ends[0] == ends[1]
        folder.rename(tmp_path / "cut")
    new = config(recipe, tmp_path / "new").pinned()
    assert new.data.startswith("hf:org/rows@")


def test_a_recipe_may_name_a_dataset(hub: LoopbackHub, repo: Repo, recipe: Path) -> None:
    text = (recipe / "recipe.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("data", "valid"))]
    (recipe / "hub.toml").write_text("\n".join(['data = "hf:org/rows"', *lines]))
    assert PretrainConfig.load(recipe / "hub.toml").data == "hf:org/rows"


def test_an_invalid_row_is_told_with_its_place_in_the_dataset(hub: LoopbackHub, repo: Repo) -> None:
    repo.files["train.jsonl"] = b'{"text": "one"}\n{"text": 1}\n'
    with pytest.raises(DataError, match=rf"hf:org/rows@{COMMIT[:8]}/train\.jsonl:2: text is not a string"):
        rows.read(rows.find_files("hf:org/rows", "")[0])


def test_parquet_files_are_read(hub: LoopbackHub, repo: Repo) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    packed = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), packed)
    hub.repos["org/packed"] = Repo({"data/train-0.parquet": packed.getvalue()}, kind="datasets", large=(".parquet",))
    read = rows.read(rows.find_files("hf:org/packed", "")[0])
    assert [row.text for row in read if isinstance(row, rows.PlainText)] == ["one", "two"]
    assert read[1].where == f"hf:org/packed@{COMMIT[:8]}/data/train-0.parquet[1]"


def test_datasets_are_checked(hub: LoopbackHub, repo: Repo, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = PretrainConfig.load(recipe / "recipe.toml").tokenizer
    arguments = ["data", "check", "hf:org/rows", "--model", model, "--against", "hf:org/rows", "--json"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [split["name"] for split in found["splits"]] == ["train", "valid", "hf:org/rows"]
    assert any(finding["code"] == "leakage" for finding in found["findings"])
    assert "hf:org/rows" in printed.err
    assert cli.main(["data", "check", "hf:org/none", "--model", model]) == 2
    assert "the hub has no dataset org/none" in capsys.readouterr().err
