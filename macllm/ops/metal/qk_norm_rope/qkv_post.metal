// Fused QK norm, RoPE and (B, L, H * D) to (B, H, L, D), for queries, keys and values at once. Stock MLX needs two dispatches
// for the norms, two for the rotations, and copies.
//
// Layout. In: q (B, L, H * D), k and v (B, L, K * D), contiguous rows. Out: (B, H, L, D) and (B, K, L, D).
// Grid. A simdgroup for each head of each token: (32, H + 2 K, B * L) threads. A lane holds pairs of the rotation, and every
// 32nd of the numbers that do not rotate, so that a head is read once and stays in registers.
// Traffic. Every number is read once and written once; separate operations read and write it two to four times.
#include "../common.metal"
#include "head.metal"

//: const int head = int(thread_position_in_grid.y), lane = int(thread_index_in_simdgroup);
//: const int length = q_shape[1], row = int(thread_position_in_grid.z), batch = row / length, token = row % length;
//: const float position = float(offset[batch * OFFSETS] + token);
//: Head<D, PAIRS> x;
//: if (head < H) {
//:   read_head<INTERLEAVED>(q + (long(row) * H + head) * D, lane, x);
//:   if (Q_NORM) norm_head<INTERLEAVED>(q_norm, eps, shift, lane, x);
//:   rotate_head(wavelengths, position, magnitude, lane, x);
//:   write_head<INTERLEAVED>(q_out + ((long(batch) * H + head) * length + token) * D, lane, x);
//: } else if (head < H + K) {
//:   const int own = head - H;
//:   read_head<INTERLEAVED>(k + (long(row) * K + own) * D, lane, x);
//:   if (K_NORM) norm_head<INTERLEAVED>(k_norm, eps, shift, lane, x);
//:   rotate_head(wavelengths, position, magnitude, lane, x);
//:   write_head<INTERLEAVED>(k_out + ((long(batch) * K + own) * length + token) * D, lane, x);
//: } else {
//:   const int own = head - H - K;
//:   read_head<INTERLEAVED>(v + (long(row) * K + own) * D, lane, x);
//:   write_head<INTERLEAVED>(v_out + ((long(batch) * K + own) * length + token) * D, lane, x);
//: }
