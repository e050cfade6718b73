#include "kv.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "int8.h"
#include "transpose.h"

namespace macllm {
namespace {

constexpr int64_t AHEAD = 2048;  // bytes of words that are fetched before they are needed

typedef uint8_t vb __attribute__((vector_size(W)));

// For W rows, one a lane: what belongs to their group `g`.
inline vf of_group(const float* p, int64_t groups, int64_t g, int64_t count) {
  if (groups == 1 && count >= W) return load(p);
  float all[W];
  for (int64_t l = 0; l < W; l++) all[l] = p[std::min(l, count - 1) * groups + g];
  return load(all);
}

// W rows at a time become W lanes; P words of each are transposed together, all of one group.
template <int BITS, int P>
void transposed(const PackedRows& rows, int64_t count, float* to, int64_t stride) {
  constexpr int PER = 32 / BITS;
  const int64_t words = rows.words_per_row();
  for (int64_t s = 0; s < count; s += W, to += W) {
    for (int64_t w = 0; w < words; w += P) {
      vi block[P];
      for (int i = 0; i < P; i++) {
        for (int part = 0; part < W / P; part++) {
          const uint32_t* from = rows.words + std::min(s + part * P + i, count - 1) * words + w;
          std::memcpy(reinterpret_cast<uint32_t*>(block + i) + part * P, from, 4 * P);
          __builtin_prefetch(reinterpret_cast<const char*>(from) + AHEAD);
        }
      }
      transpose<P>(block);
      const int64_t g = w * PER / rows.group;
      const vf scale = of_group(rows.scales + s * rows.groups, rows.groups, g, count - s);
      const vf bias = of_group(rows.biases + s * rows.groups, rows.groups, g, count - s);
      for (int i = 0; i < P; i++)
        for (int j = 0; j < PER; j++)
          store(to + ((w + i) * PER + j) * stride, as_float((block[i] >> (BITS * j)) & ((1 << BITS) - 1)) * scale + bias);
    }
  }
}

// Elements [at, at + W) of a row.
template <int BITS>
inline vi codes(const uint32_t* words, int64_t at) {
  if constexpr (BITS == 8) {
    vb bytes;
    std::memcpy(&bytes, reinterpret_cast<const char*>(words) + at, W);
    return __builtin_convertvector(bytes, vi);
  } else {
    vi shift, lane;
    for (int l = 0; l < W; l++) shift[l] = 4 * (l % 8), lane[l] = l;
    vi word = vi{} + int32_t(words[at / 8] >> (4 * (at % 8)));
    if constexpr (W > 8) word = lane < 8 ? word : vi{} + int32_t(words[at / 8 + 1]);
    return (word >> shift) & 15;
  }
}

template <int BITS>
void in_order(const PackedRows& rows, int64_t count, float* to, int64_t stride) {
  const int64_t words = rows.words_per_row();
  for (int64_t s = 0; s < count; s++, to += stride) {
    const uint32_t* row = rows.words + s * words;
    __builtin_prefetch(reinterpret_cast<const char*>(row) + AHEAD);
    for (int64_t g = 0; g < rows.groups; g++) {
      const float scale = rows.scales[s * rows.groups + g], bias = rows.biases[s * rows.groups + g];
      for (int64_t d = g * rows.group; d < (g + 1) * rows.group; d += W)
        store(to + d, as_float(codes<BITS>(row, d)) * scale + bias);
    }
  }
}

template <int BITS>
void pack_group(int group, const float* x, uint8_t* to, float& scale, float& bias) {
  constexpr float MOST = (1 << BITS) - 1;
  float low = x[0], high = x[0];
  for (int i = 1; i < group; i++) low = std::min(low, x[i]), high = std::max(high, x[i]);
  const bool down = std::abs(low) > std::abs(high);
  const float edge = down ? low : high, width = std::max((high - low) / MOST, 1e-7f), steps = std::rint(edge / (down ? width : -width));
  // The edge that is farther from 0 is met exactly.
  scale = steps != 0 ? edge / steps : down ? width : -width;
  bias = steps != 0 ? edge : 0.f;
  uint8_t each[128];
  for (int i = 0; i < group; i += W) {
    const vf q = (load(x + i) - bias) / scale;
    const vf bounded = q > 0.f ? (q < MOST ? q : splat(MOST)) : vf{};
    const vb bytes = __builtin_convertvector(bits_of<vi>(bounded + ROUNDER) & 255, vb);
    std::memcpy(each + i, &bytes, W);
  }
  if (BITS == 8) {
    std::copy(each, each + group, to);
  } else {
    for (int i = 0; i < group / 2; i++) to[i] = uint8_t(each[2 * i] | each[2 * i + 1] << 4);
  }
}

}  // namespace

void unpack(const PackedRows& rows, int64_t count, float* to, int64_t stride) {
  rows.bits == 8 ? in_order<8>(rows, count, to, stride) : in_order<4>(rows, count, to, stride);
}

void unpack_transposed(const PackedRows& rows, int64_t count, float* to, int64_t stride) {
  const int64_t together = rows.group * rows.bits / 32;
  auto run = [&]<int P>() {
    rows.bits == 8 ? transposed<8, P>(rows, count, to, stride) : transposed<4, P>(rows, count, to, stride);
  };
  if (W >= 16 && together >= 16) return run.template operator()<std::min(W, 16)>();
  if (W >= 8 && together >= 8) return run.template operator()<std::min(W, 8)>();
  run.template operator()<4>();
}

void pack_row(const float* x, int64_t D, const PackedRow& to) {
  std::vector<float> padded;
  if (D < to.groups * to.group) {
    padded.assign(x, x + D);
    padded.resize(to.groups * to.group);
    x = padded.data();
  }
  const auto pack = to.bits == 8 ? pack_group<8> : pack_group<4>;
  auto* bytes = reinterpret_cast<uint8_t*>(to.words);
  for (int64_t g = 0; g < to.groups; g++)
    pack(to.group, x + g * to.group, bytes + g * to.group * to.bits / 8, to.scales[g], to.biases[g]);
}

}  // namespace macllm
