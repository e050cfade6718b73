"""Settings of objectives that restore a corrupted text, or write one text from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .setting_group import SettingGroup


@dataclass(frozen=True, kw_only=True)
class CorruptionSettings(SettingGroup):
    """Settings of objectives that restore a corrupted text."""

    SUBJECT = "Corruption of texts"
    RANGES = (
        ("mask_ratio", 0.0, 0.9),
        ("span_length", 1.0, 1e3),
    )

    mask_ratio: Annotated[float, "mlm, span, infill: share of the tokens to restore; 0: 0.15, infill 0.3"] = 0.0
    span_length: Annotated[float, "span, infill: mean length of a span to restore, in tokens"] = 3.0
    permute_sentences: Annotated[bool, "infill: shuffle the sentences of a text, too"] = True


@dataclass(frozen=True, kw_only=True)
class TextToTextSettings(SettingGroup):
    """Settings of text to text."""

    SUBJECT = "Text to text"
    RANGES = (("label_smoothing_factor", 0.0, 0.9),)

    label_smoothing_factor: Annotated[
        float, "seq2seq: share of the probability spread over all tokens (of pairs: label_smoothing)"
    ] = 0.0
