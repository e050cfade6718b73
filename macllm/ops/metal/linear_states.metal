// The running sums of linear attention: sum of a_t b_t^T, and sum of a_t or of extra_t a_t, over all rows before each chunk,
// or, BACKWARDS, after it. Stock MLX computes them in two dispatches, and copies all for their sum along the chunks.
//
// Layout. a (B, H, L, M), b (B, H, L, D), extra (B, H, L) float32, first_sums (B, H, M, D) and first_norm (B, H, M) float32,
// the initial sums; L a multiple of 8. Out, float32: states (B, H, L / chunk, M, D) and norms (B, H, L / chunk, M), and
// last_sums and last_norm over all rows.
// Grid. A simdgroup for eight rows of M and W of D, which loops over L: (32 D / W, M / 8, B H) threads.
// Traffic. Rows are read once per threadgroup, then from the cache; M D * 4 bytes are written for each chunk.
#include "common.metal"
#include "squares.metal"

//: const int lane = int(thread_index_in_simdgroup), slab = int(threadgroup_position_in_grid.x), m = 8 * int(thread_position_in_grid.y);
//: const int head = int(threadgroup_position_in_grid.z), L = a_shape[2];
//: const long rows = long(head) * L, corner = (long(head) * M + m) * D + slab * W;
//: Square sums[W / 8];
//: UNROLLED for (int i = 0; i < W / 8; i++) simdgroup_load(sums[i], first_sums + corner + 8 * i, D);
//: float norm = lane % 4 == 0 ? first_norm[long(head) * M + m + lane / 4] : 0.0f;
//: for (int c = 0; c <= chunks; c++) {
//:   const int chunk = BACKWARDS ? chunks - 1 - c : c;
//:   float all = norm + simd_shuffle_xor(norm, ushort(1));
//:   all += simd_shuffle_xor(all, ushort(2));
//:   const long at = c < chunks ? (long(head) * chunks + chunk) * M + m : long(head) * M + m;
//:   device float* to = (c < chunks ? states : last_sums) + at * D + slab * W;
//:   UNROLLED for (int i = 0; i < W / 8; i++) simdgroup_store(sums[i], to + 8 * i, D);
//:   if (slab == 0 && lane % 4 == 0) (c < chunks ? norms : last_norm)[at + lane / 4] = all;
//:   for (int t = chunk * size; c < chunks && t < min(L, (chunk + 1) * size); t += 8) {
//:     const Square x = read_square<true>(a + (rows + t) * M + m, M);
//:     UNROLLED for (int i = 0; i < W / 8; i++) {
//:       simdgroup_multiply_accumulate(sums[i], x, read_square<false>(b + (rows + t) * D + slab * W + 8 * i, D), sums[i]);
//:     }
//:     for (int row = t + lane % 4; row < t + 8; row += 4) {
//:       norm += float(a[(rows + row) * M + m + lane / 4]) * (WEIGHTED ? extra[rows + row] : 1.0f);
//:     }
//:   }
//: }
