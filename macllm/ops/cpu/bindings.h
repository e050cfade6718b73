// The parts of the Python module that have a file of their own.
#pragma once

#include <nanobind/nanobind.h>

namespace macllm {

void bind_quantized(nanobind::module_& m);

}  // namespace macllm
