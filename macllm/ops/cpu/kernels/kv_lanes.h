// Packed rows read as vectors: along a row, or a row in each lane.
#pragma once

#include <algorithm>
#include <vector>

#include "int8.h"
#include "kv.h"
#include "transpose.h"

namespace macllm {

constexpr int64_t AHEAD = 2048;  // bytes of words that are prefetched

typedef uint8_t vb __attribute__((vector_size(W)));

template <class T, int N>
struct Vector {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <class V, int... I>
inline auto joined(V low, V high, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(low, high, I...);
}

inline vi widened(const uint8_t* p) {
#if defined(__AVX512F__)
  return vi(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return vi(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  vb bytes;
  std::memcpy(&bytes, p, W);
  return __builtin_convertvector(bytes, vi);
#endif
}

template <int N>
using Words = Vector<int32_t, N>;

// Words [0, P) of the rows 0, step, 2 step, ... beside one another.
template <int N, int P, class Row>
inline typename Words<N>::type beside(Row row, int64_t first) {
  typename Words<N>::type v;
  if constexpr (N == P) {
    std::memcpy(&v, row(first), sizeof v);
  } else {
    const auto low = beside<N / 2, P>(row, first), high = beside<N / 2, P>(row, first + N / 2);
    v = joined(low, high, std::make_integer_sequence<int, N>());
  }
  return v;
}

// Words [0, P) of W rows, one row a lane, of which `count` exist; rows are `stride` words apart.
template <int P>
inline void columns_of(const uint32_t* words, int64_t stride, int64_t count, vi* block) {
  auto row = [&](int64_t i) {
    const uint32_t* from = words + std::min(i, count - 1) * stride;
    __builtin_prefetch(reinterpret_cast<const char*>(from) + AHEAD);
    return from;
  };
  for (int i = 0; i < P; i++) block[i] = beside<W, P>(row, i);
  transpose<P>(block);
}

// Calls body with the number of words of a row that are transposed together, all of one group.
template <class Body>
inline void with_words(const PackedRows& rows, Body body) {
  const int64_t together = rows.group * rows.bits / 32;
  if (W >= 16 && together >= 16) return body.template operator()<std::min(W, 16)>();
  if (W >= 8 && together >= 8) return body.template operator()<std::min(W, 8)>();
  body.template operator()<4>();
}

// Scales and biases of W rows, one a lane.
class Numbers {
 public:
  Numbers(const PackedRows& rows, int64_t count) : rows_(rows), room_((count + W - 1) / W * W) {
    if (rows.groups == 1 && count == room_) return;
    turned_.resize(2 * rows.groups * room_);
    for (int64_t s = 0; s < room_; s++) {
      for (int64_t g = 0; g < rows.groups; g++) {
        const int64_t from = std::min(s, count - 1) * rows.groups + g;
        turned_[g * room_ + s] = rows.scales[from];
        turned_[(rows.groups + g) * room_ + s] = rows.biases[from];
      }
    }
  }
  // Of group g of the rows from s on.
  vf scales(int64_t g, int64_t s) const { return load(turned_.empty() ? rows_.scales + s : &turned_[g * room_ + s]); }
  vf biases(int64_t g, int64_t s) const {
    return load(turned_.empty() ? rows_.biases + s : &turned_[(rows_.groups + g) * room_ + s]);
  }

 private:
  const PackedRows& rows_;
  int64_t room_;
  std::vector<float> turned_;
};

// Elements [at, at + W) of a row.
template <int BITS>
inline vi codes(const uint32_t* words, int64_t at) {
  if constexpr (BITS == 8) {
    return widened(reinterpret_cast<const uint8_t*>(words) + at);
  } else {
    vi shift;
    for (int l = 0; l < W; l++) shift[l] = 4 * (l % 8);
    const int32_t first = int32_t(words[at / 8] >> (4 * (at % 8)));
    if constexpr (W <= 8) return (vi{} + first >> shift) & 15;
    Words<8>::type low{}, high{};
    low += first, high += int32_t(words[at / 8 + 1]);
    return (joined(low, high, std::make_integer_sequence<int, W>()) >> shift) & 15;
  }
}

}  // namespace macllm
