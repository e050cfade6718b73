"""Files that a message attaches by naming them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from macllm.chat.attachments import LARGEST_BYTES, read, reference, referenced, references, shortened
from macllm.chat.conversation import Attachment
from macllm.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "notes.md").write_text("# Notes\r\nfirst\n", encoding="utf-8")
    (tmp_path / "my notes.md").write_text("mine")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "plan.md").write_text("plan")
    (tmp_path / "app").write_text("an app")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\1")
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    (tmp_path / "large.txt").write_bytes(b"x" * (LARGEST_BYTES + 1))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sum up @notes.md", ["notes.md"]),
        ("@notes.md and (@docs/plan.md), @notes.md.", ["notes.md", "docs/plan.md"]),
        ('read @"my notes.md" now', ["my notes.md"]),
        ("is @./notes.md new?", ["./notes.md"]),
        ("mail bob@notes.md", []),
        ("@property\n@app.route('/x')\ndef f(): ...", []),
        ("@angular/core, @user, @ alone, @", []),
        ("@docs has no slash", []),
        ("@/ and @-- and @@ -1,3 +1,4 @@", []),
    ],
)
def test_a_message_attaches_the_files_that_it_names(folder: Path, text: str, names: list[str]) -> None:
    sent, attachments = referenced(text, folder)
    assert sent == text
    assert [attachment.name for attachment in attachments] == names


def test_an_attachment_has_the_text_with_plain_newlines(folder: Path) -> None:
    assert read("notes.md", folder).text == "# Notes\nfirst\n"


def test_a_folder_with_its_slash_attaches_the_list_of_its_files(folder: Path) -> None:
    (folder / "docs" / ".hidden").write_text("")
    (folder / "docs" / "figures").mkdir()
    _, (attachment,) = referenced("look at @docs/", folder)
    assert attachment.text == "figures/\nplan.md  4 B\n"
    assert read("docs/figures/", folder).text == "(no files)\n"


def test_two_at_signs_send_one(folder: Path) -> None:
    assert referenced("the text @@notes.md, @@property and @@ -1 @@", folder) == (
        "the text @notes.md, @@property and @@ -1 @@",
        (),
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("docs/paln.md", "There is no file docs/paln.md"),
        ("paln.md", "There is no file paln.md"),
        ("./missing", "There is no file ./missing"),
        ("picture.png", "picture.png is not text"),
        ("latin.txt", "latin.txt is not UTF-8"),
        ("large.txt", "large.txt is too large"),
        ("pipe", "pipe is not a file"),
    ],
)
def test_a_file_that_cannot_be_attached_is_one_error(folder: Path, name: str, message: str) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(UsageError, match=message):
        referenced(f"see @{name}.", folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_an_error(folder: Path) -> None:
    (folder / "notes.md").chmod(0)
    with pytest.raises(UsageError, match="cannot be read"):
        read("notes.md", folder)


def test_the_reference_to_any_name_names_it(tmp_path: Path) -> None:
    chance = random.Random(1)
    for _ in range(200):
        name = "".join(chance.choice("ab. -_)(é,'") for _ in range(chance.randint(1, 8))).strip()
        if name.strip("."):
            (tmp_path / name).write_text("x")
            found = [each.name for each in references(f"see {reference(name)} there", tmp_path)]
            assert found == [name]
            (tmp_path / name).unlink()


def test_a_shortened_attachment_has_another_name_also_in_the_text_and_none_leaves_its_name() -> None:
    notes, small = Attachment("notes.md", "0123456789"), Attachment("a b.md", "01")
    text = 'Compare @notes.md and @"a b.md", not @notes.md.bak'
    cut, kept = shortened(text, (notes, small), 4)
    assert cut == 'Compare @"notes.md (beginning)" and @"a b.md", not @notes.md.bak'
    assert kept == (Attachment("notes.md (beginning)", "0123"), small)
    assert shortened(cut, kept, 3)[1] == (Attachment("notes.md (beginning)", "012"), small)
    assert shortened(text, (notes, small), 0) == ("Compare notes.md and a b.md, not @notes.md.bak", ())
