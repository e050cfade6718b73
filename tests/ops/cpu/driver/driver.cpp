// Runs every kernel on odd sizes: driver [threads]. Ends with 1 if a result was wrong.
#include "driver.h"

#include <thread>

#include "parallel.h"

int failures = 0;

void plain_sgemm(int order, int ta, int tb, int M, int N, int K, float alpha, const float* A, int lda, const float* B,
                 int ldb, float beta, float* C, int ldc) {
  if (order != 101) return plain_sgemm(101, tb, ta, N, M, K, alpha, B, ldb, A, lda, beta, C, ldc);
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < N; n++) {
      double dot = 0;
      for (int k = 0; k < K; k++) dot += double(ta == 112 ? A[k * lda + m] : A[m * lda + k]) * (tb == 112 ? B[n * ldb + k] : B[k * ldb + n]);
      float& c = C[m * ldc + n];
      c = float(alpha * dot + (beta == 0 ? 0. : double(beta) * c));
    }
  }
}

// Two streams of MLX may compute at the same time; their loops alternate.
void check_two_callers() {
  constexpr int64_t ROWS = 64, N = 1001;
  auto call = [](unsigned seed) {
    generator().seed(seed);
    for (int round = 0; round < 20; round++) {
      Floats x = random_floats(ROWS * N), y = unwritten(ROWS * N);
      macllm::softmax(ROWS, N, x, y);
      double total = 0;
      for (float each : y) total += each;
      if (!(std::abs(total - ROWS) < 1e-3)) std::abort();
    }
  };
  std::thread other(call, 1);
  call(2);
  other.join();
}

int main(int count, char** arguments) {
  macllm::set_threads(count > 1 ? std::atoi(arguments[1]) : 2);
  macllm::set_sgemm(plain_sgemm);
  const struct {
    const char* name;
    void (*run)();
  } checks[] = {{"pointwise", check_pointwise}, {"rows", check_rows},           {"linear", check_linear},
                {"sampling", check_sampling},   {"attention", check_attention}, {"quantized", check_quantized},
                {"gemm", check_gemm},           {"steps", check_steps},
                {"two callers", check_two_callers}};
  for (auto& check : checks) {
    const int before = failures;
    check.run();
    std::printf("%s: %s\n", check.name, failures == before ? "right" : "WRONG");
    std::fflush(stdout);
  }
  return failures ? 1 : 0;
}
