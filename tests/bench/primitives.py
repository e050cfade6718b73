"""MLX primitives of a function, in order, read from the lazy graph without computing it.

`mx.export_function` with a callback gives every primitive with its shapes, types and attributes. MLX without Metal
takes `mx.fast` apart into the operations that it falls back to, and a trace shows what `mx.compile` joins one by one;
here each is one node, as it is one on a Mac.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import mlx.core as mx

from macllm.ops.metal import HERE

UNARY = {
    "Abs", "ArcCos", "ArcCosh", "ArcSin", "ArcSinh", "ArcTan", "ArcTanh", "AsType", "BitwiseInvert", "Ceil", "Cos",
    "Cosh", "Erf", "ErfInv", "Exp", "Expm1", "Floor", "Log", "Log1p", "LogicalNot", "Negative", "Round", "Sigmoid",
    "Sign", "Sin", "Sinh", "Sqrt", "Square", "Tan", "Tanh",
}  # fmt: skip
BINARY = {
    "Add", "ArcTan2", "BitwiseBinary", "Divide", "Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "LogAddExp",
    "LogicalAnd", "LogicalOr", "Maximum", "Minimum", "Multiply", "NotEqual", "Power", "Remainder", "Subtract",
}  # fmt: skip
ELEMENTWISE = UNARY | BINARY | {"Select"}
"""Primitives that `mx.compile` fuses into one kernel (mlx/compile.cpp, is_fusable)."""

_MARK = re.compile(r"// stands for (\{.*\})")
_KERNELS = sorted((path.stem for path in HERE.rglob("*.metal")), key=len, reverse=True)
_COMPILED = type(mx.compile(mx.abs))
_COMPILING = ("mlx.nn", "mlx_lm", "macllm")  # packages with functions that are compiled at import


@dataclass(frozen=True)
class Array:
    """A value of the graph."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        count = self.dtype.size
        for n in self.shape:
            count *= n
        return count


@dataclass(frozen=True)
class Node:
    """A primitive; `facts` are the attributes of a stand-in."""

    name: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    arguments: tuple[Any, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """A function's graph: nodes in order, inputs and outputs."""

    inputs: list[Array] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)
    constants: list[Array] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


def trace(function: Callable[..., Any], *arguments: mx.array) -> Graph:
    """The graph of `function(*arguments)`, which returns a flat sequence of arrays; nothing is computed."""
    graph = Graph()

    def told(part: dict[str, Any]) -> None:
        match part["type"]:
            case "inputs" | "outputs" as kind:
                getattr(graph, kind).extend(Array(*one) for one in part[kind])
            case "constants":
                graph.constants.extend(Array(name, one.shape, one.dtype) for name, one in part["constants"])
            case "primitive":
                graph.nodes.append(_node(part))

    with as_on_a_mac():
        mx.export_function(told, function, *arguments)
    return graph


def _node(part: dict[str, Any]) -> Node:
    inputs, outputs = (tuple(Array(*one) for one in part[side]) for side in ("inputs", "outputs"))
    node = Node(part["name"], inputs, outputs, tuple(part["arguments"]))
    if node.name != "CustomKernel":
        return node
    full, text, *_ = node.arguments
    if mark := _MARK.search(text):
        facts = json.loads(mark[1])
        return replace(node, name=facts.pop("primitive"), facts=facts)
    own = full.removeprefix("custom_kernel_")
    return replace(node, name=next((name for name in _KERNELS if own.startswith(f"{name}_")), own))


def stand_in(
    primitive: str, inputs: Sequence[mx.array], outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]], **facts: Any
) -> list[mx.array]:
    """Arrays of these shapes and types, outputs of one node of this name."""
    kernel = mx.fast.metal_kernel(
        name="stand_in",
        input_names=[f"i{n}" for n in range(len(inputs))],
        output_names=[f"o{n}" for n in range(len(outputs))],
        source=f"// stands for {json.dumps({'primitive': primitive, **facts})}",
    )
    return kernel(
        inputs=list(inputs),
        output_shapes=[shape for shape, _ in outputs],
        output_dtypes=[dtype for _, dtype in outputs],
        grid=(1, 1, 1),
        threadgroup=(1, 1, 1),
    )


@contextmanager
def as_on_a_mac() -> Iterator[None]:
    """In this block Python code sees a GPU, and ops have the same primitives as on a GPU."""
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(patch.object(mx.fast, "rms_norm", _rms_norm))
        enter(patch.object(mx.fast, "layer_norm", _layer_norm))
        enter(patch.object(mx.fast, "rope", _rope))
        enter(patch.object(mx.fast, "scaled_dot_product_attention", _attention))
        enter(patch.object(mx, "dequantize", _dequantize))
        enter(patch.object(mx, "contiguous", _contiguous))
        enter(patch.object(mx, "custom_function", _WithoutGradient))
        enter(patch.object(mx, "default_device", lambda: mx.Device(mx.gpu, 0)))
        enter(patch.object(mx.metal, "is_available", lambda: True))
        enter(patch.object(mx, "compile", _Compiling(mx.compile)))
        for module, name, function in list(_compiled_functions()):
            enter(patch.object(module, name, _Chain(function)))
        gate = sys.modules.get("macllm.ops.gate")  # caches compiled functions
        caches = [one for one in vars(gate).values() if hasattr(one, "cache_clear")] if gate else []
        for cached in caches:
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        yield


def _compiled_functions() -> Iterator[tuple[Any, str, Any]]:
    for name, module in list(sys.modules.items()):
        if name.startswith(_COMPILING) and module is not None:
            yield from ((module, key, value) for key, value in vars(module).items() if type(value) is _COMPILED)


_in_chain: ContextVar[bool] = ContextVar("in_chain", default=False)


@dataclass(frozen=True)
class _Compiling:
    """Replacement of `mx.compile`."""

    compile: Callable[..., Any]

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return _Chain(self.compile(function, *args, **options))


@dataclass(frozen=True)
class _Chain:
    """Stand-in for a compiled function. Raises: ValueError unless it is an elementwise chain."""

    function: Callable[..., Any]

    def __call__(self, *args: mx.array, **options: Any) -> Any:
        if _in_chain.get():
            return self.function(*args, **options)
        token = _in_chain.set(True)
        try:
            inside: set[str] = set()
            examples = [mx.zeros(one.shape, one.dtype) for one in args]
            mx.export_function(
                lambda part: inside.add(part.get("name", "")), lambda *a: self.function(*a, **options), *examples
            )
            made = self.function(*args, **options)  # only its shape is used
        finally:
            _in_chain.reset(token)
        if other := inside - ELEMENTWISE - {"", "Broadcast"}:
            raise ValueError(f"a compiled function is more than one kernel: {', '.join(sorted(other))}")
        outputs = [made] if isinstance(made, mx.array) else list(made)
        instead = stand_in("Compiled", args, [(one.shape, one.dtype) for one in outputs])
        return instead[0] if isinstance(made, mx.array) else instead


@dataclass(frozen=True)
class _WithoutGradient:
    """Replacement of `mx.custom_function`, which needs no dispatch."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **options)

    def vjp(self, gradient: Callable[..., Any]) -> Callable[..., Any]:
        return gradient


def _rms_norm(x: mx.array, weight: mx.array | None, eps: float, **_: Any) -> mx.array:
    del eps
    return stand_in("RMSNorm", [x] if weight is None else [x, weight], [(x.shape, x.dtype)])[0]


def _layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, **_: Any) -> mx.array:
    del eps
    return stand_in("LayerNorm", [one for one in (x, weight, bias) if one is not None], [(x.shape, x.dtype)])[0]


def _rope(x: mx.array, dims: int, *, offset: int | mx.array, freqs: mx.array | None = None, **_: Any) -> mx.array:
    inputs = [x, mx.array(offset) if isinstance(offset, int) else offset]
    return stand_in("RoPE", inputs if freqs is None else [*inputs, freqs], [(x.shape, x.dtype)], dims=dims)[0]


def _contiguous(x: mx.array, *_: Any, **__: Any) -> mx.array:
    return stand_in("Contiguous", [x], [(x.shape, x.dtype)])[0]


def _dequantize(
    w: mx.array,
    scales: mx.array,
    biases: mx.array | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    **options: Any,
) -> mx.array:
    del group_size
    inputs = [w, scales] if biases is None else [w, scales, biases]
    shape = (*w.shape[:-1], w.shape[-1] * 32 // (bits or 4))
    return stand_in("Quantize", inputs, [(shape, options.get("dtype") or scales.dtype)])[0]


def _attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **_: Any,
) -> mx.array:
    extra = [one for one in (mask, sinks) if isinstance(one, mx.array)]
    return stand_in("ScaledDotProductAttention", [q, k, v, *extra], [((*q.shape[:3], v.shape[3]), q.dtype)])[0]
