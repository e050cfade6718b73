"""The Hugging Face cache on disk: listing, completeness checks, removal.

    models--org--name/blobs/<hash>  refs/<revision>  snapshots/<commit>/<file> -> ../../blobs/<hash>

macllm adds `.macllm/<commit>.json`, the files that it needs of a commit, before it downloads the first of them, so that
interrupted downloads are recognized. Does not use huggingface_hub, which is slow to import.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from macllm.errors import MacllmError, ModelNotFoundError, UsageError
from macllm.files import read_json, write_json

from .files import RepoFile, is_stray, is_weights, problem_of
from .names import ModelName, bundled_models, cache_folder

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class CachedModel:
    """One revision of a model on this machine.

    `revision` is the branch or tag that points to it, else the commit. `size_bytes` is the size on disk.
    `problem` says what is missing; None if the model is complete.
    """

    name: str
    revision: str
    commit: str
    path: Path
    size_bytes: int
    problem: str | None = None


@dataclass(frozen=True)
class FileCheck:
    """State of a file's content against its hash; "unknown" without a recorded hash."""

    file: str
    size_bytes: int
    status: Literal["ok", "damaged", "missing", "unknown"]


def repo_folder(repo: str, kind: str = "model") -> Path:
    """Cache folder of a repository of models or of datasets."""
    return cache_folder() / f"{kind}s--{repo.replace('/', '--')}"


def commit_of(name: ModelName) -> str | None:
    """The commit of this revision in the cache, or None."""
    if _COMMIT.fullmatch(name.revision):
        return name.revision
    with suppress(OSError, UnicodeDecodeError):
        commit = (repo_folder(name.repo, name.kind) / "refs" / name.revision).read_text("utf-8").strip()
        if _COMMIT.fullmatch(commit):
            return commit
    return None


def find(name: ModelName) -> CachedModel | None:
    """The model in the cache, complete or not; None if it is not cached."""
    if commit := commit_of(name):
        snapshot = repo_folder(name.repo) / "snapshots" / commit
        return _cached(name.repo, name.revision, snapshot) if snapshot.is_dir() else None
    # An interrupted first download has no reference yet.
    for commit, plan in _plans(repo_folder(name.repo)):
        if plan.get("revision") == name.revision:
            return _cached(name.repo, name.revision, repo_folder(name.repo) / "snapshots" / commit)
    return None


def has_all_but_weights(model: CachedModel) -> bool:
    """True for a model that we downloaded, of which weights may be missing and nothing else."""
    plan = _plan(repo_folder(model.name), model.commit)
    return bool(plan) and all(_has(model.path / name, plan[name][0]) for name in plan if not is_weights(name))


def models() -> list[CachedModel]:
    """All models in the cache by name, incomplete ones included."""
    found: list[CachedModel] = []
    for folder in sorted(path for path in cache_folder().glob("models--*") if path.is_dir()):
        repo = folder.name.removeprefix("models--").replace("--", "/")
        known = _revisions(folder)
        commits = {path.name for path in folder.glob("snapshots/*") if _COMMIT.fullmatch(path.name)}
        for commit in sorted(commits | known.keys()):
            found.append(_cached(repo, known.get(commit, commit), folder / "snapshots" / commit))
    return found


def similar_names(repo: str) -> list[str]:
    """Names of models on this machine that are similar to this one.

    If one differs in owner or case alone, it is the only one.
    """
    from difflib import get_close_matches

    names = sorted({*bundled_models(), *(model.name for model in models())})
    by_tail = {name.rpartition("/")[2].lower(): name for name in names}
    tail = repo.rpartition("/")[2].lower()
    if by_tail.get(tail, repo) != repo:
        return [by_tail[tail]]
    close = get_close_matches(repo, names, n=3, cutoff=0.7)
    tails = get_close_matches(tail, list(by_tail), n=3, cutoff=0.7)
    return list(dict.fromkeys([*close, *(by_tail[tail] for tail in tails)]))[:3]


def write_plan(name: ModelName, commit: str, files: list[RepoFile]) -> None:
    """Record the files of a complete snapshot of this commit."""
    plan = {"revision": name.revision, "files": {file.name: [file.size_bytes, file.digest] for file in files}}
    path = repo_folder(name.repo, name.kind) / ".macllm" / f"{commit}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)


def remove(name: ModelName, whole: bool) -> int:
    """Delete one revision, or the whole repository if `whole`; returns the bytes freed.

    Raises ModelNotFoundError if it is not cached, UsageError for a linked folder outside of the cache.
    """
    folder = repo_folder(name.repo)
    if not folder.exists() and not folder.is_symlink():
        raise _not_cached(name)
    if folder.is_symlink() or folder.resolve().parent != cache_folder().resolve():
        raise UsageError(
            f"{folder} is a link to a folder outside of the cache",
            cause="only folders inside the cache are removed",
            remedy="remove the link by hand",
        )
    found = find(name)
    if not whole and found is None:
        raise _not_cached(name)
    commit = found.commit if found else ""
    others = {path.name for path in folder.glob("snapshots/*") if _COMMIT.fullmatch(path.name)} - {commit}
    before = _tree_bytes(folder)
    if whole or not others:
        shutil.rmtree(folder)
        shutil.rmtree(cache_folder() / ".locks" / folder.name, ignore_errors=True)
        return before
    for ref in _refs(folder):
        if ref.read_bytes().strip() == commit.encode():
            ref.unlink()
    (folder / ".macllm" / f"{commit}.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "snapshots" / commit, ignore_errors=True)
    _drop_unused(folder)
    return before - _tree_bytes(folder)


def discard(name: ModelName) -> None:
    """Delete the unfinished download of a revision, if there is one; complete revisions stay."""
    folder = repo_folder(name.repo)
    plans = dict(_plans(folder))
    wished = [commit for commit, plan in plans.items() if name.revision in (plan.get("revision"), commit)]
    unfinished = [commit for commit in wished if _cached(name.repo, "", folder / "snapshots" / commit).problem]
    if not unfinished:
        return
    present = {path.name for path in folder.glob("snapshots/*") if _COMMIT.fullmatch(path.name)}
    if not (present | plans.keys()) - set(unfinished):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(cache_folder() / ".locks" / folder.name, ignore_errors=True)
        return
    for commit in unfinished:
        (folder / ".macllm" / f"{commit}.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "snapshots" / commit, ignore_errors=True)
    _drop_unused(folder)


def check(name: ModelName) -> Iterator[tuple[FileCheck, Path]]:
    """Check every file of a cached model against its hash; yields the result and the path in the snapshot."""
    from .transfer import matches

    model = find(name)
    if model is None:
        raise _not_cached(name)
    plan = _plan(repo_folder(name.repo), model.commit)
    inside = {path.relative_to(model.path) for path in model.path.rglob("*") if not path.is_dir()}
    present = {str(path) for path in inside if not is_stray(path)}
    for file in sorted(present | plan.keys()):
        path = model.path / file
        if not path.is_file():
            yield FileCheck(file, 0, "missing"), path
            continue
        digest = plan[file][1] if file in plan else path.readlink().name if path.is_symlink() else ""
        size = path.stat().st_size
        if not _DIGEST.fullmatch(digest):
            yield FileCheck(file, size, "unknown"), path
        else:
            yield FileCheck(file, size, "ok" if matches(path, digest) else "damaged"), path


def _drop_unused(folder: Path) -> None:
    """Delete blobs, and parts of blobs, that no snapshot links to and no plan wants."""
    used = {path.resolve() for path in folder.glob("snapshots/**/*") if path.is_file()}
    wanted = {digest for commit, _ in _plans(folder) for _, digest in _plan(folder, commit).values()}
    for blob in folder.glob("blobs/*"):
        if blob.is_file() and blob.resolve() not in used and blob.name.removesuffix(".incomplete") not in wanted:
            blob.unlink()


def _cached(repo: str, revision: str, snapshot: Path) -> CachedModel:
    folder = snapshot.parent.parent
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    size = sum({path.resolve(): path.stat().st_size for path in files}.values())
    plan = _plan(folder, snapshot.name)
    if plan:
        partial = [folder / "blobs" / f"{digest}.incomplete" for _, digest in plan.values()]
        size += sum(path.stat().st_size for path in partial if path.is_file())
        missing = [name for name, (size_bytes, _) in plan.items() if not _has(snapshot / name, size_bytes)]
        problem = f"{len(missing)} of {len(plan)} files are missing" if missing else None
    else:
        problem = problem_of(snapshot)
    return CachedModel(repo, revision, snapshot.name, snapshot, size, problem)


def _has(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False


def _plan(folder: Path, commit: str) -> dict[str, tuple[int, str]]:
    """File name -> (size, hash) of a snapshot, as recorded at download; empty if not downloaded by us."""
    try:
        plan: Any = read_json(folder / ".macllm" / f"{commit}.json")
        return {str(name): (int(size), str(digest)) for name, (size, digest) in plan["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _plans(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.glob(".macllm/*.json")):
        with suppress(OSError, ValueError):
            plan = read_json(path)
            if _COMMIT.fullmatch(path.stem) and isinstance(plan, dict):
                yield path.stem, plan


def _revisions(folder: Path) -> dict[str, str]:
    """Commit -> the revision that names it."""
    known: dict[str, str] = {}
    for commit, plan in _plans(folder):
        revision = str(plan.get("revision", commit))
        known[commit] = commit if (folder / "refs" / revision).is_file() else revision
    for ref in _refs(folder):
        with suppress(OSError, UnicodeDecodeError):
            commit = ref.read_text("utf-8").strip()
            if _COMMIT.fullmatch(commit) and (folder / "snapshots" / commit).is_dir():
                known[commit] = str(ref.relative_to(folder / "refs"))
    return known


def _refs(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("refs/**/*") if path.is_file()]
    return sorted(path for path in found if not is_stray(path.relative_to(folder)))


def _tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _not_cached(name: ModelName) -> MacllmError:
    near = similar_names(name.repo)
    return ModelNotFoundError(
        f"{name} is not on this machine",
        cause=f"it is not in {cache_folder()}",
        remedy=f"did you mean {' or '.join(near)}?" if near else "macllm models ls",
    )
