// Products of two large matrices in float32, on all threads.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels.h"

namespace macllm {

// Element (r, k) is data[r * row + k * step]; one of the strides is 1. Float32, or 16 bits if `half` is set.
struct Operand {
  const void* data;
  int64_t row, step;
  std::optional<Half> half{};
};

// c[m * ldc + n] = the sum over k of a(m, k) b(n, k), or is increased by it.
struct Product {
  int64_t M, N, K;
  Operand a, b;
  float* c;
  int64_t ldc;
  bool add = false;
};
void gemm(const Product& p);

}  // namespace macllm
