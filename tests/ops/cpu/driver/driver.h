// Helpers to check the kernels without MLX and Python. A kernel gets memory that ends at an inaccessible page, results are
// NaN until they are written, and references are computed in float64.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"

// Memory followed by an inaccessible page.
template <class T>
class Exact {
 public:
  explicit Exact(int64_t count, T value = T{}) : count_(count) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), bytes = size_t(count) * sizeof(T);
    room_ = (bytes + page - 1) / page * page + page;
    void* got = mmap(nullptr, room_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) std::abort();
    base_ = static_cast<char*>(got);
    if (mprotect(base_ + room_ - page, page, PROT_NONE)) std::abort();
    data_ = reinterpret_cast<T*>(base_ + room_ - page - bytes);
    for (auto& each : *this) each = value;
  }
  Exact(Exact&& other) noexcept : base_(other.base_), data_(other.data_), count_(other.count_), room_(other.room_) {
    other.base_ = nullptr;
  }
  Exact(const Exact&) = delete;
  ~Exact() {
    if (base_) munmap(base_, room_);
  }

  T* get() const { return data_; }
  operator T*() const { return data_; }
  T* begin() const { return data_; }
  T* end() const { return data_ + count_; }
  int64_t size() const { return count_; }

 private:
  char* base_;
  T* data_;
  int64_t count_;
  size_t room_;
};

using Floats = Exact<float>;
using Doubles = std::vector<double>;

inline std::mt19937& generator() {
  static thread_local std::mt19937 made(7);
  return made;
}

inline int64_t below(int64_t n) { return int64_t(generator()() % uint64_t(n)); }

inline Floats random_floats(int64_t n, float size = 1) {
  std::normal_distribution<float> normal(0, size);
  Floats x(n);
  for (float& each : x) each = normal(generator());
  return x;
}

// Results that are not written yet: NaN.
inline Floats unwritten(int64_t n) { return Floats(n, std::numeric_limits<float>::quiet_NaN()); }

extern int failures;

// Counts a failure unless each number is within `tolerance` of the reference, relative to the largest number or to `least`,
// the size of the summands in case they cancel.
inline void expect(const std::string& what, const float* got, const Doubles& want, double tolerance, double least = 1e-2) {
  double size = least, worst = 0;
  for (double each : want) size = std::max(size, std::abs(each));
  for (size_t i = 0; i < want.size(); i++) {
    const double error = std::abs(got[i] - want[i]) / size;
    worst = error <= worst ? worst : error;  // NaN too is the worst
    if (std::isnan(worst)) break;
  }
  if (worst <= tolerance) return;
  failures++;
  std::printf("%s: an error of %g, where %g is allowed\n", what.c_str(), worst, tolerance);
}

inline void expect(const std::string& what, bool right) {
  if (right) return;
  failures++;
  std::printf("%s\n", what.c_str());
}

// A replacement of BLAS: cblas_sgemm by its definition.
void plain_sgemm(int order, int ta, int tb, int M, int N, int K, float alpha, const float* A, int lda, const float* B,
                 int ldb, float beta, float* C, int ldc);

// The checks, by file.
void check_pointwise();
void check_rows();
void check_linear();
void check_sampling();
void check_attention();
void check_quantized();
void check_gemm();
void check_steps();
void check_two_callers();
