"""Names of datasets: hf:name[:config][@revision][/split]."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from macllm.errors import UsageError

from .names import DEFAULT_REVISION, ModelName, parse_name

PREFIX = "hf:"
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_FORMS = "hf:org/name, hf:org/name:config, hf:org/name@revision, each with /split at its end if you like"


@dataclass(frozen=True)
class DatasetName(ModelName):
    """A dataset of the hub; an empty config or split is the default one."""

    kind: ClassVar[str] = "dataset"

    config: str = ""
    split: str = ""

    def __str__(self) -> str:
        """The name in the form that `parse_dataset` reads."""
        config = f":{self.config}" if self.config else ""
        revision = "" if self.revision == DEFAULT_REVISION else f"@{self.revision}"
        # without a colon or an at sign, the split of a name without an owner would be taken for the name
        plain = self.split and "/" not in self.repo and not config and not revision
        return f"{PREFIX}{self.repo}{config}{revision or '@main' * bool(plain)}{f'/{self.split}' if self.split else ''}"

    @property
    def again(self) -> str:
        """A command that resumes a download."""
        return "run the same command again"


def is_dataset(text: str) -> bool:
    """True for a name of the form hf:..."""
    return text.startswith(PREFIX)


def parse_dataset(text: str) -> DatasetName:
    """The name that `text` gives. Raises UsageError."""
    name, at, rest = text.removeprefix(PREFIX).partition("@")
    revision, split, config = DEFAULT_REVISION, "", ""
    if at:
        parts = rest.split("/")
        count = 3 if parts[0] == "refs" else 1  # refs/convert/parquet, refs/pr/1
        revision, split = "/".join(parts[:count]), "/".join(parts[count:])
    name, colon, config = name.partition(":")
    if colon and not at:
        config, _, split = config.partition("/")
    elif not at and name.count("/") == 2:
        name, _, split = name.rpartition("/")
    try:
        parsed = parse_name(f"{name}@{revision}")
    except UsageError as error:
        raise UsageError(f"{text!r} is not the name of a dataset", cause=f"a name is {_FORMS}") from error
    if any(word and not _WORD.fullmatch(word) for word in (config, split)) or (colon and not config):
        raise UsageError(f"{text!r} is not the name of a dataset", cause=f"a name is {_FORMS}")
    return DatasetName(parsed.repo, parsed.revision, config, split)
