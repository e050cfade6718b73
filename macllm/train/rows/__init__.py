"""Rows of training data: TRL's types, the columns of mlx-lm, Alpaca and ShareGPT, and texts."""

from __future__ import annotations

from .columns import Columns, parse
from .files import Source, each_row, files_of, find_files, read
from .hub import RowFiles, is_dataset, open_split, pinned
from .kinds import (
    Chat,
    Label,
    Messages,
    PlainText,
    Preference,
    PromptCompletion,
    PromptOnly,
    Row,
    TaggedWords,
    UnpairedPreference,
    content_key,
    label_name,
    weight_of,
)

__all__ = [
    "Chat",
    "Columns",
    "Label",
    "Messages",
    "PlainText",
    "Preference",
    "PromptCompletion",
    "PromptOnly",
    "Row",
    "RowFiles",
    "Source",
    "TaggedWords",
    "UnpairedPreference",
    "content_key",
    "each_row",
    "files_of",
    "find_files",
    "is_dataset",
    "label_name",
    "open_split",
    "parse",
    "pinned",
    "read",
    "weight_of",
]
