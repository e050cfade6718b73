// Linear maps of a few rows, whose weights are read once and where they lie.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "kernels.h"
#include "quantized.h"

namespace macllm {

constexpr int64_t FEW_ROWS = 24;  // of x: with more, the BLAS is faster, and weights of 16 bits are worth converting

// y = x W^T + b, W [outputs, inputs].
struct Linear {
  const void* weight = nullptr;  // float32, 16-bit floats if it is a `half`, or else in `packed`
  const float* bias = nullptr;   // or none
  int64_t outputs = 0, inputs = 0;
  std::optional<Half> half;
  std::optional<PackedMatrix> packed;
};

// The rows [count, width] that maps are applied to, in each form that these read.
class Rows {
 public:
  Rows(int64_t count, int64_t width, const float* x, bool int8 = false) : x(x), count(count), width(width), int8_(int8) {}

  // To be called for each map before `linear` is, and not while it is. `int8` allows to round x for packed maps.
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
