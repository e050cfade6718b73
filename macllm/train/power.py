"""Pauses of a run while the machine runs on its battery."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SUPPLIES = Path("/sys/class/power_supply")
_SECONDS = 5.0  # for pmset
_CHECK_SECONDS = 15.0


def on_battery(supplies: Path = _SUPPLIES) -> bool:
    """True if the machine runs on its battery; False if it has none, or if that is not known."""
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/bin/pmset", "-g", "batt"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            return draws_from_battery(done.stdout)
        return False
    # https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-power
    return any(
        _read(supply / "type") == "Battery"
        and _read(supply / "scope") != "Device"  # that of a mouse or a keyboard
        and _read(supply / "status") == "Discharging"
        for supply in (supplies.iterdir() if supplies.is_dir() else ())
    )


def draws_from_battery(said: str) -> bool:
    """True if `pmset -g batt` says that power comes from the battery."""
    return "drawing from 'Battery Power'" in said


@dataclass
class BatteryPause:
    """Checks for battery power from time to time, and waits for mains power."""

    enabled: bool
    on_battery: Callable[[], bool] = on_battery
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    _checked: float = -math.inf

    def is_due(self) -> bool:
        """True on battery power; looked up every quarter of a minute."""
        if not self.enabled or self.clock() - self._checked < _CHECK_SECONDS:
            return False
        self._checked = self.clock()
        return self.on_battery()

    def wait(self) -> float:
        """Wait for mains power; seconds that it took."""
        began = self.clock()
        while self.on_battery():
            self.sleep(_CHECK_SECONDS)
        return self.clock() - began


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
