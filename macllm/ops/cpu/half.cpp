// Products with matrices of 16-bit floats, which stay as they are. Few rows are bound by reading the weights: linear.h.
// Of many rows the weights are the smaller part: blocks of them become float32 for the BLAS.
#include <algorithm>
#include <memory>

#include "half.h"
#include "linear.h"
#include "parallel.h"

namespace macllm {
namespace {

constexpr int ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112;
constexpr int64_t BLOCK_DEPTH = 512, BLOCK_WIDTH = 256;  // of 16-bit weights made float32: 512 KiB
constexpr int64_t LEAST_WIDTH = 64;

// w[first row.., first column..] as [rows, columns] of float32.
template <class T>
void widen(const HalfProduct& p, int64_t row, int64_t rows, int64_t column, int64_t columns, float* to) {
  for (int64_t r = 0; r < rows; r++, to += columns) {
    const uint16_t* from = p.w + (row + r) * p.K + column;
    int64_t i = 0;
    for (; i + W <= columns; i += W) store(to + i, load_half<T>(from + i));
    if (i < columns) store(to + i, load_half<T>(from + i, columns - i), columns - i);
  }
}

float* scratch() {
  static thread_local std::unique_ptr<float[]> kept(new float[BLOCK_DEPTH * BLOCK_WIDTH]);
  return kept.get();
}

// Cuts `width` outputs and `M` rows into tasks, the outputs first: rows in two tasks convert the same weights twice.
template <class F>
void blocks(int64_t M, int64_t width, F run) {
  const int64_t wanted = 3 * threads();
  const int64_t columns = std::clamp<int64_t>(width / LEAST_WIDTH, 1, std::max(wanted, width / BLOCK_WIDTH));
  const int64_t rows = columns >= threads() ? 1 : std::clamp<int64_t>(M / LEAST_WIDTH, 1, threads());
  auto edge = [](int64_t size, int64_t parts, int64_t i) { return i == parts ? size : size * i / parts / 16 * 16; };
  parallel(rows * columns, [&](int64_t task) {
    const int64_t r = task / columns, c = task % columns, m = edge(M, rows, r), end = edge(width, columns, c + 1);
    for (int64_t n = edge(width, columns, c); n < end; n += BLOCK_WIDTH)
      run(m, edge(M, rows, r + 1) - m, n, std::min(BLOCK_WIDTH, end - n));
  });
}

template <class T>
void many_rows(const HalfProduct& p, const float* x, float* y) {
  blocks(p.M, p.N, [&](int64_t m, int64_t rows, int64_t n, int64_t columns) {
    for (int64_t k = 0; k < p.K; k += BLOCK_DEPTH) {
      const int64_t depth = std::min(BLOCK_DEPTH, p.K - k);
      widen<T>(p, n, columns, k, depth, scratch());
      serial_sgemm()(ROW_MAJOR, PLAIN, TRANSPOSED, int(rows), int(columns), int(depth), 1.f, x + m * p.K + k, int(p.K),
                     scratch(), int(depth), k ? 1.f : 0.f, y + m * p.N + n, int(p.N));
    }
  });
}

}  // namespace

void half_product(const HalfProduct& p, const float* x, float* y) {
  if (p.K == 0) return std::fill(y, y + p.M * p.N, 0.f);
  if (p.M <= FEW_ROWS) return linear({p.w, nullptr, p.N, p.K, p.kind}, p.M, x, y);
  halves(p.kind, [&](auto type) { many_rows<decltype(type)>(p, x, y); });
}

void half_product_vjp(const HalfProduct& p, const float* gy, float* gx) {
  if (p.N == 0) return std::fill(gx, gx + p.M * p.K, 0.f);
  halves(p.kind, [&](auto type) {
    using T = decltype(type);
    blocks(p.M, p.K, [&](int64_t m, int64_t rows, int64_t k, int64_t columns) {
      for (int64_t n = 0; n < p.N; n += BLOCK_DEPTH) {
        const int64_t depth = std::min(BLOCK_DEPTH, p.N - n);
        widen<T>(p, n, depth, k, columns, scratch());
        serial_sgemm()(ROW_MAJOR, PLAIN, PLAIN, int(rows), int(columns), int(depth), 1.f, gy + m * p.N + n, int(p.N),
                       scratch(), int(columns), n ? 1.f : 0.f, gx + m * p.K + k, int(p.K));
      }
    });
  });
}

}  // namespace macllm
