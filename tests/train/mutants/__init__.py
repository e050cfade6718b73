"""Bugs of other trainers, put back one at a time, each with the claim that it must break.

A mutant is a name, a patch, and a claim: a test that holds without the patch. Sources of the bugs: the trackers of
mlx-lm, mlx-lm-lora, mlx-tune, Unsloth, TRL, PEFT and transformers.
"""

from __future__ import annotations

from . import pretraining, rows, snapshots, steps, weights
from .mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = [*rows.MUTANTS, *steps.MUTANTS, *weights.MUTANTS, *snapshots.MUTANTS, *pretraining.MUTANTS]
