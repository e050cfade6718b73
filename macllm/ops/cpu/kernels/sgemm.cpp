// MLX's matrix product on our threads. Large products run our gemm; narrow ones are divided into blocks, each a call of
// single-threaded BLAS by the next free thread. The threads of BLAS wait for one another in the middle of a product, which
// halves the speed on a busy machine.
#include <algorithm>

#include "gemm.h"
#include "kernels.h"
#include "linear.h"
#include "parallel.h"
#include "simd.h"

namespace macllm {
namespace {

constexpr int ROW_MAJOR = 101, TRANSPOSED = 112;
constexpr double MIN_PARALLEL_OPERATIONS = 4e6;  // operations
constexpr int64_t SMALLEST_SIDE = 96;   // of a block: below, packing costs more than multiplying
constexpr int NARROW = 32;              // below, our tiles would be mostly padding

Sgemm serial = nullptr;

// y[n] = alpha a . B[n] + beta y[n], at memory bandwidth: reads B once.
void row_times_rows(int64_t N, int64_t K, float alpha, const float* a, const float* b, int64_t ldb, float beta, float* y) {
  parallel_range(N, K / W + 4, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; n++) {
      float dot = alpha * accumulate(K, 0.f, [](vf x, vf w) { return x * w; }, a, b + n * ldb);
      y[n] = beta == 0.f ? dot : dot + beta * y[n];
    }
  });
}

struct Grid {
  int64_t rows, columns;
};

// The number of blocks of each side: some for every thread, about square.
Grid grid(int64_t M, int64_t N) {
  Grid g{1, 1};
  const int64_t enough = 3 * threads();
  while (g.rows * g.columns < enough) {
    const int64_t m = M / (g.rows + 1), n = N / (g.columns + 1);
    if (std::max(m, n) < SMALLEST_SIDE) break;
    if (M / g.rows >= N / g.columns && m >= SMALLEST_SIDE) {
      g.rows++;
    } else if (n >= SMALLEST_SIDE) {
      g.columns++;
    } else {
      g.rows++;
    }
  }
  return g;
}

}  // namespace

void set_sgemm(Sgemm function) { serial = function; }

Sgemm serial_sgemm() { return serial; }

void parallel_blocks(int64_t M, int64_t N, int64_t K, const BlockBody& body) {
  const Grid g = 2.0 * M * N * K > MIN_PARALLEL_OPERATIONS ? grid(M, N) : Grid{1, 1};
  parallel(g.rows * g.columns, [&](int64_t task) {
    auto edge = [](int64_t size, int64_t parts, int64_t i) { return i == parts ? size : size * i / parts / 32 * 32; };
    const int64_t r = task / g.columns, c = task % g.columns;
    body(edge(M, g.rows, r), edge(M, g.rows, r + 1), edge(N, g.columns, c), edge(N, g.columns, c + 1));
  });
}

void sgemm(int order, int ta, int tb, int M, int N, int K, float alpha, const float* A, int lda, const float* B, int ldb,
           float beta, float* C, int ldc) {
  const bool at = ta == TRANSPOSED, bt = tb == TRANSPOSED;
  if (order == ROW_MAJOR && M == 1 && bt && (!at || lda == 1)) {
    return row_times_rows(N, K, alpha, A, B, ldb, beta, C);
  }
  const bool dense = lda == K && ldb == K && ldc == N && alpha == 1.f && beta == 0.f;
  if (order == ROW_MAJOR && M <= FEW_ROWS && !at && bt && dense && K > 0) {
    return linear({B, nullptr, N, K}, M, A, C);
  }
  if (order == ROW_MAJOR && std::min({M, N, K}) >= NARROW && alpha == 1.f && (beta == 0.f || beta == 1.f)) {
    const Operand a{A, at ? 1 : lda, at ? lda : 1}, b{B, bt ? ldb : 1, bt ? 1 : ldb};
    return gemm({M, N, K, a, b, C, ldc, beta == 1.f});
  }
  if (order != ROW_MAJOR) return serial(order, ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc);
  parallel_blocks(M, N, K, [&](int64_t m, int64_t m_end, int64_t n, int64_t n_end) {
    serial(order, ta, tb, int(m_end - m), int(n_end - n), K, alpha, A + (at ? m : m * lda), lda,
           B + (bt ? n * ldb : n), ldb, beta, C + m * ldc + n, ldc);
  });
}

}  // namespace macllm
