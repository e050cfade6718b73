// Integer functions.
#pragma once

#include <bit>

#include "msl_math.h"

namespace metal {

#define MSL_INTEGER(name, expression)                             \
  template <class T>                                              \
    requires std::is_integral_v<T>                                \
  inline T name(T x) {                                            \
    typedef std::make_unsigned_t<T> U;                            \
    return T(expression);                                         \
  }                                                               \
  template <class T, int N>                                       \
  inline vec<T, N> name(const vec<T, N>& v) {                     \
    return vec_by_element([](T x) { return name(x); }, v);            \
  }
MSL_INTEGER(popcount, std::popcount(U(x)))
MSL_INTEGER(clz, std::countl_zero(U(x)))
MSL_INTEGER(ctz, std::countr_zero(U(x)))
#undef MSL_INTEGER

template <class T>
  requires std::is_integral_v<T>
inline T reverse_bits(T x) {
  std::make_unsigned_t<T> y = 0, left = std::make_unsigned_t<T>(x);
  for (size_t i = 0; i < 8 * sizeof(T); i++, left >>= 1) y = std::make_unsigned_t<T>(y << 1 | (left & 1));
  return T(y);
}
template <class T>
  requires std::is_integral_v<T>
inline T rotate(T x, T by) {
  return T(std::rotl(std::make_unsigned_t<T>(x), int(by % T(8 * sizeof(T)))));
}
inline uint mulhi(uint a, uint b) { return uint(uint64_t(a) * b >> 32); }
inline int mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline ulong mulhi(ulong a, ulong b) { return ulong((unsigned __int128)a * b >> 64); }
inline uint madhi(uint a, uint b, uint c) { return mulhi(a, b) + c; }
inline uint mul24(uint a, uint b) { return (a & 0xffffff) * (b & 0xffffff); }
template <class T>
  requires std::is_integral_v<T>
inline std::make_unsigned_t<T> absdiff(T a, T b) {
  typedef std::make_unsigned_t<T> U;
  return a > b ? U(U(a) - U(b)) : U(U(b) - U(a));
}
template <class T>
  requires std::is_integral_v<T>
inline T addsat(T a, T b) {
  T sum;
  return !__builtin_add_overflow(a, b, &sum) ? sum : b < 0 ? std::numeric_limits<T>::min() : std::numeric_limits<T>::max();
}
template <class T>
  requires std::is_integral_v<T>
inline T subsat(T a, T b) {
  T sum;
  return !__builtin_sub_overflow(a, b, &sum) ? sum
         : b < 0                             ? std::numeric_limits<T>::max()
                                             : std::numeric_limits<T>::min();
}
template <class T>
  requires std::is_integral_v<T>
inline T hadd(T a, T b) {
  return T((a & b) + ((a ^ b) >> 1));
}
template <class T>
  requires std::is_integral_v<T>
inline T rhadd(T a, T b) {
  return T((a | b) - ((a ^ b) >> 1));
}
template <class T>
  requires std::is_integral_v<T>
inline T extract_bits(T x, uint offset, uint bits) {
  if (bits == 0) return 0;
  const uint size = 8 * sizeof(T);
  return T(T(std::make_unsigned_t<T>(x) << (size - bits - offset)) >> (size - bits));
}
template <class T>
  requires std::is_integral_v<T>
inline T insert_bits(T base, T insert, uint offset, uint bits) {
  typedef std::make_unsigned_t<T> U;
  if (bits == 0) return base;
  const U mask = U(U(~U(0)) >> (8 * sizeof(T) - bits)) << offset;
  return T((U(base) & ~mask) | (U(insert) << offset & mask));
}

}  // namespace metal
