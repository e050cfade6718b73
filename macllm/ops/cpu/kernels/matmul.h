// A small matrix product for blocks that stay in the cache.
#pragma once

#include "simd.h"

namespace macllm {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE = 8;
#else
constexpr int TILE = 4;
#endif

// Element (row, k) of A is data[row * row_stride + k * k_stride].
struct Left {
  const float* data;
  int64_t row_stride, k_stride;
};

template <int M, int N>
inline void tile(int64_t K, Left a, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  vf acc[M][N];
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) acc[m][n] = add ? load(c + m * ldc + n * W) : vf{};
  for (int64_t k = 0; k < K; k++) {
    vf right[N];
    for (int n = 0; n < N; n++) right[n] = load(b + k * ldb + n * W);
    for (int m = 0; m < M; m++) {
      float left = a.data[m * a.row_stride + k * a.k_stride];
      for (int n = 0; n < N; n++) acc[m][n] += left * right[n];
    }
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) store(c + m * ldc + n * W, acc[m][n]);
}

template <int N>
inline void column(int64_t M, int64_t K, Left a, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  int64_t m = 0;
  auto from = [&](int64_t row) { return Left{a.data + row * a.row_stride, a.row_stride, a.k_stride}; };
  for (; m + TILE <= M; m += TILE) tile<TILE, N>(K, from(m), b, ldb, c + m * ldc, ldc, add);
  for (; m + 2 <= M; m += 2) tile<2, N>(K, from(m), b, ldb, c + m * ldc, ldc, add);
  if (m < M) tile<1, N>(K, from(m), b, ldb, c + m * ldc, ldc, add);
}

// C [M, N] (+)= A [M, K] B [K, N]; N must be a multiple of W.
inline void matmul(int64_t M, int64_t N, int64_t K, Left a, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  int64_t n = 0;
  for (; n + 2 * W <= N; n += 2 * W) column<2>(M, K, a, b + n, ldb, c + n, ldc, add);
  if (n < N) column<1>(M, K, a, b + n, ldb, c + n, ldc, add);
}

// matmul with as many columns of C per load of A as registers hold.
template <int M>
inline void few_rows(int64_t N, int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                     bool add) {
  constexpr int WIDE = TILE == 8 || M < 3 ? 4 : 2;
  int64_t n = 0;
  for (; n + WIDE * W <= N; n += WIDE * W) tile<M, WIDE>(K, {a, lda, 1}, b + n, ldb, c + n, ldc, add);
  for (; n + 2 * W <= N; n += 2 * W) tile<M, 2>(K, {a, lda, 1}, b + n, ldb, c + n, ldc, add);
  if (n < N) tile<M, 1>(K, {a, lda, 1}, b + n, ldb, c + n, ldc, add);
}

inline void few_rows(int64_t M, int64_t N, int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                     int64_t ldc, bool add) {
  for (; M >= 4; M -= 4, a += 4 * lda, c += 4 * ldc) few_rows<4>(N, K, a, lda, b, ldb, c, ldc, add);
  if (M == 3) few_rows<3>(N, K, a, lda, b, ldb, c, ldc, add);
  if (M == 2) few_rows<2>(N, K, a, lda, b, ldb, c, ldc, add);
  if (M == 1) few_rows<1>(N, K, a, lda, b, ldb, c, ldc, add);
}

}  // namespace macllm
