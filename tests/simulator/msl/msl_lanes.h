// Collective functions: barriers, reductions, shuffles and scans of simdgroups and quads.
#pragma once

#include "kernel.h"
#include "msl_integer.h"

#define SIMULATOR_TOGETHER __attribute__((noinline)) SIMULATOR_APART

// The line of the call, which identifies the operation across lanes, since the compiler may duplicate the call.
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

// A tree reduction over each SIZE lanes.
template <int SIZE, class T, class F>
SIMULATOR_APART inline void lanes_folded(const Meeting& m, T nothing, F f) {
  T all[LANES];
  for (int i = 0; i < LANES; i++) all[i] = m.has(i) ? m.get<T>(i) : nothing;
  for (int n = SIZE / 2; n; n /= 2)
    for (int first = 0; first < LANES; first += SIZE)
      for (int i = first; i < first + n; i++) all[i] = f(all[i], all[i + n]);
  for (int i = 0; i < LANES; i++)
    if (m.has(i)) m.put(i, all[i / SIZE * SIZE]);
}

// For numbers, and vectors of them.
template <class T>
SIMULATOR_APART inline T lane_lowest() {
  return T(numeric_limits<typename VecElement<T>::type>::lowest());
}
template <class T>
SIMULATOR_APART inline T lane_highest() {
  return T(numeric_limits<typename VecElement<T>::type>::max());
}
template <class T>
SIMULATOR_APART inline T lane_larger(const T& a, const T& b) {
  if constexpr (vec_is<T>) return vec_by_element([](auto x, auto y) { return x > y ? x : y; }, a, b);
  else return a > b ? a : b;
}
template <class T>
SIMULATOR_APART inline T lane_smaller(const T& a, const T& b) {
  if constexpr (vec_is<T>) return vec_by_element([](auto x, auto y) { return x < y ? x : y; }, a, b);
  else return a < b ? a : b;
}

#define MSL_REDUCTION(name, nothing, expression)                                                   \
  template <int SIZE, class T>                                                                     \
  SIMULATOR_APART inline void name##_of(const Meeting& m) {                                                        \
    lanes_folded<SIZE, T>(m, nothing, [](T a, T b) SIMULATOR_APART { return T(expression); });                           \
  }                                                                                                \
  template <class T>                                                                               \
  SIMULATOR_TOGETHER inline T simd_##name(T x, SIMULATOR_HERE) {                                   \
    return together(name##_of<LANES, T>, here, x);                                                 \
  }                                                                                                \
  template <class T>                                                                               \
  SIMULATOR_TOGETHER inline T quad_##name(T x, SIMULATOR_HERE) {                                   \
    return together(name##_of<4, T>, here, x);                                                     \
  }
MSL_REDUCTION(sum, T(0), a + b)
MSL_REDUCTION(product, T(1), a * b)
MSL_REDUCTION(max, lane_lowest<T>(), lane_larger(a, b))
MSL_REDUCTION(min, lane_highest<T>(), lane_smaller(a, b))
MSL_REDUCTION(and, T(~T(0)), a & b)
MSL_REDUCTION(or, T(0), a | b)
MSL_REDUCTION(xor, T(0), a ^ b)
#undef MSL_REDUCTION

template <int SIZE>
SIMULATOR_APART inline void any_of(const Meeting& m) {
  lanes_folded<SIZE, bool>(m, false, [](bool a, bool b) SIMULATOR_APART { return a || b; });
}
template <int SIZE>
SIMULATOR_APART inline void all_of(const Meeting& m) {
  lanes_folded<SIZE, bool>(m, true, [](bool a, bool b) SIMULATOR_APART { return a && b; });
}
SIMULATOR_TOGETHER inline bool simd_any(bool x, SIMULATOR_HERE) { return together(any_of<LANES>, here, x); }
SIMULATOR_TOGETHER inline bool simd_all(bool x, SIMULATOR_HERE) { return together(all_of<LANES>, here, x); }
SIMULATOR_TOGETHER inline bool quad_any(bool x, SIMULATOR_HERE) { return together(any_of<4>, here, x); }
SIMULATOR_TOGETHER inline bool quad_all(bool x, SIMULATOR_HERE) { return together(all_of<4>, here, x); }

// A bit for each lane with a true predicate.
struct simd_vote {
  typedef ulong vote_t;
  ulong bits;
  explicit operator ulong() const { return bits; }
  bool all() const { return bits == 0xffffffffu; }
  bool any() const { return bits != 0; }
};
SIMULATOR_APART inline void ballot_of(const Meeting& m) {
  ulong bits = 0;
  for (int i = 0; i < LANES; i++)
    if (m.has(i) && m.get<ulong>(i)) bits |= 1ul << i;
  for (int i = 0; i < LANES; i++)
    if (m.has(i)) m.put(i, bits);
}
SIMULATOR_TOGETHER inline simd_vote simd_ballot(bool x, SIMULATOR_HERE) {
  return {together(ballot_of, here, ulong(x))};
}
SIMULATOR_TOGETHER inline simd_vote simd_active_threads_mask(SIMULATOR_HERE) {
  return {together(ballot_of, here, 1ul)};
}
SIMULATOR_TOGETHER inline bool simd_is_first(SIMULATOR_HERE) {
  return __builtin_ctzl(together(ballot_of, here, 1ul)) == int(simulator::own_place->lane);
}

// Lane i takes lane `from`'s value, or its own if that lane does not exist or is inactive.
template <class T, class From>
SIMULATOR_APART inline void moved(const Meeting& m, From from) {
  for (int i = 0; i < LANES; i++) {
    if (!m.has(i)) continue;
    const int j = from(i, int(m.argument));
    m.put(i, m.get<T>(0 <= j && j < LANES && m.has(j) ? j : i));
  }
}

// A lane of the same quad, or no lane.
SIMULATOR_APART inline int lane_in_quad(int own, int other) { return other >> 2 == own >> 2 ? other : -1; }

#define MSL_MOVE(name, expression)                                                                  \
  template <class T>                                                                                \
  SIMULATOR_APART inline void name##_of(const Meeting& m) {                                                         \
    moved<T>(m, [](int i, int by) SIMULATOR_APART { return expression; });                                          \
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
MSL_MOVE(quad_broadcast, (i & ~3) + by)
MSL_MOVE(quad_shuffle_up, lane_in_quad(i, i - by))
MSL_MOVE(quad_shuffle_down, lane_in_quad(i, i + by))
MSL_MOVE(quad_shuffle_xor, lane_in_quad(i, i ^ by))
MSL_MOVE(quad_shuffle_rotate_up, (i & ~3) + ((i - by) & 3))
MSL_MOVE(quad_shuffle_rotate_down, (i & ~3) + ((i + by) & 3))
#undef MSL_MOVE

template <class T>
struct Sent {
  T value;
  uint from;
};
template <class T, int SIZE>
SIMULATOR_APART inline void shuffled(const Meeting& m) {
  for (int i = 0; i < LANES; i++) {
    if (!m.has(i)) continue;
    const int j = (SIZE < LANES ? i / SIZE * SIZE : 0) + int(m.get<Sent<T>>(i).from);
    Sent<T> taken = m.get<Sent<T>>(j < LANES && m.has(j) ? j : i);
    m.put(i, taken);
  }
}
// Each lane gives the lane to read from.
template <class T>
SIMULATOR_TOGETHER inline T simd_shuffle(T x, ushort from, SIMULATOR_HERE) {
  return together(shuffled<T, LANES>, here, Sent<T>{x, from}).value;
}
template <class T>
SIMULATOR_TOGETHER inline T quad_shuffle(T x, ushort from, SIMULATOR_HERE) {
  return together(shuffled<T, 4>, here, Sent<T>{x, from}).value;
}
template <class T>
SIMULATOR_TOGETHER inline T quad_broadcast_first(T x, SIMULATOR_HERE) {
  return together(quad_broadcast_of<T>, here, x, 0);
}
template <class T>
SIMULATOR_TOGETHER inline T simd_broadcast_first(T x, SIMULATOR_HERE) {
  return together(simd_broadcast_of<T>, here, x, 0);
}

// Values from before the first or after the last lane are taken from the other end of `filling`, within each `modulo` lanes.
template <class T>
struct LanesFilled {
  T value, filling;
  ushort modulo;
};
template <class T, int SIGN>
SIMULATOR_APART inline void lanes_filled(const Meeting& m) {
  for (int i = 0; i < LANES; i++) {
    if (!m.has(i)) continue;
    auto own = m.get<LanesFilled<T>>(i);
    const int size = own.modulo, base = i / size * size, from = i - base + SIGN * int(m.argument);
    if (0 <= from && from < size) own.value = m.has(base + from) ? m.get<LanesFilled<T>>(base + from).value : own.value;
    else own.value = m.get<LanesFilled<T>>(base + (from + size) % size).filling;
    m.put(i, own);
  }
}
#define MSL_FILL(name, SIGN, SIZE)                                                                  \
  template <class T>                                                                                \
  SIMULATOR_TOGETHER inline T name(T x, T filling, ushort by, SIMULATOR_HERE) {                     \
    return together(lanes_filled<T, SIGN>, here, LanesFilled<T>{x, filling, SIZE}, by).value;                  \
  }                                                                                                 \
  template <class T>                                                                                \
  SIMULATOR_TOGETHER inline T name(T x, T filling, ushort by, ushort modulo, SIMULATOR_HERE) {      \
    return together(lanes_filled<T, SIGN>, here, LanesFilled<T>{x, filling, modulo}, by).value;                \
  }
MSL_FILL(simd_shuffle_and_fill_up, -1, LANES)
MSL_FILL(simd_shuffle_and_fill_down, 1, LANES)
MSL_FILL(quad_shuffle_and_fill_up, -1, 4)
MSL_FILL(quad_shuffle_and_fill_down, 1, 4)
#undef MSL_FILL

#define MSL_SCAN(name, nothing, expression)                                                         \
  template <class T, bool INCLUSIVE, int SIZE>                                                      \
  SIMULATOR_APART inline void name##_scanned(const Meeting& m) {                                                    \
    T total = nothing;                                                                              \
    for (int i = 0; i < LANES; i++) {                                                               \
      if (i % SIZE == 0) total = nothing;                                                           \
      if (!m.has(i)) continue;                                                                      \
      const T a = total, b = m.get<T>(i);                                                           \
      total = T(expression);                                                                        \
      m.put(i, INCLUSIVE ? total : a);                                                              \
    }                                                                                               \
  }                                                                                                 \
  MSL_SCANNED(simd_prefix_inclusive_##name, name##_scanned, true, LANES)                            \
  MSL_SCANNED(simd_prefix_exclusive_##name, name##_scanned, false, LANES)                           \
  MSL_SCANNED(quad_prefix_inclusive_##name, name##_scanned, true, 4)                                \
  MSL_SCANNED(quad_prefix_exclusive_##name, name##_scanned, false, 4)
#define MSL_SCANNED(name, how, INCLUSIVE, SIZE)                                                     \
  template <class T>                                                                                \
  SIMULATOR_TOGETHER inline T name(T x, SIMULATOR_HERE) {                                           \
    return together(how<T, INCLUSIVE, SIZE>, here, x);                                              \
  }
MSL_SCAN(sum, T(0), a + b)
MSL_SCAN(product, T(1), a * b)
#undef MSL_SCANNED
#undef MSL_SCAN

}  // namespace metal
