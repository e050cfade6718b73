// What a kernel calls, declared for clang's C++ for OpenCL, which tells memories apart as Metal does. Nothing is defined.
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

// Made of a float only where the text says so.
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
struct vec<T, 2> {
  T x, y;
  vec() = default;
  vec(T);
  vec(T, T);
  vec(const vec&) = default;
  vec(const __constant vec&);
  template <class U>
  explicit vec(vec<U, 2>);
  __generic T& operator[](int);
  T operator[](int) const;
};
template <class T>
struct vec<T, 3> {
  T x, y, z;
  vec() = default;
  vec(T);
  vec(T, T, T);
  vec(const vec&) = default;
  vec(const __constant vec&);
  template <class U>
  explicit vec(vec<U, 3>);
  __generic T& operator[](int);
  T operator[](int) const;
};
template <class T>
struct vec<T, 4> {
  T x, y, z, w;
  vec() = default;
  vec(T);
  vec(T, T, T, T);
  vec(vec<T, 2>, vec<T, 2>);
  vec(const vec&) = default;
  vec(const __constant vec&);
  template <class U>
  explicit vec(vec<U, 4>);
  __generic T& operator[](int);
  T operator[](int) const;
};

template <class T>
struct same {
  typedef T type;
};

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
#undef MSL_BY_ELEMENT
template <class T, int N>
T dot(vec<T, N>, vec<T, N>);

#define MSL_VECTORS(type)       \
  typedef vec<type, 2> type##2; \
  typedef vec<type, 3> type##3; \
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
MSL_VECTORS(float)
#undef MSL_VECTORS

template <class To, class From>
To as_type(From);

#define MSL_FUNCTION(name)         \
  namespace precise {              \
  float name(float);               \
  }                                \
  namespace fast {                 \
  float name(float);               \
  }                                \
  float name(float);               \
  half name(half);
MSL_FUNCTION(exp)
MSL_FUNCTION(exp2)
MSL_FUNCTION(exp10)
MSL_FUNCTION(log)
MSL_FUNCTION(log2)
MSL_FUNCTION(log10)
MSL_FUNCTION(sqrt)
MSL_FUNCTION(rsqrt)
MSL_FUNCTION(sin)
MSL_FUNCTION(cos)
MSL_FUNCTION(tan)
MSL_FUNCTION(tanh)
MSL_FUNCTION(fabs)
MSL_FUNCTION(floor)
MSL_FUNCTION(ceil)
MSL_FUNCTION(rint)
MSL_FUNCTION(round)
MSL_FUNCTION(trunc)
MSL_FUNCTION(sign)
#undef MSL_FUNCTION
namespace precise {
float pow(float, float);
float divide(float, float);
}  // namespace precise
namespace fast {
float pow(float, float);
float divide(float, float);
}  // namespace fast

template <class T>
T abs(T);
template <class T>
T max(T, T);
template <class T>
T min(T, T);
template <class T>
T clamp(T, T, T);
template <class T>
T select(T, T, bool);
template <class T>
T fma(T, T, T);
template <class T>
T popcount(T);
template <class T>
T clz(T);
template <class T>
T ctz(T);
template <class T>
bool isnan(T);
template <class T>
bool isinf(T);
template <class T>
bool isfinite(T);
uint reverse_bits(uint);
uint mulhi(uint, uint);

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define MSL_TOGETHER(name) \
  template <class T>       \
  T name(T);
MSL_TOGETHER(simd_sum)
MSL_TOGETHER(simd_product)
MSL_TOGETHER(simd_max)
MSL_TOGETHER(simd_min)
MSL_TOGETHER(simd_and)
MSL_TOGETHER(simd_or)
MSL_TOGETHER(simd_xor)
MSL_TOGETHER(simd_broadcast_first)
MSL_TOGETHER(simd_prefix_inclusive_sum)
MSL_TOGETHER(simd_prefix_exclusive_sum)
MSL_TOGETHER(simd_prefix_inclusive_product)
MSL_TOGETHER(simd_prefix_exclusive_product)
#undef MSL_TOGETHER
bool simd_any(bool);
bool simd_all(bool);

#define MSL_MOVE(name) \
  template <class T>   \
  T name(T, ushort);
MSL_MOVE(simd_broadcast)
MSL_MOVE(simd_shuffle)
MSL_MOVE(simd_shuffle_up)
MSL_MOVE(simd_shuffle_down)
MSL_MOVE(simd_shuffle_xor)
MSL_MOVE(simd_shuffle_rotate_up)
MSL_MOVE(simd_shuffle_rotate_down)
MSL_MOVE(quad_shuffle_xor)
MSL_MOVE(quad_broadcast)
#undef MSL_MOVE

template <class T, int R, int C>
struct simdgroup_matrix {
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T);
  __private vec<T, 2>& thread_elements();
  vec<T, 2> elements;
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
template <class T, int R, int C>
simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T);

#define MSL_IN(space)                                                                                                 \
  template <class T>                                                                                                  \
  void simdgroup_load(__private simdgroup_matrix<T, 8, 8>&, const space T*, ulong = 8, ulong2 = 0, bool = false);     \
  template <class T>                                                                                                  \
  void simdgroup_store(simdgroup_matrix<T, 8, 8>, space T*, ulong = 8, ulong2 = 0, bool = false);                     \
  template <class T>                                                                                                  \
  T atomic_load_explicit(const space atomic<T>*, memory_order);                                                \
  template <class T, class V>                                                                                         \
  void atomic_store_explicit(space atomic<T>*, V, memory_order);                                               \
  template <class T, class V>                                                                                         \
  bool atomic_compare_exchange_weak_explicit(space atomic<T>*, __private T*, V, memory_order, memory_order);   \
  template <class T, class V>                                                                                         \
  T atomic_fetch_add_explicit(space atomic<T>*, V, memory_order);                                              \
  template <class T, class V>                                                                                         \
  T atomic_fetch_sub_explicit(space atomic<T>*, V, memory_order);                                              \
  template <class T, class V>                                                                                         \
  T atomic_fetch_or_explicit(space atomic<T>*, V, memory_order);                                               \
  template <class T, class V>                                                                                         \
  T atomic_fetch_and_explicit(space atomic<T>*, V, memory_order);                                              \
  template <class T, class V>                                                                                         \
  T atomic_fetch_max_explicit(space atomic<T>*, V, memory_order);                                              \
  template <class T, class V>                                                                                         \
  T atomic_fetch_min_explicit(space atomic<T>*, V, memory_order);
enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
template struct atomic<int>;  // a kernel's parameters are complete
template struct atomic<uint>;
template struct atomic<float>;
MSL_IN(__global)
MSL_IN(__local)
#undef MSL_IN
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(
    __private simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>, simdgroup_matrix<B, 8, 8>, simdgroup_matrix<C, 8, 8>);
template <class D, class A, class B>
void simdgroup_multiply(__private simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>, simdgroup_matrix<B, 8, 8>);

template <class T>
struct numeric_limits {
  static T max();
  static T lowest();
  static T infinity();
};

uint3 any_position();
uint any_index();

}  // namespace metal

using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;

template <class T>
struct Limits {
  static constant constexpr float max = INFINITY, min = -INFINITY, finite_max = 3.40282347e38f, finite_min = -3.40282347e38f;
};
template <class T>
T ceildiv(T, T);
template <class I = int64_t>
I elem_to_loc(I, const constant int*, const constant int64_t*, int);
