#include "linear.h"

#include "simd.h"

namespace macllm {
namespace {

// M rows of x times N rows of weights.
template <int M, int N>
void dots(const Linear& map, const float* x, int64_t n, float* y, int64_t stride) {
  const int64_t K = map.inputs;
  const float* w = map.weight + n * K;
  vf acc[M][N]{};
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    vf right[N];
    for (int j = 0; j < N; j++) right[j] = load(w + j * K + k);
    for (int i = 0; i < M; i++) {
      const vf left = load(x + i * K + k);
      for (int j = 0; j < N; j++) acc[i][j] += left * right[j];
    }
  }
  if (k < K) {
    for (int i = 0; i < M; i++) {
      const vf left = load(x + i * K + k, K - k, 0.f);
      for (int j = 0; j < N; j++) acc[i][j] += left * load(w + j * K + k, K - k, 0.f);
    }
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) y[i * stride + n + j] = sum(acc[i][j]) + (map.bias ? map.bias[n + j] : 0.f);
}

template <int N>
void rows_of(const Linear& map, int64_t rows, const float* x, int64_t n, float* y, int64_t stride) {
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4) dots<4, N>(map, x + m * map.inputs, n, y + m * stride, stride);
  for (; m + 2 <= rows; m += 2) dots<2, N>(map, x + m * map.inputs, n, y + m * stride, stride);
  if (m < rows) dots<1, N>(map, x + m * map.inputs, n, y + m * stride, stride);
}

}  // namespace

void linear(const Linear& map, int64_t rows, const float* x, int64_t first, int64_t last, float* y, int64_t stride) {
  int64_t n = first;
  for (; n + 4 <= last; n += 4) rows_of<4>(map, rows, x, n, y, stride);
  for (; n < last; n++) rows_of<1>(map, rows, x, n, y, stride);
}

}  // namespace macllm
