"""Mutants that quick kernel tests must kill: `python -m tests.simulator.claims` runs them all.

Prints a table. Ends with 1 if a mutant survives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.ops.metal import test_edges as edges
from tests.ops.metal import test_layouts as layouts
from tests.ops.metal import test_qkv_post as heads
from tests.ops.metal import test_sample as sample

from .mutants.kernel_mutants import Mutant, mutated
from .text import CompileError

Claim = Callable[[], object]


class ClaimMutant(NamedTuple):
    """A mutant of a kernel (`old` replaced by `new`), and the quick test that must fail."""

    kernel: str
    name: str
    old: str
    new: str
    claim: Claim

    def is_killed(self) -> bool:
        """True if the claim fails for the mutant."""
        with mutated(Mutant(self.kernel, self.name, self.old, self.new, lambda: [])):
            try:
                self.claim()
            except (AssertionError, CompileError):
                return True
        return False


def _layouts(test: Callable[..., None]) -> Claim:
    def claim() -> None:
        for case in layouts.ATTENDED:
            test(*case.values)

    return claim


def _each(test: Callable[..., None], *given: object) -> Claim:
    def claim() -> None:
        for one in given:
            test(*one) if isinstance(one, tuple) else test(one)

    return claim


DECODED = _layouts(layouts.test_decode_reads_keys_and_values_through_their_strides)
ATTENDED = _layouts(layouts.test_prefill_and_gradients_read_keys_and_values_through_their_strides)
PACKED = layouts.test_each_packed_part_is_read_through_its_strides
FEW = _each(edges.test_a_window_of_a_few_queries_ends_at_the_first_key, edges.OFFSET, edges.OFFSET + 1)
MANY = _each(edges.test_a_window_of_many_queries_ends_at_the_first_key, (0, [0, 0]), (1, [0, 0]), (2, [0, 0]))
PADDED = _each(edges.test_a_window_of_many_queries_ends_at_the_first_key, (0, [3, 4]), (1, [3, 4]))
BOTH_WAYS = _each(edges.test_a_window_both_ways_ends_at_the_last_key, 0, 1)
CHUNKS = _each(
    edges.test_a_chunk_begins_between_two_queries,
    ([0, 0], edges.FIRST_QUERY),
    ([1, -2], edges.FIRST_QUERY),
)
SINKS = _each(edges.test_each_key_head_has_its_sinks, edges.COUNT, 301)
MASSES = _each(sample.test_top_p_is_a_share_of_the_mass_after_top_k, *(m.values for m in sample.MASSES))
EXPERTS = layouts.test_chosen_experts_and_weights_may_be_slices_of_longer_rows
ADAPTERS = layouts.test_rows_and_an_adapter_are_read_through_their_strides


def _of_strides() -> Iterator[ClaimMutant]:
    """Values read with the keys' strides, in each axis, and packed parts with other parts' strides."""
    places = {"kv_decode": ("own", DECODED)}
    places |= {kernel: ("kv_head", ATTENDED) for kernel in ("flash_prefill", "flash_backward_q", "flash_backward_kv")}
    for kernel, (head, claim) in places.items():
        for axis, part in enumerate(
            ("batch * values_strides[0]", f"{head} * values_strides[1]", ", values_strides[2])")
        ):
            what = f"values have the keys' stride of axis {axis}"
            yield ClaimMutant(kernel, what, part, part.replace("values", "keys"), claim)
    for kernel in ("kv_decode_packed", "flash_prefill_packed"):
        for one, other in (("v_words", "k_words"), ("v_scales", "k_scales"), ("k_biases", "k_scales")):
            for axis in range(3):
                end = ("", "", ",")[axis]
                part, instead = f"{one}_strides[{axis}]{end}", f"{other}_strides[{axis}]{end}"
                if one == "k_biases" and axis == 2:
                    part, instead = part.replace(",", ")"), instead.replace(",", ")")
                yield ClaimMutant(kernel, f"{one} have the stride of axis {axis} of {other}", part, instead, PACKED)


ROWS = "long(batch) * heads * length * D"
SINK = "float(sinks[row / stats_shape[2] % H]"
FIRST = "at - mask.window + 1"
IN_WINDOW = "at - key < mask.window)"
WINDOWS = edges.test_a_window_over_packed_keys_ends_at_the_first_one
SEGMENTS = edges.test_each_row_of_a_batch_has_its_segments
CLAIM_MUTANTS = [
    *_of_strides(),
    ClaimMutant("flash_prefill", "queries are assumed contiguous", "batch * q_strides[0]", ROWS, ATTENDED),
    ClaimMutant(
        "flash_prefill", "positions are assumed contiguous", "q_strides[1], q_strides[2]", "q_strides[1], D", ATTENDED
    ),
    ClaimMutant("flash_backward_q", "queries are assumed contiguous", "batch * q_strides[0]", ROWS, ATTENDED),
    ClaimMutant(
        "flash_backward_kv", "heads are assumed contiguous", "q_strides[1], group", "long(length) * D, group", ATTENDED
    ),
    ClaimMutant("kv_decode", "every window has the first key", IN_WINDOW, f"{IN_WINDOW[:-1]} || key == 0)", FEW),
    ClaimMutant("kv_decode", "a window smaller by one", IN_WINDOW, "at - key < mask.window - 1)", FEW),
    ClaimMutant(
        "kv_decode_packed", "every window has the first key", IN_WINDOW, f"{IN_WINDOW[:-1]} || key == 0)", WINDOWS
    ),
    *(
        ClaimMutant(kernel, "every window has the first key", FIRST, f"({FIRST} <= 1 ? 0 : {FIRST})", claim)
        for kernel, claim in (
            ("flash_prefill", MANY),
            ("flash_prefill_packed", WINDOWS),
            ("flash_backward_q", MANY),
        )
    ),
    ClaimMutant(
        "flash_backward_kv",
        "every window has the first key",
        "end = min(end, key + mask.window)",
        "end = key == 0 ? end : min(end, key + mask.window)",
        MANY,
    ),
    ClaimMutant(
        "flash_backward_kv",
        "a window larger by one",
        "end = min(end, key + mask.window)",
        "end = min(end, key + mask.window + 1)",
        MANY,
    ),
    ClaimMutant(
        "flash_backward_kv",
        "a window larger by one at its start",
        "key - mask.window + 1",
        "key - mask.window",
        BOTH_WAYS,
    ),
    ClaimMutant(
        "flash_prefill", "a window larger by one at its end", "at + mask.window)", "at + mask.window + 1)", BOTH_WAYS
    ),
    ClaimMutant(
        "flash_prefill",
        "every window has the first real key",
        FIRST,
        f"({FIRST} <= mask.first + 1 ? 0 : {FIRST})",
        PADDED,
    ),
    ClaimMutant("flash_backward_kv", "padding has gradients", "key < mask.first ? lowest : end", "end", PADDED),
    ClaimMutant(
        "flash_prefill",
        "chunks ignore padding",
        "mask.chunk + mask.first;\n    begin = max(begin, from)",
        "mask.chunk;\n    begin = max(begin, from)",
        CHUNKS,
    ),
    ClaimMutant(
        "flash_backward_kv",
        "a chunk larger by one",
        "if (from > mask.first) begin = max(begin, from);\n    end = min(end, from + mask.chunk)",
        "if (from > mask.first) begin = max(begin, from);\n    end = min(end, from + mask.chunk + 1)",
        CHUNKS,
    ),
    *(
        ClaimMutant(
            kernel, "all rows use the first row's segments", "segments + long(batch) * count", "segments", SEGMENTS
        )
        for kernel in ("flash_prefill", "flash_backward_q", "flash_backward_kv")
    ),
    ClaimMutant("kv_decode", "all key heads use the first one's sinks", "sinks + own * G", "sinks", SINKS),
    ClaimMutant("kv_combine", "sinks are indexed by row", f"exp2({SINK}", "exp2(float(sinks[row % H]", SINKS),
    ClaimMutant(
        "flash_prefill",
        "heads that share keys share a sink",
        "sinks[head]",
        "sinks[kv_head]",
        edges.test_each_head_has_its_sink,
    ),
    ClaimMutant("sample_draw", "top-p of the candidates' mass", "top_k == 0 ? scaled : ranked", "ranked", MASSES),
    ClaimMutant("sample_draw", "top-p of the mass before top-k", "top_k == 0 ? scaled : ranked", "scaled", MASSES),
    ClaimMutant(
        "lora_down", "A is assumed row-major", "k * a_strides[0] + rank * a_strides[1]", "k * RANK + rank", ADAPTERS
    ),
    ClaimMutant(
        "qmv", "B is assumed row-major", "column * b_strides[0] + i * b_strides[1]", "column * RANK + i", ADAPTERS
    ),
    ClaimMutant("moe_gate_up", "choices are assumed contiguous", "chosen_strides[0] +", "TOP +", EXPERTS),
    ClaimMutant(
        "moe_down_combine",
        "weights are read with the choices' stride",
        "weights_strides[0]",
        "chosen_strides[0]",
        EXPERTS,
    ),
    ClaimMutant(
        "moe_down_combine",
        "choices are read with the weights' stride",
        "chosen_strides[0]",
        "weights_strides[0]",
        EXPERTS,
    ),
    ClaimMutant(
        "qkv_post",
        "all rows use the first row's position",
        "offset[batch * OFFSETS]",
        "offset[0]",
        _each(heads.test_heads_equal_the_definition, (*heads.CASES[2].values, heads.TYPES[0])),
    ),
    ClaimMutant(
        "qkv_post_vjp",
        "all rows use the first row's position",
        "offset[batch * OFFSETS]",
        "offset[0]",
        _each(heads.test_gradients_equal_the_references, heads.CASES[2].values),
    ),
]


def main() -> int:
    """Run each mutant's test, and print whether it is killed."""
    survivors = 0
    print("| Kernel | Mutant that a quick test must kill | Killed |")
    print("|---|---|---|")
    for mutant in CLAIM_MUTANTS:
        killed = mutant.is_killed()
        survivors += not killed
        print(f"| `{mutant.kernel}` | {mutant.name} | {'yes' if killed else '**no**'} |", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
