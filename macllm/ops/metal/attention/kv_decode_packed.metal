// As kv_decode, over keys and values that mx.quantize has packed, of K_BITS and V_BITS: codes are multiplied as integers, and
// a group's scale and bias are applied once. Stock MLX needs two products and a softmax, and memory for the scores.
//
// Layout. Words (B, K, S, W * BITS / 32), scales and biases (B, K, S, W / GROUP), each with strides; the rest as kv_decode.
// Grid. As kv_decode.
// Traffic. A token of a key head costs 2 W (BITS / 8 + 2 * 2 / GROUP) bytes for 16-bit scales: 144 for W = 128 at 4 bit,
// where 16-bit keys and values cost 512.
#include "../common.metal"
#include "decode.metal"

//: threadgroup float scratch[SPLITS > 1 ? TILES * SPLITS * 32 * (EIGHT + 3) : 1];
//: const int lane = int(thread_index_in_simdgroup), simdgroup = int(simdgroup_index_in_threadgroup);
//: const int chunk = int(threadgroup_position_in_grid.x), chunks = int(threadgroups_per_grid.x), batch = int(threadgroup_position_in_grid.z);
//: const int own = int(threadgroup_position_in_grid.y) % K, block = int(threadgroup_position_in_grid.y) / K;
//: const int length = q_shape[2], count = k_words_shape[2];
//: const long rows = (long(batch) * K + own) * G * length;
//: const DecodeMask mask = {length, count - 1, first[batch * FIRSTS], window, softcap};
//: const int begin = low + chunk * CHUNK, end = min(count, begin + CHUNK);
//: const auto k = packed_rows<K_BITS, GROUP>(
//:     k_words + batch * k_words_strides[0] + own * k_words_strides[1], k_scales + batch * k_scales_strides[0] + own * k_scales_strides[1],
//:     k_biases + batch * k_biases_strides[0] + own * k_biases_strides[1], k_words_strides[2], k_scales_strides[2], k_biases_strides[2]);
//: const auto v = packed_rows<V_BITS, GROUP>(
//:     v_words + batch * v_words_strides[0] + own * v_words_strides[1], v_scales + batch * v_scales_strides[0] + own * v_scales_strides[1],
//:     v_biases + batch * v_biases_strides[0] + own * v_biases_strides[1], v_words_strides[2], v_scales_strides[2], v_biases_strides[2]);
//: decode<G, D, PARTS, R, TILES, SPLITS, CAUSAL, CAPPED, WHOLE, HAS_SINKS>(
//:     q + rows * D, k, v, mask, scale, sinks + own * G, begin, end, chunk, chunks, block * TILES * R, simdgroup, lane, scratch,
//:     out + rows * chunks * D, stats + rows * chunks * 2);
