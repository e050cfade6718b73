// As flash_prefill, over keys and values that mx.quantize has packed, of K_BITS and V_BITS: they become T in threadgroup
// memory. Stock MLX needs two products and a softmax, and memory for all scores.
//
// Layout. Words (B, K, S, W * BITS / 32), scales and biases (B, K, S, W / GROUP), each with strides; the rest as flash_prefill.
// Grid. As flash_prefill.
// Traffic. As flash_prefill, of packed keys and values.
#include "../common.metal"
#include "prefill.metal"

//: typedef Form<T, D, BLOCKS, SIDES, N> F;
//: threadgroup T own[F::ROWS * F::STEP], tile[F::N * F::STEP];
//: threadgroup float scratch[F::ROWS * F::HELD], factors[F::ROWS];
//: const int head = int(threadgroup_position_in_grid.y), batch = int(threadgroup_position_in_grid.z);
//: const int row = F::ROWS * int(threadgroups_per_grid.x - 1 - threadgroup_position_in_grid.x);
//: const int heads = q_shape[1], length = q_shape[2], count = k_words_shape[2], kv_head = head / (heads / k_words_shape[1]);
//: const long rows = (long(batch) * heads + head) * length;
//: const Mask mask = {length, count, first[batch * FIRSTS], window, chunk};
//: const auto queries = plain_rows(q + batch * q_strides[0] + head * q_strides[1], q_strides[2]);
//: const auto k = packed_rows<K_BITS, GROUP>(
//:     k_words + batch * k_words_strides[0] + kv_head * k_words_strides[1], k_scales + batch * k_scales_strides[0] + kv_head * k_scales_strides[1],
//:     k_biases + batch * k_biases_strides[0] + kv_head * k_biases_strides[1], k_words_strides[2], k_scales_strides[2], k_biases_strides[2]);
//: const auto v = packed_rows<V_BITS, GROUP>(
//:     v_words + batch * v_words_strides[0] + kv_head * v_words_strides[1], v_scales + batch * v_scales_strides[0] + kv_head * v_scales_strides[1],
//:     v_biases + batch * v_biases_strides[0] + kv_head * v_biases_strides[1], v_words_strides[2], v_scales_strides[2], v_biases_strides[2]);
//: prefill<F, CAUSAL, SEGMENTED, CAPPED>(
//:     queries, k, v, mask, segments + long(batch) * count, scale, softcap, HAS_SINKS ? float(sinks[head]) * M_LOG2E_F : LOWEST,
//:     HAS_SINKS ? 1.0f : 0.0f, row, int(simdgroup_index_in_threadgroup), int(thread_index_in_simdgroup), own, tile, scratch, factors,
//:     out + rows * D, lse + rows);
