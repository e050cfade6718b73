"""A plugin of pytest that writes the differences measured by each test: `--differences FILE`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.tables import twins


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the file's option."""
    parser.addoption("--differences", metavar="FILE", help="file of JSON lines, one for each comparison")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Append the comparisons of a test; of one that fails, that it has failed."""
    file = item.config.getoption("--differences")
    before = len(twins.MEASURED)
    failed: dict[str, Any] = {"test": item.nodeid, "failed": True}
    try:
        result = yield
    except pytest.skip.Exception:
        raise
    except BaseException:
        _write(file, [failed])
        raise
    _write(file, [{"test": item.nodeid, **asdict(each)} for each in twins.MEASURED[before:]])
    return result


def _write(file: str | None, lines: list[dict[str, Any]]) -> None:
    if file:
        with Path(file).open("a", encoding="utf-8") as opened:
            opened.writelines(json.dumps(each) + "\n" for each in lines)
