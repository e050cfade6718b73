"""Mutants that quick kernel tests must kill: `python -m tests.simulator.claims` runs them all.

Prints a table of the claim that each one breaks. Ends with 1 if one breaks none.
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


class Broken(NamedTuple):
    """A part of a kernel's text that something else is put in for, and the quick test that must fail then."""

    kernel: str
    what: str
    part: str
    other: str
    claim: Claim

    def seen(self) -> bool:
        """True where the claim fails with the bug."""
        with mutated(Mutant(self.kernel, self.what, self.part, self.other, lambda: [])):
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


def _of_strides() -> Iterator[Broken]:
    """Values read as keys lie, in each axis, and the like of what they are packed into."""
    places = {"kv_decode": ("own", DECODED)}
    places |= {kernel: ("kv_head", ATTENDED) for kernel in ("flash_prefill", "flash_backward_q", "flash_backward_kv")}
    for kernel, (head, claim) in places.items():
        for axis, part in enumerate(
            ("batch * values_strides[0]", f"{head} * values_strides[1]", ", values_strides[2])")
        ):
            what = f"values have the keys' stride of axis {axis}"
            yield Broken(kernel, what, part, part.replace("values", "keys"), claim)
    for kernel in ("kv_decode_packed", "flash_prefill_packed"):
        for one, other in (("v_words", "k_words"), ("v_scales", "k_scales"), ("k_biases", "k_scales")):
            for axis in range(3):
                end = ("", "", ",")[axis]
                part, instead = f"{one}_strides[{axis}]{end}", f"{other}_strides[{axis}]{end}"
                if one == "k_biases" and axis == 2:
                    part, instead = part.replace(",", ")"), instead.replace(",", ")")
                yield Broken(kernel, f"{one} have the stride of axis {axis} of {other}", part, instead, PACKED)


ROWS = "long(batch) * heads * length * D"
SINK = "float(sinks[row / stats_shape[2] % H]"
FIRST = "at - mask.window + 1"
IN_WINDOW = "at - key < mask.window)"
WINDOWS = edges.test_a_window_over_packed_keys_ends_at_the_first_one
SEGMENTS = edges.test_each_row_of_a_batch_has_its_segments
BROKEN = [
    *_of_strides(),
    Broken("flash_prefill", "queries lie as their shape says", "batch * q_strides[0]", ROWS, ATTENDED),
    Broken("flash_prefill", "positions lie side by side", "q_strides[1], q_strides[2]", "q_strides[1], D", ATTENDED),
    Broken("flash_backward_q", "queries lie as their shape says", "batch * q_strides[0]", ROWS, ATTENDED),
    Broken("flash_backward_kv", "heads lie side by side", "q_strides[1], group", "long(length) * D, group", ATTENDED),
    Broken("kv_decode", "the first key is in each window", IN_WINDOW, f"{IN_WINDOW[:-1]} || key == 0)", FEW),
    Broken("kv_decode", "a window of one less", IN_WINDOW, "at - key < mask.window - 1)", FEW),
    Broken("kv_decode_packed", "the first key is in each window", IN_WINDOW, f"{IN_WINDOW[:-1]} || key == 0)", WINDOWS),
    *(
        Broken(kernel, "the first key is in each window", FIRST, f"({FIRST} <= 1 ? 0 : {FIRST})", claim)
        for kernel, claim in (
            ("flash_prefill", MANY),
            ("flash_prefill_packed", WINDOWS),
            ("flash_backward_q", MANY),
        )
    ),
    Broken(
        "flash_backward_kv",
        "the first key is in each window",
        "end = min(end, key + mask.window)",
        "end = key == 0 ? end : min(end, key + mask.window)",
        MANY,
    ),
    Broken(
        "flash_backward_kv",
        "a window of one more",
        "end = min(end, key + mask.window)",
        "end = min(end, key + mask.window + 1)",
        MANY,
    ),
    Broken("flash_backward_kv", "a window back of one more", "key - mask.window + 1", "key - mask.window", BOTH_WAYS),
    Broken("flash_prefill", "a window ahead of one more", "at + mask.window)", "at + mask.window + 1)", BOTH_WAYS),
    Broken(
        "flash_prefill",
        "the first key that is no padding is in each window",
        FIRST,
        f"({FIRST} <= mask.first + 1 ? 0 : {FIRST})",
        PADDED,
    ),
    Broken("flash_backward_kv", "padding has gradients", "key < mask.first ? lowest : end", "end", PADDED),
    Broken(
        "flash_prefill",
        "chunks begin at the first key",
        "mask.chunk + mask.first;\n    begin = max(begin, from)",
        "mask.chunk;\n    begin = max(begin, from)",
        CHUNKS,
    ),
    Broken(
        "flash_backward_kv",
        "a chunk of one more",
        "if (from > mask.first) begin = max(begin, from);\n    end = min(end, from + mask.chunk)",
        "if (from > mask.first) begin = max(begin, from);\n    end = min(end, from + mask.chunk + 1)",
        CHUNKS,
    ),
    *(
        Broken(kernel, "each row has the first one's segments", "segments + long(batch) * count", "segments", SEGMENTS)
        for kernel in ("flash_prefill", "flash_backward_q", "flash_backward_kv")
    ),
    Broken("kv_decode", "each key head has the first one's sinks", "sinks + own * G", "sinks", SINKS),
    Broken("kv_combine", "heads have sinks in turn", f"exp2({SINK}", "exp2(float(sinks[row % H]", SINKS),
    Broken(
        "flash_prefill",
        "heads that share keys share a sink",
        "sinks[head]",
        "sinks[kv_head]",
        edges.test_each_head_has_its_sink,
    ),
    Broken("sample_draw", "the mass is that of the candidates", "top_k == 0 ? scaled : ranked", "ranked", MASSES),
    Broken("sample_draw", "the mass is that of all logits", "top_k == 0 ? scaled : ranked", "scaled", MASSES),
    Broken("lora_down", "A lies row by row", "k * a_strides[0] + rank * a_strides[1]", "k * RANK + rank", ADAPTERS),
    Broken("qmv", "B lies row by row", "column * b_strides[0] + i * b_strides[1]", "column * RANK + i", ADAPTERS),
    Broken("moe_gate_up", "choices lie side by side", "chosen_strides[0] +", "TOP +", EXPERTS),
    Broken("moe_down_combine", "weights lie as choices do", "weights_strides[0]", "chosen_strides[0]", EXPERTS),
    Broken("moe_down_combine", "choices lie as weights do", "chosen_strides[0]", "weights_strides[0]", EXPERTS),
    Broken(
        "qkv_post",
        "all rows begin at the first one's position",
        "offset[batch * OFFSETS]",
        "offset[0]",
        _each(heads.test_heads_equal_the_definition, (*heads.CASES[2].values, heads.TYPES[0])),
    ),
    Broken(
        "qkv_post_vjp",
        "all rows begin at the first one's position",
        "offset[batch * OFFSETS]",
        "offset[0]",
        _each(heads.test_gradients_equal_the_references, heads.CASES[2].values),
    ),
]


def main() -> int:
    """Put each bug into its kernel, and print whether its claim fails."""
    missed = 0
    print("| Kernel | Bug that a quick test must see | Seen |")
    print("|---|---|---|")
    for bug in BROKEN:
        seen = bug.seen()
        missed += not seen
        print(f"| `{bug.kernel}` | {bug.what} | {'yes' if seen else '**no**'} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
