// q, k and v of a decoded token: three products of one x', x or its RMS norm, with packed matrices, in one dispatch. Alone,
// the two smaller ones, of a few key heads, would leave most of the GPU idle.
//
// Layout. x (rows, K), norm (K); for each product words (N, K * BITS / 32), scales and biases (N, K / GROUP) and bias (N).
// Out: three of (rows, N).
// Grid. A simdgroup for each ROWS numbers of M rows, q's first, then k's, then v's, each in whole threadgroups of (32, 2, 1);
// ceil(rows / M) of these.
// Traffic. The matrices are read once for M rows, x once per simdgroup, from the cache.
#include "../common.metal"
#include "matvec.metal"

// Simdgroups for so many numbers.
template <int ROWS>
inline int simdgroups(int count) {
  return (count + 2 * ROWS - 1) / (2 * ROWS) * 2;
}

// ROWS numbers, from `n` on, of M rows of x.
template <int BITS, int GROUP, int VALUES, int ROWS, int M, bool NORMED, bool BIASED, typename X, typename Norm, typename Words,
          typename Scales, typename Bias, typename T>
inline void products(
    X x, Norm norm, float shift, const thread float* inverse, int K, int rows, int first, Words words, Scales scales,
    Scales biases, Bias bias, device T* out, int N, int n, int lane) {
  float values[M][VALUES], value_sums[M], sums[ROWS][M];
  for (int r = 0; r < ROWS; r++) for (int m = 0; m < M; m++) sums[r][m] = 0.0f;
  for (int k = lane * VALUES; k < K; k += 32 * VALUES) {
    for (int m = 0; m < M; m++)
      value_sums[m] = read_values<NORMED, VALUES>(x + long(min(first + m, rows - 1)) * K, norm, shift, inverse[m], k, K, values[m]);
    for (int r = 0; r < ROWS; r++)
      add_products<BITS, GROUP, VALUES, M>(words, scales, biases, long(min(n + r, N - 1)), k, K, values, value_sums, sums[r]);
  }
  for (int r = 0; r < ROWS; r++) {
    for (int m = 0; m < M; m++) {
      float y = simd_sum(sums[r][m]);
      if (lane != 0 || first + m >= rows || n + r >= N) continue;
      if (BIASED) y += float(bias[n + r]);
      out[long(first + m) * N + n + r] = T(y);
    }
  }
}

//: const int lane = int(thread_index_in_simdgroup), own = int(thread_position_in_grid.y);
//: const int K = x_shape[1], rows = x_shape[0], first = int(thread_position_in_grid.z) * M;
//: const int q_count = q_words_shape[0], k_count = k_words_shape[0], v_count = v_words_shape[0];
//: const int q_end = simdgroups<ROWS>(q_count), k_end = q_end + simdgroups<ROWS>(k_count);
//: float inverse[M];
//: for (int m = 0; m < M; m++) inverse[m] = NORMED ? inverse_rms(x + long(min(first + m, rows - 1)) * K, K, eps, lane) : 1.0f;
//: if (own < q_end) {
//:   products<BITS, GROUP, VALUES, ROWS, M, NORMED, BIASED>(
//:       x, norm, shift, inverse, K, rows, first, q_words, q_scales, q_biases, q_bias, q_out, q_count, own * ROWS, lane);
//: } else if (own < k_end) {
//:   products<BITS, GROUP, VALUES, ROWS, M, NORMED, BIASED>(
//:       x, norm, shift, inverse, K, rows, first, k_words, k_scales, k_biases, k_bias, k_out, k_count, (own - q_end) * ROWS, lane);
//: } else {
//:   products<BITS, GROUP, VALUES, ROWS, M, NORMED, BIASED>(
//:       x, norm, shift, inverse, K, rows, first, v_words, v_scales, v_biases, v_bias, v_out, v_count, (own - k_end) * ROWS, lane);
//: }
