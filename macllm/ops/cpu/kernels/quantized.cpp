// Many rows of x against a packed matrix: its panels are unpacked into floats, and single-threaded BLAS multiplies each
// while it is in the cache. Few rows: quantized_few.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "expert_groups.h"
#include "half.h"
#include "matmul.h"
#include "parallel.h"
#include "quantized.h"

namespace macllm {
namespace {

constexpr int ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112;
constexpr int64_t FEW_ROUNDED = 12, FEW = 24;  // up to as many rows of x, unpacking in registers is faster
// Of a panel: wide, since BLAS packs x again for each, and as deep as OpenBLAS's blocks.
constexpr int64_t PANEL_WIDTH = 512, PANEL_DEPTH = 384;
constexpr int64_t STEP = 32;  // no group is smaller

template <class T, int N>
struct Whole {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

// 32 numbers at a time: each byte is widened to an integer with a byte for each of its numbers, and they are spread over it.
template <class Wide, int BITS>
void unpack_bytes(const uint8_t* from, int64_t count, uint8_t* to) {
  constexpr int N = 32 / sizeof(Wide);
  constexpr Wide MASK = Wide(0x0101010101010101u) * ((1 << BITS) - 1);
  for (int64_t i = 0; i < count; i += 32, from += N) {
    typename Whole<uint8_t, N>::type bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    auto wide = __builtin_convertvector(bytes, typename Whole<Wide, N>::type), all = wide;
    for (int j = 1; j < 8 / BITS; j++) all |= wide << ((8 - BITS) * j);
    all &= MASK;
    std::memcpy(to + i, &all, sizeof all);
  }
}

// Eight numbers at a time fill BITS bytes.
template <int BITS>
void unpack_odd(const uint8_t* from, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; i += 8, from += BITS) {
    uint64_t eight = 0;
    std::memcpy(&eight, from, BITS);
    for (int j = 0; j < 8; j++) to[i + j] = (eight >> (BITS * j)) & ((1 << BITS) - 1);
  }
}

// w[n, k] for n in [first, last) and k in [left, right), `left` and `right` multiples of STEP: rows without gaps.
void dequantize(const PackedMatrix& w, int64_t first, int64_t last, int64_t left, int64_t right, float* to) {
  const int64_t width = right - left, first_group = left / w.group, groups = (right - 1) / w.group + 1 - first_group;
  std::vector<float> scales(groups), biases(groups);
  std::vector<uint8_t> bytes(width);
  for (int64_t n = first; n < last; n++) {
    widen(w.type, w.scales, n * w.groups() + first_group, groups, scales.data());
    widen(w.type, w.biases, n * w.groups() + first_group, groups, biases.data());
    unpack(w, n, left, right, bytes.data());
    for (int64_t k = 0; k < width; k += STEP, to += STEP) {
      const int64_t group = (left + k) / w.group - first_group;
      const float scale = scales[group], bias = biases[group];
      for (int64_t i = 0; i < STEP; i++) to[i] = float(bytes[k + i]) * scale + bias;
    }
  }
}

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// Calls f for parts of the range of at most `most`.
template <class F>
void each_part(Range range, int64_t most, F f) {
  for (int64_t at = range.first; at < range.last; at += most) f(Range{at, std::min(at + most, range.last)});
}

// y[rows, columns] of x w^T.
void block(const PackedMatrix& w, Range rows, Range columns, const float* x, float* y) {
  std::unique_ptr<float[]> panel(new float[std::min(columns.size(), PANEL_WIDTH) * std::min(w.K, PANEL_DEPTH)]);
  each_part(columns, PANEL_WIDTH, [&](Range n) {
    each_part({0, w.K}, PANEL_DEPTH, [&](Range k) {
      dequantize(w, n.first, n.last, k.first, k.last, panel.get());
      serial_sgemm()(ROW_MAJOR, PLAIN, TRANSPOSED, int(rows.size()), int(n.size()), int(k.size()), 1.f,
                              x + rows.first * w.K + k.first, int(w.K), panel.get(), int(k.size()), k.first ? 1.f : 0.f,
                              y + rows.first * w.N + n.first, int(w.N));
    });
  });
}

// y[rows, columns] of x w.
void block_back(const PackedMatrix& w, Range rows, Range columns, const float* x, float* y) {
  std::unique_ptr<float[]> panel(new float[std::min(columns.size(), PANEL_WIDTH) * std::min(w.N, PANEL_DEPTH)]);
  each_part(columns, PANEL_WIDTH, [&](Range k) {
    each_part({0, w.N}, PANEL_DEPTH, [&](Range n) {
      dequantize(w, n.first, n.last, k.first, k.last, panel.get());
      const float* from = x + rows.first * w.N + n.first;
      float* to = y + rows.first * w.K + k.first;
      if (Sgemm multiply = serial_sgemm()) {
        multiply(ROW_MAJOR, PLAIN, PLAIN, int(rows.size()), int(k.size()), int(n.size()), 1.f, from, int(w.N),
                 panel.get(), int(k.size()), n.first ? 1.f : 0.f, to, int(w.K));
      } else {
        matmul(rows.size(), k.size(), n.size(), {from, w.N, 1}, panel.get(), k.size(), to, w.K, n.first > 0);
      }
    });
  });
}

}  // namespace

void widen(Real type, const void* from, int64_t first, int64_t count, float* to) {
  if (type == Real::float32) {
    std::copy_n(static_cast<const float*>(from) + first, count, to);
    return;
  }
  auto half = static_cast<const uint16_t*>(from) + first;
  halves(type == Real::float16 ? Half::float16 : Half::bfloat16, [&](auto kind) {
    using T = decltype(kind);
    int64_t i = 0;
    for (; i + W <= count; i += W) store(to + i, load_half<T>(half + i));
    if (i < count) store(to + i, load_half<T>(half + i, count - i), count - i);
  });
}

void unpack(const PackedMatrix& w, int64_t row, int64_t first, int64_t last, uint8_t* to) {
  auto from = reinterpret_cast<const uint8_t*>(w.words + row * w.words_per_row()) + first * w.bits / 8;
  switch (w.bits) {
    case 2: return unpack_bytes<uint32_t, 2>(from, last - first, to);
    case 3: return unpack_odd<3>(from, last - first, to);
    case 4: return unpack_bytes<uint16_t, 4>(from, last - first, to);
    case 5: return unpack_odd<5>(from, last - first, to);
    case 6: return unpack_odd<6>(from, last - first, to);
    default: std::copy_n(from, last - first, to);
  }
}

void quantized_matmul(const PackedMatrix& w, int64_t M, const float* x, bool int8, float* y) {
  if (M <= (int8 ? FEW_ROUNDED : FEW)) return quantized_few_rows(w, M, x, int8, y);
  if (int8 && quantized_many_rows(w, M, x, y)) return;
  if (!serial_sgemm()) return quantized_few_rows(w, M, x, false, y);
  parallel_blocks(M, w.N, w.K, [&](int64_t m, int64_t m_end, int64_t n, int64_t n_end) {
    block(w, {m, m_end}, {n, n_end}, x, y);
  });
}

void quantized_matmul_back(const PackedMatrix& w, int64_t M, const float* x, float* y) {
  if (w.N == 0) std::fill_n(y, M * w.K, 0.f);
  parallel_blocks(M, w.K, w.N, [&](int64_t m, int64_t m_end, int64_t k, int64_t k_end) {
    block_back(w, {m, m_end}, {k, k_end}, x, y);
  });
}

void quantized_gather(const PackedMatrix& w, int64_t M, const float* x, const int32_t* chosen, bool int8, float* y) {
  map_by_matrix(M, chosen, w.stack, {w.K, w.N}, x, y, [&](int64_t matrix, int64_t rows, const float* in, float* out) {
    quantized_matmul(w.at(matrix), rows, in, int8, out);
  });
}

void quantized_gather_back(const PackedMatrix& w, int64_t M, const float* x, const int32_t* chosen, float* y) {
  map_by_matrix(M, chosen, w.stack, {w.N, w.K}, x, y, [&](int64_t matrix, int64_t rows, const float* in, float* out) {
    quantized_matmul_back(w.at(matrix), rows, in, out);
  });
}

void quantized_rows(const PackedMatrix& w, int64_t count, const int32_t* rows, float* y) {
  parallel_range(count, w.K / W * 4 + 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t row = rows[i] < 0 ? rows[i] + w.N : rows[i];
      if (row < 0 || row >= w.N) {
        std::fill_n(y + i * w.K, w.K, std::nanf(""));
      } else {
        dequantize(w, row, row + 1, 0, w.K, y + i * w.K);
      }
    }
  });
}

}  // namespace macllm
