// What lanes do together: shuffles, reductions, matrices, barriers; and atomics.
#pragma once

#include "kernel.h"
#include "msl_math.h"

#define SIMULATOR_TOGETHER __attribute__((noinline, no_sanitize("thread", "address", "undefined")))

// The line of the text that calls, by which lanes know that they do the same thing: a compiler may have made copies of it.
#define SIMULATOR_HERE const void* here = reinterpret_cast<const void*>(uintptr_t(__builtin_LINE()))

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

SIMULATOR_TOGETHER inline void threadgroup_barrier(mem_flags flags, SIMULATOR_HERE) {
  simulator::threadgroup_barrier(uint32_t(flags), here);
}
SIMULATOR_TOGETHER inline void simdgroup_barrier(mem_flags flags, SIMULATOR_HERE) {
  simulator::simdgroup_barrier(uint32_t(flags), here);
}

using simulator::LANES;
using simulator::Meeting;

template <class T>
SIMULATOR_TOGETHER inline T together(simulator::Meet how, const void* site, T x, uint argument = 0) {
  T result;
  simulator::meet(how, site, &x, sizeof x, &result, sizeof result, argument);
  return result;
}

// One after another in halves, as a tree adds.
template <class T, class F>
inline T folded(const Meeting& m, T nothing, F f) {
  T all[LANES];
  for (int i = 0; i < LANES; i++) all[i] = m.has(i) ? m.get<T>(i) : nothing;
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; i++) all[i] = f(all[i], all[i + n]);
  return all[0];
}

#define MSL_REDUCTION(name, nothing, expression)                                                   \
  template <class T>                                                                               \
  inline void name##_of(const Meeting& m) {                                                        \
    const T result = folded<T>(m, nothing, [](T a, T b) { return T(expression); });                \
    for (int i = 0; i < LANES; i++)                                                                \
      if (m.has(i)) m.put(i, result);                                                              \
  }                                                                                                \
  template <class T>                                                                               \
  SIMULATOR_TOGETHER inline T name(T x, SIMULATOR_HERE) {                                                          \
    return together(name##_of<T>, here, x);                                 \
  }
MSL_REDUCTION(simd_sum, T(0), a + b)
MSL_REDUCTION(simd_product, T(1), a * b)
MSL_REDUCTION(simd_max, numeric_limits<T>::lowest(), a > b ? a : b)
MSL_REDUCTION(simd_min, numeric_limits<T>::max(), a < b ? a : b)
MSL_REDUCTION(simd_and, T(~T(0)), a & b)
MSL_REDUCTION(simd_or, T(0), a | b)
MSL_REDUCTION(simd_xor, T(0), a ^ b)
#undef MSL_REDUCTION

inline void any_of(const Meeting& m) {
  bool found = false;
  for (int i = 0; i < LANES; i++) found |= m.has(i) && m.get<bool>(i);
  for (int i = 0; i < LANES; i++)
    if (m.has(i)) m.put(i, found);
}
inline void all_of(const Meeting& m) {
  bool found = true;
  for (int i = 0; i < LANES; i++) found &= !m.has(i) || m.get<bool>(i);
  for (int i = 0; i < LANES; i++)
    if (m.has(i)) m.put(i, found);
}
SIMULATOR_TOGETHER inline bool simd_any(bool x, SIMULATOR_HERE) { return together(any_of, here, x); }
SIMULATOR_TOGETHER inline bool simd_all(bool x, SIMULATOR_HERE) { return together(all_of, here, x); }

// Lane i takes what lane `from` has; its own where that is no lane, or none that is here.
template <class T, class From>
inline void moved(const Meeting& m, From from) {
  for (int i = 0; i < LANES; i++) {
    if (!m.has(i)) continue;
    const int j = from(i, int(m.argument));
    m.put(i, m.get<T>(0 <= j && j < LANES && m.has(j) ? j : i));
  }
}

#define MSL_MOVE(name, expression)                                                                  \
  template <class T>                                                                                \
  inline void name##_of(const Meeting& m) {                                                         \
    moved<T>(m, [](int i, int by) { return expression; });                                          \
  }                                                                                                 \
  template <class T>                                                                                \
  SIMULATOR_TOGETHER inline T name(T x, ushort by, SIMULATOR_HERE) {                                                \
    return together(name##_of<T>, here, x, by);                              \
  }
MSL_MOVE(simd_broadcast, by)
MSL_MOVE(simd_shuffle_up, i - by)
MSL_MOVE(simd_shuffle_down, i + by)
MSL_MOVE(simd_shuffle_xor, i ^ by)
MSL_MOVE(simd_shuffle_rotate_up, (i + LANES - by) % LANES)
MSL_MOVE(simd_shuffle_rotate_down, (i + by) % LANES)
MSL_MOVE(quad_shuffle_xor, i ^ by)
MSL_MOVE(quad_broadcast, (i & ~3) + by)
#undef MSL_MOVE

template <class T>
struct Sent {
  T value;
  uint from;
};
template <class T>
inline void shuffled(const Meeting& m) {
  for (int i = 0; i < LANES; i++) {
    if (!m.has(i)) continue;
    const int j = int(m.get<Sent<T>>(i).from);
    Sent<T> taken = m.get<Sent<T>>(j < LANES && m.has(j) ? j : i);
    m.put(i, taken);
  }
}
// Each lane names the lane it takes from.
template <class T>
SIMULATOR_TOGETHER inline T simd_shuffle(T x, ushort from, SIMULATOR_HERE) {
  return together(shuffled<T>, here, Sent<T>{x, from}).value;
}
template <class T>
SIMULATOR_TOGETHER inline T simd_broadcast_first(T x, SIMULATOR_HERE) {
  return together(simd_broadcast_of<T>, here, x, 0);
}

#define MSL_SCAN(name, nothing, expression)                                                         \
  template <class T, bool INCLUSIVE>                                                                \
  inline void name##_of(const Meeting& m) {                                                         \
    T total = nothing;                                                                              \
    for (int i = 0; i < LANES; i++) {                                                               \
      if (!m.has(i)) continue;                                                                      \
      const T a = total, b = m.get<T>(i);                                                           \
      total = T(expression);                                                                        \
      m.put(i, INCLUSIVE ? total : a);                                                              \
    }                                                                                               \
  }                                                                                                 \
  template <class T>                                                                                \
  SIMULATOR_TOGETHER inline T simd_prefix_inclusive_##name(T x, SIMULATOR_HERE) {                                   \
    return together(name##_of<T, true>, here, x);                            \
  }                                                                                                 \
  template <class T>                                                                                \
  SIMULATOR_TOGETHER inline T simd_prefix_exclusive_##name(T x, SIMULATOR_HERE) {                                   \
    return together(name##_of<T, false>, here, x);                           \
  }
MSL_SCAN(sum, T(0), a + b)
MSL_SCAN(product, T(1), a * b)
#undef MSL_SCAN

// Where a lane's two elements of a matrix lie. The language leaves it open: a run can turn the lanes about.
struct Fragment {
  int row, column;
};
inline Fragment fragment_of(int lane) {
  if (simulator::scrambled) lane = (lane * 11 + 5) % LANES;
  const int q = lane / 4;
  return {(q & 4) + lane / 2 % 4, (q & 2) * 2 + lane % 2 * 2};
}

template <class T, int R, int C>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "matrices are 8 x 8");
  vec<T, 2> elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    const Fragment at = fragment_of(int(simulator::own_place->lane));
    elements = {at.row == at.column ? diagonal : T(0), at.row == at.column + 1 ? diagonal : T(0)};
  }
  vec<T, 2>& thread_elements() { return elements; }
  const vec<T, 2>& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int R, int C>
inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.elements = vec<T, 2>(value);
  return m;
}

inline void nothing_done(const Meeting&) {}

template <class T, class P>
inline void simdgroup_load(
    simdgroup_matrix<T, 8, 8>& m, const P* from, ulong stride = 8, vec<ulong, 2> origin = 0, bool turned = false,
    SIMULATOR_HERE) {
  together(nothing_done, here, 0);
  const Fragment at = fragment_of(int(simulator::own_place->lane));
  for (int i = 0; i < 2; i++) {
    const ulong row = turned ? at.column + i : at.row, column = turned ? at.row : at.column + i;
    m.elements[i] = T(from[(origin.y + row) * stride + origin.x + column]);
  }
}

template <class T, class P>
inline void simdgroup_store(
    const simdgroup_matrix<T, 8, 8>& m, P* to, ulong stride = 8, vec<ulong, 2> origin = 0, bool turned = false,
    SIMULATOR_HERE) {
  together(nothing_done, here, 0);
  const Fragment at = fragment_of(int(simulator::own_place->lane));
  for (int i = 0; i < 2; i++) {
    const ulong row = turned ? at.column + i : at.row, column = turned ? at.row : at.column + i;
    to[(origin.y + row) * stride + origin.x + column] = P(m.elements[i]);
  }
}

template <class D, class A, class B, class C>
struct Operands {
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
  vec<D, 2> d;
};
template <class D, class A, class B, class C>
inline void multiplied(const Meeting& m) {
  float a[8][8], b[8][8];
  for (int i = 0; i < LANES; i++) {
    const auto all = m.get<Operands<D, A, B, C>>(i);
    const Fragment at = fragment_of(i);
    for (int e = 0; e < 2; e++) a[at.row][at.column + e] = float(all.a[e]), b[at.row][at.column + e] = float(all.b[e]);
  }
  for (int i = 0; i < LANES; i++) {
    auto all = m.get<Operands<D, A, B, C>>(i);
    const Fragment at = fragment_of(i);
    for (int e = 0; e < 2; e++) {
      float sum = float(all.c[e]);
      for (int k = 0; k < 8; k++) sum += a[at.row][k] * b[k][at.column + e];
      all.d[e] = D(sum);
    }
    m.put(i, all);
  }
}
template <class D, class A, class B, class C>
SIMULATOR_TOGETHER inline void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b,
    const simdgroup_matrix<C, 8, 8>& c, SIMULATOR_HERE) {
  const Operands<D, A, B, C> all{a.elements, b.elements, c.elements, {}};
  d.elements = together(multiplied<D, A, B, C>, here, all).d;
}
template <class D, class A, class B>
inline void simdgroup_multiply(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b, SIMULATOR_HERE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), here);
}

enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;

template <class T>
SIMULATOR_TOGETHER inline void touched(const atomic<T>* at, bool writes) {
  simulator::touched_atomically(at, sizeof(T), writes, __builtin_return_address(0));
}

#define MSL_ATOMIC(name, expression)                                                                \
  template <class T, class V>                                                                       \
  SIMULATOR_TOGETHER inline T atomic_fetch_##name##_explicit(atomic<T>* at, V given, memory_order) { \
    touched(at, true);                                                                              \
    const T a = at->value, b = T(given);                                                            \
    at->value = T(expression);                                                                      \
    return a;                                                                                       \
  }
MSL_ATOMIC(add, a + b)
MSL_ATOMIC(sub, a - b)
MSL_ATOMIC(or, a | b)
MSL_ATOMIC(and, a & b)
MSL_ATOMIC(max, a > b ? a : b)
MSL_ATOMIC(min, a < b ? a : b)
#undef MSL_ATOMIC
template <class T>
SIMULATOR_TOGETHER inline T atomic_load_explicit(const atomic<T>* at, memory_order) {
  touched(at, false);
  return at->value;
}
template <class T, class V>
SIMULATOR_TOGETHER inline void atomic_store_explicit(atomic<T>* at, V given, memory_order) {
  touched(at, true);
  at->value = T(given);
}
template <class T, class V>
SIMULATOR_TOGETHER inline bool atomic_compare_exchange_weak_explicit(
    atomic<T>* at, T* expected, V given, memory_order, memory_order) {
  touched(at, true);
  const bool same = at->value == *expected;
  if (same) at->value = T(given); else *expected = at->value;
  return same;
}

}  // namespace metal
