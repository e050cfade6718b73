// Attention between eight rows, a simdgroup's, and listed blocks of other rows: forward (arXiv:2205.14135, algorithm 1) and
// backward (arXiv:2307.08691, algorithm 2). Blocks are listed in order; the last ones may be padding.
#include "squares.metal"

constant constexpr float LOWEST = -1e30f;  // of a maximum: below any score, and no infinity to subtract
constant constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

template <bool CAUSAL>
inline bool sees(int query, int key, int length) {
  return query < length && key < length && (!CAUSAL || key <= query);
}

// Queries from `first` on. Scores are in base 2, and a row's sum of weights goes along with its largest score, which lane
// 4 * row holds; `strip` has room for eight rows of BLOCK + 4 scores.
template <int BLOCK, int D, bool CAUSAL, typename T, typename Others>
inline void attend_blocks(
    const device T* q, const device T* k, const device T* v, Others others, int count, int first, int length, float scale,
    const thread Elements& at, int lane, threadgroup float* strip, device T* out, device float* lse) {
  constexpr int N = BLOCK / 8, STEP = BLOCK + 4;
  Square sums[D / 8], total, scores[N];
  clear<D / 8>(sums);
  clear<1>(&total);
  float most = LOWEST;
  for (int i = 0; i < count && others[i] * BLOCK < length; i++) {
    const int begin = others[i] * BLOCK;
    clear<N>(scores);
    add_dots<D, N>(q, k + long(begin) * D, scores);
    UNROLLED for (int j = 0; j < N; j++) {
      for (int e = 0; e < 2; e++) {
        const bool seen = sees<CAUSAL>(first + at.row[e], begin + 8 * j + at.column[e], length);
        scores[j].thread_elements()[e] = seen ? scale * LOG2_E * scores[j].thread_elements()[e] : LOWEST;
      }
      simdgroup_store(scores[j], strip + 8 * j, STEP);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    float above = most;
    for (int c = lane % 4; c < BLOCK; c += 4) above = max(above, strip[lane / 4 * STEP + c]);
    above = max(above, simd_shuffle_xor(above, ushort(1)));
    above = max(above, simd_shuffle_xor(above, ushort(2)));
    simdgroup_barrier(mem_flags::mem_threadgroup);
    const float kept = fast::exp2(most - above);
    most = above;
    for (int e = 0; e < 2; e++) {
      const float highest = simd_shuffle(most, ushort(4 * at.row[e])), factor = simd_shuffle(kept, ushort(4 * at.row[e]));
      UNROLLED for (int d = 0; d < D / 8; d++) sums[d].thread_elements()[e] *= factor;
      float weights = factor * total.thread_elements()[e];
      UNROLLED for (int j = 0; j < N; j++) {
        const float score = scores[j].thread_elements()[e];
        const float weight = score > 0.5f * LOWEST ? fast::exp2(score - highest) : 0.0f;
        scores[j].thread_elements()[e] = weight;
        weights += weight;
      }
      total.thread_elements()[e] = weights;
    }
    add_rows<D, N>(scores, v + long(begin) * D, D, sums);
  }
  Square totals = row_sums(total);
  for (int e = 0; e < 2; e++) {
    const float all = totals.thread_elements()[e], highest = simd_shuffle(most, ushort(4 * at.row[e]));
    UNROLLED for (int d = 0; d < D / 8; d++) sums[d].thread_elements()[e] *= all > 0.0f ? 1.0f / all : 0.0f;
    if (at.column[e] == 0) lse[at.row[e]] = all > 0.0f ? LN_2 * highest + precise::log(all) : -INFINITY;
  }
  write_rows<D>(sums, at, D, out);
}

// The gradient of queries from `first` on: sum of dS k, where dS = scale P (dP - delta), P = exp(scale q k - lse), dP = do v.
template <int BLOCK, int D, bool CAUSAL, typename T, typename Others>
inline void add_query_slopes(
    const device T* q, const device T* k, const device T* v, const device T* slopes, const device float* lse,
    const device float* delta, Others others, int count, int first, int length, float scale, const thread Elements& at,
    thread Square* sums) {
  constexpr int N = BLOCK / 8;
  Square scores[N], weighted[N];
  for (int i = 0; i < count && others[i] * BLOCK < length; i++) {
    const int begin = others[i] * BLOCK;
    clear<N>(scores);
    clear<N>(weighted);
    add_dots<D, N>(q, k + long(begin) * D, scores);
    add_dots<D, N>(slopes, v + long(begin) * D, weighted);
    for (int e = 0; e < 2; e++) {
      const float own_lse = lse[at.row[e]], own_delta = delta[at.row[e]];
      UNROLLED for (int j = 0; j < N; j++) {
        const bool seen = sees<CAUSAL>(first + at.row[e], begin + 8 * j + at.column[e], length);
        const float weight = seen ? fast::exp2((scale * scores[j].thread_elements()[e] - own_lse) * LOG2_E) : 0.0f;
        scores[j].thread_elements()[e] = scale * weight * (weighted[j].thread_elements()[e] - own_delta);
      }
    }
    add_rows<D, N>(scores, k + long(begin) * D, D, sums);
  }
}

// The gradients of keys from `first` on, sum of dS^T q, or of their values, sum of P^T do. Two simdgroups share the work:
// that of values makes P^T of k and q, that of keys makes dP^T of v and do, and takes P^T from the other's strip.
template <int BLOCK, int D, bool CAUSAL, typename T, typename Others>
inline void add_key_slopes(
    const device T* own, const device T* across, const device T* rows, const device float* lse, const device float* delta,
    Others others, int count, int first, int length, float scale, bool of_keys, const thread Elements& at,
    threadgroup float* strip, thread Square* sums) {
  constexpr int N = BLOCK / 8, STEP = BLOCK + 4;
  Square scores[N];
  for (int i = 0; i < count && others[i] * BLOCK < length; i++) {
    const int begin = others[i] * BLOCK;
    clear<N>(scores);
    add_dots<D, N>(own, across + long(begin) * D, scores);
    if (!of_keys) {
      UNROLLED for (int j = 0; j < N; j++) {
        for (int e = 0; e < 2; e++) {
          const int query = begin + 8 * j + at.column[e];
          const float score = scale * scores[j].thread_elements()[e] - lse[query];
          scores[j].thread_elements()[e] = sees<CAUSAL>(query, first + at.row[e], length) ? fast::exp2(score * LOG2_E) : 0.0f;
        }
        simdgroup_store(scores[j], strip + 8 * j, STEP);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (of_keys) {
      UNROLLED for (int j = 0; j < N; j++) {
        Square weights;
        simdgroup_load(weights, strip + 8 * j, STEP);
        for (int e = 0; e < 2; e++) {
          const float slope = scores[j].thread_elements()[e] - delta[begin + 8 * j + at.column[e]];
          scores[j].thread_elements()[e] = scale * weights.thread_elements()[e] * slope;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    add_rows<D, N>(scores, rows + long(begin) * D, D, sums);
  }
}
