// The gradients of sparse_attention's keys and values: each block goes along the blocks of queries that see it, so that no two
// threadgroups add to one number. Stock MLX keeps every score of the forward pass for it.
//
// Layout. As sparse_attention_dq, but that starts and others list the blocks of queries that see a block of keys. Out: dk and
// dv (B, K, L, D).
// Grid. A threadgroup for each key head, batch row and block of keys, two simdgroups for eight of these, the one for keys, the
// other for values: (32 K, BLOCK / 4 B, L / BLOCK) threads. The query heads of a key head come one after another.
// Traffic. Each block of keys reads the queries that see it and their gradients twice; scores are made again, once.
#include "common.metal"
#include "sparse.metal"

//: threadgroup float numbers[64];
//: threadgroup float strips[BLOCK * (BLOCK + 4)];
//: const int lane = int(thread_index_in_simdgroup), simdgroup = int(simdgroup_index_in_threadgroup);
//: const int own_head = int(threadgroup_position_in_grid.x), batch = int(threadgroup_position_in_grid.y);
//: const int block = int(threadgroup_position_in_grid.z);
//: if (simdgroup < 2) numbers[32 * simdgroup + lane] = float(32 * simdgroup + lane);
//: threadgroup_barrier(mem_flags::mem_threadgroup);
//: const Elements at = elements_in(numbers);
//: const int H = q_shape[1], K = k_shape[1], L = q_shape[2], tile = simdgroup % (BLOCK / 8), first = block * BLOCK + 8 * tile;
//: const bool of_keys = simdgroup >= BLOCK / 8;
//: const int length = lengths[batch * LENGTHS], count = block * BLOCK < length ? starts[block + 1] - starts[block] : 0;
//: const long keys = (long(batch) * K + own_head) * L + first;
//: Square sums[D / 8];
//: clear<D / 8>(sums);
//: for (int head = own_head * (H / K); head < (own_head + 1) * (H / K); head++) {
//:   const long rows = (long(batch) * H + head) * L;
//:   add_key_slopes<BLOCK, D, CAUSAL>(
//:       (of_keys ? v : k) + keys * D, (of_keys ? slopes : q) + rows * D, (of_keys ? q : slopes) + rows * D, lse + rows, delta + rows,
//:       others + starts[block], count, first, length, scale, of_keys, at, strips + 8 * tile * (BLOCK + 4), sums);
//: }
//: write_rows<D>(sums, at, D, (of_keys ? dk : dv) + keys * D);
