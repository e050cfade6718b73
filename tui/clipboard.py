"""Copying out of a terminal. No Textual in here."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys


def copy_natively(text: str) -> bool:
    """Copy with `pbcopy`; False over SSH, outside macOS, or when it fails.

    The caller then falls back to OSC 52, which every common terminal but Terminal.app understands.
    """
    if sys.platform != "darwin" or "SSH_CONNECTION" in os.environ or (command := shutil.which("pbcopy")) is None:
        return False
    try:
        subprocess.run([command], input=text.encode(), check=True, timeout=5, env={**os.environ, "LC_CTYPE": "UTF-8"})
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def terminal_sequence(text: str) -> str:
    """The OSC 52 sequence that copies `text` to the clipboard of the terminal."""
    return f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\a"
