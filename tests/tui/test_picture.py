from __future__ import annotations

from tests.tui.picture import PICTURE, drawn, standing_alone


def test_the_picture_in_readme_is_what_the_app_draws_of_the_models_answers() -> None:
    assert drawn() == PICTURE.read_text(encoding="utf-8"), "python -m tests.tui.picture draws it anew"


def test_the_picture_refers_to_no_other_host() -> None:
    picture = PICTURE.read_text(encoding="utf-8")
    assert "url(http" not in picture
    assert "@font-face" not in picture
    assert standing_alone(picture) == picture
