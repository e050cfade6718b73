// Products with packed matrices of every width, whole and in stacks.
#include <algorithm>

#include "driver.h"

using namespace macllm;

namespace {

// A stack of random matrices, packed and dense.
struct Packed {
  Exact<uint32_t> words;
  Floats scales, biases;
  PackedMatrix matrix;
  Doubles w;

  Packed(int64_t N, int64_t K, int bits, int group, int64_t stack = 1)
      : words(stack * N * K * bits / 32),
        scales(random_floats(stack * N * (K / group), 0.01f)),
        biases(random_floats(stack * N * (K / group), 0.1f)),
        matrix{words, scales, biases, Real::float32, N, K, bits, group, stack} {
    for (int64_t i = 0; i < stack * N * K; i++) {
      const uint32_t q = uint32_t(below(int64_t(1) << bits));
      const int64_t bit = i * bits;  // rows are whole words
      words[bit / 32] |= q << bit % 32;
      if (bit % 32 + bits > 32) words[bit / 32 + 1] |= q >> (32 - bit % 32);
      w.push_back(double(scales[i / group]) * q + biases[i / group]);
    }
  }
};

Doubles times(const Packed& p, int64_t M, const float* x, const int32_t* chosen, bool back) {
  const int64_t N = p.matrix.N, K = p.matrix.K, in = back ? N : K, out = back ? K : N;
  Doubles y;
  for (int64_t m = 0; m < M; m++)
    for (int64_t o = 0; o < out; o++) {
      const double* w = p.w.data() + (chosen ? chosen[m] * N * K : 0);
      double dot = 0;
      for (int64_t i = 0; i < in; i++) dot += x[m * in + i] * (back ? w[i * K + o] : w[o * K + i]);
      y.push_back(dot);
    }
  return y;
}

constexpr double EXACT = 1e-5, ROUNDED = 2e-2;  // of the largest result

void check(int64_t M, int64_t N, int64_t K, int bits, int group) {
  const std::string name = std::to_string(bits) + " bits by " + std::to_string(group) + ", " + std::to_string(M) + " x " +
                           std::to_string(N) + " x " + std::to_string(K);
  const Packed p(N, K, bits, group);
  Floats x = random_floats(M * K), gy = random_floats(M * N);
  Floats y = unwritten(M * N), rounded = unwritten(M * N), back = unwritten(M * K);
  quantized_matmul(p.matrix, M, x, false, y);
  quantized_matmul(p.matrix, M, x, true, rounded);
  quantized_matmul_back(p.matrix, M, gy, back);
  const Doubles want = times(p, M, x, nullptr, false);
  expect(name, y, want, EXACT);
  expect(name + ", rounded", rounded, want, ROUNDED, 0.3 * std::sqrt(double(K)));
  expect(name + ", back", back, times(p, M, gy, nullptr, true), EXACT);
}

void check_stack(int64_t M, int bits) {
  const int64_t N = 21, K = 96;
  const Packed p(N, K, bits, 32, 5);
  Floats x = random_floats(M * K), gy = random_floats(M * N), y = unwritten(M * N), back = unwritten(M * K);
  Exact<int32_t> chosen(M);
  for (auto& each : chosen) each = int32_t(below(5));
  quantized_gather(p.matrix, M, x, chosen, false, y);
  quantized_gather_back(p.matrix, M, gy, chosen, back);
  expect("a stack of " + std::to_string(bits) + " bits", y, times(p, M, x, chosen, false), EXACT);
  expect("a stack of " + std::to_string(bits) + " bits, back", back, times(p, M, gy, chosen, true), EXACT);
}

}  // namespace

void check_quantized() {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128})
      for (int64_t M : {1, 2, 4, 7, 12, 13, 25, 40}) check(M, 35, 128 * (1 + M % 3), bits, group);
    check(1, 1, 32, bits, 32);
    check(30, 2, 32, bits, 32);
    check(3, 600, 416, bits, 32);
    check_stack(1, bits);
    check_stack(40, bits);
  }
}
