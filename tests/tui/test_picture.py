from __future__ import annotations

from tests.tui.picture import PICTURE, drawn, without_remote_fonts


def test_the_picture_in_readme_equals_a_new_screenshot_of_the_app() -> None:
    assert drawn() == PICTURE.read_text(encoding="utf-8"), "python -m tests.tui.picture draws it again"


def test_the_picture_refers_to_no_other_host() -> None:
    picture = PICTURE.read_text(encoding="utf-8")
    assert "url(http" not in picture
    assert "@font-face" not in picture
    assert without_remote_fonts(picture) == picture
