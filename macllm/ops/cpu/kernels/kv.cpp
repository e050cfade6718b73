// Packing and unpacking of rows of keys and values.
#include "kv.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kv_lanes.h"

namespace macllm {
namespace {

// W rows at a time become W lanes; P words of each are transposed together, all of one group.
template <int BITS, int P>
void transposed(const PackedRows& rows, int64_t count, float* to, int64_t stride) {
  constexpr int PER = 32 / BITS;
  const int64_t words = rows.words_per_row();
  const Numbers numbers(rows, count);
  for (int64_t s = 0; s < count; s += W, to += W) {
    for (int64_t w = 0; w < words; w += P) {
      vi block[P];
      columns_of<P>(rows.words + s * words + w, words, count - s, block);
      const int64_t g = w * PER / rows.group;
      const vf scale = numbers.scales(g, s), bias = numbers.biases(g, s);
      for (int i = 0; i < P; i++)
        for (int j = 0; j < PER; j++)
          store(to + ((w + i) * PER + j) * stride, as_float((block[i] >> (BITS * j)) & ((1 << BITS) - 1)) * scale + bias);
    }
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
  vf lowest = load(x), highest = lowest;
  for (int i = W; i < group; i += W) lowest = -max(-lowest, -load(x + i)), highest = max(highest, load(x + i));
  const float low = -max(-lowest), high = max(highest);
  const bool down = std::abs(low) > std::abs(high);
  const float edge = down ? low : high, width = std::max((high - low) / MOST, 1e-7f);
  const float steps = std::rint(edge / (down ? width : -width));
  // The end farther from 0 is represented exactly.
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
  with_words(rows, [&]<int P>() {
    rows.bits == 8 ? transposed<8, P>(rows, count, to, stride) : transposed<4, P>(rows, count, to, stride);
  });
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
