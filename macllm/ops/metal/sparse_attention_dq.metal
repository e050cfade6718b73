// The gradient of sparse_attention's queries. Stock MLX keeps every score of the forward pass for it.
//
// Layout. q, k, v, starts, others and lengths as sparse_attention; slopes (B, H, L, D), the result's gradient; lse (B, H, L)
// as it came out; delta (B, H, L) float32, slopes times the result, added up, less lse's gradient. Out: dq (B, H, L, D).
// Grid. As sparse_attention.
// Traffic. Each block of queries reads its blocks of keys and values once, its simdgroups together; scores are made again.
#include "common.metal"
#include "sparse.metal"

//: threadgroup float numbers[64];
//: const int lane = int(thread_index_in_simdgroup), simdgroup = int(simdgroup_index_in_threadgroup);
//: const int head = int(threadgroup_position_in_grid.x), batch = int(threadgroup_position_in_grid.y);
//: const int block = int(threadgroup_position_in_grid.z);
//: if (simdgroup < 2) numbers[32 * simdgroup + lane] = float(32 * simdgroup + lane);
//: threadgroup_barrier(mem_flags::mem_threadgroup);
//: const Elements at = elements_in(numbers);
//: const int H = q_shape[1], K = k_shape[1], L = q_shape[2], first = block * BLOCK + 8 * simdgroup, length = lengths[batch * LENGTHS];
//: const long rows = (long(batch) * H + head) * L + first, keys = (long(batch) * K + head / (H / K)) * L;
//: const int count = block * BLOCK < length ? starts[block + 1] - starts[block] : 0;
//: Square sums[D / 8];
//: clear<D / 8>(sums);
//: add_query_slopes<BLOCK, D, CAUSAL>(
//:     q + rows * D, k + keys * D, v + keys * D, slopes + rows * D, lse + rows, delta + rows, others + starts[block], count, first,
//:     length, scale, at, sums);
//: write_rows<D>(sums, at, D, dq + rows * D);
