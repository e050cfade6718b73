"""Settings of the model to fine-tune, and of its adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from macllm.errors import UsageError

from .setting_group import SMALLEST, SettingGroup
from .values import refuse_set

Method = Literal["lora", "full"]
# Settings of adapters, which full fine-tuning has none of.
_OF_ADAPTERS = ("rank", "alpha", "use_rslora", "use_dora", "dropout", "keys", "modules_to_save", "lora_plus_ratio")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings(SettingGroup):
    """Settings of the model to fine-tune, and of its adapter."""

    SUBJECT = "Model and adapter"
    RANGES = (
        ("rank", 1, 4096),
        ("num_layers", -1, 1e6),
        ("alpha", SMALLEST, 1e6),
        ("dropout", 0.0, 0.99),
        ("lora_plus_ratio", SMALLEST, 1e6),
    )

    model: Annotated[str, "the checkpoint to adapt: a folder or a name on the hub"] = "maclet"
    adapter_path: Annotated[str, "the run's folder: the adapter, or with full model/; snapshots, metrics"] = "adapters"
    method: Annotated[Method, "train an adapter of low rank (lora), or the weights themselves (full)"] = "lora"
    num_layers: Annotated[
        int, "number of last layers to adapt; -1: all (full: and all weights outside of layers too)"
    ] = -1
    rank: Annotated[int, "rank of the update"] = 16
    alpha: Annotated[float, "the update is scaled by alpha / rank"] = 32.0
    use_rslora: Annotated[bool, "scale the update by alpha / sqrt(rank) instead (rsLoRA)"] = False
    use_dora: Annotated[bool, "train the norms of the adapted weights' rows too (DoRA)"] = False
    dropout: Annotated[float, "share of the adapter's inputs that are dropped while training"] = 0.0
    keys: Annotated[tuple[str, ...], "layers to adapt, as patterns (*.mixer.q_proj, self_attn.q_proj); empty: all"] = ()
    modules_to_save: Annotated[
        tuple[str, ...],
        "modules to train whole beside the adapter, as patterns (lm_head, embed_tokens, norm); empty: none",
    ] = ()
    lora_plus_ratio: Annotated[
        float, "learning rate of B and DoRA's norms relative to A's (LoRA+), embeddings aside; 1: the same"
    ] = 1.0

    def _check_effects(self) -> None:
        super()._check_effects()
        refuse_set(self, _OF_ADAPTERS if self.method == "full" else (), "method is full")
        refuse_set(self, ("use_rslora",) if self.rank == 1 else (), "rank is 1")
        if self.num_layers == 0:
            raise UsageError("num_layers cannot be 0", cause="no layer would be trained", remedy="-1 for all layers")
