// The scalar, vector and address types of the Metal Shading Language that C++ does not have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

namespace metal {

#if defined(__aarch64__) && __GNUC__ < 13
typedef __fp16 Number16;  // the only name in older compilers for ARM
#else
typedef _Float16 Number16;
#endif

// A 16-bit float: every operation is computed in float32 and rounded once, to the nearest, ties to even.
struct half {
  half() = default;
  half(float x) : value(Number16(x)) {}
  template <class I>
    requires std::is_integral_v<I>
  half(I x) : value(Number16(float(x))) {}
  operator float() const { return float(value); }
  Number16 value;
};

// Metal converts to it from float32 only explicitly.
struct bfloat {
  bfloat() = default;
  explicit bfloat(float x) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    bits = x != x ? uint16_t(word >> 16 | 0x40) : uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  template <class I>
    requires std::is_integral_v<I>
  bfloat(I x) : bfloat(float(x)) {}
  operator float() const {
    const uint32_t word = uint32_t(bits) << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
  uint16_t bits;
};

template <class T>
inline constexpr bool is_small = std::is_same_v<T, half> || std::is_same_v<T, bfloat>;

template <class A, class B>
struct Common {
  static_assert(!(is_small<A> && is_small<B>) || std::is_same_v<A, B>, "half and bfloat do not mix");
  using small = std::conditional_t<is_small<A>, A, B>;
  using other = std::conditional_t<is_small<A>, B, A>;
  using type = std::conditional_t<std::is_same_v<other, float>, float, small>;
};

template <class A, class B>
concept Mixed = (is_small<A> || is_small<B>) && (is_small<A> || std::is_arithmetic_v<A>) &&
                (is_small<B> || std::is_arithmetic_v<B>);

#define MSL_ARITHMETIC(op)                                                                  \
  template <class A, class B>                                                               \
    requires Mixed<A, B>                                                                    \
  inline auto operator op(A a, B b) {                                                       \
    return typename Common<A, B>::type(float(a) op float(b));                               \
  }                                                                                         \
  template <class A, class B>                                                               \
    requires(is_small<A> && (std::is_same_v<A, B> || std::is_integral_v<B> || std::is_same_v<A, half>)) \
  inline A& operator op##=(A& a, B b) {                                                     \
    return a = A(float(a) op float(b));                                                     \
  }
MSL_ARITHMETIC(+)
MSL_ARITHMETIC(-)
MSL_ARITHMETIC(*)
MSL_ARITHMETIC(/)
#undef MSL_ARITHMETIC

#define MSL_COMPARISON(op)                                                        \
  template <class A, class B>                                                     \
    requires Mixed<A, B>                                                          \
  inline bool operator op(A a, B b) {                                             \
    return float(a) op float(b);                                                  \
  }
MSL_COMPARISON(<)
MSL_COMPARISON(<=)
MSL_COMPARISON(>)
MSL_COMPARISON(>=)
MSL_COMPARISON(==)
MSL_COMPARISON(!=)
#undef MSL_COMPARISON

inline half operator-(half x) { return half(-float(x)); }
inline bfloat operator-(bfloat x) { return bfloat(-float(x)); }

template <class To, class From>
inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, size_t N>
struct array {
  T values[N];
  T& operator[](size_t i) { return values[i]; }
  const T& operator[](size_t i) const { return values[i]; }
  static constexpr size_t size() { return N; }
  T* begin() { return values; }
  T* end() { return values + N; }
  const T* begin() const { return values; }
  const T* end() const { return values + N; }
};

}  // namespace metal

using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;
