"""macllm: run, inspect, train and fine-tune language models on your own Mac.

Public names are imported on first use (PEP 562), so that importing the package is cheap and commands
start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macllm.checkpoint import load, save
    from macllm.errors import MacllmError
    from macllm.generation.cache_file import load_cache, save_cache
    from macllm.generation.classify import classify, tag
    from macllm.generation.embed import embed
    from macllm.generation.stream import generate, stream
    from macllm.train.finetune import finetune
    from macllm.train.objectives.reward import reward

    __version__: str

__all__ = [
    "MacllmError",
    "__version__",
    "classify",
    "embed",
    "finetune",
    "generate",
    "load",
    "load_cache",
    "reward",
    "save",
    "save_cache",
    "stream",
    "tag",
]

_HOMES = {
    "MacllmError": "macllm.errors",
    "classify": "macllm.generation.classify",
    "embed": "macllm.generation.embed",
    "finetune": "macllm.train.finetune",
    "generate": "macllm.generation.stream",
    "load": "macllm.checkpoint",
    "load_cache": "macllm.generation.cache_file",
    "reward": "macllm.train.objectives.reward",
    "save": "macllm.checkpoint",
    "save_cache": "macllm.generation.cache_file",
    "stream": "macllm.generation.stream",
    "tag": "macllm.generation.classify",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name == "__version__":
        return import_module("importlib.metadata").version("macllm")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'macllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
