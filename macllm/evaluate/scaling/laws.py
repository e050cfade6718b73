"""Scaling laws of Kaplan and Chinchilla, with published constants and compute-optimal sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOPS_PER_PARAMETER = 6  # of a training token: forward 2, backward 4 (Kaplan et al. 2020, 2.1)
Number = float | np.ndarray


@dataclass(frozen=True)
class ChinchillaLaw:
    """L(N, D) = e + a / N^alpha + b / D^beta (Hoffmann et al. 2022, arXiv:2203.15556, 3.3)."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: Number, tokens: Number) -> Any:
        """The loss in nats a token; N counts all parameters."""
        return self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta

    @property
    def exponent(self) -> float:
        """The power of compute by which the optimal number of parameters grows."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss where 6 N D = `flops` (equation 4)."""
        product = flops / FLOPS_PER_PARAMETER
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        return ratio * product**self.exponent, product ** (1 - self.exponent) / ratio


@dataclass(frozen=True)
class KaplanLaw:
    """L(N, D) = ((n_c / N)^(alpha_n / alpha_d) + d_c / D)^alpha_d (arXiv:2001.08361, 1.5)."""

    n_c: float
    d_c: float
    alpha_n: float
    alpha_d: float

    def loss(self, parameters: Number, tokens: Number) -> Any:
        """The loss in nats a token; N does not count embeddings."""
        return ((self.n_c / parameters) ** (self.alpha_n / self.alpha_d) + self.d_c / tokens) ** self.alpha_d

    @property
    def exponent(self) -> float:
        """The power of compute by which the optimal number of parameters grows.

        The paper's 0.73 is that of runs stopped before they converge, with a batch size that grows (its 6.1).
        """
        return self.alpha_d / (self.alpha_n + self.alpha_d)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss where 6 N D = `flops`."""
        power = self.alpha_n / self.alpha_d
        product = flops / FLOPS_PER_PARAMETER
        parameters = math.exp((math.log(power * product / self.d_c) + power * math.log(self.n_c)) / (1 + power))
        return parameters, product / parameters


PUBLISHED: Mapping[str, ChinchillaLaw | KaplanLaw] = {
    "kaplan": KaplanLaw(n_c=8.8e13, d_c=5.4e13, alpha_n=0.076, alpha_d=0.095),
    # As printed in the paper, and as its TeX source has them before rounding.
    "hoffmann-printed": ChinchillaLaw(e=1.69, a=406.4, b=410.7, alpha=0.34, beta=0.28),
    "hoffmann": ChinchillaLaw(e=1.6934, a=406.4, b=410.7, alpha=0.3392, beta=0.2849),
    # Besiroglu et al. 2024, arXiv:2404.10102, from points read off the paper's figure.
    "epoch": ChinchillaLaw(e=1.8172, a=482.01, b=2085.43, alpha=0.3478, beta=0.3658),
}
"""Laws by name, with their authors' constants."""
