#include "linear.h"

#include "half.h"
#include "parallel.h"
#include "simd.h"

namespace macllm {
namespace {

// Storage types of weights, read as vectors of float32.
struct Single {
  using Stored = float;
  static vf read(const float* p) { return load(p); }
  static vf read(const float* p, int64_t count) { return load(p, count, 0.f); }
};

template <class T>
struct Halved {
  using Stored = uint16_t;
  static vf read(const uint16_t* p) { return load_half<T>(p); }
  static vf read(const uint16_t* p, int64_t count) { return load_half<T>(p, count); }
};

// M rows of x times N rows of weights.
template <class Form, int M, int N>
void dots(const Linear& map, const float* x, int64_t n, float* y, int64_t stride) {
  const int64_t K = map.inputs;
  const auto* w = static_cast<const typename Form::Stored*>(map.weight) + n * K;
  vf acc[M][N]{};
  int64_t k = 0;
  for (; k + W <= K; k += W) {
    vf right[N];
    for (int j = 0; j < N; j++) right[j] = Form::read(w + j * K + k);
    // Rows are too short for hardware prefetching.
    for (int j = 0; j < N; j++) __builtin_prefetch(w + (N + j) * K + k, 0, 2);
    for (int i = 0; i < M; i++) {
      const vf left = load(x + i * K + k);
      for (int j = 0; j < N; j++) acc[i][j] += left * right[j];
    }
  }
  if (k < K) {
    for (int i = 0; i < M; i++) {
      const vf left = load(x + i * K + k, K - k, 0.f);
      for (int j = 0; j < N; j++) acc[i][j] += left * Form::read(w + j * K + k, K - k);
    }
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) y[i * stride + n + j] = sum(acc[i][j]) + (map.bias ? map.bias[n + j] : 0.f);
}

template <class Form, int N>
void rows_of(const Linear& map, int64_t rows, const float* x, int64_t n, float* y, int64_t stride) {
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4) dots<Form, 4, N>(map, x + m * map.inputs, n, y + m * stride, stride);
  for (; m + 2 <= rows; m += 2) dots<Form, 2, N>(map, x + m * map.inputs, n, y + m * stride, stride);
  if (m < rows) dots<Form, 1, N>(map, x + m * map.inputs, n, y + m * stride, stride);
}

template <class Form>
void columns(const Linear& map, int64_t rows, const float* x, int64_t first, int64_t last, float* y, int64_t stride) {
  int64_t n = first;
  for (; n + 4 <= last; n += 4) rows_of<Form, 4>(map, rows, x, n, y, stride);
  for (; n < last; n++) rows_of<Form, 1>(map, rows, x, n, y, stride);
}

// A layer that is not packed.
void plain(const Linear& map, int64_t rows, const float* x, int64_t first, int64_t last, float* y, int64_t stride) {
  if (!map.half) return columns<Single>(map, rows, x, first, last, y, stride);
  halves(*map.half, [&](auto form) { columns<Halved<decltype(form)>>(map, rows, x, first, last, y, stride); });
}

}  // namespace

void Rows::prepare(const Linear& map) {
  if (!map.packed) return;
  auto& ready = ready_[ReadyRows::layout(map.packed->bits)];
  if (!ready) ready = std::make_unique<ReadyRows>(map.packed->bits, int8_, count, width, x);
}

void linear(const Linear& map, const Rows& x, int64_t first, int64_t last, float* y, int64_t stride) {
  if (!map.packed) return plain(map, x.count, x.x, first, last, y, stride);
  quantized_columns(*map.packed, x.ready(*map.packed), first, last, y, stride);
  for (int64_t m = 0; map.bias && m < x.count; m++)
    for (int64_t n = first; n < last; n++) y[m * stride + n] += map.bias[n];
}

void linear(const Linear& map, int64_t rows, const float* x, float* y) {
  Rows in(rows, map.inputs, x);
  in.prepare(map);
  parallel_range(map.outputs, linear_cost(map, rows), [&](int64_t first, int64_t last) {
    linear(map, in, first, last, y, map.outputs);
  });
}

}  // namespace macllm
