// Attention of few queries over many keys, with an online softmax (arXiv:1805.02867), so that lanes, simdgroups and chunks
// can be combined afterwards (arXiv:2311.01282). Scores are in base 2.
#include "rows.metal"

constant constexpr float LOWEST = -1e30f;  // of a maximum: below any score, and no infinity to subtract

// The mask: the last of `length` queries is at key `last`.
struct DecodeMask {
  int length, last, first, window;  // keys before `first` are padding; a window of 0: no window
  float softcap;
};

inline bool is_visible(const thread DecodeMask& mask, bool causal, int query, int key) {
  const int at = mask.last - mask.length + 1 + query;
  return key >= mask.first && (!causal || key <= at) && (mask.window == 0 || at - key < mask.window);
}

// A row's online softmax: the largest score, the sum of weights, and weighted sums of eight numbers per lane, to each of which
// `all` is added at the end.
struct Sum {
  float largest, total, all, o[EIGHT];
};

inline void clear(thread Sum& x) {
  x.largest = LOWEST;
  x.total = x.all = 0.0f;
  for (int i = 0; i < EIGHT; i++) x.o[i] = 0.0f;
}

// Rescales the sums to a new largest score; returns the weight of `score`.
inline float rescale(thread Sum& x, float score) {
  const float largest = max(x.largest, score), own = fast::exp2(x.largest - largest);
  x.largest = largest;
  x.total *= own;
  x.all *= own;
  for (int i = 0; i < EIGHT; i++) x.o[i] *= own;
  return fast::exp2(score - largest);
}

// Keys [begin, end) in steps of `stride`: PARTS lanes share a key, so a simdgroup reads 32 / PARTS keys at a time.
template <int R, int D, int PARTS, bool CAUSAL, bool CAPPED, typename Keys, typename Values>
inline void attend(
    const thread Keys& keys, const thread Values& values, const thread float (*q)[EIGHT], const thread float* q_sums,
    const thread DecodeMask& mask, int row, int begin, int end, int stride, int lane, thread Sum* x) {
  const int part = min(lane % PARTS, D / EIGHT - 1);
  const bool counts = lane % PARTS == part;
  for (int base = begin; base < end; base += stride) {
    const int key = base + lane / PARTS, there = min(key, end - 1);
    float scores[R], weights[R];
    dot_eight<R>(keys, there, part, q, q_sums, scores);
    for (int r = 0; r < R; r++) {
      float score = counts ? scores[r] : 0.0f;
      for (int by = 1; by < PARTS; by *= 2) score += simd_shuffle_xor(score, ushort(by));
      if (CAPPED) score = mask.softcap * precise::tanh(score / mask.softcap);
      const bool visible = key < end && is_visible(mask, CAUSAL, (row + r) % mask.length, key);
      const float weight = rescale(x[r], visible ? score * M_LOG2E_F : LOWEST);
      weights[r] = visible ? weight : 0.0f;
      x[r].total += weights[r];
    }
    add_eight<R>(values, there, part, weights, x);
  }
  // Combines lanes with the same part of different keys.
  for (int r = 0; r < R; r++) {
    for (int by = PARTS; by < 32; by *= 2) {
      const Sum own = x[r];
      const float factor = rescale(x[r], simd_shuffle_xor(own.largest, ushort(by)));
      x[r].total += factor * simd_shuffle_xor(own.total, ushort(by));
      x[r].all += factor * simd_shuffle_xor(own.all, ushort(by));
      for (int i = 0; i < EIGHT; i++) x[r].o[i] += factor * simd_shuffle_xor(own.o[i], ushort(by));
    }
  }
}

// Combines SPLITS simdgroups' sums of the same rows in the first of them, through `scratch`, 32 * (EIGHT + 3) floats for each.
template <int R, int SPLITS>
inline void combine_splits(threadgroup float* scratch, int tile, int split, int lane, thread Sum* x) {
  constexpr int SIZE = 32 * (EIGHT + 3);
  for (int r = 0; r < R; r++) {
    threadgroup float* own = scratch + (tile * SPLITS + split) * SIZE + lane * (EIGHT + 3);
    own[0] = x[r].largest;
    own[1] = x[r].total;
    own[2] = x[r].all;
    for (int i = 0; i < EIGHT; i++) own[3 + i] = x[r].o[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (split == 0) {
      for (int s = 1; s < SPLITS; s++) {
        const threadgroup float* other = own + s * SIZE;
        const float factor = rescale(x[r], other[0]);
        x[r].total += factor * other[1];
        x[r].all += factor * other[2];
        for (int i = 0; i < EIGHT; i++) x[r].o[i] += factor * other[3 + i];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// One chunk of keys for the rows (query heads times queries) of one key head.
template <int G, int D, int PARTS, int R, int TILES, int SPLITS, bool CAUSAL, bool CAPPED, bool WHOLE, bool HAS_SINKS, typename T,
          typename Keys, typename Values, typename Sinks, typename Out>
inline void decode(
    const device T* q, const thread Keys& keys, const thread Values& values, const thread DecodeMask& mask, float scale, Sinks sinks,
    int begin, int end, int chunk, int chunks, int first_row, int simdgroup, int lane, threadgroup float* scratch, device Out* out,
    device float* stats) {
  const int tile = simdgroup / SPLITS, split = simdgroup % SPLITS, row = first_row + tile * R, rows = G * mask.length;
  const int part = min(lane % PARTS, D / EIGHT - 1);
  float scaled[R][EIGHT], q_sums[R];
  Sum x[R];
  for (int r = 0; r < R; r++) {
    const device T* from = q + min(row + r, rows - 1) * D + EIGHT * part;
    q_sums[r] = 0.0f;
    for (int i = 0; i < EIGHT; i++) {
      const float number = scale * float(from[i]);
      q_sums[r] += number;
      scaled[r][i] = number * unshifted(keys, i);
    }
    clear(x[r]);
  }
  attend<R, D, PARTS, CAUSAL, CAPPED>(
      keys, values, scaled, q_sums, mask, row, begin + split * (32 / PARTS), end, SPLITS * (32 / PARTS), lane, x);
  if (SPLITS > 1) combine_splits<R, SPLITS>(scratch, tile, split, lane, x);
  for (int r = 0; r < R; r++) {
    if (split != 0 || lane != part || row + r >= rows) continue;
    float factor = 1.0f;
    if (WHOLE) {
      const int head = (row + r) / mask.length;
      if (HAS_SINKS) x[r].total += rescale(x[r], float(sinks[head]) * M_LOG2E_F);
      factor = x[r].total > 0.0f ? 1.0f / x[r].total : 0.0f;
    }
    device Out* to = out + (long(row + r) * chunks + chunk) * D + EIGHT * part;
    for (int i = 0; i < EIGHT; i++) to[i] = Out(factor * (x[r].o[i] * unshifted(values, i) + x[r].all));
    if (lane == 0) {
      stats[(long(row + r) * chunks + chunk) * 2] = x[r].largest;
      stats[(long(row + r) * chunks + chunk) * 2 + 1] = x[r].total;
    }
  }
}
