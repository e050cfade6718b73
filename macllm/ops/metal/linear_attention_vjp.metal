// A gradient of linear_attention: with slopes s = dy / total and d = -(dy y) / total, and sums over t seen from, or seeing, a row,
//   dq_i = sum of (s_i v_t + d_i) k_t,  dk_t = sum of (s_i v_t + d_i) q_i,  dv_t = sum of (k_t q_i) s_i,
// each of which is linear attention without division (arXiv:2006.16236, eqs. 13 to 15). Stock MLX stores all products for it.
//
// Layout. x and y (B, H, L, P), values (B, H, L, U), extra (B, H, L) float32; states and norms from linear_states, (U, P) if
// TRANSPOSED. Out: out (B, H, L, U).
// Grid. As linear_attention, W of U.
// Traffic. As linear_attention.
#include "common.metal"
#include "linear.metal"

//: threadgroup float numbers[64];
//: const int lane = int(thread_index_in_simdgroup), slab = int(threadgroup_position_in_grid.x), own = 8 * int(thread_position_in_grid.y);
//: const int head = int(threadgroup_position_in_grid.z), L = x_shape[2], chunk = CAUSAL ? own / CHUNK : 0;
//: if (simdgroup_index_in_threadgroup == 0) {
//:   numbers[lane] = float(lane);
//:   numbers[lane + 32] = float(lane + 32);
//: }
//: threadgroup_barrier(mem_flags::mem_threadgroup);
//: const Elements at = elements_in(numbers);
//: if (own < L) {
//:   const long rows = long(head) * L, state = long(head) * states_shape[2] + chunk;
//:   const int begin = REVERSE ? own : chunk * CHUNK, end = REVERSE ? min(L, (chunk + 1) * CHUNK) : own + 8;
//:   Square sums[W / 8], total;
//:   attend_chunk<P, U, W, CAUSAL, REVERSE, TRANSPOSED, SIDE>(
//:       x + rows * P, y + rows * P, values + rows * U + slab * W, extra + rows, states + state * P * U + slab * W * (TRANSPOSED ? P : 1),
//:       norms + state * (TRANSPOSED ? U : P) + (TRANSPOSED ? slab * W : 0), own, begin, end, at, total, sums);
//:   write_rows<W>(sums, at, U, out + (rows + own) * U + slab * W);
//: }
