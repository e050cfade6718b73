// Linear attention of one token: adds its key and value to the state, which its query reads (arXiv:2006.16236, 3.4). Stock MLX
// needs five dispatches, and reads the state three times.
//
// Layout. q and k (B, H, 1, M), v (B, H, 1, D), sums (B, H, M, D) and norm (B, H, M) float32. Out: out (B, H, 1, D), the new
// last_sums and last_norm, and totals (B, H, 1) float32, the divisor of the result.
// Grid. A threadgroup of eight simdgroups for 32 numbers of D, each simdgroup every eighth row of the state:
// (32 ceil(D / 32), 8, B H) threads.
// Traffic. The state is read once and written once: 8 M D bytes.
#include "common.metal"

//: threadgroup float scratch[8][32];
//: threadgroup float parts[8];
//: const int lane = int(thread_index_in_simdgroup), simdgroup = int(simdgroup_index_in_threadgroup);
//: const int slab = int(threadgroup_position_in_grid.x), column = 32 * slab + lane, D = v_shape[3], M = q_shape[3];
//: const long head = long(threadgroup_position_in_grid.z);
//: const float value = column < D ? float(v[head * D + column]) : 0.0f;
//: float sum = 0.0f, total = 0.0f;
//: for (int m = simdgroup; m < M; m += 8) {
//:   const long row = head * M + m;
//:   const float query = float(q[row]), key = float(k[row]), all = norm[row] + key;
//:   total += query * all;
//:   if (slab == 0 && lane == 0) last_norm[row] = all;
//:   if (column < D) {
//:     const float number = sums[row * D + column] + key * value;
//:     last_sums[row * D + column] = number;
//:     sum += query * number;
//:   }
//: }
//: scratch[simdgroup][lane] = sum;
//: if (lane == 0) parts[simdgroup] = total;
//: threadgroup_barrier(mem_flags::mem_threadgroup);
//: if (simdgroup == 0) {
//:   for (int s = 1; s < 8; s++) {
//:     sum += scratch[s][lane];
//:     total += parts[s];
//:   }
//:   if (column < D) out[head * D + column] = T(total > 0.0f ? sum / total : 0.0f);
//:   if (slab == 0 && lane == 0) totals[head] = total;
//: }
