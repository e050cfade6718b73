// The scalar, vector and address types of the Metal Shading Language that C++ does not have.
#pragma once

#include <cmath>
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
typedef __fp16 Number16;  // older compilers for ARM know it by this name alone
#else
typedef _Float16 Number16;
#endif

// A float of 16 bits: every operation is done in float32 and rounded once, to the nearest, ties to even.
struct half {
  half() = default;
  half(float x) : value(Number16(x)) {}
  template <class I>
    requires std::is_integral_v<I>
  half(I x) : value(Number16(float(x))) {}
  operator float() const { return float(value); }
  Number16 value;
};

// Metal converts to it from float32 only where the text says so.
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

template <class T, int N>
struct alignas(sizeof(T) * (N == 3 ? 4 : N)) vec;

template <class T>
struct alignas(sizeof(T) * 2) vec<T, 2> {
  T x, y;
  vec() = default;
  vec(T all) : x(all), y(all) {}
  vec(T a, T b) : x(a), y(b) {}
  template <class U>
  explicit vec(const vec<U, 2>& v) : x(T(v.x)), y(T(v.y)) {}
  T& operator[](int i) { return (&x)[i]; }
  const T& operator[](int i) const { return (&x)[i]; }
};

template <class T>
struct alignas(sizeof(T) * 4) vec<T, 3> {
  T x, y, z;
  vec() = default;
  vec(T all) : x(all), y(all), z(all) {}
  vec(T a, T b, T c) : x(a), y(b), z(c) {}
  template <class U>
  explicit vec(const vec<U, 3>& v) : x(T(v.x)), y(T(v.y)), z(T(v.z)) {}
  T& operator[](int i) { return (&x)[i]; }
  const T& operator[](int i) const { return (&x)[i]; }
};

template <class T>
struct alignas(sizeof(T) * 4) vec<T, 4> {
  T x, y, z, w;
  vec() = default;
  vec(T all) : x(all), y(all), z(all), w(all) {}
  vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
  vec(vec<T, 2> a, vec<T, 2> b) : x(a.x), y(a.y), z(b.x), w(b.y) {}
  template <class U>
  explicit vec(const vec<U, 4>& v) : x(T(v.x)), y(T(v.y)), z(T(v.z)), w(T(v.w)) {}
  T& operator[](int i) { return (&x)[i]; }
  const T& operator[](int i) const { return (&x)[i]; }
};

#define MSL_BY_ELEMENT(op)                                                         \
  template <class T, int N>                                                        \
  inline vec<T, N> operator op(vec<T, N> a, const vec<T, N>& b) {                  \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b[i]);                            \
    return a;                                                                      \
  }                                                                                \
  template <class T, int N>                                                        \
  inline vec<T, N> operator op(vec<T, N> a, std::type_identity_t<T> b) {           \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b);                               \
    return a;                                                                      \
  }                                                                                \
  template <class T, int N>                                                        \
  inline vec<T, N> operator op(std::type_identity_t<T> a, vec<T, N> b) {           \
    for (int i = 0; i < N; i++) b[i] = T(a op b[i]);                               \
    return b;                                                                      \
  }                                                                                \
  template <class T, int N, class B>                                               \
  inline vec<T, N>& operator op##=(vec<T, N>& a, const B& b) {                     \
    return a = a op b;                                                             \
  }
MSL_BY_ELEMENT(+)
MSL_BY_ELEMENT(-)
MSL_BY_ELEMENT(*)
MSL_BY_ELEMENT(/)
MSL_BY_ELEMENT(&)
MSL_BY_ELEMENT(|)
MSL_BY_ELEMENT(>>)
MSL_BY_ELEMENT(<<)
#undef MSL_BY_ELEMENT

template <class T, int N>
inline T dot(const vec<T, N>& a, const vec<T, N>& b) {
  T total = a[0] * b[0];
  for (int i = 1; i < N; i++) total += a[i] * b[i];
  return total;
}

#define MSL_VECTORS(type)              \
  typedef vec<type, 2> type##2;        \
  typedef vec<type, 3> type##3;        \
  typedef vec<type, 4> type##4;
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(half)
MSL_VECTORS(bfloat)
MSL_VECTORS(float)
#undef MSL_VECTORS

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
};

using std::conditional_t;
using std::enable_if_t;
using std::is_floating_point_v;
using std::is_integral_v;
using std::is_same_v;

template <class T>
struct numeric_limits : std::numeric_limits<T> {};
template <>
struct numeric_limits<half> {
  static half max() { return half(65504.f); }
  static half lowest() { return half(-65504.f); }
  static half infinity() { return half(INFINITY); }
};
template <>
struct numeric_limits<bfloat> {
  static bfloat max() { return bfloat(3.3895314e38f); }
  static bfloat lowest() { return bfloat(-3.3895314e38f); }
  static bfloat infinity() { return bfloat(INFINITY); }
};

}  // namespace metal

using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;
