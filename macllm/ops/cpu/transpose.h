// W x W elements of 32 bits in registers, rows to columns.
#pragma once

#include "simd.h"

namespace macllm {

// a0 b0 a1 b1 ... of the lower or the upper halves.
template <class V>
inline V interleave(V a, V b, bool upper) {
  vi order;
  for (int i = 0; i < W; i++) order[i] = i / 2 + (i % 2 ? W : 0) + (upper ? W / 2 : 0);
#if defined(__clang__)
  V v;
  for (int i = 0; i < W; i++) v[i] = order[i] < W ? a[order[i]] : b[order[i] - W];
  return v;
#else
  return __builtin_shuffle(a, b, order);
#endif
}

// Interleaving row i with row i + W / 2 moves a bit of the row's number to the column's.
template <class V>
inline void transpose(V* v) {
  for (int round = 1; round < W; round *= 2) {
    V next[W];
    for (int i = 0; i < W / 2; i++) {
      next[2 * i] = interleave(v[i], v[i + W / 2], false);
      next[2 * i + 1] = interleave(v[i], v[i + W / 2], true);
    }
    for (int i = 0; i < W; i++) v[i] = next[i];
  }
}

}  // namespace macllm
