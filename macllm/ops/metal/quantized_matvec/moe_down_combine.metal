// y = sum over a token's experts e of weight_e h_e D_e^T: the product and the weighted sum in one dispatch. One loop runs over
// all experts, TOP times as long as one expert's, whose few numbers would leave most of a simdgroup idle.
//
// Layout. h (tokens, TOP, K); words (E, N, K * BITS / 32), scales and biases (E, N, K / GROUP); chosen and weights (tokens,
// TOP), rows a stride apart; residual (tokens, N). Out: (tokens, N).
// Grid. A simdgroup for each ROWS numbers of a token: (32, ceil(N / ROWS), tokens) threads in groups of (32, 2, 1).
// Traffic. Each chosen expert's rows are read once; no intermediate results are written.
#include "../common.metal"
#include "matvec.metal"

//: const int lane = int(thread_index_in_simdgroup), n = int(thread_position_in_grid.y) * ROWS;
//: const int K = h_shape[2], N = words_shape[1], token = int(thread_position_in_grid.z);
//: float values[1][VALUES], sums[ROWS];
//: for (int r = 0; r < ROWS; r++) sums[r] = 0.0f;
//: for (int e = 0; e < TOP; e++) {
//:   const auto row = h + (long(token) * TOP + e) * K;
//:   const long expert = long(chosen[token * chosen_strides[0] + e]) * N;
//:   const float weight = float(weights[token * weights_strides[0] + e]);
//:   for (int k = lane * VALUES; k < K; k += 32 * VALUES) {
//:     const float value_sum = read_values<false, VALUES>(row, row, 0.0f, weight, k, K, values[0]);
//:     for (int r = 0; r < ROWS; r++)
//:       add_products<BITS, GROUP, VALUES, 1>(words, scales, biases, expert + min(n + r, N - 1), k, K, values, &value_sum, &sums[r]);
//:   }
//: }
//: for (int r = 0; r < ROWS; r++) {
//:   float y = simd_sum(sums[r]);
//:   if (lane != 0 || n + r >= N) continue;
//:   if (HAS_RESIDUAL) y += float(residual[long(token) * N + n + r]);
//:   out[long(token) * N + n + r] = T(y);
//: }
