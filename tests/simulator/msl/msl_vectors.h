// Vectors: construction, swizzles, and elementwise operations.
#pragma once

#include "msl_traits.h"

namespace metal {

template <class T, int N>
struct vec;

template <class T>
inline constexpr int vec_width = 1;  // elements of a vector
template <class T, int N>
inline constexpr int vec_width<vec<T, N>> = N;

template <class T, class P>
inline constexpr bool vec_fits = std::is_convertible_v<P, T>;
template <class T, int N>
inline constexpr bool vec_fits<T, vec<T, N>> = true;
template <class T, class U, int N>
inline constexpr bool vec_fits<T, vec<U, N>> = false;

// References to elements of a vector, for writing.
template <class T, int... I>
struct VecElements {
  static constexpr int N = sizeof...(I);
  T* of;
  static constexpr int at[] = {I...};

  static constexpr bool differ() {
    for (int i = 0; i < N; i++)
      for (int j = 0; j < i; j++)
        if (at[i] == at[j]) return false;
    return true;
  }
  static_assert(differ(), "a component is written twice");
  operator vec<T, N>() const { return vec<T, N>(of[I]...); }
  VecElements& operator=(const vec<T, N>& v) {
    for (int i = 0; i < N; i++) of[at[i]] = v[i];
    return *this;
  }
};

#define MSL_PARTS(N)                                                                                      \
  T& operator[](int i) { return (&x)[i]; }                                                                \
  const T& operator[](int i) const { return (&x)[i]; }                                                    \
  template <int... I>                                                                                     \
  vec<T, int(sizeof...(I))> parts() const {                                                               \
    static_assert(((I < N) && ...), "the vector has no such component");                                  \
    return vec<T, int(sizeof...(I))>((&x)[I]...);                                                         \
  }                                                                                                       \
  template <int... I>                                                                                     \
  VecElements<T, I...> set_parts() {                                                                         \
    static_assert(((I < N) && ...), "the vector has no such component");                                  \
    return {&x};                                                                                          \
  }                                                                                                       \
  template <class... P>                                                                                   \
    requires((sizeof...(P) > 1) && (vec_fits<T, P> && ...) && (vec_width<P> + ...) == N)                           \
  vec(const P&... given) {                                                                                \
    int i = 0;                                                                                            \
    (put(i, given), ...);                                                                                 \
  }                                                                                                       \
  template <class P>                                                                                      \
  void put(int& i, const P& given) {                                                                      \
    if constexpr (vec_width<P> == 1) (&x)[i++] = T(given);                                                    \
    else                                                                                                  \
      for (int j = 0; j < vec_width<P>; j++) (&x)[i++] = given[j];                                            \
  }                                                                                                       \
  vec() = default;                                                                                        \
  vec(T all) {                                                                                            \
    for (int i = 0; i < N; i++) (&x)[i] = all;                                                            \
  }                                                                                                       \
  template <class U>                                                                                      \
    requires(!std::is_same_v<T, U>)                                                                       \
  explicit vec(const vec<U, N>& v) {                                                                      \
    for (int i = 0; i < N; i++) (&x)[i] = T(v[i]);                                                        \
  }

template <class T>
struct alignas(sizeof(T) * 2) vec<T, 2> {
  union { T x, r; };
  union { T y, g; };
  MSL_PARTS(2)
  T lo() const { return x; }
  T hi() const { return y; }
  T even() const { return x; }
  T odd() const { return y; }
  T& set_lo() { return x; }
  T& set_hi() { return y; }
  T& set_even() { return x; }
  T& set_odd() { return y; }
};

template <class T>
struct alignas(sizeof(T) * 4) vec<T, 3> {
  union { T x, r; };
  union { T y, g; };
  union { T z, b; };
  MSL_PARTS(3)
};

template <class T>
struct alignas(sizeof(T) * 4) vec<T, 4> {
  union { T x, r; };
  union { T y, g; };
  union { T z, b; };
  union { T w, a; };
  MSL_PARTS(4)
  vec<T, 2> lo() const { return {x, y}; }
  vec<T, 2> hi() const { return {z, w}; }
  vec<T, 2> even() const { return {x, z}; }
  vec<T, 2> odd() const { return {y, w}; }
  VecElements<T, 0, 1> set_lo() { return {&x}; }
  VecElements<T, 2, 3> set_hi() { return {&x}; }
  VecElements<T, 0, 2> set_even() { return {&x}; }
  VecElements<T, 1, 3> set_odd() { return {&x}; }
};
#undef MSL_PARTS

#define MSL_OPERATOR(op, R)                                                                \
  template <class T, int N>                                                                \
  inline vec<R, N> operator op(const vec<T, N>& a, const vec<T, N>& b) {                   \
    vec<R, N> to;                                                                          \
    for (int i = 0; i < N; i++) to[i] = R(a[i] op b[i]);                                   \
    return to;                                                                             \
  }                                                                                        \
  template <class T, int N>                                                                \
  inline vec<R, N> operator op(const vec<T, N>& a, std::type_identity_t<T> b) {            \
    vec<R, N> to;                                                                          \
    for (int i = 0; i < N; i++) to[i] = R(a[i] op b);                                      \
    return to;                                                                             \
  }                                                                                        \
  template <class T, int N>                                                                \
  inline vec<R, N> operator op(std::type_identity_t<T> a, const vec<T, N>& b) {            \
    vec<R, N> to;                                                                          \
    for (int i = 0; i < N; i++) to[i] = R(a op b[i]);                                      \
    return to;                                                                             \
  }
#define MSL_BY_ELEMENT(op)                                                                 \
  MSL_OPERATOR(op, T)                                                                      \
  template <class T, int N, class B>                                                       \
  inline vec<T, N>& operator op##=(vec<T, N>& a, const B& b) {                             \
    return a = a op b;                                                                     \
  }                                                                                        \
  template <class T, int... I, class B>                                                    \
  inline void operator op##=(VecElements<T, I...> a, const B& b) {                            \
    a = vec<T, int(sizeof...(I))>(a) op b;                                                 \
  }
MSL_BY_ELEMENT(+)
MSL_BY_ELEMENT(-)
MSL_BY_ELEMENT(*)
MSL_BY_ELEMENT(/)
MSL_BY_ELEMENT(%)
MSL_BY_ELEMENT(&)
MSL_BY_ELEMENT(|)
MSL_BY_ELEMENT(^)
MSL_BY_ELEMENT(>>)
MSL_BY_ELEMENT(<<)
MSL_OPERATOR(<, bool)
MSL_OPERATOR(<=, bool)
MSL_OPERATOR(>, bool)
MSL_OPERATOR(>=, bool)
MSL_OPERATOR(==, bool)
MSL_OPERATOR(!=, bool)
MSL_OPERATOR(&&, bool)
MSL_OPERATOR(||, bool)
#undef MSL_BY_ELEMENT
#undef MSL_OPERATOR

template <class T, int N>
inline vec<T, N> operator-(const vec<T, N>& v) {
  return T(0) - v;
}
template <class T, int N>
inline vec<T, N> operator+(const vec<T, N>& v) {
  return v;
}
template <class T, int N>
inline vec<T, N> operator~(vec<T, N> v) {
  for (int i = 0; i < N; i++) v[i] = T(~v[i]);
  return v;
}
template <class T, int N>
inline vec<bool, N> operator!(const vec<T, N>& v) {
  return v == T(0);
}

#define MSL_VECTORS(type)              \
  typedef vec<type, 2> type##2;        \
  typedef vec<type, 3> type##3;        \
  typedef vec<type, 4> type##4;
MSL_VECTORS(bool)
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

// The element type of a vector; a number's own type.
template <class T>
struct VecElement {
  typedef T type;
};
template <class T, int N>
struct VecElement<vec<T, N>> {
  typedef T type;
};

// Applies f to each element of vectors; numbers are broadcast.
template <class T>
inline constexpr bool vec_is = vec_width<T> > 1;
template <class F, class A, class... B>
inline auto vec_by_element(F f, const A& a, const B&... b) {
  constexpr int N = vec_width<A>;
  const auto at = [](const auto& x, int i) {
    if constexpr (vec_width<std::decay_t<decltype(x)>> == 1) return x;
    else return x[i];
  };
  vec<decltype(f(at(a, 0), at(b, 0)...)), N> to;
  for (int i = 0; i < N; i++) to[i] = f(at(a, i), at(b, i)...);
  return to;
}

}  // namespace metal
