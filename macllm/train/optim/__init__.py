"""Optimizers, schedules and clipping as pure functions over flat dicts of arrays."""

from __future__ import annotations

from .adamw import AdamW
from .clip import clip_factor, global_norm
from .schedule import learning_rate, share

__all__ = ["AdamW", "clip_factor", "global_norm", "learning_rate", "share"]
