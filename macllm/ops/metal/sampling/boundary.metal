// The last logit that filters keep, found by bisection over all logits, for filters that keep more than the candidates.

// The sum of x over the threads before this one; the sum over all threads in `total`.
inline float sum_before(float x, threadgroup float* scratch, int lane, int simdgroup, thread float& total) {
  const float own = simd_prefix_exclusive_sum(x);
  if (lane == 31) scratch[simdgroup] = own + x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float part = scratch[lane], start = simd_prefix_exclusive_sum(part);
  total = simd_sum(part);
  const float before = simd_shuffle(start, ushort(simdgroup));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return before + own;
}

// An integer with the order of floats; -0 counts as 0.
inline uint key_of(float x) {
  const uint bits = as_type<uint>(x == 0.0f ? 0.0f : x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

inline float number_of(uint key) {
  return as_type<float>((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

// A row of logits, and the weight of each relative to the largest.
template <typename Logits>
struct Row {
  Logits logits;
  int count;
  float largest, inverse_temperature;
  float weight(float x) const { return fast::exp2((x - largest) * inverse_temperature); }
};

template <typename Logits>
inline Row<Logits> row_of(Logits logits, int count, float largest, float inverse_temperature) {
  return {logits, count, largest, inverse_temperature};
}

// The number of logits above a key, and the sum of their weights.
template <typename Logits>
inline float2 above(Row<Logits> row, uint key, threadgroup float* scratch, int thread_, int lane, int simdgroup) {
  float count = 0.0f, mass = 0.0f, all_count = 0.0f, all_mass = 0.0f;
  for (int i = thread_; i < row.count; i += 1024) {
    const float x = number(row.logits[i]);
    if (key_of(x) <= key) continue;
    count += 1.0f;
    mass += row.weight(x);
  }
  sum_before(count, scratch, lane, simdgroup, all_count);
  sum_before(mass, scratch, lane, simdgroup, all_mass);
  return float2(all_count, all_mass);
}

// The key of the last logit within `limit`, a count (COUNTED) or a sum of weights: the smallest key with less above it.
template <bool COUNTED, typename Logits>
inline uint last_within(Row<Logits> row, float limit, threadgroup float* scratch, int thread_, int lane, int simdgroup) {
  uint low = 0, high = 0xffffffffu;
  while (low < high) {
    const uint middle = low + (high - low) / 2;
    const float2 more = above(row, middle, scratch, thread_, lane, simdgroup);
    if ((COUNTED ? more.x : more.y) < limit) high = middle;
    else low = middle + 1;
  }
  return low;
}

// The logits that are kept: those above `key`, and the first `equals` that are equal to it, by index.
struct Boundary {
  uint key;
  float equals;
};

template <typename Logits>
inline Boundary boundary(
    Row<Logits> row, int top_k, float top_p, float mass, threadgroup float* scratch, int thread_, int lane, int simdgroup) {
  Boundary found = {0, float(row.count)};
  if (top_k > 0 && top_k < row.count) {
    found.key = last_within<true>(row, float(top_k), scratch, thread_, lane, simdgroup);
    const float2 more = above(row, found.key, scratch, thread_, lane, simdgroup);
    found.equals = float(top_k) - more.x;
    mass = more.y + found.equals * row.weight(number_of(found.key));
  }
  if (top_p >= 1.0f) return found;
  const float limit = max(top_p * mass, 1e-30f);
  const uint key = last_within<false>(row, limit, scratch, thread_, lane, simdgroup);
  if (key < found.key) return found;
  const float2 more = above(row, key, scratch, thread_, lane, simdgroup);
  const float equals = max(1.0f, ceil((limit - more.y) / row.weight(number_of(key))));
  return {key, key == found.key ? min(equals, found.equals) : equals};
}

// The token at `place`, between 0 and 1, of the kept tokens' mass in order of index.
template <typename Logits>
inline int drawn_by_index(
    Row<Logits> row, Boundary from, float min_p, float place, threadgroup float* scratch, int thread_, int lane, int simdgroup) {
  const int each = (row.count + 1023) / 1024, begin = min(row.count, thread_ * each), end = min(row.count, begin + each);
  float equals = 0.0f, mass = 0.0f, total = 0.0f;
  for (int i = begin; i < end; i++) equals += key_of(number(row.logits[i])) == from.key ? 1.0f : 0.0f;
  const float equals_before = sum_before(equals, scratch, lane, simdgroup, total);
  float at = 0.0f, last = -1.0f;
  // The first pass sums; the second finds the last token that begins before the place.
  for (int turn = 0; turn < 2; turn++) {
    float seen = equals_before;
    for (int i = begin; i < end; i++) {
      const float x = number(row.logits[i]), weight = row.weight(x);
      const uint key = key_of(x);
      const bool within = key > from.key || (key == from.key && seen < from.equals);
      if (key == from.key) seen += 1.0f;
      if (!within || weight <= 0.0f || weight < min_p) continue;
      if (turn == 0) mass += weight;
      else if (at <= place * total) last = float(i);
      at += weight;
    }
    if (turn == 0) at = sum_before(mass, scratch, lane, simdgroup, total);
  }
  last = simd_max(last);
  if (lane == 0) scratch[simdgroup] = last;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  last = simd_max(scratch[lane]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return int(last);
}
