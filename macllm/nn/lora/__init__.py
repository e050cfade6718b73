"""Low-rank adaptation (arXiv:2106.09685): frozen layers plus a trainable low-rank update.

Transforms over the module tree, in place: `apply` replaces linear layers, dense or quantized, with LoRA layers;
`remove` restores the linear layers, `disabled` for a while; `fuse` adds the updates to their weights. Other modules can
be trained whole beside them.
"""

from __future__ import annotations

from .layers import (
    EMBEDDINGS,
    Adaptable,
    DoRALinear,
    LoRAEmbedding,
    LoRAExperts,
    LoRALinear,
    Precision,
    Update,
    layer_type,
    matches,
    row_norms,
    sizes,
    unpacked_weight,
)
from .tree import (
    LAYER,
    Disabled,
    adapters,
    applied,
    apply,
    attach,
    base_of,
    changed,
    check,
    disabled,
    fuse,
    in_last_layers,
    remove,
    replace,
    targets,
)
from .whole import Whole, save_targets, saved, whole_weights

__all__ = [
    "EMBEDDINGS",
    "LAYER",
    "Adaptable",
    "Disabled",
    "DoRALinear",
    "LoRAEmbedding",
    "LoRAExperts",
    "LoRALinear",
    "Precision",
    "Update",
    "Whole",
    "adapters",
    "applied",
    "apply",
    "attach",
    "base_of",
    "changed",
    "check",
    "disabled",
    "fuse",
    "in_last_layers",
    "layer_type",
    "matches",
    "remove",
    "replace",
    "row_norms",
    "save_targets",
    "saved",
    "sizes",
    "targets",
    "unpacked_weight",
    "whole_weights",
]
