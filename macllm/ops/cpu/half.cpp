// Products with matrices of 16-bit floats, which stay as they are. Few rows are bound by reading the weights: these are
// converted in registers. Of many rows the weights are the smaller part: blocks of them become float32 for the BLAS.
#include <algorithm>
#include <memory>

#include "half.h"
#include "parallel.h"

namespace macllm {
namespace {

constexpr int ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112;
constexpr int64_t FEW_ROWS = 8, SOME_ROWS = 24;          // above, a block is worth converting
constexpr int64_t BLOCK_DEPTH = 512, BLOCK_WIDTH = 256;  // 512 KiB of float32
constexpr int64_t LEAST_WIDTH = 64;

// N weights' products with M rows: y[m, n] = x[m] . w[n].
template <class T, int M, int N>
inline void dots(int64_t K, const float* x, int64_t ldx, const uint16_t* w, float* y, int64_t ldy) {
  vf acc[M][N] = {};
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    vf right[N];
    for (int n = 0; n < N; n++) right[n] = load_half<T>(w + n * K + k);
    // Rows are too short for the machine to see their pattern.
    for (int n = 0; n < N; n++) __builtin_prefetch(w + (N + n) * K + k, 0, 2);
    for (int m = 0; m < M; m++) {
      vf left = load(x + m * ldx + k);
      for (int n = 0; n < N; n++) acc[m][n] += left * right[n];
    }
  }
  if (k < K) {
    for (int n = 0; n < N; n++) {
      vf right = load_half<T>(w + n * K + k, K - k);
      for (int m = 0; m < M; m++) acc[m][n] += load(x + m * ldx + k, K - k, 0.f) * right;
    }
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) y[m * ldy + n] = sum(acc[m][n]);
}

template <class T, int M>
void dots_of_rows(const HalfProduct& p, int64_t first, int64_t last, const float* x, float* y) {
  constexpr int N = M <= 2 ? 4 : M <= 4 || W == 16 ? 2 : 1;
  int64_t n = first;
  for (; n + N <= last; n += N) dots<T, M, N>(p.K, x, p.K, p.w + n * p.K, y + n, p.N);
  for (; n < last; n++) dots<T, M, 1>(p.K, x, p.K, p.w + n * p.K, y + n, p.N);
}

template <class T>
void dots_of(int64_t M, const HalfProduct& p, int64_t first, int64_t last, const float* x, float* y) {
  switch (M) {
    case 1: return dots_of_rows<T, 1>(p, first, last, x, y);
    case 2: return dots_of_rows<T, 2>(p, first, last, x, y);
    case 3: return dots_of_rows<T, 3>(p, first, last, x, y);
    case 4: return dots_of_rows<T, 4>(p, first, last, x, y);
    case 5: return dots_of_rows<T, 5>(p, first, last, x, y);
    case 6: return dots_of_rows<T, 6>(p, first, last, x, y);
    case 7: return dots_of_rows<T, 7>(p, first, last, x, y);
    default: return dots_of_rows<T, FEW_ROWS>(p, first, last, x, y);
  }
}

// Every task reads its weights from memory once: of more rows than fit the registers, a few weights at a time.
template <class T>
void few_rows(const HalfProduct& p, const float* x, float* y) {
  parallel_range(p.N, p.M * (p.K / W + 4), [&](int64_t first, int64_t last) {
    const int64_t step = p.M <= FEW_ROWS ? last - first : 8;
    for (int64_t n = first; n < last; n += step)
      for (int64_t m = 0; m < p.M; m += FEW_ROWS)
        dots_of<T>(std::min(FEW_ROWS, p.M - m), p, n, std::min(n + step, last), x + m * p.K, y + m * p.N);
  });
}

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
  halves(p.kind, [&](auto type) {
    using T = decltype(type);
    if (p.M <= SOME_ROWS) return few_rows<T>(p, x, y);
    many_rows<T>(p, x, y);
  });
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
