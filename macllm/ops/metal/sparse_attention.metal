// Attention of each block of queries over a list of blocks of keys (arXiv:2004.05150, arXiv:2007.14062). Stock MLX has dense
// attention with a mask, which computes and masks every score, or gathers copies of the keys for each block of queries.
//
// Layout. q (B, H, L, D), k and v (B, K, L, D) in one piece, L a multiple of BLOCK; starts (L / BLOCK + 1), others: the blocks
// that block i sees are others[starts[i]] to before others[starts[i + 1]]; lengths (B) or (1): what comes after is padding.
// Out: out (B, H, L, D) and lse (B, H, L) float32, the logarithm of the sum of exponentials; of padding 0 and -infinity.
// Grid. A threadgroup for each head, batch row and block of queries, a simdgroup for eight of these: (32 H, BLOCK / 8 B,
// L / BLOCK) threads. Blocks that see everything come first, so that nobody waits for them at the end.
// Traffic. Each block of queries reads its blocks of keys and values once, its simdgroups together; nothing is L x L.
#include "common.metal"
#include "sparse.metal"

//: threadgroup float numbers[64];
//: threadgroup float strips[BLOCK * (BLOCK + 4)];
//: const int lane = int(thread_index_in_simdgroup), simdgroup = int(simdgroup_index_in_threadgroup);
//: const int head = int(threadgroup_position_in_grid.x), batch = int(threadgroup_position_in_grid.y);
//: const int block = int(threadgroup_position_in_grid.z);
//: if (simdgroup < 2) numbers[32 * simdgroup + lane] = float(32 * simdgroup + lane);
//: threadgroup_barrier(mem_flags::mem_threadgroup);
//: const Elements at = elements_in(numbers);
//: const int H = q_shape[1], K = k_shape[1], L = q_shape[2], first = block * BLOCK + 8 * simdgroup, length = lengths[batch * LENGTHS];
//: const long rows = (long(batch) * H + head) * L + first, keys = (long(batch) * K + head / (H / K)) * L;
//: const int count = block * BLOCK < length ? starts[block + 1] - starts[block] : 0;
//: attend_blocks<BLOCK, D, CAUSAL>(
//:     q + rows * D, k + keys * D, v + keys * D, others + starts[block], count, first, length, scale, at, lane,
//:     strips + 8 * simdgroup * (BLOCK + 4), out + rows * D, lse + rows);
