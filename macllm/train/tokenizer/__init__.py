"""New tokenizers: BPE, Unigram and WordPiece, trained on texts."""

from __future__ import annotations

from .config import CHATML, TokenizerConfig
from .report import Fertility
from .training import Trained, train

__all__ = ["CHATML", "Fertility", "TokenizerConfig", "Trained", "train"]
