"""Settings of data: rows, their columns, and the length of examples."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from ..rows import Columns
from .setting_group import MOST, SettingGroup
from .values import refuse_set

LongRows = Literal["truncate", "split", "drop", "error"]
# Paths that a run reads; paths that it writes are relative to the current directory.
PATHS = frozenset({"data", "valid", "config", "tokenizer"})
INPUTS = PATHS | {"model", "teacher"}  # what a run reads, by path or name


@dataclass(frozen=True, kw_only=True)
class DataSettings(SettingGroup):
    """Settings of rows, their columns, and the length of examples."""

    SUBJECT = "Data"
    RANGES = (
        ("max_seq_length", 2, MOST),  # the first token is not predicted
        ("valid_fraction", 0.0, 0.9),
        ("cache_gb", 0.0, 1e6),
    )

    data: Annotated[
        str, "rows: a file, a folder with train.jsonl, valid.jsonl, or hf:name[:config][@revision][/split]"
    ] = ""
    valid: Annotated[
        str, "rows to evaluate on, as data; empty: valid.jsonl or val.jsonl of the data folder, if any"
    ] = ""
    valid_fraction: Annotated[float, "share of the rows held out for evaluation when there is no validation file"] = 0.0
    max_seq_length: Annotated[int, "longest row, in tokens"] = 2048
    long_rows: Annotated[LongRows, "how to handle longer rows; the numbers are reported"] = "truncate"
    mask_prompt: Annotated[bool, "train on assistant turns and completions only, not on prompts"] = True
    chat_feature: Annotated[str, "column of conversations"] = "messages"
    prompt_feature: Annotated[str, "column of prompts"] = "prompt"
    completion_feature: Annotated[str, "column of completions"] = "completion"
    text_feature: Annotated[str, "column of texts"] = "text"
    cache_gb: Annotated[float, "size limit in GB of the cache of encoded rows of all runs; 0: no cache"] = 4.0
    date: Annotated[str, "date that chat templates write, as 2026-01-31; empty: that of the run's first day"] = ""

    @property
    def now(self) -> datetime | None:
        """The time that chat templates write, None without a date."""
        return datetime.fromisoformat(self.date) if self.date else None

    @property
    def columns(self) -> Columns:
        """The names of the columns of rows."""
        return Columns(self.chat_feature, self.prompt_feature, self.completion_feature, self.text_feature)

    def _check_effects(self) -> None:
        super()._check_effects()
        refuse_set(self, ("valid_fraction",) if self.valid else (), f"valid is {self.valid}")
