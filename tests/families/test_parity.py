"""Logits, gradients and saved checkpoints of every family against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import checkpoint, families
from macllm.families.config import Config
from macllm.ops.cross_entropy import cross_entropy
from macllm.weights.keymap import to_theirs
from tests.families.oracles import CASES, Case, batch, write

pytestmark = pytest.mark.parity

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
main_case = pytest.mark.parametrize("case", [case for case in CASES if case.main], ids=lambda case: case.name)


@pytest.fixture(scope="module")
def worst() -> Any:
    """The largest errors, printed at the end."""
    seen: dict[str, float] = {}
    yield seen
    print()
    for name, error in seen.items():
        print(f"{name:44s} {error:.1e}")


def theirs_logits(case: Case, model: Any, b) -> Any:
    """Logits of the transformers model as a torch tensor with its graph."""
    import torch

    seen = torch.tensor(b.real.astype(int))
    tokens = torch.tensor(b.tokens)
    if case.kind == "text-to-text":
        return model(tokens, attention_mask=seen, decoder_input_ids=torch.tensor(b.targets)).logits
    out = model(tokens, attention_mask=seen)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def our_logits(case: Case, model: nn.Module, b) -> mx.array:
    """Logits of our model (hidden states of an encoder without a head)."""
    tokens, lengths = mx.array(b.tokens), mx.array(b.lengths)
    if case.kind == "text-to-text":
        return model(mx.array(b.targets), source=tokens, source_lengths=lengths)
    if case.kind == "decoder":
        return model(tokens, lengths=lengths)
    hidden = model(tokens, lengths=lengths)
    return model.logits(hidden) if model.spec.head else hidden


def compared(case: Case, b) -> np.ndarray:
    """Mask of the real tokens."""
    return np.ones(b.targets.shape, bool) if case.kind == "text-to-text" else b.real


@every_case
def test_logits_equal_transformers(case: Case, tmp_path: Path, worst: dict) -> None:
    b = batch(case)
    want = theirs_logits(case, write(case, tmp_path), b).detach().numpy()[compared(case, b)]
    got = np.array(our_logits(case, checkpoint.load_model(tmp_path), b))[compared(case, b)]
    worst[f"logits {case.name}"] = error = np.abs(got - want).max() / np.abs(want).max()
    assert want.std() > 0.1
    assert error <= 2e-5


@main_case
def test_gradients_of_all_parameters_equal_transformers(case: Case, tmp_path: Path, worst: dict) -> None:
    errors = gradient_errors(case, write(case, tmp_path), checkpoint.load_model(tmp_path))
    worst[f"gradient {case.name}"] = max(errors.values())
    assert len(errors) >= 10
    assert max(errors.values()) <= 5e-5, max(errors, key=errors.__getitem__)


def gradient_errors(case: Case, theirs: Any, ours: nn.Module) -> dict[str, float]:
    """The largest difference of each parameter's gradient over its largest value; the losses are equal."""
    import torch

    b = batch(case)
    real = compared(case, b)
    targets = np.random.default_rng(5).integers(3, 80, real.shape)
    logits = theirs_logits(case, theirs, b)
    loss = torch.nn.functional.cross_entropy(logits[torch.tensor(real)], torch.tensor(targets[real]))
    loss.backward()

    def mean_loss(model: nn.Module) -> mx.array:
        each = cross_entropy(our_logits(case, model, b), mx.array(targets))
        return (each * mx.array(real)).sum() / real.sum()

    value, gradients = nn.value_and_grad(ours, mean_loss)(ours)
    assert abs(value.item() - loss.item()) <= 1e-5 * abs(loss.item())
    named = to_theirs(dict(tree_flatten(gradients)), families.keys(Config(ours.info.config, ())))
    mine = {name.removeprefix("transformer."): gradient for name, gradient in named.items()}
    want: dict[str, np.ndarray] = {}
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None and "embed_positions" not in name:  # Marian's sines, which are computed here
            want |= split_experts(case, name, parameter.grad.numpy())
    largest = max(np.abs(part).max() for part in want.values())
    errors = {}
    for name, part in want.items():
        got = np.array(mine[name])
        if np.abs(part).max() < 1e-6 * largest:
            # Zero up to rounding: without RoPE, a bias of the keys shifts all scores of a query alike.
            assert name.endswith(("k_proj.bias", "key.bias"))
            assert np.abs(got).max() < 1e-6 * largest
        else:
            errors[name] = float(np.abs(got - part).max() / np.abs(part).max())
    return errors


def split_experts(case: Case, name: str, gradient: np.ndarray) -> dict[str, np.ndarray]:
    """The gradients of fused experts under the names of single experts, as in files."""
    name = name.removeprefix("transformer.")
    if case.name.startswith("mixtral"):
        name = name.replace(".mlp.", ".block_sparse_moe.")
    if "experts." not in name or case.name.startswith("llama4"):
        return {name: gradient}
    stem, leaf = name.split(".experts.")
    gate, up, down = ("w1", "w3", "w2") if "block_sparse" in stem else ("gate_proj", "up_proj", "down_proj")
    out = {}
    for e, part in enumerate(gradient):
        pieces = {down: part} if leaf == "down_proj" else dict(zip((gate, up), np.split(part, 2), strict=True))
        out |= {f"{stem}.experts.{e}.{piece}.weight": array for piece, array in pieces.items()}
    return out


@every_case
def test_saved_checkpoint_opens_in_transformers_with_the_same_logits(case: Case, tmp_path: Path) -> None:
    import torch
    import transformers

    b = batch(case)
    reference = write(case, tmp_path / "theirs")
    model = checkpoint.load_model(tmp_path / "theirs")
    checkpoint.save(model, None, tmp_path / "ours")
    again, report = getattr(transformers, case.model).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not report["unexpected_keys"]
    assert not [name for name in report["missing_keys"] if "embed_positions" not in name and "lm_head" not in name]
    with torch.no_grad():
        want = theirs_logits(case, reference, b).numpy()[compared(case, b)]
        got = theirs_logits(case, again.eval(), b).numpy()[compared(case, b)]
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.kind == "decoder" and "both-ways" not in case.name], ids=lambda c: c.name
)
def test_left_padded_rows_decode_to_transformers_logits(case: Case, tmp_path: Path) -> None:
    import torch

    b = batch(case)
    theirs, ours = write(case, tmp_path), checkpoint.load_model(tmp_path)
    pad = [0, 4, 9]
    tokens = np.zeros_like(b.tokens)
    for row, n in enumerate(pad):
        tokens[row, n:] = np.random.default_rng(row).integers(3, 90, tokens.shape[1] - n)
    cache = ours.make_cache(left_padding=pad, max_context=tokens.shape[1])
    cut = tokens.shape[1] // 2
    chunks = [np.array(ours(mx.array(part), cache=cache)) for part in np.split(tokens, [cut, cut + 1], axis=1)]
    got = np.concatenate(chunks, axis=1)
    by_length = ("dynamic" in case.name) or ("longrope" in case.name) or case.name.startswith("phi3")
    for row, n in enumerate(pad):
        if n and by_length:
            continue  # a shorter row alone has other rotations than in a longer batch
        with torch.no_grad():
            want = theirs(torch.tensor(tokens[row : row + 1, n:])).logits.numpy()[0]
        assert np.abs(got[row, n:] - want).max() <= 2e-5 * np.abs(want).max()


def old_spelling(config: dict) -> dict:
    """A config.json as transformers 4 wrote it."""
    config = dict(config)
    parameters = config.pop("rope_parameters")
    if "full_attention" in parameters:
        whole = dict(parameters["full_attention"])
        config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
    else:
        whole = dict(parameters)
    config["rope_theta"] = whole.pop("rope_theta")
    whole.pop("partial_rotary_factor", None)
    config["rope_scaling"] = None if whole.get("rope_type") == "default" else whole
    config["torch_dtype"] = config.pop("dtype", "float32")
    return config


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.kind == "decoder" and not c.name.startswith(("gpt2", "mpt"))], ids=lambda c: c.name
)
def test_configs_of_transformers_4_give_the_same_model(case: Case, tmp_path: Path) -> None:
    write(case, tmp_path)
    now = checkpoint.load_model(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(old_spelling(json.loads(path.read_text()))))
    assert checkpoint.load_model(tmp_path).spec == now.spec
