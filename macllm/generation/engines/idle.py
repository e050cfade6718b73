"""Work of an idle engine: trials of the Metal kernels that its model asked for."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from ..contract import OnStatus

log = logging.getLogger(__name__)


class KernelTrial:
    """A trial of kernels, loaded by its name once ops have asked for kernels on which nothing is decided."""

    def __init__(self, name: str, on_status: OnStatus) -> None:
        """`name` is `module:function`; called with `on_status`, it returns an `IdleWork`."""
        self._name, self._on_status = name, on_status
        self._work: Any = None
        self._failed = False

    def resume(self) -> None:
        """Go on trying."""
        from macllm.ops import dispatch

        if not dispatch.undecided or self._failed:
            return
        try:
            if self._work is None:
                module, _, function = self._name.partition(":")
                self._work = getattr(import_module(module), function)(self._on_status)
            self._work.resume()
        except Exception:  # an engine that answers without those kernels is better than none
            self._failed = True
            log.exception("Metal kernels cannot be tested")

    def pause(self) -> None:
        """Stop at once."""
        if self._work is not None:
            self._work.pause()
