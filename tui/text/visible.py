"""Foreign text, safe for a terminal."""

from __future__ import annotations

from macllm.visible import visible as visible
