// Packed matrices in MLX arrays.
#pragma once

#include <string>

#include "../kernels/kernels.h"
#include "primitive.h"

namespace macllm {

inline Real type_of(const mx::array& a) {
  if (a.dtype() == mx::float32) return Real::float32;
  if (a.dtype() == mx::float16) return Real::float16;
  if (a.dtype() == mx::bfloat16) return Real::bfloat16;
  throw std::invalid_argument("[macllm] scales are float32, float16 or bfloat16.");
}

struct Packing {
  int group, bits;
};

// The matrix, or stack of matrices, without its memory.
inline PackedMatrix packed(const mx::array& words, const mx::array& scales, Packing packing) {
  const int64_t K = int64_t(words.shape(-1)) * 32 / packing.bits;
  return {nullptr, nullptr, nullptr, type_of(scales), words.shape(-2), K, packing.bits, packing.group,
          words.ndim() == 3 ? words.shape(0) : 1};
}

// With its memory, which is valid while `dense` lives.
inline PackedMatrix packed(const mx::array& words, const mx::array& scales, const mx::array& biases, Packing packing,
                           DenseArrays& dense) {
  PackedMatrix w = packed(words, scales, packing);
  auto factors = [&](const mx::array& a) -> const void* {
    if (w.type == Real::float32) return dense.operator()<float>(a);
    return dense.operator()<uint16_t>(a);
  };
  w.words = dense.operator()<uint32_t>(words);
  w.scales = factors(scales);
  w.biases = factors(biases);
  return w;
}

inline void check_packed(const mx::array& words, const mx::array& scales, const mx::array& biases, Packing packing) {
  const int bits = packing.bits, group = packing.group;
  auto refuse = [](const char* why) { throw std::invalid_argument(std::string("[macllm] packed matrix: ") + why); };
  if (words.dtype() != mx::uint32) refuse("packed in uint32.");
  if (bits < 2 || bits > 8 || bits == 7) refuse("2, 3, 4, 5, 6 or 8 bits.");
  if (group != 32 && group != 64 && group != 128) refuse("groups of 32, 64 or 128.");
  if (words.ndim() < 2 || words.ndim() > 3) refuse("a matrix or a stack of them.");
  const PackedMatrix w = packed(words, scales, packing);
  if (w.K * bits != int64_t(words.shape(-1)) * 32 || w.K % group) refuse("rows are whole groups.");
  mx::Shape expected(words.shape().begin(), words.shape().end());
  expected.back() = int(w.groups());
  if (scales.shape() != expected || biases.shape() != expected || biases.dtype() != scales.dtype())
    refuse("a scale and a bias for each group.");
}

}  // namespace macllm
