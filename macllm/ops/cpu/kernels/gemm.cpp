// Both matrices are packed so that the innermost loop reads memory in order: panels of a few rows of `a`, each element of
// which meets a strip of `b` as wide as two vectors, while the tile of the result stays in registers (Goto & van de
// Geijn 2008, "Anatomy of high-performance matrix multiplication"). Numbers of 16 bits become float32 on the way.
#include "gemm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "half.h"
#include "parallel.h"
#include "ranges.h"
#include "scratch.h"
#include "transpose.h"

namespace macllm {
namespace {

// A tile of the result fills all registers except those of the strip's vectors and one of the panel's.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t TALL = 14;
#else
constexpr int64_t TALL = 6;
#endif
constexpr int WIDE = 2;
constexpr int64_t STRIP = WIDE * W;
constexpr int64_t DEPTH = 1024;       // of a panel and of a strip: fewer passes over the result pay more than a panel
                                      // in L1, since both are read in order
constexpr int64_t RUN = 384;          // products that a register accumulates, to bound the rounding error
constexpr int64_t WIDEST = 4;         // strips that a task keeps in L2
constexpr int64_t ROWS = 1024;        // of `a` that are packed together
constexpr int64_t AHEAD = 8;          // steps by which a strip is prefetched
constexpr int64_t CHUNK = 16;         // columns that are packed at a time: as many lines of L1
constexpr int64_t PACKED = 1 << 20;   // floats of `a` that are packed together, shared by all threads

int64_t range_count(int64_t size, int64_t most) { return (size + most - 1) / most; }

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

// Up to W rows of [first row.., k..], `depth` deep, of a matrix with contiguous rows: element (r, k) to
// to[k * stride + r], zeros beyond the rows.
template <class R>
void pack_rows(const Operand& from, int64_t first, int64_t rows, int64_t k, int64_t depth, float* to, int64_t stride) {
  const auto* data = static_cast<const typename R::Stored*>(from.data) + first * from.row + k;
  for (int64_t i = 0; i < depth; i += W) {
    vf v[W];
    const int64_t count = std::min<int64_t>(W, depth - i);
    for (int r = 0; r < W; r++) {
      const auto* row = data + r * from.row + i;
      v[r] = r >= rows ? vf{} : count == W ? R::read(row) : R::read(row, count);
    }
    transpose<W>(v);
    for (int64_t j = 0; j < count; j++) store(to + (i + j) * stride, v[j]);
  }
}

// The same for a matrix with contiguous columns.
template <class R>
void pack_columns(const Operand& from, int64_t first, int64_t rows, int64_t k, int64_t depth, float* to, int64_t stride) {
  const auto* data = static_cast<const typename R::Stored*>(from.data) + first + k * from.step;
  if (rows == W) {
    for (int64_t i = 0; i < depth; i++) store(to + i * stride, R::read(data + i * from.step));
  } else {
    for (int64_t i = 0; i < depth; i++) store(to + i * stride, R::read(data + i * from.step, rows));
  }
}

// Rows [first, first + rows) of `from` as [depth, width]. Whole vectors are written: the excess, up to W - 1 numbers after
// the last, is overwritten by the next.
void pack(const Operand& from, int64_t first, int64_t rows, int64_t k, int64_t depth, int64_t width, float* to) {
  auto run = [&]<class R>(R) {
    auto some = from.step == 1 ? pack_rows<R> : pack_columns<R>;
    for (int64_t r = (rows - 1) / W * W; r >= 0; r -= W)
      some(from, first + r, std::min<int64_t>(W, rows - r), k, depth, to + r, width);
  };
  if (!from.half) return run(Reader<float>{});
  halves(*from.half, [&](auto type) { run(Reader<decltype(type)>{}); });
}

// A tile [M, columns] of the result. GCC keeps sums in registers only where every index is a constant.
template <int M>
void tile(int64_t depth, const float* panel, const float* strip, float* c, int64_t ldc, int64_t columns, bool add) {
  vf sums[M][WIDE];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < WIDE; n++) sums[m][n] = vf{};
    if (add) __builtin_prefetch(c + m * ldc, 1), __builtin_prefetch(c + m * ldc + W, 1);
  }
  for (int64_t k = 0; k < depth; k++) {
    vf right[WIDE];
    for (int n = 0; n < WIDE; n++) {
      right[n] = load(strip + k * STRIP + n * W);
      __builtin_prefetch(strip + (k + AHEAD) * STRIP + n * W);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      vf left = splat(panel[k * TALL + m]);
#if defined(__AVX512F__)
      asm("" : "+v"(left));  // in a register: GCC would read it from memory once for each vector of the strip
#endif
      for (int n = 0; n < WIDE; n++) sums[m][n] += left * right[n];
    }
  }
#pragma GCC unroll 16
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
  static thread_local ThreadScratch<float> scratch;
  return scratch.reserve(count);
}

// Calls pack(k, depth) over [k, k + depth): at once, or for contiguous columns a few at a time, which all panels read
// while they are in the cache.
template <class F>
void in_chunks(const Operand& of, int64_t k, int64_t depth, F pack) {
  const int64_t most = of.step == 1 ? depth : CHUNK;
  for (int64_t i = 0; i < depth; i += most) pack(k + i, std::min(most, depth - i));
}

// All of `a` in panels: by depth, by rows.
struct Panels {
  Ranges rows, depths;
  float* data = nullptr;

  int64_t size() const { return start(depths.count, 0); }
  float* at(int64_t d, int64_t r) const { return data + start(d, r); }

 private:
  int64_t start(int64_t d, int64_t r) const {
    const int64_t before = rows.count * (depths.begin(d) * TALL + d * W);
    return r ? before + r * (depths.length(d) * TALL + W) : before;
  }
};

// Columns [first, first + width) of the result.
void columns(const Product& p, const Panels& panels, int64_t first, int64_t width) {
  const auto& [rows, depths, _] = panels;
  float* packed = strips(range_count(width, STRIP) * STRIP * std::min(DEPTH, p.K));
  for (int64_t d = 0; d < depths.count; d++) {
    const int64_t begin = depths.begin(d), depth = depths.length(d);
    in_chunks(p.b, begin, depth, [&](int64_t k, int64_t some) {
      for (int64_t n = 0; n < width; n += STRIP)
        pack(p.b, first + n, std::min(STRIP, width - n), k, some, STRIP, packed + n * depth + (k - begin) * STRIP);
    });
    const Ranges runs(depth, RUN);
    for (int64_t r = 0; r < rows.count; r++) {
      const int64_t m = rows.begin(r), height = rows.length(r);
      for (int64_t n = 0; n < width; n += STRIP)
        for (int64_t i = 0; i < runs.count; i++) {
          const float* panel = panels.at(d, r) + runs.begin(i) * TALL;
          const float* strip = packed + n * depth + runs.begin(i) * STRIP;
          float* c = p.c + m * p.ldc + first + n;
          TILES[height - 1](runs.length(i), panel, strip, c, p.ldc, width - n, p.add || d + i > 0);
        }
    }
  }
}

void pack_panels(const Operand& a, const Panels& panels, int64_t first, int64_t last) {
  const auto& [rows, depths, _] = panels;
  for (int64_t d = 0; d < depths.count; d++) {
    const int64_t begin = depths.begin(d), depth = depths.length(d);
    in_chunks(a, begin, depth, [&](int64_t k, int64_t some) {
      for (int64_t r = first; r < last; r++)
        pack(a, rows.begin(r), rows.length(r), k, some, TALL, panels.at(d, r) + (k - begin) * TALL);
    });
  }
}

// Strips per task, so that threads finish at about the same time and can take over a slow one's tasks.
int64_t wide(int64_t strips) {
  int64_t best = 1, least = strips;
  for (int64_t width = 1; width <= WIDEST; width++) {
    const int64_t tasks = range_count(strips, width), longest = range_count(tasks, threads()) * width;
    if (width > 1 && (tasks < 3 * threads() || longest > least)) continue;
    best = width, least = longest;
  }
  return best;
}

// A product whose `a` is packed as a whole.
void block(const Product& p) {
  static thread_local ThreadScratch<float> scratch;
  Panels panels{Ranges(p.M, TALL), Ranges(p.K, DEPTH)};
  panels.data = scratch.reserve(panels.size());
  parallel_range(panels.rows.count, TALL * p.K / W * 4, [&](int64_t first, int64_t last) {
    pack_panels(p.a, panels, first, last);
  });
  // Tasks divide strips and not rows, so that no strip is packed twice.
  const int64_t width = wide(range_count(p.N, STRIP)) * STRIP;
  parallel(range_count(p.N, width), [&](int64_t task) {
    columns(p, panels, task * width, std::min(width, p.N - task * width));
  });
}

}  // namespace

void gemm(const Product& p) {
  if (p.K == 0 && !p.add)
    for (int64_t m = 0; m < p.M; m++) std::fill_n(p.c + m * p.ldc, p.N, 0.f);
  const Ranges rows(p.M, ROWS);
  for (int64_t r = 0; r < rows.count; r++) {
    const int64_t m = rows.begin(r), height = rows.length(r);
    const Ranges depths(p.K, std::max(DEPTH, PACKED / height));
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
