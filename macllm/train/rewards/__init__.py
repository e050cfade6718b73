"""Rewards of generated answers: functions of a user's file, simple rules, and a judge."""

from __future__ import annotations

from .answers import Answers, RewardFunction
from .combined import Rewards, combined
from .functions import identity

__all__ = ["Answers", "RewardFunction", "Rewards", "combined", "identity"]
