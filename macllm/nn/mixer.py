"""Token mixers of a layer, chosen by the type of its spec."""

from __future__ import annotations

from .attention import SelfAttention
from .performer import PerformerAttention
from .sparse import BlockSparseAttention, WindowGlobalAttention
from .spec import AttentionSpec, BlockSparseSpec, PerformerSpec, WindowGlobalSpec

Mixer = SelfAttention | WindowGlobalAttention | BlockSparseAttention | PerformerAttention


def make_mixer(dim: int, spec: AttentionSpec) -> Mixer:
    """The mixer of a spec."""
    match spec:
        case WindowGlobalSpec():
            return WindowGlobalAttention(dim, spec)
        case BlockSparseSpec():
            return BlockSparseAttention(dim, spec)
        case PerformerSpec():
            return PerformerAttention(dim, spec)
        case _:
            return SelfAttention(dim, spec)
