// What the files of MLX operations share.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>

#include "primitive.h"

namespace macllm {

inline int64_t columns(const mx::array& x) { return x.ndim() ? x.shape(-1) : 1; }
inline int64_t rows(const mx::array& x) { return x.size() / std::max<int64_t>(columns(x), 1); }

// The parts of the Python module that have a file of their own.
void bind_experts(nanobind::module_& m);
void bind_linear(nanobind::module_& m);
void bind_quantized(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);
void bind_steps(nanobind::module_& m);

}  // namespace macllm
