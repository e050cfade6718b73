// Numbers with their indices, largest first; ties by index.
struct Ranked {
  float value;
  int index;
};

inline bool before(Ranked a, Ranked b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}

inline Ranked other_lane(Ranked own, ushort by) {
  return {simd_shuffle_xor(own.value, by), simd_shuffle_xor(own.index, by)};
}

// One lane's half of a compare-exchange: it keeps the first of the two if `keeps_first`.
inline Ranked exchanged(Ranked own, ushort by, bool keeps_first) {
  const Ranked other = other_lane(own, by);
  return before(own, other) == keeps_first ? own : other;
}

// Sorts a bitonic sequence over the lanes of a simdgroup (Batcher 1968).
inline Ranked merged(Ranked own, int lane) {
  for (int by = 16; by > 0; by /= 2) own = exchanged(own, ushort(by), (lane & by) == 0);
  return own;
}

inline Ranked ordered(Ranked own, int lane) {
  for (int size = 2; size <= 32; size *= 2)
    for (int by = size / 2; by > 0; by /= 2) own = exchanged(own, ushort(by), ((lane & by) == 0) == ((lane & size) == 0));
  return own;
}

// The first 32 of two lists of 32, in order.
inline Ranked first_of_both(Ranked a, Ranked b, int lane) {
  const Ranked turned = other_lane(b, 31);
  return merged(before(a, turned) ? a : turned, lane);
}

// A logit; NaN becomes -inf and is never drawn.
template <typename T>
inline float number(T x) {
  return isnan(float(x)) ? -INFINITY : float(x);
}
