// The first half of a LoRA adapter: low = x' A (arXiv:2106.09685, 4.1), where x' is x, or its RMS norm, as in qmv, whose
// epilogue is the second half.
//
// Layout. x (rows, K), norm (K), a (K, RANK) with strides. Out: (rows, RANK) float32.
// Grid. A simdgroup for each number: (32, RANK, rows) threads.
// Traffic. A is read once per row, x RANK times, from the cache.
#include "../common.metal"
#include "matvec.metal"

//: const int lane = int(thread_index_in_simdgroup), rank = int(thread_position_in_grid.y), K = x_shape[1];
//: const auto row = x + long(thread_position_in_grid.z) * K;
//: const float inverse = NORMED ? inverse_rms(row, K, eps, lane) : 1.0f;
//: float sum = 0.0f;
//: for (int k = lane; k < K; k += 32) {
//:   float value = inverse * float(row[k]);
//:   if (NORMED) value *= float(norm[k]) + shift;
//:   sum += value * float(a[k * a_strides[0] + rank * a_strides[1]]);
//: }
//: sum = simd_sum(sum);
//: if (lane == 0) low[long(thread_position_in_grid.z) * RANK + rank] = sum;
