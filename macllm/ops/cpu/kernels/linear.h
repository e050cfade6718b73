// Linear layers for a few rows: weights are read once, in place.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "kernels.h"
#include "quantized.h"

namespace macllm {

constexpr int64_t FEW_ROWS = 24;  // of x: for more, BLAS is faster, and converting weights of 16 bits pays

// y = x W^T + b, W [outputs, inputs].
struct Linear {
  const void* weight = nullptr;  // float32, or 16-bit floats if `half` is set; null if `packed` is set
  const float* bias = nullptr;   // null: no bias
  int64_t outputs = 0, inputs = 0;
  std::optional<Half> half;
  std::optional<PackedMatrix> packed;
};

// The input rows [count, width] of linear layers, in each form that they read.
class Rows {
 public:
  Rows(int64_t count, int64_t width, const float* x, bool int8 = false) : x(x), count(count), width(width), int8_(int8) {}

  // Call this for each layer before `linear`, not during it. `int8` allows rounding x for packed layers.
  void prepare(const Linear& map);
  const ReadyRows& ready(const PackedMatrix& w) const { return *ready_[ReadyRows::layout(w.bits)]; }

  const float* x;
  int64_t count, width;

 private:
  bool int8_;
  std::unique_ptr<ReadyRows> ready_[ReadyRows::LAYOUTS];
};

// y[m * stride + n] for every row m of x and n in [first, last).
void linear(const Linear& map, const Rows& x, int64_t first, int64_t last, float* y, int64_t stride);

// All of y [rows, outputs] on all threads, for x [rows, inputs].
void linear(const Linear& map, int64_t rows, const float* x, float* y);

// Rough cost of one output, for `parallel_range`.
inline int64_t linear_cost(const Linear& map, int64_t rows) { return map.inputs * (rows + 1) / 16 + 4; }

}  // namespace macllm
