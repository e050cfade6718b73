"""Dispatches of MLX's Metal backend for a graph, and the bytes that each reads and writes.

The rules are those of MLX's sources at 846d1762 (August 2026, 0.32.2 in the making), in mlx/backend; the file is named
beside each. Views dispatch nothing (layouts.py). Bytes count once in a dispatch however often its threads ask for them,
so they are a lower bound, by the same rules for every graph: a view counts what it shows, memory behind a broadcast
counts once, a gather counts the rows that it takes, an update in place counts the update. `again_bytes` is what a
dispatch asks for beyond that because separate threadgroups go over the same matrix or the same keys: a cache may or may
not have kept it.

What depends on the chip is counted for a large one (M-series Max, whose architecture's name ends in "s").
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from layouts import SHAPES, Layout, views_of
from primitives import ELEMENTWISE, Array, Graph, Node

VECTOR_QUERIES = 8  # scaled_dot_product_attention.cpp: most queries of the decode kernels
TWO_PASSES = 1024  # the same, on a large chip: keys from which decoding needs two dispatches
SPLIT_ROWS = 1024  # quantized.cpp, QuantizedMatmul: rows from which a product with a row-major matrix is split
REDUCE_ONCE = 4096  # reduce.cpp, all_reduce_dispatch: numbers that one threadgroup sums
_ATTENTION = {
    "ScaledDotProductAttention",
    "kv_decode",
    "kv_decode_packed",
    "kv_combine",
    "flash_prefill",
    "flash_prefill_packed",
}
_AFTER_SCORES = {"Softmax", "Select", "Copy"}


@dataclass(frozen=True)
class Dispatch:
    """One dispatch: its kind, and its bytes."""

    name: str
    read_bytes: int
    written_bytes: int
    again_bytes: int = 0
    attention: bool = False

    @property
    def nbytes(self) -> int:
        """Least bytes read and written."""
        return self.read_bytes + self.written_bytes


def dispatches(graph: Graph, cached: Collection[str] = ()) -> list[Dispatch]:
    """Dispatches of a graph; `cached` inputs hold keys and values. Raises: KeyError without a rule."""
    return list(_Walk(graph, cached).run())


class _Walk:
    """Layouts of all arrays first, then the dispatches of each node."""

    def __init__(self, graph: Graph, cached: Collection[str]):
        self.graph = graph
        self.layouts = {a.name: Layout.fresh(a, a.name in cached) for a in [*graph.inputs, *graph.constants]}
        self.copied: set[int] = set()  # nodes that cannot share their input's buffer
        self.users: dict[str, set[int]] = defaultdict(set)
        self.scores: set[str] = set()  # intermediate arrays of attention
        for number, node in enumerate(graph.nodes):
            self._lay_out(number, node)

    def run(self) -> Iterator[Dispatch]:
        """The dispatches."""
        for number, node in enumerate(self.graph.nodes):
            made = list(self._of(number, node))
            if self._is_attention(node):
                self.scores |= {out.name for out in node.outputs}
                made = [replace(one, attention=True) for one in made]
            yield from made

    def _lay_out(self, number: int, node: Node) -> None:
        ins = [self.layouts[a.name] for a in node.inputs]
        views = views_of(node, ins)
        if views is None:
            self.copied.add(number)
            views = [Layout.fresh(out) for out in node.outputs]
        shared = {view.buffer for view in views} & {one.buffer for one in ins}
        for one in ins:
            if one.buffer not in shared:
                self.users[one.buffer].add(number)
        if node.name in ("SliceUpdate", "DynamicSliceUpdate", "Scatter", "ScatterAxis"):
            views = [replace(views[0], cached=ins[0].cached)]
        self.layouts |= {out.name: view for out, view in zip(node.outputs, views, strict=True)}

    def _of(self, number: int, node: Node) -> Iterator[Dispatch]:
        if number not in self.copied:
            return
        if node.name in SHAPES or node.name in ("Contiguous", "View"):
            yield from self._simple(replace(node, name="Copy"))
        elif node.name in ("SliceUpdate", "Scatter", "ScatterAxis", "DynamicSliceUpdate"):
            yield from self._update(number, node)
        else:
            rule = _RULES.get(node.name) or (_Walk._kernel if _is_ours(node) else _RULES[node.name])
            yield from rule(self, node)

    def _is_attention(self, node: Node) -> bool:
        ins = [self.layouts[a.name] for a in node.inputs]
        if node.name in _ATTENTION:
            return True
        if any(one.cached for one in ins):
            return not node.name.endswith("Update")
        return node.name in _AFTER_SCORES and any(a.name in self.scores for a in node.inputs)

    def _reads(self, arrays: Collection[Array]) -> int:
        """Bytes of arrays, each buffer's view once."""
        layouts = {
            (one.buffer, one.view.shape, one.view.strides): one for one in (self.layouts[a.name] for a in arrays)
        }
        return sum(one.nbytes for one in layouts.values())

    def _simple(self, node: Node) -> Iterator[Dispatch]:
        """One dispatch over all inputs and outputs."""
        yield Dispatch(node.name, self._reads(node.inputs), sum(out.nbytes for out in node.outputs))

    def _copies(self, arrays: Collection[Array], fits: Callable[[Layout], bool]) -> Iterator[Dispatch]:
        """Copies of inputs whose layout a kernel does not support."""
        for array in arrays:
            if not fits(self.layouts[array.name]):
                yield Dispatch("Copy", self.layouts[array.name].nbytes, array.nbytes)

    def _contiguous(self, node: Node) -> Iterator[Dispatch]:
        """Kernels that need row-contiguous inputs: quantized.cpp (quantize_impl)."""
        yield from self._copies(node.inputs, lambda one: one.in_order)
        yield from self._simple(node)

    def _rows(self, node: Node) -> Iterator[Dispatch]:
        """softmax.cpp, logsumexp.cpp, normalization.cpp: contiguous rows, else a copy."""
        yield from self._copies(node.inputs[:1], lambda one: one.whole and one.view.strides[-1] == one.view.itemsize)
        yield from self._simple(node)

    def _rope(self, node: Node) -> Iterator[Dispatch]:
        """rope.cpp: a copy first for partial rotation or a layout of heads without a kernel."""
        x = self.layouts[node.inputs[0].name]
        turned = x.view.ndim == 4 and x.view.swapaxes(1, 2).flags.c_contiguous
        if node.facts["dims"] < x.view.shape[-1] or not (x.in_order or turned or x.view.ndim == 3):
            yield Dispatch("Copy", x.nbytes, node.outputs[0].nbytes)
        yield from self._simple(node)

    def _reduce(self, node: Node) -> Iterator[Dispatch]:
        """reduce.cpp: two dispatches for a sum of all of many numbers."""
        (source,), axes = node.inputs, node.arguments[1]
        yield from self._simple(node)
        if len(axes) == len(source.shape) and math.prod(source.shape) > REDUCE_ONCE:
            yield Dispatch("Reduce", 128 * source.dtype.size, node.outputs[0].nbytes)

    def _sort(self, node: Node) -> Iterator[Dispatch]:
        """sort.cpp: blocks, two dispatches for each doubling merge, a copy. Partitions are sorts."""
        source, out = node.inputs[0], node.outputs[0]
        axis = node.arguments[-1]
        size = source.shape[axis]
        block = next(n for n, most in ((128, 128), (256, 256), (512, 512), (1024, 1024), (2048, size)) if size <= most)
        blocks = -(-size // block)
        if blocks == 1:
            yield from self._simple(node)
            return
        both = source.nbytes + math.prod(source.shape) * 4
        yield Dispatch(node.name, self._reads(node.inputs), both)
        for _ in range(math.ceil(math.log2(blocks))):
            yield Dispatch(node.name, source.nbytes, 4 * blocks)
            yield Dispatch(node.name, both, both)
        yield Dispatch("Copy", out.nbytes, out.nbytes)

    def _gather(self, node: Node) -> Iterator[Dispatch]:
        """indexing.cpp: reads the selected elements."""
        yield Dispatch(node.name, self._reads(node.inputs[1:]) + node.outputs[0].nbytes, node.outputs[0].nbytes)

    def _concatenate(self, node: Node) -> Iterator[Dispatch]:
        """slicing.cpp: a copy for each part."""
        for part in node.inputs:
            yield Dispatch("Copy", self.layouts[part.name].nbytes, part.nbytes)

    def _pad(self, node: Node) -> Iterator[Dispatch]:
        """gpu/slicing.cpp: fills the whole array, then writes the inner part."""
        yield Dispatch("Full", node.inputs[1].nbytes, node.outputs[0].nbytes)
        yield Dispatch("Copy", self.layouts[node.inputs[0].name].nbytes, node.inputs[0].nbytes)

    def _update(self, number: int, node: Node) -> Iterator[Dispatch]:
        """indexing.cpp, SliceUpdate: in place if the array has no other use, else into a copy."""
        target, update = node.inputs[0], node.inputs[1] if "Slice" in node.name else node.inputs[-1]
        layout = self.layouts[target.name]
        leaves = any(self.layouts[out.name].buffer == layout.buffer for out in self.graph.outputs)
        if self.users[layout.buffer] != {number} or leaves or not layout.whole:
            yield Dispatch("Copy", layout.nbytes, target.nbytes)
        if node.name == "DynamicSliceUpdate":
            yield Dispatch("Offset", node.inputs[2].nbytes, 8)
        yield Dispatch(node.name, self.layouts[update.name].nbytes, update.nbytes)

    def _product(self, node: Node) -> Iterator[Dispatch]:
        """quantized.cpp: qmv, qvm, or qvm_split_k and a sum; a pass over the matrix for each item."""
        x, *matrix = node.inputs
        yield from self._copies(node.inputs, lambda one: one.in_rows)
        (out,), layout = node.outputs, self.layouts[matrix[0].name]
        rows = math.prod(x.shape) // x.shape[-1] if len(matrix[0].shape) == 2 else x.shape[-2]
        items = math.prod(out.shape) // out.shape[-1] // rows
        held = layout.nbytes // (math.prod(matrix[0].shape[-2:]) * matrix[0].dtype.size)
        again = (items * rows // held - 1) * self._reads(matrix)
        transposed, inner = node.arguments[3], x.shape[-1]
        if transposed or inner < SPLIT_ROWS:
            yield Dispatch(node.name, self._reads(node.inputs), out.nbytes, again)
            return
        parts = out.nbytes * (32 if inner > 8192 else 8)
        yield Dispatch(node.name, self._reads(node.inputs), parts, again)
        yield Dispatch("Reduce", parts, out.nbytes)

    def _experts(self, node: Node) -> Iterator[Dispatch]:
        """quantized.cpp, GatherQMM: the chosen matrices, assumed to be all different."""
        x, *matrix, left, right = node.inputs
        yield from self._copies([x, *matrix], lambda one: one.in_rows)
        read = self._reads([x, left, right]) + self._chosen(matrix, math.prod(right.shape))
        yield Dispatch(node.name, read, node.outputs[0].nbytes)

    def _chosen(self, stacks: Collection[Array], count: int) -> int:
        return sum(a.nbytes // a.shape[0] * min(count, a.shape[0]) for a in {a.name: a for a in stacks}.values())

    def _attention(self, node: Node) -> Iterator[Dispatch]:
        """scaled_dot_product_attention.cpp: a pass over the keys per head; or one per group, and a sum."""
        q, k, v = node.inputs[:3]
        (batch, heads, length, _), (out,) = q.shape, node.outputs
        if length > VECTOR_QUERIES:
            raise KeyError("attention of many queries")
        turned = self.layouts[q.name].view.swapaxes(1, 2).flags.c_contiguous and batch == 1
        yield from self._copies([q], lambda one: one.in_order or turned)
        yield from self._copies([k, v], lambda one: one.view.strides[-1] == one.view.itemsize)
        group, count = heads // k.shape[1], k.shape[2]
        if count < TWO_PASSES:
            again = (group * length - 1) * self._reads([k, v])
            yield Dispatch(node.name, self._reads(node.inputs), out.nbytes, again)
            return
        blocks = 64
        if count > TWO_PASSES and group * length > 4:
            blocks = next((n for n, most in ((128, 8192), (256, 32768), (512, 65536)) if count <= most), 1024)
        parts = batch * heads * length * blocks * (v.shape[3] * q.dtype.size + 8)
        yield Dispatch(node.name, self._reads(node.inputs), parts)
        yield Dispatch(node.name, parts, out.nbytes)

    def _kernel(self, node: Node) -> Iterator[Dispatch]:
        """custom_kernel.cpp: macllm's kernels or others'; of stacked experts, the chosen ones count."""
        if node.arguments[9]:
            yield from self._copies(node.inputs, lambda one: one.in_order)
        stacks = [a for a in node.inputs[2:] if len(a.shape) == 3] if node.name.startswith("moe_") else []
        read = self._reads([a for a in node.inputs if a not in stacks])
        if stacks:
            read += self._chosen(stacks, math.prod(node.inputs[1].shape))
        again = 0
        if node.name.startswith("kv_decode"):
            grid, threadgroup, keys = node.arguments[2:5], node.arguments[5:8], node.inputs[1]
            passes = grid[1] // threadgroup[1] // keys.shape[1]
            again = (passes - 1) * self._reads([a for a in node.inputs if self.layouts[a.name].cached])
        yield Dispatch(node.name, read, sum(out.nbytes for out in node.outputs), again)


def _is_ours(node: Node) -> bool:
    return bool(node.arguments) and str(node.arguments[0]).startswith("custom_kernel_")


_RULES: dict[str, Callable[[_Walk, Node], Iterator[Dispatch]]] = {
    **dict.fromkeys(ELEMENTWISE, _Walk._simple),  # unary.cpp, binary.cpp, ternary.cpp; AsType is a copy (gpu/copy.cpp)
    "Compiled": _Walk._simple,  # compiled.cpp
    "Arange": _Walk._simple,  # primitives.cpp
    "ArgReduce": _Walk._simple,
    "RandomBits": _Walk._simple,
    "Full": _Walk._simple,  # gpu/copy.cpp, fill_gpu
    "Scan": _Walk._simple,  # scan.cpp
    "Matmul": _Walk._simple,  # matmul.cpp: gemv, or gemm where it is not split
    "Quantize": _Walk._contiguous,
    "Softmax": _Walk._rows,
    "LogSumExp": _Walk._rows,
    "RMSNorm": _Walk._rows,
    "LayerNorm": _Walk._rows,
    "RoPE": _Walk._rope,
    "Reduce": _Walk._reduce,
    **dict.fromkeys(("Sort", "ArgSort", "Partition", "ArgPartition"), _Walk._sort),
    "Gather": _Walk._gather,
    "GatherAxis": _Walk._gather,
    "Concatenate": _Walk._concatenate,
    "Pad": _Walk._pad,
    "QuantizedMatmul": _Walk._product,
    "GatherQMM": _Walk._experts,
    "ScaledDotProductAttention": _Walk._attention,
}
"""Dispatches of a primitive."""
