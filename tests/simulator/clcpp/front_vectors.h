// Scalar and vector types, and names of address spaces.
#pragma once

#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION cl_khr_int64_base_atomics : enable

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef unsigned long size_t;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;

#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
#define METAL_FUNC inline
#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
#define M_PI_F 3.14159274101257f
#define M_LOG2E_F 1.44269504088896f
#define M_LN2_F 0.693147180559945f
#define M_SQRT2_F 1.41421356237310f

namespace metal {

// Converted from float only explicitly.
struct bfloat {
  bfloat() = default;
  explicit bfloat(float);
  explicit bfloat(half);
  explicit bfloat(int);
  explicit bfloat(uint);
  bfloat(const bfloat&) = default;
  bfloat(const __constant bfloat&);
  operator float() const;
  operator float() const __constant;
  ushort bits;
};

template <class T, int N>
struct vec;

template <class T>
struct same {
  typedef T type;
};

// References to elements of a vector, for writing.
template <class T, int N>
struct VecElements {
  void operator=(vec<T, N>);
  void operator+=(vec<T, N>);
  void operator-=(vec<T, N>);
  void operator*=(vec<T, N>);
  void operator/=(vec<T, N>);
  operator vec<T, N>() const;
};

#define MSL_PARTS(N)                                     \
  vec() = default;                                       \
  vec(T);                                                \
  vec(const vec&) = default;                             \
  vec(const __constant vec&);                            \
  template <class U>                                     \
  explicit vec(vec<U, N>);                               \
  __generic T& operator[](int);                          \
  T operator[](int) const;                               \
  template <int... I>                                    \
  vec<T, int(sizeof...(I))> parts() const;               \
  template <int... I>                                    \
  vec<T, int(sizeof...(I))> parts() const __constant;    \
  template <int... I>                                    \
  VecElements<T, int(sizeof...(I))> set_parts();

template <class T>
struct vec<T, 2> {
  union { T x, r; };
  union { T y, g; };
  vec(T, T);
  vec(T, T) __constant;
  MSL_PARTS(2)
  T lo() const;
  T hi() const;
  T even() const;
  T odd() const;
  __generic T& set_lo();
  __generic T& set_hi();
  __generic T& set_even();
  __generic T& set_odd();
};
template <class T>
struct vec<T, 3> {
  union { T x, r; };
  union { T y, g; };
  union { T z, b; };
  vec(T, T, T);
  vec(T, T, T) __constant;
  vec(vec<T, 2>, T);
  vec(T, vec<T, 2>);
  MSL_PARTS(3)
};
template <class T>
struct vec<T, 4> {
  union { T x, r; };
  union { T y, g; };
  union { T z, b; };
  union { T w, a; };
  vec(T, T, T, T);
  vec(T, T, T, T) __constant;
  vec(vec<T, 2>, vec<T, 2>);
  vec(vec<T, 2>, T, T);
  vec(T, vec<T, 2>, T);
  vec(T, T, vec<T, 2>);
  vec(vec<T, 3>, T);
  vec(T, vec<T, 3>);
  MSL_PARTS(4)
  vec<T, 2> lo() const;
  vec<T, 2> hi() const;
  vec<T, 2> even() const;
  vec<T, 2> odd() const;
  VecElements<T, 2> set_lo();
  VecElements<T, 2> set_hi();
  VecElements<T, 2> set_even();
  VecElements<T, 2> set_odd();
};
#undef MSL_PARTS

#define MSL_BY_ELEMENT(op)                                              \
  template <class T, int N>                                             \
  vec<T, N> operator op(vec<T, N>, vec<T, N>);                          \
  template <class T, int N>                                             \
  vec<T, N> operator op(vec<T, N>, typename same<T>::type);             \
  template <class T, int N>                                             \
  vec<T, N> operator op(typename same<T>::type, vec<T, N>);             \
  template <class T, int N>                                             \
  vec<T, N> operator op##=(__private vec<T, N>&, vec<T, N>);            \
  template <class T, int N>                                             \
  vec<T, N> operator op##=(__private vec<T, N>&, typename same<T>::type);
MSL_BY_ELEMENT(+)
MSL_BY_ELEMENT(-)
MSL_BY_ELEMENT(*)
MSL_BY_ELEMENT(/)
MSL_BY_ELEMENT(&)
MSL_BY_ELEMENT(|)
MSL_BY_ELEMENT(>>)
MSL_BY_ELEMENT(<<)
MSL_BY_ELEMENT(^)
MSL_BY_ELEMENT(%)
#undef MSL_BY_ELEMENT
#define MSL_COMPARISON(op)                                     \
  template <class T, int N>                                    \
  vec<bool, N> operator op(vec<T, N>, vec<T, N>);              \
  template <class T, int N>                                    \
  vec<bool, N> operator op(vec<T, N>, typename same<T>::type);
MSL_COMPARISON(<)
MSL_COMPARISON(<=)
MSL_COMPARISON(>)
MSL_COMPARISON(>=)
MSL_COMPARISON(==)
MSL_COMPARISON(!=)
#undef MSL_COMPARISON
template <class T, int N>
vec<T, N> operator-(vec<T, N>);
template <class T, int N>
vec<bool, N> operator!(vec<T, N>);
template <int N>
bool any(vec<bool, N>);
template <int N>
bool all(vec<bool, N>);
template <class T, int N>
T length(vec<T, N>);
template <class T, int N>
T distance(vec<T, N>, vec<T, N>);
template <class T, int N>
vec<T, N> normalize(vec<T, N>);
template <class T>
vec<T, 3> cross(vec<T, 3>, vec<T, 3>);
template <class T, int N>
T dot(vec<T, N>, vec<T, N>);

#define MSL_VECTORS(type)       \
  typedef vec<type, 2> type##2; \
  typedef vec<type, 3> type##3; \
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
MSL_VECTORS(float)
#undef MSL_VECTORS

template <class T, size_t N>
struct array {
  T values[N];
  __generic T& operator[](size_t);
  const __generic T& operator[](size_t) const;
  size_t size() const;
};

}  // namespace metal
