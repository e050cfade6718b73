// Attention of a tile of queries over one tile of keys after another (arXiv:2205.14135), with an online softmax
// (arXiv:1805.02867). Scores are in base 2.
#include "attention_mask.metal"
#include "tiles.metal"

// Products of a row to scores, and to weights relative to `largest`, the largest score so far. Adds to `total`, and returns
// the factor that rescales the sums so far.
template <typename F, bool CAPPED>
inline float update_softmax(
    threadgroup float* row, int part, int key, int2 visible, float scale, float softcap, thread float& largest, thread float& total) {
  float scores[F::EACH], top = largest, sum = 0.0f;
  for (int i = 0; i < F::EACH; i++) {
    const int column = part + F::PARTS * i;
    const bool is_visible = column < F::N && visible.x <= key + column && key + column < visible.y;
    float score = is_visible ? scale * row[column] : 0.0f;
    if (CAPPED) score = softcap * precise::tanh(score / softcap);
    scores[i] = is_visible ? score * M_LOG2E_F : LOWEST;
    top = max(top, scores[i]);
  }
  for (int by = 1; by < F::PARTS; by *= 2) top = max(top, simd_shuffle_xor(top, ushort(by)));
  for (int i = 0; i < F::EACH; i++) {
    const int column = part + F::PARTS * i;
    const float weight = scores[i] > LOWEST ? fast::exp2(scores[i] - top) : 0.0f;
    if (column < F::N) row[column] = weight;
    sum += weight;
  }
  for (int by = 1; by < F::PARTS; by *= 2) sum += simd_shuffle_xor(sum, ushort(by));
  const float factor = fast::exp2(largest - top);
  largest = top;
  total = total * factor + sum;
  return factor;
}

// Queries from `first_row` on of one head. A row starts with the weight `total` at the score `largest`, for a sink.
template <typename F, bool CAUSAL, bool SEGMENTED, bool CAPPED, typename T, typename Queries, typename Keys, typename Values,
          typename Ids>
inline void prefill(
    const thread Queries& queries, const thread Keys& keys, const thread Values& values, const thread Mask& mask, Ids ids,
    float scale, float softcap, float largest, float total, int first_row, int simdgroup, int lane, threadgroup T* own,
    threadgroup T* tile, threadgroup float* scratch, threadgroup float* factors, device T* out, device float* lse) {
  const Place place = place_of<F>(simdgroup, lane);
  const Elements elements = elements_of<F>(scratch, place.index);
  const int offset = mask.count - mask.length, last = min(first_row + F::ROWS, mask.length) - 1;
  const int block_row = first_row + 8 * place.block, row = block_row + place.row;
  const int2 visible = keys_of<CAUSAL, SEGMENTED>(mask, ids, offset + min(row, last));
  const int begin = keys_of<CAUSAL, SEGMENTED>(mask, ids, offset + first_row).x;
  const int end = keys_of<CAUSAL, SEGMENTED>(mask, ids, offset + last).y;
  const threadgroup T* block = own + 8 * place.block * F::STEP;
  threadgroup float* weights = scratch + 8 * place.block * F::HELD;
  threadgroup float* block_factors = factors + 8 * place.block;
  simdgroup_float8x8 sums[F::SUMS];
  clear_sums<F>(sums);
  read_tile<F, F::ROWS>(queries, first_row, mask.length, place.index, own);
  for (int key = begin; key < end; key += F::N) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    read_tile<F, F::N>(keys, key, end, place.index, tile);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply_tile<F>(block, tile, place.side, weights);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    read_tile<F, F::N>(values, key, end, place.index, tile);
    const float factor =
        update_softmax<F, CAPPED>(weights + place.row * F::HELD, place.part, key, visible, scale, softcap, largest, total);
    if (place.part == 0) block_factors[place.row] = factor;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    scale_rows<F>(block_factors, elements, sums);
    add_tile<F>(weights, tile, place.side, sums);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (place.part == 0) {
    block_factors[place.row] = total > 0.0f ? 1.0f / total : 0.0f;
    if (row < mask.length) lse[row] = total > 0.0f ? (largest + precise::log2(total)) / M_LOG2E_F : -INFINITY;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  scale_rows<F>(block_factors, elements, sums);
  write_sums<F>(sums, elements, mask.length - block_row, place.side, out + long(block_row) * F::D);
}
