"""`python -m tests.simulator`: output and exit status. Slow: the table of mutants."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulator import compile
from tests.simulator.mutants import mutations

SCRIPT = """
import mlx.core as mx
kernel = mx.fast.metal_kernel("doubled", ["x"], ["y"], "uint i = thread_position_in_grid.x; y[i] = 2.0f * x[i PLUS];")
sizes = dict(grid=(64, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(64,)], output_dtypes=[mx.float32])
y = kernel(inputs=[mx.arange(64.0)], **sizes)
print("last", y[0].tolist()[-2])
"""


def command(repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "tests.simulator", *map(str, arguments)]
    return subprocess.run(given, cwd=repository, capture_output=True, text=True)


def test_a_passing_script_ends_with_0(tmp_path: Path, repository: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("PLUS", ""))
    done = command(repository, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "last 124.0",
        "doubled: passes",
        "  0 simd operations, 0 barriers, 0 bytes of threadgroup memory",
        "  buffer               bytes read  bytes written   lines of 128",
        "  x                           256              0              2",
        "  y                             0            256              2",
        f"{script}: 1 dispatch, passes",
    ]


def test_a_faulty_script_ends_with_1(tmp_path: Path, repository: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("PLUS", "+ 1"))
    done = command(repository, "--quick", "--no-traffic", script)
    assert done.returncode == 1
    assert "doubled: FAILS, 1 fault\n  out-of-bounds: lane 31 of threadgroup 1 reads 4 bytes at 256 of x" in done.stdout
    assert "kernel.metal:" in done.stdout
    assert "bytes read" not in done.stdout


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("print('nothing')", 2, "no kernel was dispatched"),
        ("raise ValueError('of its own')", 2, "ValueError: of its own"),
        (SCRIPT.replace("PLUS", "+"), 1, "a kernel does not compile"),
    ],
)
def test_an_unusable_script_is_an_error(script: str, code: int, says: str, tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(script)
    done = command(repository, path)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_metal_file_is_linted(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "kernel.metal"
    path.write_text("// It doubles.\n//: y[0] = 2.0 * exp(x[0]);\n")
    done = command(repository, path, repository / "macllm/ops/metal/quantized_matvec/qmv.metal")
    assert done.returncode == 1
    assert done.stdout.startswith(f"{path}: FAILS, 2 rules\n  line 2: a number without f or h is a double")
    assert "qmv.metal: passes" in done.stdout


def test_help_is_shown_and_a_missing_file_is_an_error(repository: Path) -> None:
    done = command(repository, "--help")
    assert done.returncode == 0
    assert "Exit status: 0 without faults" in done.stdout
    done = command(repository, "nowhere.py")
    assert done.returncode == 2
    assert "there is no file nowhere.py" in done.stderr


@pytest.mark.slow
def test_the_table_has_a_row_for_each_mutant(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutations.main() == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| Class | Mutant | Killed by |"
    assert len(rows) == len(mutations.FAULT_MUTANTS) + 2
    assert all(row.count("|") == 4 for row in rows)


def test_the_least_recently_used_programs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("newest", "older", "oldest", "machine.o")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    monkeypatch.setattr(compile, "_folder", lambda: tmp_path)
    monkeypatch.setattr(compile, "MOST_BYTES", 250)
    compile._make_room()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["machine.o", "newest", "older"]
