"""`macllm doctor --kernels` on a Mac of one's own."""

from __future__ import annotations

import json
import subprocess
import sys

import mlx.core as mx
import pytest


@pytest.mark.metal
def test_on_this_mac_every_kernel_is_right() -> None:
    if not mx.metal.is_available() or "Paravirtual" in str(mx.device_info().get("device_name")):
        pytest.skip("this machine has no GPU of its own")
    command = [sys.executable, "-m", "macllm", "doctor", "--kernels", "--json"]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [verdict for verdict in facts["verdicts"] if not verdict["right"]] == []
