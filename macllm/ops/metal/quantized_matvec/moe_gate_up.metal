// h = act(x G_e^T) . (x U_e^T) for each expert e chosen for a token: gate, up and gating in one dispatch instead of three.
//
// Layout. x (tokens, K); gate and up words (E, N, K * BITS / 32), scales and biases (E, N, K / GROUP); chosen (tokens, TOP)
// integers, rows a stride apart. Out: (tokens, TOP, N).
// Grid. A simdgroup for each ROWS numbers of a token's expert: (32, ceil(N / ROWS), tokens * TOP) threads in groups of
// (32, 2, 1). Gate and up rows share the lane's numbers of x.
// Traffic. Each chosen expert's rows are read once per token; x once per simdgroup, from the cache.
#include "../common.metal"
#include "matvec.metal"

//: const int lane = int(thread_index_in_simdgroup), n = int(thread_position_in_grid.y) * ROWS;
//: const int K = x_shape[1], N = gate_words_shape[1], slot = int(thread_position_in_grid.z);
//: const long expert = long(chosen[slot / TOP * chosen_strides[0] + slot % TOP]) * N;
//: const auto row = x + long(slot / TOP) * K;
//: float values[1][VALUES], sums[ROWS], ups[ROWS];
//: for (int r = 0; r < ROWS; r++) sums[r] = ups[r] = 0.0f;
//: for (int k = lane * VALUES; k < K; k += 32 * VALUES) {
//:   const float value_sum = read_values<false, VALUES>(row, row, 0.0f, 1.0f, k, K, values[0]);
//:   for (int r = 0; r < ROWS; r++) {
//:     const long at = expert + min(n + r, N - 1);
//:     add_products<BITS, GROUP, VALUES, 1>(gate_words, gate_scales, gate_biases, at, k, K, values, &value_sum, &sums[r]);
//:     add_products<BITS, GROUP, VALUES, 1>(up_words, up_scales, up_biases, at, k, K, values, &value_sum, &ups[r]);
//:   }
//: }
//: for (int r = 0; r < ROWS; r++) {
//:   const float y = activated<ACTIVATION>(simd_sum(sums[r])) * simd_sum(ups[r]);
//:   if (lane == 0 && n + r < N) out[long(slot) * N + n + r] = T(y);
//: }
