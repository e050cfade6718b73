"""Low-rank adaptation (arXiv:2106.09685): frozen linear layers plus a trainable low-rank update.

Transforms over the module tree, in place: `apply` replaces linear layers, dense or quantized, with LoRA layers;
`remove` restores the linear layers, `Disabled` for a while; `fuse` adds the updates to their weights.
"""

from __future__ import annotations

from .layers import Adaptable, LoRAExperts, LoRALinear, Precision, layer_type, sizes, unpacked_weight
from .tree import Disabled, adapters, apply, attach, fuse, remove, replace, targets

__all__ = [
    "Adaptable",
    "Disabled",
    "LoRAExperts",
    "LoRALinear",
    "Precision",
    "adapters",
    "apply",
    "attach",
    "fuse",
    "layer_type",
    "remove",
    "replace",
    "sizes",
    "targets",
    "unpacked_weight",
]
