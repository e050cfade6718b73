"""The text that chooses adapters, and those that a chat knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from macllm.chat.adapters import chosen_blend, known_adapters
from macllm.chat.models import UsableModel
from macllm.chat.session import Session
from macllm.errors import ModelNotFoundError, UsageError
from tests.chat.scripted_engine import ScriptedEngine
from tests.chat.test_models import write_adapter

KNOWN = [
    UsableModel("/x/notes", "adapter", 1),
    UsableModel("/y/My tone", "adapter", 1),
    UsableModel("/y/broken", "adapter", 1, problem="adapters.safetensors is missing"),
]


def test_names_titles_folders_and_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = write_adapter(tmp_path / "here it is")
    for text, want in {
        "off": None,
        "none": None,
        "notes": "/x/notes",
        "my tone": "/y/My tone",
        "notes:0.5": "/x/notes:0.5",
        "notes 'my tone:-0.25'": "/x/notes + /y/My tone:-0.25",
        "notes + '/y/My tone'": "/x/notes + /y/My tone",
        "here it is": str(here),
        "'here it is:2' notes": f"{here}:2 + /x/notes",
    }.items():
        assert chosen_blend(text, KNOWN) == want


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("nots", ModelNotFoundError, "/adapter /x/notes"),
        ("notes absent", ModelNotFoundError, "no adapter absent"),
        ("notes broken", UsageError, "cannot be used"),
        ("notes notes:0.5", UsageError, "given twice"),
        ("notes:nan", UsageError, "finite"),
        ("notes 'my tone", UsageError, "quotation"),
    ],
)
def test_unusable_adapters_are_named(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        chosen_blend(text, KNOWN)
    assert words in str(caught.value)


def test_adapters_of_other_folders_are_known_once_used(tmp_path: Path) -> None:
    folder = str(write_adapter(tmp_path / "style"))
    session = Session(ScriptedEngine())
    session.activate(f"/x/notes + {folder}:0.5")
    session.activate(None)
    found = known_adapters(KNOWN, session.adapters)
    assert [model.name for model in found] == [*(model.name for model in KNOWN), folder]
    assert chosen_blend("style", found) == folder
