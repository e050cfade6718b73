// y = act(x' W^T) . (x' U^T) + bias + residual + s B (A x'), for up to eight rows of x, where x' is x or its RMS norm: the
// product of a decoded token with its norm and epilogue, each part optional. W, U are packed by mx.quantize. Stock MLX's
// product alone is as fast; each fused part saves a dispatch and its traffic.
//
// Layout. x (rows, K), norm (K), words (N, K * BITS / 32), scales and biases (N, K / GROUP), bias (N), residual (rows, N),
// b (N, RANK), low (rows, RANK) float32 from lora_down. Out: (rows, N).
// Grid. A simdgroup for each ROWS numbers of M rows: (32, ceil(N / ROWS), ceil(rows / M)) threads in groups of (32, 2, 1).
// Traffic. The matrices are read once for M rows, x once per simdgroup, from the cache.
#include "../common.metal"
#include "matvec.metal"

//: const int lane = int(thread_index_in_simdgroup), n = int(thread_position_in_grid.y) * ROWS;
//: const int K = x_shape[1], rows = x_shape[0], N = words_shape[0], first = int(thread_position_in_grid.z) * M;
//: float values[M][VALUES], value_sums[M], inverse[M], sums[ROWS][M], ups[ROWS][M];
//: for (int m = 0; m < M; m++) inverse[m] = NORMED ? inverse_rms(x + long(min(first + m, rows - 1)) * K, K, eps, lane) : 1.0f;
//: for (int r = 0; r < ROWS; r++) for (int m = 0; m < M; m++) sums[r][m] = ups[r][m] = 0.0f;
//: for (int k = lane * VALUES; k < K; k += 32 * VALUES) {
//:   for (int m = 0; m < M; m++)
//:     value_sums[m] = read_values<NORMED, VALUES>(x + long(min(first + m, rows - 1)) * K, norm, shift, inverse[m], k, K, values[m]);
//:   for (int r = 0; r < ROWS; r++) {
//:     const long row = min(n + r, N - 1);
//:     add_products<BITS, GROUP, VALUES, M>(words, scales, biases, row, k, K, values, value_sums, sums[r]);
//:     if (GATED) add_products<BITS, GROUP, VALUES, M>(up_words, up_scales, up_biases, row, k, K, values, value_sums, ups[r]);
//:   }
//: }
//: for (int r = 0; r < ROWS; r++) {
//:   for (int m = 0; m < M; m++) {
//:     const int row = first + m, column = n + r;
//:     float y = activated<ACTIVATION>(simd_sum(sums[r][m]));
//:     if (GATED) y *= simd_sum(ups[r][m]);
//:     if (lane != 0 || row >= rows || column >= N) continue;
//:     if (BIASED) y += float(bias[column]);
//:     if (RANK > 0) {
//:       float up = 0.0f;
//:       for (int i = 0; i < RANK; i++) up += float(b[column * b_strides[0] + i * b_strides[1]]) * float(low[row * RANK + i]);
//:       y += alpha * up;
//:     }
//:     if (HAS_RESIDUAL) y += float(residual[long(row) * N + column]);
//:     out[long(row) * N + column] = T(y);
//:   }
//: }
