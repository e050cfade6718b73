// Drawing a token as one MLX operation.
#include <nanobind/nanobind.h>

#include "bindings.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

mx::array native_sample(const mx::array& logits, uint32_t seed, uint32_t step, float temperature, int64_t top_k,
                        float top_p, float min_p) {
  if (logits.dtype() != mx::float32 || logits.ndim() != 1 || logits.size() == 0)
    throw std::invalid_argument("[macllm] sample takes logits (V,) of float32.");
  const Sampling s{{seed, step}, temperature, top_k, top_p, min_p};
  auto forward = [s](const Arrays& in, Arrays& out) {
    out[0].data<uint32_t>()[0] = uint32_t(sample(in[0].size(), Dense(in[0]), s));
  };
  return make_of("sample", {logits}, {mx::Shape{}}, forward, nullptr, mx::uint32)[0];
}

}  // namespace

void bind_sampling(nb::module_& m) {
  m.def("sample", &native_sample, "logits"_a, "seed"_a, "step"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a);
}

}  // namespace macllm
