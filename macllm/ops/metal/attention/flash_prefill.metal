// Attention of many queries over keys and values, read in place through their strides. Tiles that no query of a tile sees,
// because of causality, a window, chunks or segments, are skipped. Stock MLX needs a dense mask for these, reads all tiles,
// and has no softcap.
//
// Layout. q (B, H, L, D), keys and values (B, K, S, D), all with strides; segments (B, S). Out: out (B, H, L, D), and lse
// (B, H, L) float32, the natural logarithm of each row's sum of exponentials.
// Grid. A threadgroup for each tile of 8 * BLOCKS queries, head and batch row, those with most keys first: (32, BLOCKS * SIDES)
// threads. Queries stay in threadgroup memory; N keys and then their values are staged in it.
// Traffic. Each tile of queries reads the keys and values that it sees once. No score leaves the threadgroup.
#include "../common.metal"
#include "prefill.metal"

//: typedef Form<T, D, BLOCKS, SIDES, N> F;
//: threadgroup T own[F::ROWS * F::STEP], tile[F::N * F::STEP];
//: threadgroup float scratch[F::ROWS * F::HELD], factors[F::ROWS];
//: const int head = int(threadgroup_position_in_grid.y), batch = int(threadgroup_position_in_grid.z);
//: const int row = F::ROWS * int(threadgroups_per_grid.x - 1 - threadgroup_position_in_grid.x);
//: const int heads = q_shape[1], length = q_shape[2], count = keys_shape[2], kv_head = head / (heads / keys_shape[1]);
//: const long rows = (long(batch) * heads + head) * length;
//: const Mask mask = {length, count, first[batch * FIRSTS], window, chunk};
//: const auto queries = plain_rows(q + batch * q_strides[0] + head * q_strides[1], q_strides[2]);
//: const auto k = plain_rows(keys + batch * keys_strides[0] + kv_head * keys_strides[1], keys_strides[2]);
//: const auto v = plain_rows(values + batch * values_strides[0] + kv_head * values_strides[1], values_strides[2]);
//: prefill<F, CAUSAL, SEGMENTED, CAPPED>(
//:     queries, k, v, mask, segments + long(batch) * count, scale, softcap, HAS_SINKS ? float(sinks[head]) * M_LOG2E_F : LOWEST,
//:     HAS_SINKS ? 1.0f : 0.0f, row, int(simdgroup_index_in_threadgroup), int(thread_index_in_simdgroup), own, tile, scratch, factors,
//:     out + rows * D, lse + rows);
