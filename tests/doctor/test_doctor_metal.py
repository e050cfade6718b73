"""`macllm doctor --kernels` on a real Mac."""

from __future__ import annotations

import json
import subprocess
import sys

import mlx.core as mx
import pytest


@pytest.mark.metal
def test_on_this_mac_every_kernel_is_correct() -> None:
    if not mx.metal.is_available() or "Paravirtual" in str(mx.device_info().get("device_name")):
        pytest.skip("this machine has no real GPU")
    command = [sys.executable, "-m", "macllm", "doctor", "--kernels", "--json"]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [result for result in facts["verdicts"] if not result["right"]] == []
