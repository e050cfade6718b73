// Attention of a tile of queries: scores, weights and their sum go along tile by tile of keys (arXiv:2205.14135), with each
// row's softmax (arXiv:1805.02867). Scores are in base 2.
#include "sight.metal"
#include "tiles.metal"

// Scores of a row from their products, and weights from scores: `most` is the largest so far. Returns how much what was
// summed up before still counts, and adds to `total`.
template <typename F, bool CAPPED>
inline float weigh(
    threadgroup float* row, int part, int key, int2 seen, float scale, float softcap, thread float& most, thread float& total) {
  float scores[F::EACH], top = most, sum = 0.0f;
  for (int i = 0; i < F::EACH; i++) {
    const int column = part + F::PARTS * i;
    const bool sees = column < F::N && seen.x <= key + column && key + column < seen.y;
    float score = sees ? scale * row[column] : 0.0f;
    if (CAPPED) score = softcap * precise::tanh(score / softcap);
    scores[i] = sees ? score * M_LOG2E_F : LOWEST;
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
  const float factor = fast::exp2(most - top);
  most = top;
  total = total * factor + sum;
  return factor;
}

// Queries from `first_row` on of one head. Before any key a row has the weight `total` at the score `most`, for a sink.
template <typename F, bool CAUSAL, bool SEGMENTED, bool CAPPED, typename T, typename Queries, typename Keys, typename Values,
          typename Ids>
inline void prefill(
    const thread Queries& queries, const thread Keys& keys, const thread Values& values, const thread Sight& sight, Ids ids,
    float scale, float softcap, float most, float total, int first_row, int simdgroup, int lane, threadgroup T* own,
    threadgroup T* tile, threadgroup float* held, threadgroup float* factors, device T* out, device float* lse) {
  const Place place = place_of<F>(simdgroup, lane);
  const Elements elements = elements_of<F>(held, place.index);
  const int offset = sight.count - sight.length, last = min(first_row + F::ROWS, sight.length) - 1;
  const int block_row = first_row + 8 * place.block, row = block_row + place.row;
  const int2 seen = keys_of<CAUSAL, SEGMENTED>(sight, ids, offset + min(row, last));
  const int begin = keys_of<CAUSAL, SEGMENTED>(sight, ids, offset + first_row).x;
  const int end = keys_of<CAUSAL, SEGMENTED>(sight, ids, offset + last).y;
  const threadgroup T* block = own + 8 * place.block * F::STEP;
  threadgroup float* weights = held + 8 * place.block * F::HELD;
  threadgroup float* block_factors = factors + 8 * place.block;
  simdgroup_float8x8 sums[F::SUMS];
  clear_sums<F>(sums);
  read_tile<F, F::ROWS>(queries, first_row, sight.length, place.index, own);
  for (int key = begin; key < end; key += F::N) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    read_tile<F, F::N>(keys, key, end, place.index, tile);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply_tile<F>(block, tile, place.side, weights);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    read_tile<F, F::N>(values, key, end, place.index, tile);
    const float factor =
        weigh<F, CAPPED>(weights + place.row * F::HELD, place.part, key, seen, scale, softcap, most, total);
    if (place.part == 0) block_factors[place.row] = factor;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    scale_rows<F>(block_factors, elements, sums);
    add_tile<F>(weights, tile, place.side, sums);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (place.part == 0) {
    block_factors[place.row] = total > 0.0f ? 1.0f / total : 0.0f;
    if (row < sight.length) lse[row] = total > 0.0f ? (most + precise::log2(total)) / M_LOG2E_F : -INFINITY;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  scale_rows<F>(block_factors, elements, sums);
  write_sums<F>(sums, elements, sight.length - block_row, place.side, out + long(block_row) * F::D);
}
