// Transposition of vectors.
#pragma once

#include <utility>

#include "simd.h"

namespace macllm {

// Swaps the off-diagonal lanes, in blocks of K, of a pair of rows.
template <int K, class V, int... I>
inline void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  const V low = __builtin_shufflevector(a, b, (I & K ? W + I - K : I)...);
  const V high = __builtin_shufflevector(a, b, (I & K ? W + I : I + K)...);
  a = low, b = high;
}

// P x P matrices side by side, each transposed.
template <int P, int K = 1, class V>
inline void transpose(V* rows) {
  if constexpr (K < P) {
    for (int i = 0; i < P; i++)
      if (!(i & K)) exchange<K>(rows[i], rows[i + K], std::make_integer_sequence<int, W>());
    transpose<P, 2 * K>(rows);
  }
}

}  // namespace macllm
