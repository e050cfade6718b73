// Mathematical functions of the Metal Shading Language, in float32; 16-bit arguments give 16-bit results.
#pragma once

#include <bit>
#include <cmath>

#include "msl_vectors.h"

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
#define MSL_OF_VECTORS(name)                                     \
  template <class T, int N>                                      \
  inline auto name(const vec<T, N>& v) {                         \
    return vec_by_element([](T x) { return name(x); }, v);           \
  }
#define MSL_EXACT_FUNCTION(name, expression)                     \
  namespace precise {                                            \
  inline float name(float x) { return expression; }              \
  MSL_OF_VECTORS(name)                                           \
  }                                                              \
  namespace fast {                                               \
  inline float name(float x) { return expression; }              \
  MSL_OF_VECTORS(name)                                           \
  }                                                              \
  inline float name(float x) { return expression; }              \
  MSL_OF_VECTORS(name)                                           \
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
MSL_FUNCTION(asinh, std::asinh(x))
MSL_FUNCTION(acosh, std::acosh(x))
MSL_FUNCTION(atanh, std::atanh(x))
MSL_FUNCTION(sinpi, std::sin(3.14159274101257f * x))
MSL_FUNCTION(cospi, std::cos(3.14159274101257f * x))
MSL_FUNCTION(tanpi, std::tan(3.14159274101257f * x))
MSL_EXACT_FUNCTION(fabs, std::fabs(x))
MSL_EXACT_FUNCTION(floor, std::floor(x))
MSL_EXACT_FUNCTION(ceil, std::ceil(x))
MSL_EXACT_FUNCTION(rint, std::nearbyint(x))
MSL_EXACT_FUNCTION(round, std::round(x))
MSL_EXACT_FUNCTION(trunc, std::trunc(x))
MSL_EXACT_FUNCTION(sign, float((x > 0) - (x < 0)))
MSL_EXACT_FUNCTION(fract, std::min(x - std::floor(x), 0x1.fffffep-1f))
MSL_EXACT_FUNCTION(saturate, x > 0 ? (x < 1 ? x : 1.f) : 0.f)
#undef MSL_FUNCTION
#undef MSL_EXACT_FUNCTION

// Of two or three numbers or vectors; a number beside vectors stands for all elements.
#define MSL_TWO(name, expression)                                                         \
  inline float name(float x, float y) { return expression; }                              \
  template <class A, class B>                                                             \
    requires(vec_is<A> || vec_is<B>)                                                      \
  inline auto name(const A& a, const B& b) {                                              \
    return vec_by_pair([](float x, float y) { return name(x, y); }, a, b);                    \
  }
template <class F, class A, class B>
inline auto vec_by_pair(F f, const A& a, const B& b) {
  typedef typename VecElement<A>::type T;
  if constexpr (vec_is<A>) return vec_by_element([f](T x, auto y) { return T(f(x, y)); }, a, b);
  else return vec_by_element([f](auto y, T x) { return decltype(y)(f(x, y)); }, b, a);
}
#define MSL_TWO_WAYS(name, expression)       \
  namespace precise {                        \
  MSL_TWO(name, expression)                  \
  }                                          \
  namespace fast {                           \
  MSL_TWO(name, expression)                  \
  }                                          \
  MSL_TWO(name, expression)
MSL_TWO_WAYS(pow, loosely(std::pow(x, y)))
MSL_TWO_WAYS(powr, loosely(std::pow(x, y)))
MSL_TWO_WAYS(atan2, loosely(std::atan2(x, y)))
MSL_TWO_WAYS(fmod, std::fmod(x, y))
MSL_TWO_WAYS(copysign, std::copysign(x, y))
MSL_TWO_WAYS(fdim, std::fdim(x, y))
MSL_TWO_WAYS(step, y < x ? 0.f : 1.f)
#undef MSL_TWO_WAYS
namespace precise {
inline float divide(float x, float y) { return x / y; }
}  // namespace precise
namespace fast {
inline float divide(float x, float y) { return loosely(x / y); }
}  // namespace fast
inline float divide(float x, float y) { return x / y; }
inline float ldexp(float x, int by) { return std::ldexp(x, by); }
inline float frexp(float x, int& by) { return std::frexp(x, &by); }
inline float modf(float x, float& whole) { return std::modf(x, &whole); }
inline int ilogb(float x) { return std::ilogb(x); }
inline float sincos(float x, float& c) {
  c = cos(x);
  return sin(x);
}
inline bool signbit(float x) { return std::signbit(x); }
template <class T>
inline auto mix(const T& x, const T& y, const T& a) {
  return x + (y - x) * a;
}
template <class T>
inline T smoothstep(T low, T high, T x) {
  const T t = saturate(T((x - low) / (high - low)));
  return t * t * (T(3) - T(2) * t);
}

inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline half fma(half a, half b, half c) { return half(std::fma(float(a), float(b), float(c))); }
template <class T, int N>
inline vec<T, N> fma(const vec<T, N>& a, const vec<T, N>& b, const vec<T, N>& c) {
  return vec_by_element([](T x, T y, T z) { return fma(x, y, z); }, a, b, c);
}
inline float mad(float a, float b, float c) { return a * b + c; }

template <class T>
  requires(std::is_arithmetic_v<T> || is_small<T>)
inline T abs(T x) {
  return x < T(0) ? T(-x) : x;
}
inline float abs(float x) { return std::fabs(x); }
template <class T, int N>
inline vec<T, N> abs(const vec<T, N>& v) {
  return vec_by_element([](T x) { return abs(x); }, v);
}

// The larger, or smaller; of a number and NaN, the number.
template <class T>
  requires(!vec_is<T>)
inline T max(T a, T b) {
  return a != a ? b : b != b ? a : a > b ? a : b;
}
template <class T>
  requires(!vec_is<T>)
inline T min(T a, T b) {
  return a != a ? b : b != b ? a : a < b ? a : b;
}
#define MSL_CHOSEN(name)                                                  \
  template <class T, int N>                                               \
  inline vec<T, N> name(const vec<T, N>& a, const vec<T, N>& b) {         \
    return vec_by_element([](T x, T y) { return name(x, y); }, a, b);         \
  }                                                                       \
  template <class T, int N>                                               \
  inline vec<T, N> name(const vec<T, N>& a, std::type_identity_t<T> b) {  \
    return vec_by_element([](T x, T y) { return name(x, y); }, a, b);         \
  }
MSL_CHOSEN(max)
MSL_CHOSEN(min)
inline float fmax(float a, float b) { return max(a, b); }
inline float fmin(float a, float b) { return min(a, b); }
inline half fmax(half a, half b) { return max(a, b); }
inline half fmin(half a, half b) { return min(a, b); }
MSL_CHOSEN(fmax)
MSL_CHOSEN(fmin)
#undef MSL_CHOSEN
template <class T>
inline T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}
template <class T, int N>
inline vec<T, N> clamp(const vec<T, N>& x, std::type_identity_t<T> low, std::type_identity_t<T> high) {
  return min(max(x, low), high);
}
template <class T>
inline T select(T no, T yes, bool which) {
  return which ? yes : no;
}
template <class T, int N>
inline vec<T, N> select(const vec<T, N>& no, const vec<T, N>& yes, const vec<bool, N>& which) {
  return vec_by_element([](T a, T b, bool c) { return c ? b : a; }, no, yes, which);
}

#define MSL_TOLD(name, expression)                                \
  template <class T>                                              \
    requires(!vec_is<T>)                                          \
  inline bool name(T given) {                                     \
    const float x = float(given);                                 \
    return expression;                                            \
  }                                                               \
  template <class T, int N>                                       \
  inline vec<bool, N> name(const vec<T, N>& v) {                  \
    return vec_by_element([](T x) { return name(x); }, v);            \
  }
MSL_TOLD(isnan, x != x)
MSL_TOLD(isinf, std::isinf(x))
MSL_TOLD(isfinite, std::isfinite(x))
MSL_TOLD(isnormal, std::isnormal(x))
#undef MSL_TOLD

template <int N>
inline bool any(const vec<bool, N>& v) {
  for (int i = 0; i < N; i++)
    if (v[i]) return true;
  return false;
}
template <int N>
inline bool all(const vec<bool, N>& v) {
  return !any(!v);
}
inline bool any(bool x) { return x; }
inline bool all(bool x) { return x; }

template <class T, int N>
inline T dot(const vec<T, N>& a, const vec<T, N>& b) {
  T total = a[0] * b[0];
  for (int i = 1; i < N; i++) total += a[i] * b[i];
  return total;
}
template <class T, int N>
inline T length_squared(const vec<T, N>& v) {
  return dot(v, v);
}
template <class T, int N>
inline T length(const vec<T, N>& v) {
  return T(sqrt(dot(v, v)));
}
template <class T, int N>
inline T distance(const vec<T, N>& a, const vec<T, N>& b) {
  return length(a - b);
}
template <class T, int N>
inline vec<T, N> normalize(const vec<T, N>& v) {
  return v * T(rsqrt(dot(v, v)));
}
template <class T>
inline vec<T, 3> cross(const vec<T, 3>& a, const vec<T, 3>& b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

}  // namespace metal
