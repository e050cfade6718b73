// The gradient of attention's queries. Tiles of keys that no query of a tile sees are skipped. Stock MLX computes the backward
// of masked attention, windows and segments included, with all scores in memory.
//
// Layout. q, out, dout (B, H, L, D), keys and values (B, K, S, D), lse and delta (B, H, L); q, keys and values with strides.
// Out: dq (B, H, L, D).
// Grid. As flash_prefill: a threadgroup for each tile of 8 * BLOCKS queries, which stay in threadgroup memory with their dout.
// Traffic. Each tile of queries reads the keys that it sees twice, and their values once.
#include "../common.metal"
#include "backward.metal"

template <typename F, bool CAUSAL, bool SEGMENTED, bool CAPPED, typename T, typename Queries, typename Grads, typename Keys,
          typename Values, typename Ids, typename Stats>
inline void gradient_q(
    const thread Queries& queries, const thread Grads& grads, const thread Keys& keys, const thread Values& values,
    const thread Mask& mask, Ids ids, Stats lse, Stats delta, float scale, float softcap, int first_row, int simdgroup, int lane,
    threadgroup T* own, threadgroup T* own_grads, threadgroup T* tile, threadgroup float* scratch, threadgroup float* scratch_grads,
    device T* dq) {
  const Place place = place_of<F>(simdgroup, lane);
  const Elements elements = elements_of<F>(scratch, place.index);
  const int offset = mask.count - mask.length, last = min(first_row + F::ROWS, mask.length) - 1;
  const int block_row = first_row + 8 * place.block, row = min(block_row + place.row, last);
  const int2 visible = keys_of<CAUSAL, SEGMENTED>(mask, ids, offset + row);
  const int begin = keys_of<CAUSAL, SEGMENTED>(mask, ids, offset + first_row).x;
  const int end = keys_of<CAUSAL, SEGMENTED>(mask, ids, offset + last).y;
  const float row_lse = lse[row] * M_LOG2E_F, row_delta = delta[row];
  const int block = 8 * place.block * F::STEP;
  threadgroup float* products = scratch + 8 * place.block * F::HELD;
  threadgroup float* products_grads = scratch_grads + 8 * place.block * F::HELD;
  simdgroup_float8x8 sums[F::SUMS];
  clear_sums<F>(sums);
  read_tile<F, F::ROWS>(queries, first_row, mask.length, place.index, own);
  read_tile<F, F::ROWS>(grads, first_row, mask.length, place.index, own_grads);
  for (int key = begin; key < end; key += F::N) {
    multiply_both<F>(own + block, own_grads + block, keys, values, key, end, place, tile, products, products_grads);
    read_tile<F, F::N>(keys, key, end, place.index, tile);
    for (int column = place.part; column < F::N; column += F::PARTS) {
      const int at = place.row * F::HELD + column;
      const bool is_visible = visible.x <= key + column && key + column < visible.y;
      const float gradient = weight_and_gradient<CAPPED>(products[at], products_grads[at], row_lse, row_delta, scale, softcap).y;
      products_grads[at] = is_visible ? gradient : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    add_tile<F>(products_grads, tile, place.side, sums);
  }
  write_sums<F>(sums, elements, mask.length - block_row, place.side, dq + long(block_row) * F::D);
}

//: typedef Form<T, D, BLOCKS, SIDES, N> F;
//: threadgroup T own[F::ROWS * F::STEP], own_grads[F::ROWS * F::STEP], tile[F::N * F::STEP];
//: threadgroup float scratch[F::ROWS * F::HELD], scratch_grads[F::ROWS * F::HELD];
//: const int head = int(threadgroup_position_in_grid.y), batch = int(threadgroup_position_in_grid.z);
//: const int row = F::ROWS * int(threadgroups_per_grid.x - 1 - threadgroup_position_in_grid.x);
//: const int heads = q_shape[1], length = q_shape[2], count = keys_shape[2], kv_head = head / (heads / keys_shape[1]);
//: const long rows = (long(batch) * heads + head) * length;
//: const Mask mask = {length, count, first[batch * FIRSTS], window, chunk};
//: const auto queries = plain_rows(q + batch * q_strides[0] + head * q_strides[1], q_strides[2]);
//: const auto grads = plain_rows(dout + rows * D, long(D));
//: const auto k = plain_rows(keys + batch * keys_strides[0] + kv_head * keys_strides[1], keys_strides[2]);
//: const auto v = plain_rows(values + batch * values_strides[0] + kv_head * values_strides[1], values_strides[2]);
//: gradient_q<F, CAUSAL, SEGMENTED, CAPPED>(
//:     queries, grads, k, v, mask, segments + long(batch) * count, lse + rows, delta + rows, scale, softcap, row,
//:     int(simdgroup_index_in_threadgroup), int(thread_index_in_simdgroup), own, own_grads, tile, scratch, scratch_grads, dq + rows * D);
