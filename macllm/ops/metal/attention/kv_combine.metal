// Combines the chunks of kv_decode: out = sum_c exp2(m_c - m) sums_c / sum_c exp2(m_c - m) totals_c, m_c a chunk's largest
// score and m the largest of all.
//
// Layout. sums (rows, CHUNKS, D) and stats (rows, CHUNKS, 2), float32; out (rows, D), where rows are (B, H, L).
// Grid. A simdgroup for each row: (32, rows) threads. Lanes divide the chunks for the weights, then the D numbers.
// Traffic. Sums are read once: CHUNKS * D * 4 bytes a row, against CHUNK times as many keys.
#include "../common.metal"

//: const int row = int(thread_position_in_grid.y), lane = int(thread_index_in_simdgroup), chunks = stats_shape[3];
//: const auto own = stats + long(row) * chunks * 2;
//: float largest = HAS_SINKS ? float(sinks[row / stats_shape[2] % H]) * M_LOG2E_F : -1e30f;
//: for (int c = lane; c < chunks; c += 32) largest = max(largest, own[2 * c]);
//: largest = simd_max(largest);
//: float total = 0.0f;
//: for (int c = lane; c < chunks; c += 32) total += fast::exp2(own[2 * c] - largest) * own[2 * c + 1];
//: total = simd_sum(total) + (HAS_SINKS ? fast::exp2(float(sinks[row / stats_shape[2] % H]) * M_LOG2E_F - largest) : 0.0f);
//: const float factor = total > 0.0f ? 1.0f / total : 0.0f;
//: for (int d = lane; d < D; d += 32) {
//:   float sum = 0.0f;
//:   for (int c = 0; c < chunks; c++) sum += fast::exp2(own[2 * c] - largest) * sums[(long(row) * chunks + c) * D + d];
//:   out[long(row) * D + d] = T(factor * sum);
//: }
