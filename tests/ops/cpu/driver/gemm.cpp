// Large products in float32: operands in both layouts and in 16 bits, results in the middle of something larger.
#include "gemm.h"

#include <cstring>

#include "driver.h"

using namespace macllm;

namespace {

struct Matrix {
  Floats wide;
  Exact<uint16_t> narrow;
  bool across;  // true if K is the slow axis
  int64_t rows, K;

  Matrix(int64_t rows, int64_t K, bool across)
      : wide(random_floats(rows * K)), narrow(rows * K), across(across), rows(rows), K(K) {
    for (int64_t i = 0; i < rows * K; i++) {
      uint32_t bits;
      std::memcpy(&bits, &wide[i], 4);
      bits &= 0xffff0000;  // the same number in bfloat16
      narrow[i] = uint16_t(bits >> 16);
      std::memcpy(&wide[i], &bits, 4);
    }
  }
  Operand operand(bool half) const {
    const int64_t row = across ? 1 : K, step = across ? rows : 1;
    return half ? Operand{narrow, row, step, Half::bfloat16} : Operand{wide, row, step, {}};
  }
  double at(int64_t r, int64_t k) const { return wide[across ? k * rows + r : r * K + k]; }
};

void check(int64_t M, int64_t N, int64_t K, bool a_across, bool b_across, bool half, bool add) {
  const Matrix a(M, K, a_across), b(N, K, b_across);
  const int64_t ldc = N + 3;
  Floats c = random_floats((M - 1) * ldc + N);
  Doubles want(c.begin(), c.end());
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) {
      double dot = add ? want[m * ldc + n] : 0;
      for (int64_t k = 0; k < K; k++) dot += a.at(m, k) * b.at(n, k);
      want[m * ldc + n] = dot;
    }
  gemm({M, N, K, a.operand(false), b.operand(half), c, ldc, add});
  expect("gemm " + std::to_string(M) + " x " + std::to_string(N) + " x " + std::to_string(K) + (half ? " of 16 bits" : ""), c,
         want, 3e-6);
}

}  // namespace

void check_gemm() {
  for (bool a : {false, true})
    for (bool b : {false, true})
      for (bool half : {false, true}) {
        check(1, 1, 1, a, b, half, false);
        check(5, 7, 3, a, b, half, true);
        check(37, 65, 130, a, b, half, a);
        check(70, 129, 517, a, b, half, b);
        check(150, 40, 300, a, b, half, true);
      }
}
