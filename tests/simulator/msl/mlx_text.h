// The part of MLX's prelude of kernels that they call.
#pragma once

#include "msl_simd.h"

#define METAL_FUNC inline
#define MLX_MTL_PRAGMA_UNROLL

namespace simulator {

// An array in threadgroup memory, shared by all threads of the threadgroup.
template <class T>
__attribute__((no_sanitize("thread"))) T& shared(int site, uint64_t alignment = alignof(T)) {
  return *reinterpret_cast<T*>(shared_memory(site, sizeof(T), alignment));
}

// A buffer, which converts to the kernel's parameter: a pointer to its first element, or a reference to its only one.
struct First {
  uint8_t* data;
  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(data);
  }
};
struct Whole {
  uint8_t* data;
  template <class T>
  operator T&() const {
    return *reinterpret_cast<T*>(data);
  }
};

// A function constant without a value.
template <class T>
struct Unset {
  const char* name;
  operator T() const { unset(name, __builtin_return_address(0)); }
};

}  // namespace simulator

template <class T>
struct Limits {
  static constexpr T max = std::numeric_limits<T>::max(), min = std::numeric_limits<T>::min();
  static constexpr T finite_max = max, finite_min = std::numeric_limits<T>::lowest();
};
template <>
struct Limits<float> {
  static constexpr float max = INFINITY, min = -INFINITY;
  static constexpr float finite_max = std::numeric_limits<float>::max(), finite_min = std::numeric_limits<float>::lowest();
};

template <class T, class U>
inline T ceildiv(T n, U by) {
  return (n + by - 1) / by;
}

template <bool CONDITION, class T, class U>
struct ConditionalType {
  typedef U type;
};
template <class T, class U>
struct ConditionalType<true, T, U> {
  typedef T type;
};

template <class U, class T>
inline U cast_to(T x) {
  return U(x);
}

// Elements per thread.
template <class T>
struct WorkPerThread {
  static constexpr int n = sizeof(T) < 8 ? 8 / int(sizeof(T)) : 1;
};

// The offset of an element in an array with these strides.
template <class I = int64_t>
inline I elem_to_loc(I element, const int* shape, const int64_t* strides, int ndim) {
  I at = 0;
  for (int i = ndim - 1; i >= 0 && element > 0; i--) at += element % shape[i] * I(strides[i]), element /= shape[i];
  return at;
}

inline float log1p(float x) { return __builtin_log1pf(x); }
inline float expm1(float x) { return __builtin_expm1f(x); }
inline float hypot(float x, float y) { return __builtin_hypotf(x, y); }

// A complex number.
template <class T>
struct complex_t {
  T real, imag;
  complex_t() = default;
  constexpr complex_t(T real, T imag = 0) : real(real), imag(imag) {}
  friend complex_t operator+(complex_t a, complex_t b) { return {a.real + b.real, a.imag + b.imag}; }
  friend complex_t operator-(complex_t a, complex_t b) { return {a.real - b.real, a.imag - b.imag}; }
  friend complex_t operator*(complex_t a, complex_t b) {
    return {a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real};
  }
  friend complex_t operator/(complex_t a, complex_t b) {
    const T size = b.real * b.real + b.imag * b.imag;
    return {(a.real * b.real + a.imag * b.imag) / size, (a.imag * b.real - a.real * b.imag) / size};
  }
  friend complex_t operator-(complex_t a) { return {-a.real, -a.imag}; }
  friend bool operator==(complex_t a, complex_t b) { return a.real == b.real && a.imag == b.imag; }
};
typedef complex_t<float> complex64_t;
