from __future__ import annotations

import os
from pathlib import Path

import pytest
from format_table import OWN, PROBES, row, templates

OWN_TEMPLATES = dict(templates([OWN]))
# probes that templates of some formats do not write
NO_THOUGHT = {"thought", "thought call"}
ONE_CALL = {"two", "text call"}
# folders with chat templates of real models (*.jinja, tokenizer_config.json), separated as in PATH
REAL = [Path(each) for each in os.environ.get("MACLLM_CHAT_TEMPLATES", "").split(os.pathsep) if each]
# templates that lose part of an answer themselves
LOSSY = {
    ("LFM2.5-8B-A1B", "lines"),  # strings between quotes with nothing escaped
}


@pytest.mark.parametrize("name", OWN_TEMPLATES)
def test_answers_that_a_template_writes_are_read_and_written_again_equal(name: str) -> None:
    found = row(name, OWN_TEMPLATES[name])
    assert not found.failures
    unwritten = {probe for probe, outcome in found.outcomes.items() if outcome == "-"}
    assert unwritten <= NO_THOUGHT | (ONE_CALL if name.startswith("llama") else set())


def test_every_probe_is_written_by_some_template() -> None:
    written = [row(name, OWN_TEMPLATES[name]).outcomes for name in ("hermes", "glm", "harmony")]
    assert all(outcomes[probe] == "ok" for outcomes in written for probe in PROBES)


# formats that are not supported
UNKNOWN = {"meetkai-functionary-medium-v3.2"}


@pytest.mark.parametrize(("name", "source"), [each for each in templates(REAL) if each[0] not in UNKNOWN])
def test_templates_of_real_models_are_read_and_written_again(name: str, source: str) -> None:
    assert {probe: outcome for probe, outcome in row(name, source).failures.items() if (name, probe) not in LOSSY} == {}
