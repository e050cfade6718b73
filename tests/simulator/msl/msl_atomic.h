// Atomic types and functions.
#pragma once

#include "msl_lanes.h"

namespace metal {

enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;
template <class T>
using _atomic = atomic<T>;

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
MSL_ATOMIC(xor, a ^ b)
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
SIMULATOR_TOGETHER inline T atomic_exchange_explicit(atomic<T>* at, V given, memory_order) {
  touched(at, true);
  const T before = at->value;
  at->value = T(given);
  return before;
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
