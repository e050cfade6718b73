// As qkv_post, with keys and values packed as mx.quantize packs them, for a quantized cache.
//
// Layout. Out: q (B, H, L, D); of keys and of values (B, K, L, W * BITS / 32) words, (B, K, L, W / GROUP) scales, and biases,
// where W is D padded with zeros to whole groups.
// Grid. A simdgroup for each head of each token: (32, H + 2 K, B * L) threads in groups of (32, HEADS, 1). A head to pack is
// staged in W floats of threadgroup memory, since a lane packs neighbouring numbers.
// Traffic. Every number is read once, and written once in BITS bits; separate packing also writes and reads it in 16 bits.
#include "../common.metal"
#include "head.metal"
#include "quantize.metal"

// Rounds a head to T, and packs it through threadgroup memory.
template <bool INTERLEAVED, typename T, int BITS, int GROUP, int W, int D, int PAIRS>
inline void pack_head(
    const thread Head<D, PAIRS>& x, threadgroup float* scratch, device uint* words, device T* scales, device T* biases, int lane) {
  for (int i = 0, pair = lane; pair < PAIRS; i++, pair += 32) {
    const int2 at = places<INTERLEAVED, PAIRS>(pair);
    scratch[at.x] = float(T(x.first[i]));
    scratch[at.y] = float(T(x.second[i]));
  }
  for (int i = 0, at = 2 * PAIRS + lane; at < D; i++, at += 32) scratch[at] = float(T(x.rest[i]));
  for (int at = D + lane; at < W; at += 32) scratch[at] = 0.0f;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  constexpr int PER_WORD = 32 / BITS, WORDS = GROUP / PER_WORD;
  for (int group = 0; group < W / GROUP; group++) {
    const threadgroup float* numbers = scratch + group * GROUP;
    float low = numbers[lane], high = numbers[lane];
    for (int i = lane + 32; i < GROUP; i += 32) {
      low = min(low, numbers[i]);
      high = max(high, numbers[i]);
    }
    const float2 rule = affine_rule<BITS>(simd_min(low), simd_max(high));
    if (lane < WORDS) {
      uint word = 0;
      for (int i = 0; i < PER_WORD; i++) word |= affine_code<BITS>(numbers[lane * PER_WORD + i], rule) << (BITS * i);
      words[group * WORDS + lane] = word;
    }
    if (lane == 0) {
      scales[group] = T(rule.x);
      biases[group] = T(rule.y);
    }
  }
}

//: threadgroup float scratch[HEADS * W];
//: const int head = int(thread_position_in_grid.y), lane = int(thread_index_in_simdgroup);
//: const int length = q_shape[1], row = int(thread_position_in_grid.z), batch = row / length, token = row % length;
//: const float position = float(offset[batch * OFFSETS] + token);
//: Head<D, PAIRS> x;
//: if (head < H) {
//:   read_head<INTERLEAVED>(q + (long(row) * H + head) * D, lane, x);
//:   if (Q_NORM) norm_head<INTERLEAVED>(q_norm, eps, shift, lane, x);
//:   rotate_head(wavelengths, position, magnitude, lane, x);
//:   write_head<INTERLEAVED>(q_out + ((long(batch) * H + head) * length + token) * D, lane, x);
//: } else {
//:   const int own = (head - H) % K;
//:   const long to = (long(batch) * K + own) * length + token;
//:   threadgroup float* part = scratch + int(thread_position_in_threadgroup.y) * W;
//:   if (head < H + K) {
//:     read_head<INTERLEAVED>(k + (long(row) * K + own) * D, lane, x);
//:     if (K_NORM) norm_head<INTERLEAVED>(k_norm, eps, shift, lane, x);
//:     rotate_head(wavelengths, position, magnitude, lane, x);
//:     pack_head<INTERLEAVED, T, BITS, GROUP, W>(x, part, k_words + to * (W * BITS / 32), k_scales + to * (W / GROUP), k_biases + to * (W / GROUP), lane);
//:   } else {
//:     read_head<INTERLEAVED>(v + (long(row) * K + own) * D, lane, x);
//:     pack_head<INTERLEAVED, T, BITS, GROUP, W>(x, part, v_words + to * (W * BITS / 32), v_scales + to * (W / GROUP), v_biases + to * (W / GROUP), lane);
//:   }
//: }
