"""A model of ours and a reference of torch with the same weights: the loss and every gradient of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from macllm import adapter, families
from macllm.checkpoint import load_model
from macllm.families.config import Config
from macllm.weights.keymap import to_ours
from macllm.weights.safetensors import load_folder

_NOISE = 1e-11  # of float64 with sums of some hundred terms, relative to the greatest gradient
LOSS, GRADIENT = 1e-6, 5e-6  # relative to the loss, and to the largest gradient of each tensor


@dataclass(frozen=True)
class Difference:
    """Relative differences of the loss, and of the gradient that is nearest its limit, of `tensors`.

    All are relative to the reference in float64; `own_loss` and `own_gradient` are those of the reference in float32.
    """

    loss: float
    gradient: float
    tensor: str
    tensors: int
    own_loss: float
    own_gradient: float

    @property
    def held(self) -> bool:
        """True within the limits; where the reference rounds more in float32, so may we."""
        return self.loss <= LOSS and self.gradient <= max(GRADIENT, self.own_gradient)


def doubled() -> Any:
    """A mode of torch in which code that asks for 32 bits gets 64."""
    import torch
    from torch.overrides import TorchFunctionMode

    def wide(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    class Doubled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.float:
                func = torch.Tensor.double
            return func(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})

    return Doubled()


MEASURED: list[Difference] = []
"""All that were measured, for the table of objectives."""


class Twins:
    """A model and its reference; `folder`/base has the weights of both.

    `adapts` says that the reference is one of PEFT's, and that only the adapter is trained.
    """

    def __init__(self, model: Any, oracle: Any, folder: Path, *, adapts: bool = False) -> None:
        self.model, self.oracle, self.folder, self.adapts = model, oracle, folder, adapts
        # torch would keep the gradient of the padding token from its table
        self.oracle.get_input_embeddings().padding_idx = None

    def difference(self, loss: float, gradients: Mapping[str, mx.array], reference: Callable[[Any], Any]) -> Difference:
        """Compare our loss and gradients with those of `reference`, a function of the reference's model."""
        exact, wanted = self._reference(reference, wide=True)
        theirs, narrow = self._reference(reference, wide=False)
        assert gradients.keys() == wanted.keys(), sorted(gradients.keys() ^ wanted.keys())
        greatest = max(float(mx.abs(want).max()) for want in wanted.values())
        found = {name: _relative(gradients[name], want, greatest) for name, want in wanted.items()}
        own = {name: _relative(narrow[name], want, greatest) for name, want in wanted.items()}
        worst = max(found, key=lambda name: found[name] / max(GRADIENT, own[name]))
        difference = Difference(
            abs(loss - exact) / abs(exact),
            found[worst],
            worst,
            len(wanted),
            abs(theirs - exact) / abs(exact),
            own[worst],
        )
        MEASURED.append(difference)
        return difference

    def _reference(self, reference: Callable[[Any], Any], wide: bool) -> tuple[float, dict[str, mx.array]]:
        """The reference's loss, and its gradients by our names; computed in float64 if `wide`."""
        import torch

        before = {name: weight.detach().clone() for name, weight in self.oracle.named_parameters()}
        self.oracle.zero_grad()
        if wide:
            with doubled():
                loss = reference(self.oracle.double())
                loss.backward()
        else:
            loss = reference(self.oracle)
            loss.backward()
        gradients = {name: weight.grad for name, weight in self.oracle.named_parameters() if weight.requires_grad}
        self.oracle.float()
        try:
            with torch.no_grad():
                for name, weight in self.oracle.named_parameters():
                    if name in gradients:  # an expert that no token was sent to has none
                        gradient = gradients[name]
                        weight.copy_(torch.zeros_like(weight) if gradient is None else gradient)
            return loss.item(), self._written()
        finally:
            with torch.no_grad():
                for name, weight in self.oracle.named_parameters():
                    weight.copy_(before[name])

    def _written(self) -> dict[str, mx.array]:
        """The reference's tensors as its files have them, by our names."""
        path = self.folder / "gradients"
        self.oracle.save_pretrained(path)
        if self.adapts:
            reader = load_model(self.folder / "base")
            adapter.attach(reader, path)
            return dict(tree_flatten(reader.trainable_parameters()))
        keymap = families.keys(Config(self.model.info.config, ()), "hf")
        return to_ours(load_folder(path), keymap)


def _relative(ours: mx.array, theirs: mx.array, greatest: float) -> float:
    """The largest difference, relative to the largest of `theirs`; an array of zeros must be met exactly.

    A bias of keys shifts all scores of a query alike: its gradient is 0, and float64 computes the noise of sums. For
    such a tensor 1e-7 of the `greatest` gradient of all stands for the limit.
    """
    largest, difference = (float(mx.abs(each).max()) for each in (theirs, ours - theirs))
    if largest == 0:
        return 0.0 if difference == 0 else float("inf")
    if largest < _NOISE * greatest:
        return difference / greatest * (GRADIENT / 1e-7)
    return difference / largest
