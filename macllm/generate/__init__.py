"""A prompt in, events out; called itself, as `macllm.generate(...)`, a prompt in, its completion out."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """The package `macllm.generate` and the function of that name are one object: neither hides the other."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from .stream import generate

        return generate(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
