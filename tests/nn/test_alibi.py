"""ALiBi: linear biases against their formula, through caches, padding and checkpoints of layers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import families
from macllm.errors import CheckpointError
from macllm.families.config import Config
from macllm.nn.models import build
from macllm.nn.position import slopes
from macllm.train.initial import initialize

CONFIG: dict[str, Any] = {
    "model_type": "macllm", "position_kind": "alibi", "vocab_size": 61, "hidden_size": 48, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
# Between two powers of two: those of 4 heads, then every other one of 8.
SLOPES_OF_6 = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]


def decoder(**options: Any) -> Any:
    model = build(families.spec(Config({**CONFIG, **options})))
    initialize(model, 0.3, seed=5)
    model.eval()
    return model


def tokens(length: int, rows: int = 2) -> mx.array:
    return mx.array(np.random.default_rng(length).integers(3, 61, (rows, length)))


def near(got: Any, want: Any, error: float = 5e-6) -> None:
    got, want = np.array(got), np.array(want)
    assert np.abs(got - want).max() <= error * np.abs(want).max()


def test_slopes_are_the_papers() -> None:
    assert slopes(8) == tuple(2.0**-n for n in range(1, 9))
    assert slopes(6) == tuple(SLOPES_OF_6)
    assert slopes(1) == (2.0**-8,)
    assert slopes(16)[:4] == (2**-0.5, 2**-1, 2**-1.5, 2**-2)


@pytest.mark.parametrize("chunks", [[1] * 30, [29, 1], [7, 1, 1, 20, 1]], ids=str)
def test_chunks_through_a_cache_equal_the_full_pass(chunks: list[int]) -> None:
    model, row = decoder(), tokens(sum(chunks))
    cache = model.make_cache()
    parts = [model(part, cache=cache) for part in mx.split(row, np.cumsum(chunks)[:-1].tolist(), axis=1)]
    near(mx.concatenate(parts, axis=1), model(row))


def test_rows_padded_on_either_side_give_the_logits_of_the_rows_alone() -> None:
    model, row = decoder(), tokens(30)
    cache = model.make_cache(left_padding=[0, 29])
    got = mx.concatenate([model(part, cache=cache) for part in mx.split(row, [3, 20, 21], axis=1)], axis=1)
    for number, n in enumerate((0, 29)):
        near(got[number, n:], model(row[number : number + 1, n:])[0])
    right = model(row, lengths=mx.array([30, 1]))
    near(right[1, :1], model(row[1:, :1])[0])


def test_layers_computed_again_for_the_gradients_give_the_same_ones() -> None:
    row, found = tokens(20), []
    for again in (False, True):
        model = decoder()
        model.train()
        model.decoder.checkpoints_layers = again
        run = nn.value_and_grad(model, lambda model=model: model(row).square().mean())
        found.append(dict(tree_flatten(run()[1])))
    for name, want in found[0].items():
        near(found[1][name], want)


def test_an_invalid_position_kind_is_refused() -> None:
    for change, message in (
        ({"position_kind": "sine"}, "position_kind of config.json is 'sine', not rope or alibi"),
        ({"attention_kind": "performer"}, "exclude each other"),
    ):
        with pytest.raises(CheckpointError, match=message):
            families.spec(Config({**CONFIG, **change}))
    assert families.spec(Config({**CONFIG, "position_kind": None})).decoder.relative_bias is None


def test_options_of_mpt_that_change_its_attention_are_refused() -> None:
    config = {"model_type": "mpt", "vocab_size": 61, "d_model": 48, "n_heads": 4, "n_layers": 1}
    for option in ({"clip_qkv": 6.0}, {"alibi": False}, {"qk_ln": True}, {"alibi_bias_max": 16}):
        with pytest.raises(CheckpointError, match=f"attn_config.{next(iter(option))}"):
            families.spec(Config({**config, "attn_config": option}))


@pytest.mark.parity
def test_loss_and_every_gradient_equal_the_formula_in_torch() -> None:
    import torch

    model, row = decoder(num_hidden_layers=1), tokens(23)
    weights = {n: torch.tensor(np.array(w), dtype=torch.float64, requires_grad=True)
               for n, w in tree_flatten(model.parameters())}  # fmt: skip
    ids = torch.tensor(np.array(row))

    def normed(x: Any, name: str) -> Any:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weights[name]

    def heads(x: Any, name: str, count: int) -> Any:
        return (x @ weights[f"decoder.layers.0.mixer.{name}.weight"].T).unflatten(-1, (count, 8)).transpose(1, 2)

    x = weights["embedding.tokens.weight"][ids]
    y = normed(x, "decoder.layers.0.mixer_norm.pre.weight")
    q, k, v = heads(y, "q_proj", 6), *(heads(y, name, 2).repeat_interleave(3, 1) for name in ("k_proj", "v_proj"))
    at = torch.arange(23)
    distance = (at[:, None] - at).double()
    scores = q @ k.transpose(-1, -2) / 8**0.5 - torch.tensor(SLOPES_OF_6)[:, None, None].double() * distance
    shares = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
    x = x + (shares @ v).transpose(1, 2).flatten(2) @ weights["decoder.layers.0.mixer.o_proj.weight"].T
    y = normed(x, "decoder.layers.0.feed_forward_norm.pre.weight")
    gate, up, down = (weights[f"decoder.layers.0.feed_forward.{name}_proj.weight"] for name in ("gate", "up", "down"))
    x = x + (torch.nn.functional.silu(y @ gate.T) * (y @ up.T)) @ down.T
    logits = normed(x, "decoder.norm.weight") @ weights["head.proj.weight"].T
    want = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    want.backward()

    model.train()
    run = nn.value_and_grad(model, lambda: nn.losses.cross_entropy(model(row)[:, :-1], row[:, 1:]).mean())
    loss, gradients = run()
    assert abs(loss.item() - want.item()) <= 1e-6 * want.item()
    for name, gradient in tree_flatten(gradients):
        near(gradient, weights[name].grad.numpy())
