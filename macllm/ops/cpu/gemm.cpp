// Both matrices are packed so that the innermost loop reads memory in order: panels of a few rows of `a`, each element of
// which meets a strip of `b` as wide as two vectors, while the tile of the result stays in registers (Goto & van de
// Geijn 2008, "Anatomy of high-performance matrix multiplication"). Numbers of 16 bits become float32 on the way.
#include "gemm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "half.h"
#include "parallel.h"
#include "parts.h"
#include "kept.h"
#include "transpose.h"

namespace macllm {
namespace {

// A tile of the result fills the registers but for the vectors of the strip and one of the panel.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t TALL = 14;
#else
constexpr int64_t TALL = 6;
#endif
constexpr int WIDE = 2;
constexpr int64_t STRIP = WIDE * W;
constexpr int64_t DEPTH = 384;            // of a panel, which stays in the first cache
constexpr int64_t WIDTH = 4 * STRIP;      // of the part of `b` that a task keeps in the second
constexpr int64_t ROWS = 1024;            // of `a` that are packed together
constexpr int64_t PACKED = 1 << 20;       // floats of `a` that are packed together, shared by all threads

int64_t parts_of(int64_t size, int64_t most) { return (size + most - 1) / most; }

template <class T>
struct Reader {
  using Stored = uint16_t;
  static vf read(const uint16_t* p) { return load_half<T>(p); }
  static vf read(const uint16_t* p, int64_t count) { return load_half<T>(p, count); }
};

template <>
struct Reader<float> {
  using Stored = float;
  static vf read(const float* p) { return load(p); }
  static vf read(const float* p, int64_t count) { return load(p, count, 0.f); }
};

// Where some rows go: element (r, k) to to[k * stride + r], `lanes` of them, k < depth. If they are `alone` in the
// stride, whole vectors may be stored while there is room: what they hold too much the next ones overwrite.
struct Place {
  float* to;
  int64_t stride, lanes;
  bool alone;
  int64_t depth;

  void put(int64_t k, vf v) const {
    const bool whole = lanes == W || (alone && (depth - k) * stride >= W);
    whole ? store(to + k * stride, v) : store(to + k * stride, v, lanes);
  }
};

// Up to W rows of [first row.., k..], `depth` deep, of a matrix whose rows lie in one piece.
template <class R>
void pack_rows(const Operand& from, int64_t first, int64_t rows, int64_t k, int64_t depth, Place place) {
  const auto* data = static_cast<const typename R::Stored*>(from.data) + first * from.row + k;
  for (int64_t i = 0; i < depth; i += W) {
    vf v[W];
    const int64_t count = std::min<int64_t>(W, depth - i);
    for (int r = 0; r < W; r++) {
      const auto* row = data + r * from.row + i;
      v[r] = r >= rows ? vf{} : count == W ? R::read(row) : R::read(row, count);
    }
    transpose<W>(v);
    for (int64_t j = 0; j < count; j++) place.put(i + j, v[j]);
  }
}

// The same of a matrix whose columns lie in one piece.
template <class R>
void pack_columns(const Operand& from, int64_t first, int64_t rows, int64_t k, int64_t depth, Place place) {
  const auto* data = static_cast<const typename R::Stored*>(from.data) + first + k * from.step;
  for (int64_t i = 0; i < depth; i++, data += from.step)
    place.put(i, rows == W ? R::read(data) : R::read(data, rows));
}

// Rows [first, first + rows) of `from` as [depth, width], zeros beyond the rows.
void pack(const Operand& from, int64_t first, int64_t rows, int64_t k, int64_t depth, int64_t width, float* to) {
  auto run = [&]<class R>(R) {
    for (int64_t r = 0; r < width; r += W) {
      const int64_t left = std::clamp<int64_t>(rows - r, 0, W);
      auto some = from.step == 1 ? pack_rows<R> : pack_columns<R>;
      some(from, first + (left ? r : 0), left, k, depth, {to + r, width, std::min<int64_t>(W, width - r), width <= W, depth});
    }
  };
  if (!from.half) return run(Reader<float>{});
  halves(*from.half, [&](auto type) { run(Reader<decltype(type)>{}); });
}

// A tile [M, columns] of the result.
template <int M>
void tile(int64_t depth, const float* panel, const float* strip, float* c, int64_t ldc, int64_t columns, bool add) {
  vf sums[M][WIDE]{};
  for (int64_t k = 0; k < depth; k++) {
    vf right[WIDE];
    for (int n = 0; n < WIDE; n++) right[n] = load(strip + k * STRIP + n * W);
    for (int m = 0; m < M; m++) {
      vf left = splat(panel[k * M + m]);
#if defined(__AVX512F__)
      asm("" : "+v"(left));  // in a register: GCC would read it from memory once for each vector of the strip
#endif
      for (int n = 0; n < WIDE; n++) sums[m][n] += left * right[n];
    }
  }
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < WIDE; n++) {
      float* to = c + m * ldc + n * W;
      const int64_t count = columns - n * W;
      if (count >= W) {
        store(to, add ? load(to) + sums[m][n] : sums[m][n]);
      } else if (count > 0) {
        store(to, add ? load(to, count, 0.f) + sums[m][n] : sums[m][n], count);
      }
    }
  }
}

using Tile = void (*)(int64_t, const float*, const float*, float*, int64_t, int64_t, bool);

template <int... M>
constexpr std::array<Tile, sizeof...(M)> tiles(std::integer_sequence<int, M...>) {
  return {tile<M + 1>...};
}

constexpr auto TILES = tiles(std::make_integer_sequence<int, TALL>{});

float* strips(int64_t count) {
  static thread_local Kept<float> kept;
  return kept.room(count);
}

// Columns [first, first + width) of the result from packed rows of `a`.
void columns(const Product& p, const Parts& rows, const Parts& depths, const float* panels, int64_t first, int64_t width) {
  float* packed = strips(parts_of(width, STRIP) * STRIP * std::min(DEPTH, p.K));
  for (int64_t d = 0; d < depths.count; d++) {
    const int64_t k = depths.begin(d), depth = depths.length(d);
    for (int64_t n = 0; n < width; n += STRIP)
      pack(p.b, first + n, std::min(STRIP, width - n), k, depth, STRIP, packed + n * depth);
    for (int64_t r = 0; r < rows.count; r++) {
      const int64_t m = rows.begin(r), height = rows.length(r);
      for (int64_t n = 0; n < width; n += STRIP)
        TILES[height - 1](depth, panels + k * p.M + m * depth, packed + n * depth, p.c + m * p.ldc + first + n, p.ldc,
                          width - n, p.add || d > 0);
    }
  }
}

// A product whose `a` is packed at once.
void block(const Product& p) {
  static thread_local Kept<float> kept;
  float* panels = kept.room(p.M * p.K);
  const Parts rows(p.M, TALL), depths(p.K, DEPTH);
  parallel_range(rows.count, TALL * p.K / W * 4, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++)
      for (int64_t d = 0; d < depths.count; d++) {
        const int64_t k = depths.begin(d), depth = depths.length(d), m = rows.begin(r), height = rows.length(r);
        pack(p.a, m, height, k, depth, height, panels + k * p.M + m * depth);
      }
  });
  // Strips are cheap to share out and dear to pack twice: rows are not divided.
  const int64_t strips = parts_of(p.N, STRIP);
  const int64_t width = std::clamp<int64_t>(strips / (4 * threads()), 1, WIDTH / STRIP) * STRIP;
  parallel(parts_of(p.N, width), [&](int64_t task) {
    columns(p, rows, depths, panels, task * width, std::min(width, p.N - task * width));
  });
}

}  // namespace

void gemm(const Product& p) {
  if (p.K == 0 && !p.add)
    for (int64_t m = 0; m < p.M; m++) std::fill_n(p.c + m * p.ldc, p.N, 0.f);
  const Parts rows(p.M, ROWS);
  for (int64_t r = 0; r < rows.count; r++) {
    const int64_t m = rows.begin(r), height = rows.length(r);
    const Parts depths(p.K, std::max(DEPTH, PACKED / height));
    for (int64_t d = 0; d < depths.count; d++) {
      Product part = p;
      auto advance = [&](Operand& of, int64_t row) {
        const int64_t by = row * of.row + depths.begin(d) * of.step;
        of.data = static_cast<const char*>(of.data) + by * (of.half ? 2 : 4);
      };
      advance(part.a, m), advance(part.b, 0);
      part.M = height, part.K = depths.length(d), part.c += m * p.ldc, part.add |= d > 0;
      block(part);
    }
  }
}

}  // namespace macllm
