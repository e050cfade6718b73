from __future__ import annotations

from tests.tui.picture import FOLDER, drawn, without_remote_fonts


def test_the_pictures_in_readme_equal_new_screenshots_of_the_app() -> None:
    for name, picture in drawn().items():
        kept = (FOLDER / name).read_text(encoding="utf-8")
        assert picture == kept, f"{name}: python -m tests.tui.picture draws it again"


def test_the_pictures_refer_to_no_other_host() -> None:
    for path in FOLDER.glob("*.svg"):
        picture = path.read_text(encoding="utf-8")
        assert "url(http" not in picture
        assert "@font-face" not in picture
        assert without_remote_fonts(picture) == picture
