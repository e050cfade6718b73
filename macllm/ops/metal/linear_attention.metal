// Linear attention over features of queries and keys: each row's sum of (q k_t) v_t by its sum of q k_t, over all keys or,
// CAUSAL, over those up to its own (arXiv:2006.16236, eqs. 5 and 9). Stock MLX needs six dispatches, and memory for all
// products within chunks.
//
// Layout. q and k (B, H, L, M), v (B, H, L, D), L a multiple of 8; states (B, H, CHUNKS, M, D) and norms (B, H, CHUNKS, M)
// float32, from linear_states: before each chunk of CHUNK rows, or, if not CAUSAL, one for all. Out: out (B, H, L, D) and
// totals (B, H, L) float32, the sums it was divided by. A row whose sum is 0 is 0.
// Grid. A simdgroup for eight rows of W numbers: (32 D / W, L / 8 in whole threadgroups, B H) threads.
// Traffic. A state is read once per chunk of eight simdgroups, a row of keys and values once by each later one in its chunk.
#include "common.metal"
#include "linear.metal"

//: threadgroup float numbers[64];
//: const int lane = int(thread_index_in_simdgroup), slab = int(threadgroup_position_in_grid.x), own = 8 * int(thread_position_in_grid.y);
//: const int head = int(threadgroup_position_in_grid.z), L = q_shape[2], chunk = CAUSAL ? own / CHUNK : 0;
//: if (simdgroup_index_in_threadgroup == 0) {
//:   numbers[lane] = float(lane);
//:   numbers[lane + 32] = float(lane + 32);
//: }
//: threadgroup_barrier(mem_flags::mem_threadgroup);
//: const Elements at = elements_in(numbers);
//: if (own < L) {
//:   const long rows = long(head) * L, state = (long(head) * states_shape[2] + chunk) * M;
//:   Square sums[W / 8], total;
//:   attend_chunk<M, D, W, CAUSAL, false, false, 0>(
//:       q + rows * M, k + rows * M, v + rows * D + slab * W, norms, states + state * D + slab * W, norms + state, own, chunk * CHUNK,
//:       own + 8, at, total, sums);
//:   total = row_sums(total);
//:   for (int e = 0; e < 2; e++) {
//:     const float all = total.thread_elements()[e];
//:     UNROLLED for (int i = 0; i < W / 8; i++) sums[i].thread_elements()[e] *= all > 0.0f ? 1.0f / all : 0.0f;
//:     if (slab == 0 && at.column[e] == 0) totals[rows + own + at.row[e]] = all;
//:   }
//:   write_rows<W>(sums, at, D, out + (rows + own) * D + slab * W);
//: }
