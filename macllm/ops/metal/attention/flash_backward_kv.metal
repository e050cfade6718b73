// The gradients of attention's keys and values, each summed by one threadgroup over the queries that see it, without atomics.
// Tiles of queries that see no key of a tile are skipped.
//
// Layout. q, out, dout (B, H, L, D), keys and values (B, K, S, D), lse and delta (B, H, L); q, keys and values with strides.
// Out: dk and dv (B, K, S, D).
// Grid. A threadgroup for each tile of 8 * BLOCKS keys, key head and batch row: (32, BLOCKS * SIDES) threads. Keys and values
// stay in threadgroup memory; N queries and their dout are staged in it, for each of the query heads that share them.
// Traffic. Each tile of keys reads the queries that see it twice for each of these heads, and their dout once.
#include "../common.metal"
#include "backward.metal"

template <typename F, bool CAUSAL, bool SEGMENTED, bool CAPPED, typename T, typename Keys, typename Values, typename Queries,
          typename Grads, typename Ids, typename Stats>
inline void gradient_kv(
    const thread Keys& keys, const thread Values& values, Queries queries, Grads grads, long head_step, int group,
    const thread Mask& mask, Ids ids, Stats lse, Stats delta, float scale, float softcap, int first_key, int simdgroup, int lane,
    threadgroup T* own, threadgroup T* own_values, threadgroup T* tile, threadgroup float* scratch, threadgroup float* scratch_grads,
    threadgroup float* stats, device T* dk, device T* dv) {
  const Place place = place_of<F>(simdgroup, lane);
  const Elements elements = elements_of<F>(scratch, place.index);
  const int offset = mask.count - mask.length, last = min(first_key + F::ROWS, mask.count) - 1;
  const int block_key = first_key + 8 * place.block;
  const int2 visible_to = queries_of<CAUSAL, SEGMENTED>(mask, ids, min(block_key + place.row, last));
  const int begin = queries_of<CAUSAL, SEGMENTED>(mask, ids, first_key).x;
  const int end = queries_of<CAUSAL, SEGMENTED>(mask, ids, last).y;
  const int block = 8 * place.block * F::STEP;
  threadgroup float* products = scratch + 8 * place.block * F::HELD;
  threadgroup float* products_grads = scratch_grads + 8 * place.block * F::HELD;
  simdgroup_float8x8 key_sums[F::SUMS], value_sums[F::SUMS];
  clear_sums<F>(key_sums);
  clear_sums<F>(value_sums);
  read_tile<F, F::ROWS>(keys, first_key, mask.count, place.index, own);
  read_tile<F, F::ROWS>(values, first_key, mask.count, place.index, own_values);
  for (int head = 0; head < group; head++) {
    for (int at = begin; at < end; at += F::N) {
      multiply_both<F>(
          own + block, own_values + block, queries, grads, at - offset, end - offset, place, tile, products, products_grads);
      for (int i = place.index; i < F::N; i += F::THREADS) {
        stats[i] = at + i < end ? lse[at + i - offset] * M_LOG2E_F : 0.0f;
        stats[F::N + i] = at + i < end ? delta[at + i - offset] : 0.0f;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      for (int column = place.part; column < F::N; column += F::PARTS) {
        const int one = place.row * F::HELD + column;
        const bool is_visible = visible_to.x <= at + column && at + column < visible_to.y;
        const float2 both =
            weight_and_gradient<CAPPED>(products[one], products_grads[one], stats[column], stats[F::N + column], scale, softcap);
        products[one] = is_visible ? both.x : 0.0f;
        products_grads[one] = is_visible ? both.y : 0.0f;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      add_tile<F>(products, tile, place.side, value_sums);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      read_tile<F, F::N>(queries, at - offset, end - offset, place.index, tile);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      add_tile<F>(products_grads, tile, place.side, key_sums);
    }
    queries.numbers += head_step;
    grads.numbers += long(mask.length) * F::D;
    lse += mask.length;
    delta += mask.length;
  }
  write_sums<F>(key_sums, elements, mask.count - block_key, place.side, dk + long(block_key) * F::D);
  write_sums<F>(value_sums, elements, mask.count - block_key, place.side, dv + long(block_key) * F::D);
}

//: typedef Form<T, D, BLOCKS, SIDES, N> F;
//: threadgroup T own[F::ROWS * F::STEP], own_values[F::ROWS * F::STEP], tile[F::N * F::STEP];
//: threadgroup float scratch[F::ROWS * F::HELD], scratch_grads[F::ROWS * F::HELD], stats[2 * F::N];
//: const int kv_head = int(threadgroup_position_in_grid.y), batch = int(threadgroup_position_in_grid.z);
//: const int heads = q_shape[1], kv_heads = keys_shape[1], length = q_shape[2], count = keys_shape[2];
//: const int group = heads / kv_heads, head = kv_head * group;
//: const long rows = (long(batch) * heads + head) * length, keys_before = (long(batch) * kv_heads + kv_head) * count;
//: const Mask mask = {length, count, first[batch * FIRSTS], window, chunk};
//: const auto queries = plain_rows(q + batch * q_strides[0] + head * q_strides[1], q_strides[2]);
//: const auto grads = plain_rows(dout + rows * D, long(D));
//: const auto k = plain_rows(keys + batch * keys_strides[0] + kv_head * keys_strides[1], keys_strides[2]);
//: const auto v = plain_rows(values + batch * values_strides[0] + kv_head * values_strides[1], values_strides[2]);
//: gradient_kv<F, CAUSAL, SEGMENTED, CAPPED>(
//:     k, v, queries, grads, q_strides[1], group, mask, segments + long(batch) * count, lse + rows, delta + rows, scale,
//:     softcap, F::ROWS * int(threadgroup_position_in_grid.x), int(simdgroup_index_in_threadgroup), int(thread_index_in_simdgroup),
//:     own, own_values, tile, scratch, scratch_grads, stats, dk + keys_before * D, dv + keys_before * D);
