"""A row of the table of objectives is what the rest of macllm knows of an objective."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest

from macllm.errors import UsageError
from macllm.train import objectives
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.config.objective import OBJECTIVES, FinetuneObjective, ObjectiveInfo, PretrainObjective, unread
from macllm.train.rows import PlainText
from tests.tables.objectives import PROOFS

FINETUNED, PRETRAINED = get_args(FinetuneObjective), get_args(PretrainObjective)


def test_the_table_has_a_row_for_each_objective_of_a_command() -> None:
    assert OBJECTIVES.keys() == {*FINETUNED, *PRETRAINED}
    settings = {field.name for kind in (FinetuneConfig, PretrainConfig) for field in dataclasses.fields(kind)}
    assert {name for row in OBJECTIVES.values() for name in row.reads} <= settings


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_module_a_proof_and_a_place_in_the_documentation(name: str, repository: Path) -> None:
    assert (repository / f"macllm/train/objectives/{OBJECTIVES[name].module}.py").is_file()
    assert name in {one for names in PROOFS for one in re.split(r"[ ,]+", names)}
    assert re.search(rf"`(--objective )?{name}`", (repository / "README.md").read_text()), name
    for kind, names in ((FinetuneConfig, FINETUNED), (PretrainConfig, PRETRAINED)):
        if name in names:
            assert re.search(rf"\b{name}\b", kind.documentation()["objective"])


def test_a_row_and_a_module_are_enough_for_a_new_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("macllm.train.objectives.toy")
    made.of = lambda config, parts: (config.gamma, parts.labels)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    row = ObjectiveInfo(module="toy", rows=(PlainText,), kind="encoder", reads=("gamma",))
    monkeypatch.setitem(OBJECTIVES, "toy", row)  # type: ignore[arg-type]
    monkeypatch.setattr(FinetuneConfig, "choices", classmethod(lambda cls: {"objective": (*FINETUNED, "toy")}))
    config: Any = FinetuneConfig(data="rows.jsonl", objective="toy", gamma=3.0)  # type: ignore[arg-type]
    assert objectives.chosen(config, None, None, ("a",)) == (3.0, ("a",))  # type: ignore[arg-type]
    assert "gamma" in unread("sft")
    with pytest.raises(UsageError, match="beta has no effect"):
        dataclasses.replace(config, beta=0.1)
    with pytest.raises(UsageError, match="maclet is not an encoder"):
        objectives.check_kind(config, SimpleNamespace(kind="decoder"))  # type: ignore[arg-type]
