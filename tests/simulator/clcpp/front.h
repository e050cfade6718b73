// Declarations of Metal's functions for clang's C++ for OpenCL, which has address spaces as Metal has. Nothing is defined.
#pragma once

#include "front_traits.h"

namespace metal {

template <class To, class From>
To as_type(From);

#define MSL_FUNCTION(name)         \
  namespace precise {              \
  float name(float);               \
  template <class T, int N>        \
  vec<T, N> name(vec<T, N>);       \
  }                                \
  namespace fast {                 \
  float name(float);               \
  template <class T, int N>        \
  vec<T, N> name(vec<T, N>);       \
  }                                \
  float name(float);               \
  half name(half);                 \
  template <class T, int N>        \
  vec<T, N> name(vec<T, N>);
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
MSL_FUNCTION(sinh)
MSL_FUNCTION(cosh)
MSL_FUNCTION(asin)
MSL_FUNCTION(acos)
MSL_FUNCTION(atan)
MSL_FUNCTION(asinh)
MSL_FUNCTION(acosh)
MSL_FUNCTION(atanh)
MSL_FUNCTION(sinpi)
MSL_FUNCTION(cospi)
MSL_FUNCTION(tanpi)
MSL_FUNCTION(fract)
MSL_FUNCTION(saturate)
MSL_FUNCTION(fabs)
MSL_FUNCTION(floor)
MSL_FUNCTION(ceil)
MSL_FUNCTION(rint)
MSL_FUNCTION(round)
MSL_FUNCTION(trunc)
MSL_FUNCTION(sign)
#undef MSL_FUNCTION
#define MSL_TWO(name)          \
  namespace precise {          \
  float name(float, float);    \
  }                            \
  namespace fast {             \
  float name(float, float);    \
  }                            \
  float name(float, float);    \
  template <class T, int N>    \
  vec<T, N> name(vec<T, N>, vec<T, N>);
MSL_TWO(pow)
MSL_TWO(powr)
MSL_TWO(divide)
MSL_TWO(atan2)
MSL_TWO(fmod)
MSL_TWO(copysign)
MSL_TWO(fdim)
MSL_TWO(step)
MSL_TWO(fmax)
MSL_TWO(fmin)
#undef MSL_TWO
float ldexp(float, int);
float smoothstep(float, float, float);
bool isnormal(float);
bool signbit(float);
template <class T>
T mix(T, T, T);

template <class T>
T abs(T);
template <class T>
T max(T, T);
template <class T>
T min(T, T);
template <class T>
T min3(T, T, T);
template <class T>
T max3(T, T, T);
template <class T>
T median3(T, T, T);
template <class T>
T clamp(T, T, T);
template <class T>
T select(T, T, bool);
template <class T, int N>
vec<T, N> select(vec<T, N>, vec<T, N>, vec<bool, N>);
template <class T, int N>
vec<T, N> max(vec<T, N>, typename same<T>::type);
template <class T, int N>
vec<T, N> min(vec<T, N>, typename same<T>::type);
template <class T, int N>
vec<T, N> clamp(vec<T, N>, typename same<T>::type, typename same<T>::type);
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
template <class T>
T reverse_bits(T);
template <class T>
T rotate(T, T);
template <class T>
T mulhi(T, T);
template <class T>
T addsat(T, T);
template <class T>
T hadd(T, T);
template <class T>
T rhadd(T, T);
template <class T>
make_unsigned_t<T> absdiff(T, T);
template <class T>
T subsat(T, T);
template <class T>
T extract_bits(T, uint, uint);
template <class T>
T insert_bits(T, T, uint, uint);

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
MSL_TOGETHER(quad_sum)
MSL_TOGETHER(quad_product)
MSL_TOGETHER(quad_max)
MSL_TOGETHER(quad_min)
MSL_TOGETHER(quad_and)
MSL_TOGETHER(quad_or)
MSL_TOGETHER(quad_xor)
MSL_TOGETHER(quad_broadcast_first)
MSL_TOGETHER(quad_prefix_inclusive_sum)
MSL_TOGETHER(quad_prefix_exclusive_sum)
MSL_TOGETHER(quad_prefix_inclusive_product)
MSL_TOGETHER(quad_prefix_exclusive_product)
#undef MSL_TOGETHER
bool simd_any(bool);
bool simd_all(bool);
bool quad_any(bool);
bool quad_all(bool);
bool simd_is_first();
struct simd_vote {
  typedef ulong vote_t;
  explicit operator ulong() const;
  bool all() const;
  bool any() const;
};
simd_vote simd_ballot(bool);
simd_vote simd_active_threads_mask();

#define MSL_FILL(name)               \
  template <class T>                 \
  T name(T, T, ushort);              \
  template <class T>                 \
  T name(T, T, ushort, ushort);
MSL_FILL(simd_shuffle_and_fill_up)
MSL_FILL(simd_shuffle_and_fill_down)
MSL_FILL(quad_shuffle_and_fill_up)
MSL_FILL(quad_shuffle_and_fill_down)
#undef MSL_FILL

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
MSL_MOVE(quad_broadcast)
MSL_MOVE(quad_shuffle)
MSL_MOVE(quad_shuffle_up)
MSL_MOVE(quad_shuffle_down)
MSL_MOVE(quad_shuffle_xor)
MSL_MOVE(quad_shuffle_rotate_up)
MSL_MOVE(quad_shuffle_rotate_down)
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
template <class T, int R, int C = R>
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
  T atomic_exchange_explicit(space atomic<T>*, V, memory_order);                                               \
  template <class T, class V>                                                                                         \
  T atomic_fetch_xor_explicit(space atomic<T>*, V, memory_order);                                              \
  template <class T, class V>                                                                                         \
  T atomic_fetch_max_explicit(space atomic<T>*, V, memory_order);                                              \
  template <class T, class V>                                                                                         \
  T atomic_fetch_min_explicit(space atomic<T>*, V, memory_order);
enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T value;
};
// OpenCL has types with these names.
#define atomic_int atomic<int>
#define atomic_uint atomic<uint>
#define atomic_float atomic<float>
#define atomic_bool atomic<bool>
#define atomic_ulong atomic<ulong>
template struct atomic<int>;  // a kernel's parameter types must be complete
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
template <class T, class U>
T ceildiv(T, U);
template <class I = int64_t>
I elem_to_loc(I, const constant int*, const constant int64_t*, int);
