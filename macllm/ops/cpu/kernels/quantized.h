// Helpers that the files on packed matrices share.
#pragma once

#include <new>

#include "kernels.h"

namespace macllm {

// `count` zeros, aligned to cache lines.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count) : data_(new (LINE) T[count]()) {}
  ~Aligned() { operator delete[](data_, LINE); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t LINE{64};
  T* data_;
};

// Values [first, first + count) of an array of scales or biases.
void widen(Real type, const void* from, int64_t first, int64_t count, float* to);

// q of one row for k in [first, last), multiples of 32.
void unpack(const PackedMatrix& w, int64_t row, int64_t first, int64_t last, uint8_t* to);

// A few rows of x in the form that packed matrices are multiplied with, which depends on the layout of their width.
class ReadyRows {
 public:
  static constexpr int LAYOUTS = 3;
  static int layout(int bits) { return bits == 2 ? 0 : bits == 4 ? 1 : 2; }

  // x [M, K]; `int8` rounds it to 8 bits.
  ReadyRows(int bits, bool int8, int64_t M, int64_t K, const float* x);

  const bool int8;
  const int64_t M;
  const float* data() const { return data_.get(); }

 private:
  Aligned<float> data_;
};

// y[m * stride + n] of x w^T for every row m of x and n in [first, last): w is read once, in place, and unpacked in
// registers.
void quantized_columns(const PackedMatrix& w, const ReadyRows& x, int64_t first, int64_t last, float* y, int64_t stride);

// The same for all n.
void quantized_few_rows(const PackedMatrix& w, int64_t M, const float* x, bool int8, float* y);

// quantized_matmul with x rounded to int8; returns false and does nothing if it does not support w's width.
bool quantized_many_rows(const PackedMatrix& w, int64_t M, const float* x, float* y);

}  // namespace macllm
