// Helpers that the files of MLX operations share.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>

#include "../kernels/kernels.h"
#include "primitive.h"

namespace macllm {

inline int64_t columns(const mx::array& x) { return x.ndim() ? x.shape(-1) : 1; }
inline int64_t rows(const mx::array& x) { return x.size() / std::max<int64_t>(columns(x), 1); }

// [B, heads, positions, Dh] of an array with that shape, or with [B, positions, heads, Dh].
inline View view(const mx::array& x, bool positions_first = false) {
  auto& s = x.strides();
  return {x.data<float>(), s[0], s[positions_first ? 2 : 1], s[positions_first ? 1 : 2], s[3]};
}

inline mx::array heads_first(const mx::array& x) { return mx::transpose(x, {0, 2, 1, 3}); }

// The parts of the Python module, one per file.
void bind_attention(nanobind::module_& m);
void bind_experts(nanobind::module_& m);
void bind_linear(nanobind::module_& m);
void bind_quantized(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);
void bind_steps(nanobind::module_& m);

}  // namespace macllm
