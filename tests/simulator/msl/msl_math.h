// Mathematical functions of the Metal Shading Language, in float32; 16-bit arguments give 16-bit results.
#pragma once

#include "msl_vectors.h"

#undef INFINITY
#define INFINITY (__builtin_inff())
#undef NAN
#define NAN (__builtin_nanf(""))
#define M_PI_F 3.14159274101257f
#define M_LOG2E_F 1.44269504088896f
#define M_LN2_F 0.693147180559945f
#define M_LN10_F 2.30258509299405f
#define M_LOG10E_F 0.434294481903252f
#define M_E_F 2.71828182845905f
#define M_PI_2_F 1.57079632679490f
#define M_PI_4_F 0.785398163397448f
#define M_1_PI_F 0.318309886183791f
#define M_2_PI_F 0.636619772367581f
#define M_SQRT1_2_F 0.707106781186548f
#define M_SQRT2_F 1.41421356237310f

namespace metal {

// With SIMULATOR_ULP, functions that Metal need not round correctly are off by up to that many units in the last place.
inline float loosely(float x) {
#ifdef SIMULATOR_ULP
  if (x == 0 || !__builtin_isnormal(x)) return x;
  const uint word = as_type<uint>(x), turned = (word ^ word >> 15) * 2654435761u;
  const float moved = as_type<float>(word + turned % uint(2 * SIMULATOR_ULP + 1) - uint(SIMULATOR_ULP));
  return __builtin_isnormal(moved) ? moved : x;
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
MSL_FUNCTION(exp, __builtin_expf(x))
MSL_FUNCTION(exp2, __builtin_exp2f(x))
MSL_FUNCTION(exp10, __builtin_powf(10.f, x))
MSL_FUNCTION(log, __builtin_logf(x))
MSL_FUNCTION(log2, __builtin_log2f(x))
MSL_FUNCTION(log10, __builtin_log10f(x))
MSL_FUNCTION(sqrt, __builtin_sqrtf(x))
MSL_FUNCTION(rsqrt, 1.f / __builtin_sqrtf(x))
MSL_FUNCTION(sin, __builtin_sinf(x))
MSL_FUNCTION(cos, __builtin_cosf(x))
MSL_FUNCTION(tan, __builtin_tanf(x))
MSL_FUNCTION(tanh, __builtin_tanhf(x))
MSL_FUNCTION(sinh, __builtin_sinhf(x))
MSL_FUNCTION(cosh, __builtin_coshf(x))
MSL_FUNCTION(asin, __builtin_asinf(x))
MSL_FUNCTION(acos, __builtin_acosf(x))
MSL_FUNCTION(atan, __builtin_atanf(x))
MSL_FUNCTION(asinh, __builtin_asinhf(x))
MSL_FUNCTION(acosh, __builtin_acoshf(x))
MSL_FUNCTION(atanh, __builtin_atanhf(x))
MSL_FUNCTION(sinpi, __builtin_sinf(3.14159274101257f * x))
MSL_FUNCTION(cospi, __builtin_cosf(3.14159274101257f * x))
MSL_FUNCTION(tanpi, __builtin_tanf(3.14159274101257f * x))
MSL_EXACT_FUNCTION(fabs, __builtin_fabsf(x))
MSL_EXACT_FUNCTION(floor, __builtin_floorf(x))
MSL_EXACT_FUNCTION(ceil, __builtin_ceilf(x))
MSL_EXACT_FUNCTION(rint, __builtin_nearbyintf(x))
MSL_EXACT_FUNCTION(round, __builtin_roundf(x))
MSL_EXACT_FUNCTION(trunc, __builtin_truncf(x))
MSL_EXACT_FUNCTION(sign, float((x > 0) - (x < 0)))
MSL_EXACT_FUNCTION(fract, x - __builtin_floorf(x) < 1 ? x - __builtin_floorf(x) : 0x1.fffffep-1f)
MSL_EXACT_FUNCTION(saturate, x > 0 ? (x < 1 ? x : 1.f) : 0.f)
#undef MSL_FUNCTION
#undef MSL_EXACT_FUNCTION

// For two or three numbers or vectors; a number beside vectors is broadcast.
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
MSL_TWO_WAYS(pow, loosely(__builtin_powf(x, y)))
MSL_TWO_WAYS(powr, loosely(__builtin_powf(x, y)))
MSL_TWO_WAYS(atan2, loosely(__builtin_atan2f(x, y)))
MSL_TWO_WAYS(fmod, __builtin_fmodf(x, y))
MSL_TWO_WAYS(copysign, __builtin_copysignf(x, y))
MSL_TWO_WAYS(fdim, __builtin_fdimf(x, y))
MSL_TWO_WAYS(step, y < x ? 0.f : 1.f)
#undef MSL_TWO_WAYS
namespace precise {
inline float divide(float x, float y) { return x / y; }
}  // namespace precise
namespace fast {
inline float divide(float x, float y) { return loosely(x / y); }
}  // namespace fast
inline float divide(float x, float y) { return x / y; }
inline float ldexp(float x, int by) { return __builtin_ldexpf(x, by); }
inline float frexp(float x, int& by) { return __builtin_frexpf(x, &by); }
inline float modf(float x, float& whole) { return __builtin_modff(x, &whole); }
inline int ilogb(float x) { return __builtin_ilogbf(x); }
inline float sincos(float x, float& c) {
  c = cos(x);
  return sin(x);
}
inline bool signbit(float x) { return __builtin_signbit(x); }
template <class T>
inline auto mix(const T& x, const T& y, const T& a) {
  return x + (y - x) * a;
}
template <class T>
inline T smoothstep(T low, T high, T x) {
  const T t = saturate(T((x - low) / (high - low)));
  return t * t * (T(3) - T(2) * t);
}

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline half fma(half a, half b, half c) { return half(__builtin_fmaf(float(a), float(b), float(c))); }
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
inline float abs(float x) { return __builtin_fabsf(x); }
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
inline T min3(T a, T b, T c) {
  return min(min(a, b), c);
}
template <class T>
inline T max3(T a, T b, T c) {
  return max(max(a, b), c);
}
template <class T>
inline T median3(T a, T b, T c) {
  return max(min(a, b), min(max(a, b), c));
}
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
MSL_TOLD(isinf, __builtin_isinf(x))
MSL_TOLD(isfinite, __builtin_isfinite(x))
MSL_TOLD(isnormal, __builtin_isnormal(x))
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
