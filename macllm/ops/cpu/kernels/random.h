// The random numbers of MLX's generator for a key, at any index of an array.
#pragma once

#include "simd.h"

namespace macllm {

struct Key {
  uint32_t words[2];
};

// Two words of Threefry-2x32 with 20 rounds (Salmon et al. 2011), as in MLX's generator.
inline void threefry(Key key, vu& a, vu& b) {
  static constexpr int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key.words[0], key.words[1], key.words[0] ^ key.words[1] ^ 0x1BD11BDA};
  a += keys[0];
  b += keys[1];
  for (uint32_t i = 0; i < 5; i++) {
    for (int r : rotations[i % 2]) {
      a += b;
      b = (b << r | b >> (32 - r)) ^ a;
    }
    a += keys[(i + 1) % 3];
    b += keys[(i + 2) % 3] + i + 1;
  }
}

// Words at indices [first, first + W) of an array of `count`.
inline vu random_words(Key key, uint32_t count, uint32_t first) {
  const uint32_t half = count / 2, odd = count % 2;
  vu place;
  for (int i = 0; i < W; i++) place[i] = first + i;
  // One hash makes the words of the same index in both halves; the middle of an odd count has a separate hash.
  const vu low = (vu)(place < half), middle = (vu)(place == half) & -odd;
  vu a = (low & place) | (middle & half) | (~low & ~middle & (place - half - odd));
  vu b = ~middle & (a + half + odd);
  threefry(key, a, b);
  return ((low | middle) & a) | (~low & ~middle & b);
}

// Uniform in [0, 1) at these indices.
inline vf uniform(Key key, uint32_t count, uint32_t first) {
  const vf share = __builtin_convertvector(random_words(key, count, first), vf) * 0x1p-32f;
  return share < 1.f ? share : splat(0x1.fffffep-1f);
}

constexpr float MOST_GUMBEL = 17;  // -log(-log(1 - 2^-24)) is 16.6

// Gumbel noise at these indices.
inline vf gumbel(Key key, uint32_t count, uint32_t first) {
  const vf share = uniform(key, count, first);
  const vf noise = -log(-log(share > 0.f ? share : splat(1.f - 0x1p-24f)));
  return share > 0.f ? noise : splat(-INFINITE);
}

// Splits a key into two.
inline void split(Key key, Key& first, Key& second) {
  const vu words = random_words(key, 4, 0);
  first = {words[0], words[1]};
  second = {words[2], words[3]};
}

}  // namespace macllm
