"""Checkpoints of real shapes with random weights, in the formats of all peers.

A folder per shape and width under one cache folder: `*-f32`, `*-bf16` as transformers writes them, `*-q8`, `*-q4` as
mlx-lm quantizes them (affine, groups of 64), `*-F16.gguf`, `*-Q8_0.gguf`, `*-Q4_0.gguf` for llama.cpp. `trained`
reads a shape and its weights from a folder instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder."""

    family: str
    vocab: int
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 64
    rope_theta: float = 10000.0
    eps: float = 1e-5

    def config(self) -> dict[str, Any]:
        """Content of config.json."""
        return {
            "architectures": ["LlamaForCausalLM" if self.family == "llama" else "Qwen2ForCausalLM"],
            "model_type": self.family,
            "vocab_size": self.vocab,
            "hidden_size": self.dim,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 16384,
            "rms_norm_eps": self.eps,
            "rope_theta": self.rope_theta,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights, float32, under transformers' names."""
        rng = np.random.default_rng(0)
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        matrices = {
            "self_attn.q_proj": (q, self.dim),
            "self_attn.k_proj": (kv, self.dim),
            "self_attn.v_proj": (kv, self.dim),
            "self_attn.o_proj": (self.dim, q),
            "mlp.gate_proj": (self.hidden, self.dim),
            "mlp.up_proj": (self.hidden, self.dim),
            "mlp.down_proj": (self.dim, self.hidden),
        }
        made = {"model.embed_tokens.weight": (self.vocab, self.dim), "model.norm.weight": (self.dim,)}
        for i in range(self.layers):
            made |= {f"model.layers.{i}.{name}.weight": shape for name, shape in matrices.items()}
            made |= {f"model.layers.{i}.{n}_layernorm.weight": (self.dim,) for n in ("input", "post_attention")}
            if self.family == "qwen2":
                made |= {f"model.layers.{i}.self_attn.{n}_proj.bias": (q if n == "q" else kv,) for n in "qkv"}
        return {
            name: np.ones(shape, np.float32)
            if name.endswith("norm.weight")
            else rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
            for name, shape in made.items()
        }


@dataclass(frozen=True)
class Trained(Shape):
    """The shape of a checkpoint, with its weights."""

    folder: Path = Path()

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights of the folder, float32."""
        found: dict[str, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            arrays = mx.load(str(path))
            assert isinstance(arrays, dict)
            found |= {name: np.array(value.astype(mx.float32)) for name, value in arrays.items()}
        return found


def trained(folder: Path) -> Trained:
    """The shape of a transformers folder. Raises: ValueError for a model that `Shape` cannot describe."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = rope.get("rope_type", "default") == "default" and "quantization" not in config
    if config["model_type"] not in ("llama", "qwen2") or not config.get("tie_word_embeddings") or not plain:
        raise ValueError(f"{folder} is not a llama or qwen2 model with a tied head, plain RoPE and dense weights")
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    return Trained(
        family=config["model_type"],
        vocab=config["vocab_size"],
        dim=dim,
        hidden=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or dim // heads,
        rope_theta=config.get("rope_theta") or rope.get("rope_theta", 10000.0),
        eps=config["rms_norm_eps"],
        folder=folder,
    )


SHAPES = {
    "S": Shape("llama", 8192, 512, 1536, 8, 8, 4),  # 30 million parameters
    "M": Shape("llama", 49152, 576, 1536, 30, 9, 3),  # SmolLM-135M
    "L": Shape("qwen2", 151936, 896, 4864, 24, 14, 2),  # Qwen2.5-0.5B
}


def checkpoint(name: str, width: str, cache: Path) -> Path:
    """The folder of a shape in "f32", "bf16", 8 or 4 bits ("q8", "q4"); created if missing."""
    done = cache / f"{name}-{width}"
    if (done / "config.json").exists():
        return done
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=cache))
    shape = SHAPES[name]
    config, arrays = shape.config(), {k: mx.array(v) for k, v in shape.tensors().items()}
    if width == "bf16":
        arrays = {k: v.astype(mx.bfloat16) for k, v in arrays.items()}
    if width in ("q8", "q4"):
        bits = int(width[1])
        config["quantization"] = {"group_size": 64, "bits": bits}
        packed: dict[str, mx.array] = {}
        for key, value in arrays.items():
            if value.ndim == 2:
                stem = key.removesuffix(".weight")
                parts = mx.quantize(value.astype(mx.bfloat16), group_size=64, bits=bits)
                packed |= dict(zip((key, f"{stem}.scales", f"{stem}.biases"), parts, strict=True))
            else:
                packed[key] = value.astype(mx.bfloat16)
        arrays = packed
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "pt"})
    words = {f"w{i}": i for i in range(shape.vocab)}
    pieces = {"type": "WhitespaceSplit"}
    tokenizer = {
        "version": "1.0",
        "pre_tokenizer": pieces,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "config.json").write_text(json.dumps(config))
    return folder.rename(done)


def gguf_file(name: str, width: str, cache: Path, llama_quantize: Path) -> Path:
    """The same weights as GGUF, all matrices in "F16", "Q8_0" or "Q4_0". Requires the package `gguf`."""
    done = cache / f"{name}-{width}.gguf"
    if done.exists():
        return done
    path = done.with_suffix(f".{os.getpid()}")
    if width == "F16":
        _write_gguf(SHAPES[name], path)
    else:
        source = gguf_file(name, "F16", cache, llama_quantize)
        command = [str(llama_quantize), "--pure", str(source), str(path), width]
        subprocess.run(command, check=True, capture_output=True)
    return path.rename(done)


def _write_gguf(shape: Shape, path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, shape.family)
    writer.add_context_length(16384)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_file_type(1)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("none")
    for key, value in shape.tensors().items():
        value = _in_pairs(value, shape) if shape.family == "llama" and ("q_proj" in key or "k_proj" in key) else value
        writer.add_tensor(_gguf_name(key), value.astype(np.float16) if value.ndim == 2 else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _in_pairs(weight: np.ndarray, shape: Shape) -> np.ndarray:
    """Rows of each head with rotated pairs as neighbours, the order of llama.cpp's Llama."""
    heads = weight.shape[0] // shape.head_dim
    return weight.reshape(heads, 2, shape.head_dim // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _gguf_name(key: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for theirs, ours in names.items():
        key = key.replace(theirs, ours)
    return key
