"""Tables of runs: CSV and JSON lines, and errors in a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from macllm.errors import DataError
from macllm.evaluate.scaling import points


@pytest.mark.parametrize(
    "text",
    [
        "parameters,tokens,loss\n1e6,2e7,3.5\n2e6,4e7,3.25\n",
        "\ufeffLoss, N ,D\n3.5,1e6,2e7\n3.25,2e6,4e7\n",
        "params,flops,loss\n1e6,1.2e14,3.5\n2e6,4.8e14,3.25\n",
        "tokens,C,loss,name\n2e7,1.2e14,3.5,a\n4e7,4.8e14,3.25,b\n",
        '{"parameters": 1e6, "tokens": 2e7, "loss": 3.5}\n\n{"N": 2000000, "D": "4e7", "loss": 3.25}\n',
    ],
)
def test_tables_are_read_in_all_their_forms(text: str, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    path.write_text(text, encoding="utf-8")
    found = points.read(path)
    assert found.parameters.tolist() == pytest.approx([1e6, 2e6])
    assert found.tokens.tolist() == pytest.approx([2e7, 4e7])
    assert found.loss.tolist() == [3.5, 3.25]
    assert found.flops.tolist() == pytest.approx([1.2e14, 4.8e14])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no runs"),
        ("parameters,tokens,loss\n", "has no runs"),
        ("parameters,tokens\n1,2\n", "runs:2 has no loss"),
        ("parameters,loss\n1,2\n", "runs:2 has too few numbers"),
        ("flops,loss\n1,2\n", "runs:2 has too few numbers"),
        ("n,d,loss\n1,2,3\n1,0,3\n", "runs:3: tokens is '0'"),
        ("n,d,loss\n1,2,nan\n", "runs:2: loss is 'nan'"),
        ("n,d,loss\n1,2\n", "runs:2 has no loss"),
        ('{"n": 1, "d": 2, "loss": [3]}', "runs:1: loss is [3]"),
        ('{"n": 1', "runs:1 is not JSON"),
        ('{"n": 1, "d": 2, "loss": 3}\n[1]', "runs:2 is not an object"),
    ],
)
def test_errors_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        points.read(path)
    assert message in error.value.message


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (("binary", "is not a table"), ("missing", "cannot read")):
        with pytest.raises(DataError, match=message):
            points.read(tmp_path / name)
