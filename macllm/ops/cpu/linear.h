// Linear maps of few rows: what a decoding step is made of, bound by reading every weight once.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels.h"

namespace macllm {

constexpr int64_t FEW_ROWS = 24;  // of x: with more, the BLAS is faster, and weights of 16 bits are worth converting

// y = x W^T + b, W [outputs, inputs].
struct Linear {
  const void* weight = nullptr;
  const float* bias = nullptr;  // or none
  int64_t outputs = 0, inputs = 0;
  std::optional<Half> half{};  // what 16-bit weights are; else they are float32
};

// y[m * stride + n] for every row m of x [rows, inputs] and n in [first, last).
void linear(const Linear& map, int64_t rows, const float* x, int64_t first, int64_t last, float* y, int64_t stride);

// All of y [rows, outputs], on all threads.
void linear(const Linear& map, int64_t rows, const float* x, float* y);

// Rough cost of one output, for `parallel_range`.
inline int64_t linear_cost(const Linear& map, int64_t rows) { return map.inputs * (rows + 1) / 16 + 4; }

}  // namespace macllm
