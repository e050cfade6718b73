"""Splits of a dataset's repository: by the card's `configs`, else by the names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import translate
from typing import Any, cast

from macllm.errors import DataError

from .dataset_names import DatasetName

_ROWS = re.compile(r"\.(jsonl|json|parquet)(\.gz|\.zst)?$")
_TEXTS = re.compile(r"\.txt$")
# Files of the same endings that are about the rows.
_ABOUT = frozenset(("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"))
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_BY_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_WORD = re.compile(r"(?<![a-z])(" + "|".join(sorted(_BY_WORD, key=len, reverse=True)) + r")(?![a-z])")
_CONVERTED = "refs/convert/parquet"

Splits = dict[str, list[str]]


def rows_of_splits(name: DatasetName, files: Sequence[str], card: bytes | None) -> Splits:
    """The names of the files of each split of a config.

    Raises DataError if there are none that macllm reads.
    """
    listed = sorted(file for file in files if not any(part.startswith((".", "_")) for part in file.split("/")))
    configs = _configs(card)
    if configs and name.revision != _CONVERTED:
        splits = _declared(_chosen(name, configs), listed)
    else:
        splits = _found(_below(name, listed))
    if not splits:
        raise _no_rows(name, listed)
    return splits


def canonical(split: str, splits: Splits) -> str:
    """The name that a dataset uses for a split: "valid" for "validation" where it has no other."""
    if split in splits:
        return split
    alike = _SPLITS.get(_BY_WORD.get(split, ""), ())
    return next((word for word in alike if word in splits), split)


def _configs(card: bytes | None) -> list[dict[str, Any]]:
    """The `configs` of the YAML at the beginning of a card; none for a card that cannot be read."""
    import yaml

    text = (card or b"").decode("utf-8", "replace").lstrip("\ufeff")
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        values: Any = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return []
    configs = cast("dict[str, Any]", values).get("configs") if isinstance(values, dict) else None
    listed = cast("list[Any]", configs) if isinstance(configs, list) else []
    return [each for each in listed if isinstance(each, dict) and isinstance(each.get("config_name"), str)]


def _chosen(name: DatasetName, configs: list[dict[str, Any]]) -> dict[str, Any]:
    """The config of that name, else the default one, else the only one."""
    names = [config["config_name"] for config in configs]
    if name.config:
        wanted = [config for config in configs if config["config_name"] == name.config]
    else:
        wanted = [config for config in configs if config.get("default") is True or config["config_name"] == "default"]
        wanted = wanted or configs[: len(configs) == 1]
    if not wanted:
        raise _unknown_config(name, names)
    return wanted[0]


def _unknown_config(name: DatasetName, names: Sequence[str]) -> DataError:
    shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
    what = f"has no config {name.config!r}" if name.config else "has several configs"
    return DataError(f"{name.repo} {what}", cause=f"it has {shown}", remedy=f"hf:{name.repo}:{names[0]}")


def _declared(config: dict[str, Any], files: Sequence[str]) -> Splits:
    """The splits that a config declares: patterns of files, for all or by split."""
    folder = config.get("data_dir")
    base = f"{folder.strip('./')}/" if isinstance(folder, str) and folder.strip("./") else ""
    given = config.get("data_files")
    if given is None:
        return _found([file for file in files if file.startswith(base)])
    if isinstance(given, dict):
        given = [{"split": split, "path": path} for split, path in cast("dict[str, Any]", given).items()]
    splits: Splits = {}
    for entry in cast("list[Any]", given) if isinstance(given, list) else [given]:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for path in cast("list[Any]", paths) if isinstance(paths, list) else [paths]:
            if isinstance(split, str) and isinstance(path, str):
                matched = _matching(base + path.removeprefix("./"), files)
                splits[split] = list(dict.fromkeys([*splits.get(split, []), *matched]))
    return {split: matched for split, matched in splits.items() if matched}


def _matching(pattern: str, files: Iterable[str]) -> list[str]:
    """The files of rows that a pattern names; * stays within a folder, ** does not."""
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    kinds = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    expression = "".join(kinds.get(part) or translate(part).removeprefix("(?s:").removesuffix(r")\Z") for part in parts)
    return [file for file in files if re.fullmatch(expression, file) and (_ROWS.search(file) or _TEXTS.search(file))]


def _below(name: DatasetName, files: list[str]) -> list[str]:
    """The files of a config: a folder, as in the hub's own conversions to Parquet."""
    folders = sorted({file.partition("/")[0] for file in _of_rows(files) if "/" in file})
    if name.config:
        if name.config not in folders:
            raise _unknown_config(name, folders or ["default"])
        return [file for file in files if file.startswith(f"{name.config}/")]
    if name.revision == _CONVERTED and len(folders) > 1:
        if "default" not in folders:
            raise _unknown_config(name, folders)
        return [file for file in files if file.startswith("default/")]
    return files


def _of_rows(files: Iterable[str]) -> list[str]:
    return [file for file in files if _ROWS.search(file) and file.rpartition("/")[2] not in _ABOUT]


def _found(files: Sequence[str]) -> Splits:
    """Splits by the words in the names of files and folders.

    All files are "train" if none has such a word. Of several formats the one with most files counts: the others hold
    the same rows.
    """
    rows = _of_rows(files)
    parquet = [file for file in rows if file.endswith(".parquet")]
    others = [file for file in rows if not file.endswith(".parquet")]
    rows = max((others, parquet), key=len) or [file for file in files if _TEXTS.search(file)]
    splits: Splits = {}
    for file in rows:
        # the name of the file counts more than its folders, the last word more than the first
        words = _WORD.findall(file.rpartition("/")[2].lower()) or _WORD.findall(file.lower())
        if words:
            splits.setdefault(_BY_WORD[words[-1]], []).append(file)
    return splits or ({"train": rows} if rows else {})


def _no_rows(name: DatasetName, files: Sequence[str]) -> DataError:
    script = f"{name.repo.rpartition('/')[2]}.py"
    remedy = f"its conversion to Parquet by the hub, if there is one: hf:{name.repo}@{_CONVERTED}"
    if script in files:
        cause = f"it has a loading script, {script}, and macllm runs no code of a repository"
    else:
        endings = sorted({f".{file.rpartition('.')[2]}" for file in files if "." in file.rpartition("/")[2]} - {".md"})
        held = f"it has {', '.join(endings[:6])}" if endings else "it has no files"
        cause = f"{held}; macllm reads .jsonl, .json, .parquet and .txt, also .gz and .zst"
    return DataError(f"{name.repo} has no rows that macllm reads", cause=cause, remedy=remedy)
