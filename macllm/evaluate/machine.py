"""Limits of this machine: memory bandwidth and arithmetic throughput."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np

READ_BYTES = 256 << 20  # more than any processor cache
_PRODUCT = 2048
_CPU_PRODUCT = 1024


def read_bytes_per_second(repeats: int = 5) -> float:
    """Memory bandwidth: the fastest of several reads of 256 MB, by MLX or, on a CPU, by numpy threads.

    Decoding a token reads every weight once, so bandwidth divided by the size of the weights bounds tokens per second.
    """
    matrix = mx.random.normal((READ_BYTES // 4 // 4096, 4096))
    vector = mx.random.normal((1, 4096))
    mx.eval(matrix, vector)
    seconds = _fastest(lambda: mx.eval(vector @ matrix.T), repeats)
    if mx.default_device() == mx.cpu:
        seconds = min(seconds, _numpy_read_seconds(repeats))
    return READ_BYTES / seconds


def operations_per_second(dtype: mx.Dtype, repeats: int = 5) -> float:
    """Floating-point throughput: the fastest of several large matrix products of this type.

    Prefill of n tokens takes about 2 n operations for every weight.
    """
    on_cpu = mx.default_device() == mx.cpu
    size, kind = (_CPU_PRODUCT, mx.float32) if on_cpu else (_PRODUCT, dtype)
    left, right = (mx.random.normal((size, size)).astype(kind) for _ in range(2))
    mx.eval(left, right)
    seconds = _fastest(lambda: mx.eval(left @ right), repeats)
    if on_cpu:
        a, b = (np.random.default_rng(0).standard_normal((size, size), dtype=np.float32) for _ in range(2))
        seconds = min(seconds, _fastest(lambda: np.matmul(a, b), repeats))
    return 2 * size**3 / seconds


def _numpy_read_seconds(repeats: int) -> float:
    data = np.ones(READ_BYTES // 4, np.float32)
    parts = np.array_split(data, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    with ThreadPoolExecutor(len(parts)) as threads:
        return _fastest(lambda: list(threads.map(np.max, parts)), repeats)


def _fastest(run: Callable[[], object], repeats: int) -> float:
    run()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)
