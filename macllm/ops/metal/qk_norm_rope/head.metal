// A head of D numbers in a simdgroup's registers; its norm, its rotation, and their gradients.
// Lane l holds the pairs l, l + 32, ... of the rotation, then every 32nd of the numbers that do not rotate.
template <int D, int PAIRS>
struct Head {
  float first[(PAIRS + 31) / 32 + (PAIRS == 0)];
  float second[(PAIRS + 31) / 32 + (PAIRS == 0)];
  float rest[(D - 2 * PAIRS + 31) / 32 + (D == 2 * PAIRS)];
};

// Indices of the two numbers of a pair: neighbours, or PAIRS apart.
template <bool INTERLEAVED, int PAIRS>
inline int2 places(int pair) {
  return INTERLEAVED ? int2(2 * pair, 2 * pair + 1) : int2(pair, pair + PAIRS);
}

template <bool INTERLEAVED, typename T, int D, int PAIRS>
inline void read_head(const device T* from, int lane, thread Head<D, PAIRS>& x) {
  for (int i = 0, pair = lane; i < (PAIRS + 31) / 32; i++, pair += 32) {
    const int2 at = places<INTERLEAVED, PAIRS>(pair);
    x.first[i] = pair < PAIRS ? float(from[at.x]) : 0.0f;
    x.second[i] = pair < PAIRS ? float(from[at.y]) : 0.0f;
  }
  for (int i = 0, at = 2 * PAIRS + lane; i < (D - 2 * PAIRS + 31) / 32; i++, at += 32) {
    x.rest[i] = at < D ? float(from[at]) : 0.0f;
  }
}

template <bool INTERLEAVED, typename T, int D, int PAIRS>
inline void write_head(device T* to, int lane, const thread Head<D, PAIRS>& x) {
  for (int i = 0, pair = lane; pair < PAIRS; i++, pair += 32) {
    const int2 at = places<INTERLEAVED, PAIRS>(pair);
    to[at.x] = T(x.first[i]);
    to[at.y] = T(x.second[i]);
  }
  for (int i = 0, at = 2 * PAIRS + lane; at < D; i++, at += 32) to[at] = T(x.rest[i]);
}

// The sum of a * b over the head, in every lane.
template <int D, int PAIRS>
inline float head_dot(const thread Head<D, PAIRS>& a, const thread Head<D, PAIRS>& b) {
  float sum = 0.0f;
  for (int i = 0; i < (PAIRS + 31) / 32; i++) sum += a.first[i] * b.first[i] + a.second[i] * b.second[i];
  for (int i = 0; i < (D - 2 * PAIRS + 31) / 32; i++) sum += a.rest[i] * b.rest[i];
  return simd_sum(sum);
}

// The norm's weights in the lanes' order, 0 beyond the head. `weight` is in any address space.
template <bool INTERLEAVED, typename Weight, int D, int PAIRS>
inline void read_weight(Weight weight, float shift, int lane, thread Head<D, PAIRS>& w) {
  for (int i = 0, pair = lane; i < (PAIRS + 31) / 32; i++, pair += 32) {
    const int2 at = places<INTERLEAVED, PAIRS>(pair);
    w.first[i] = pair < PAIRS ? float(weight[at.x]) + shift : 0.0f;
    w.second[i] = pair < PAIRS ? float(weight[at.y]) + shift : 0.0f;
  }
  for (int i = 0, at = 2 * PAIRS + lane; i < (D - 2 * PAIRS + 31) / 32; i++, at += 32) {
    w.rest[i] = at < D ? float(weight[at]) + shift : 0.0f;
  }
}

template <int D, int PAIRS>
inline void scale_head(thread Head<D, PAIRS>& x, const thread Head<D, PAIRS>& by, float scale) {
  for (int i = 0; i < (PAIRS + 31) / 32; i++) {
    x.first[i] *= scale * by.first[i];
    x.second[i] *= scale * by.second[i];
  }
  for (int i = 0; i < (D - 2 * PAIRS + 31) / 32; i++) x.rest[i] *= scale * by.rest[i];
}

// x / sqrt(mean(x^2) + eps) * (weight + shift). arXiv:1910.07467, eq. 4.
template <bool INTERLEAVED, typename Weight, int D, int PAIRS>
inline void norm_head(Weight weight, float eps, float shift, int lane, thread Head<D, PAIRS>& x) {
  Head<D, PAIRS> w;
  read_weight<INTERLEAVED>(weight, shift, lane, w);
  scale_head(x, w, precise::rsqrt(head_dot(x, x) / float(D) + eps));
}

// Pair i rotates by position / wavelengths[i], and is scaled by `magnitude`. arXiv:2104.09864, 3.4.2.
template <typename Waves, int D, int PAIRS>
inline void rotate_head(Waves wavelengths, float position, float magnitude, int lane, thread Head<D, PAIRS>& x) {
  for (int i = 0, pair = lane; pair < PAIRS; i++, pair += 32) {
    const float angle = position / float(wavelengths[pair]);
    const float c = magnitude * precise::cos(angle), s = magnitude * precise::sin(angle);
    const float a = x.first[i], b = x.second[i];
    x.first[i] = a * c - b * s;
    x.second[i] = a * s + b * c;
  }
}
