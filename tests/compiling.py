"""A fake compiler with a chosen delay, and the files and processes that it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from macllm.ops.cpu import build

# It writes its process group to a log, and "links" by copying a module that is compiled already.
COMPILER = """\
#!/bin/sh
for word; do [ "$word" = -dM ] && echo "#define __AVX2__ 1" && exit; done
cut -d ' ' -f 5 /proc/$$/stat >> {folder}/compiled
sleep $(cat {folder}/seconds)
while [ $# -gt 0 ]; do
  case $1 in -c) object=1 ;; -o) out=$2 ;; esac
  shift
done
if [ "$object" ]; then cp {folder}/seconds "$out"; else cp {module} "$out"; fi
"""


def make_compiler(folder: Path, module: Path, seconds: float) -> Path:
    """A compiler in `folder` with a delay in seconds per file; called again, it changes the delay."""
    path = folder / "c++"
    (folder / "seconds").write_text(str(seconds))
    (folder / "compiled").touch()
    if not path.exists():
        path.write_text(COMPILER.format(folder=folder, module=module))
        path.chmod(0o755)
    return path


def cache_files() -> list[str]:
    """Files in the folders of modules, without the names of keys."""
    return sorted(
        path.name for folder in build.cache_folder().iterdir() if folder.name != "objects" for path in folder.iterdir()
    )


def cached_objects() -> list[str]:
    """Sources whose object files are in the cache."""
    return sorted(path.name.rpartition("-")[0] for path in (build.cache_folder() / "objects").glob("*"))


def wait_for(condition: Callable[[], object]) -> None:
    """Wait at most 60 s until `condition()` is true."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def running_compilers(log: Path) -> list[int]:
    """Process groups of compilers, read from `log`, that still have a running process."""
    groups, found = set(log.read_text().split()), []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if group in groups and state != "Z":
                found.append(int(group))
    return found
