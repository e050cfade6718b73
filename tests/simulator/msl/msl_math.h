// Mathematical functions of the Metal Shading Language, in float32; 16-bit arguments give 16-bit results.
#pragma once

#include <bit>
#include <cmath>

#include "msl_types.h"

#undef INFINITY
#define INFINITY (__builtin_inff())
#define M_PI_F 3.14159274101257f
#define M_LOG2E_F 1.44269504088896f
#define M_LN2_F 0.693147180559945f
#define M_SQRT2_F 1.41421356237310f

namespace metal {

// With SIMULATOR_ULP, functions that Metal need not round well are up to that many units in the last place away, up or down.
inline float loosely(float x) {
#ifdef SIMULATOR_ULP
  if (x == 0 || !std::isnormal(x)) return x;
  const uint word = as_type<uint>(x), turned = (word ^ word >> 15) * 2654435761u;
  const float moved = as_type<float>(word + turned % uint(2 * SIMULATOR_ULP + 1) - uint(SIMULATOR_ULP));
  return std::isnormal(moved) ? moved : x;
#else
  return x;
#endif
}

#define MSL_FUNCTION(name, expression) MSL_EXACT_FUNCTION(name, loosely(expression))
#define MSL_EXACT_FUNCTION(name, expression)                     \
  namespace precise {                                            \
  inline float name(float x) { return expression; }              \
  }                                                              \
  namespace fast {                                               \
  inline float name(float x) { return expression; }              \
  }                                                              \
  inline float name(float x) { return expression; }              \
  inline half name(half x) { return half(name(float(x))); }      \
  inline float name(bfloat x) { return name(float(x)); }
MSL_FUNCTION(exp, std::exp(x))
MSL_FUNCTION(exp2, std::exp2(x))
MSL_FUNCTION(exp10, std::pow(10.f, x))
MSL_FUNCTION(log, std::log(x))
MSL_FUNCTION(log2, std::log2(x))
MSL_FUNCTION(log10, std::log10(x))
MSL_FUNCTION(sqrt, std::sqrt(x))
MSL_FUNCTION(rsqrt, 1.f / std::sqrt(x))
MSL_FUNCTION(sin, std::sin(x))
MSL_FUNCTION(cos, std::cos(x))
MSL_FUNCTION(tan, std::tan(x))
MSL_FUNCTION(tanh, std::tanh(x))
MSL_FUNCTION(sinh, std::sinh(x))
MSL_FUNCTION(cosh, std::cosh(x))
MSL_FUNCTION(asin, std::asin(x))
MSL_FUNCTION(acos, std::acos(x))
MSL_FUNCTION(atan, std::atan(x))
MSL_EXACT_FUNCTION(fabs, std::fabs(x))
MSL_EXACT_FUNCTION(floor, std::floor(x))
MSL_EXACT_FUNCTION(ceil, std::ceil(x))
MSL_EXACT_FUNCTION(rint, std::nearbyint(x))
MSL_EXACT_FUNCTION(round, std::round(x))
MSL_EXACT_FUNCTION(trunc, std::trunc(x))
MSL_EXACT_FUNCTION(sign, float((x > 0) - (x < 0)))
#undef MSL_FUNCTION
#undef MSL_EXACT_FUNCTION

namespace precise {
inline float pow(float x, float y) { return loosely(std::pow(x, y)); }
inline float divide(float x, float y) { return x / y; }
}  // namespace precise
namespace fast {
inline float pow(float x, float y) { return loosely(std::pow(x, y)); }
inline float divide(float x, float y) { return loosely(x / y); }
}  // namespace fast
inline float pow(float x, float y) { return loosely(std::pow(x, y)); }

inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline half fma(half a, half b, half c) { return half(std::fma(float(a), float(b), float(c))); }
inline float mad(float a, float b, float c) { return a * b + c; }

template <class T>
  requires(std::is_arithmetic_v<T> || is_small<T>)
inline T abs(T x) {
  return x < T(0) ? T(-x) : x;
}
inline float abs(float x) { return std::fabs(x); }

// The larger, or smaller; of a number and NaN, the number.
template <class T>
inline T max(T a, T b) {
  return a != a ? b : b != b ? a : a > b ? a : b;
}
template <class T>
inline T min(T a, T b) {
  return a != a ? b : b != b ? a : a < b ? a : b;
}
template <class T>
inline T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}
inline float fmax(float a, float b) { return max(a, b); }
inline float fmin(float a, float b) { return min(a, b); }
template <class T>
inline T select(T no, T yes, bool which) {
  return which ? yes : no;
}

template <class T>
inline bool isnan(T x) {
  return float(x) != float(x);
}
template <class T>
inline bool isinf(T x) {
  return std::isinf(float(x));
}
template <class T>
inline bool isfinite(T x) {
  return std::isfinite(float(x));
}

template <class T>
inline T popcount(T x) {
  return T(std::popcount(std::make_unsigned_t<T>(x)));
}
template <class T>
inline T clz(T x) {
  return T(std::countl_zero(std::make_unsigned_t<T>(x)));
}
template <class T>
inline T ctz(T x) {
  return T(std::countr_zero(std::make_unsigned_t<T>(x)));
}
inline uint reverse_bits(uint x) {
  uint y = 0;
  for (int i = 0; i < 32; i++) y = y << 1 | (x >> i & 1);
  return y;
}
inline uint mulhi(uint a, uint b) { return uint(uint64_t(a) * b >> 32); }

}  // namespace metal
