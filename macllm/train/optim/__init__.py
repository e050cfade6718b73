"""Optimizers, schedules and clipping as pure functions over flat dicts of arrays."""

from __future__ import annotations

from .adamw import AdamW
from .clip import clip_factor, global_norm
from .configured import configured
from .lion import Lion
from .moment import FirstMoment
from .muon import Muon
from .schedule import learning_rate, share

__all__ = [
    "AdamW",
    "FirstMoment",
    "Lion",
    "Muon",
    "clip_factor",
    "configured",
    "global_norm",
    "learning_rate",
    "share",
]
