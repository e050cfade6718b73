"""The commands of README's section on objectives, run as they stand there and timed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.tables.kills import environment
from tests.tables.table import Say, Table

REPOSITORY = Path(__file__).resolve().parents[2]
SECTION = "## Every objective"
MOST_SECONDS = 300
# `macllm` in the section: runs the command, and writes down how long it took and how it ended.
WRAPPER = """\
#!/usr/bin/env bash
began=$(date +%s%N)
{python} -m macllm "$@" && code=0 || code=$?
printf '%s\\t%s\\t%s\\n' "$code" "$(( ($(date +%s%N) - began) / 1000000 ))" "macllm $*" >> {log}
exit $code
"""


def script(readme: str) -> str:
    """The shell blocks of the section. Raises ValueError if there is none."""
    _, found, rest = readme.partition(f"{SECTION}\n")
    blocks = re.findall(r"^```sh\n(.*?)^```$", rest.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    if not found or not blocks:
        raise ValueError(f"README has no commands under {SECTION}")
    return "".join(blocks)


def run(folder: Path, say: Say) -> tuple[list[dict[str, Any]], str]:
    """Code, seconds and line of each macllm command, and what the script wrote last if it failed."""
    bin_, log = folder / "bin", folder / "log"
    bin_.mkdir()
    (folder / "models").symlink_to(REPOSITORY / "models")
    python = shlex.quote(sys.executable)
    for name, text in {
        "macllm": WRAPPER.format(python=python, log=shlex.quote(str(log))),
        "python3": f'#!/usr/bin/env bash\nexec {python} "$@"\n',
    }.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    settings = {"env": {**environment(folder), "PATH": path, "PYTHONPATH": paths}, "cwd": folder}
    body = script((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    command = ["bash", "-euo", "pipefail", "-c", body]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings) as process:
        last = ""
        assert process.stdout is not None
        for line in process.stdout:
            say(line.rstrip())
            last = line.strip() or last
    ran = [line.split("\t", 2) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    found = [{"code": int(code), "seconds": int(ms) / 1000, "command": text} for code, ms, text in ran]
    return found, "" if process.returncode == 0 else last


def table(quick: bool, say: Say) -> Table:
    """Every command with its seconds; `quick` runs none."""
    found, failed = ([], "") if quick else _ran(say)
    worst = max((each["seconds"] for each in found), default=0)
    rows = [[f"`{each['command']}`", f"{each['seconds']:.0f} s", str(each["code"])] for each in found]
    rows += [["the script", failed, "failed"]] if failed else []
    return Table(
        "README's commands for every objective",
        ["command", "time", "exit code"],
        rows,
        f"each ends with 0 in at most {MOST_SECONDS} s",
        None if quick else bool(found) and not failed and worst <= MOST_SECONDS,
        {"commands": found},
    )


def _ran(say: Say) -> tuple[list[dict[str, Any]], str]:
    with tempfile.TemporaryDirectory() as name:
        return run(Path(name), say)
