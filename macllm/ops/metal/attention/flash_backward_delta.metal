// delta = rowsum(dout * out), which is subtracted in the gradients of a row's scores.
//
// Layout. out and dout (B, H, L, D). Out: delta (B, H, L) float32.
// Grid. A simdgroup for each row: (32, B * H * L) threads. A lane reads every 32nd number.
// Traffic. Every number is read once.
#include "../common.metal"

//: const int lane = int(thread_index_in_simdgroup);
//: const long row = long(thread_position_in_grid.y);
//: float sum = 0.0f;
//: for (int d = lane; d < D; d += 32) sum += float(out[row * D + d]) * float(dout[row * D + d]);
//: sum = simd_sum(sum);
//: if (lane == 0) delta[row] = sum;
