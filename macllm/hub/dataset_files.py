"""Splits of a dataset's repository: by the card's `configs`, else by the names of files and folders.

Rows that a repository has in several forms are taken once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

from macllm.errors import DataError

from .dataset_names import DatasetName

# In the order of preference where a repository has the same rows in several forms.
_ROWS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst", ".parquet")
_TEXTS = (".txt",)
# Files of the same endings that are about the rows.
_ABOUT = re.compile(
    r"(dataset_?infos?|dataset_dict|dataset-metadata|metadata|croissant|state|config|package|robots|notice|citation"
    r"|authors|(.*[-_.])?schema|(readme|licen[cs]e|copying|changelog|requirements)([-_.].*)?)\.(json|txt)",
    re.IGNORECASE,
)
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_BY_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_WORD = re.compile(r"(?<![a-z])(" + "|".join(sorted(_BY_WORD, key=len, reverse=True)) + r")(?![a-z])")
_CONVERTED = "refs/convert/parquet"
# The files of the hub's conversions: config/split/0000.parquet; a large split is converted in part.
_CONVERTED_FILE = re.compile(r"[^/]+/(?:partial-)?([^/]+)/\d+\.parquet")

Splits = dict[str, list[str]]


def rows_of_splits(name: DatasetName, files: Sequence[str], card: bytes | None) -> Splits:
    """The names of the files of each split of a config.

    Raises DataError if there are none that macllm reads.
    """
    listed = sorted(file for file in files if not any(part.startswith((".", "_")) for part in file.split("/")))
    configs = _configs(card)
    if configs:
        splits = _declared(_chosen(name, configs), listed)
    elif _of_rows(listed) and all(map(_CONVERTED_FILE.fullmatch, _of_rows(listed))):
        splits = _converted(name, listed)
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
    """The files of rows that a pattern names; * stays within a folder, ** does not.

    Files about the rows have to be named whole.
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", pattern)
    kinds = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    try:
        expression = re.compile("".join(kinds.get(part) or _literal(part) for part in parts))
    except re.error:  # [z-a]
        return []
    rows = {*_of_rows(files), *_of_texts(files), *([pattern] if pattern.endswith(_ROWS + _TEXTS) else [])}
    return _once([file for file in files if file in rows and expression.fullmatch(file)])


def _literal(part: str) -> str:
    """A regular expression for a set of characters, or for a text."""
    if part[:1] != "[" or part[-1:] != "]":
        return re.escape(part)
    chars = part[1:-1].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
    return f"[^/{chars[1:]}]" if chars.startswith("!") else f"[{chars}]"


def _converted(name: DatasetName, files: Sequence[str]) -> Splits:
    """The splits of a config in the hub's conversion to Parquet: its folders."""
    rows = _of_rows(files)
    configs = sorted({file.partition("/")[0] for file in rows})
    config = name.config or ("default" if "default" in configs else "" if len(configs) > 1 else configs[0])
    if config not in configs:
        raise _unknown_config(name, configs)
    splits: Splits = {}
    for file in rows:
        found = _CONVERTED_FILE.fullmatch(file)
        if found and file.startswith(f"{config}/"):
            splits.setdefault(found[1], []).append(file)
    return splits


def _below(name: DatasetName, files: list[str]) -> list[str]:
    """The files of a config: a folder."""
    if not name.config:
        return files
    folders = sorted({file.partition("/")[0] for file in _of_rows(files) if "/" in file})
    if name.config not in folders:
        raise _unknown_config(name, folders or ["default"])
    return [file for file in files if file.startswith(f"{name.config}/")]


def _of_rows(files: Iterable[str]) -> list[str]:
    return [file for file in files if file.endswith(_ROWS) and not _ABOUT.fullmatch(file.rpartition("/")[2])]


def _of_texts(files: Iterable[str]) -> list[str]:
    return [file for file in files if file.endswith(_TEXTS) and not _ABOUT.fullmatch(file.rpartition("/")[2])]


def _found(files: Sequence[str]) -> Splits:
    """Splits by the words in the names of files and folders.

    All files are "train" if none has such a word.
    """
    rows = _of_rows(files) or _of_texts(files)
    splits: Splits = {}
    for file in rows:
        # the name of the file counts more than its folders, the last word more than the first
        words = _WORD.findall(file.rpartition("/")[2].lower()) or _WORD.findall(file.lower())
        if words:
            splits.setdefault(_BY_WORD[words[-1]], []).append(file)
    splits = splits or ({"train": rows} if rows else {})
    return {split: _once(each) for split, each in splits.items()}


def _once(files: Sequence[str]) -> list[str]:
    """The files of a split without those that have the same rows in another form.

    These are files of one name with several endings, and of JSON and Parquet the fewer ones.
    """
    best: dict[str, str] = {}
    for ending in _ROWS + _TEXTS:
        for file in files:
            if file.endswith(ending):
                best.setdefault(file.removesuffix(ending), file)
    kept = [file for file in files if file in best.values()]
    parquet = [file for file in kept if file.endswith(".parquet")]
    return max(([file for file in kept if file not in parquet], parquet), key=len)


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
