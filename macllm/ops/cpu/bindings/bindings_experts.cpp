// Products of rows with the 16-bit expert matrices chosen for them, as one MLX operation.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <vector>

#include "bindings.h"
#include "../kernels/expert_groups.h"
#include "../kernels/kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

constexpr int ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112;

// x w_e^T, or with `back` x w_e, for each row's expert e; NaN for an invalid e.
void product(const mx::array& x, const mx::array& w, const mx::array& chosen, bool back, float* y) {
  const int64_t E = w.shape(0), N = w.shape(1), K = w.shape(2), from = back ? N : K, to = back ? K : N;
  const Half kind = w.dtype() == mx::bfloat16 ? Half::bfloat16 : Half::float16;
  const Dense<uint16_t> weights(w);
  const Dense in(x);
  map_by_matrix(chosen.size(), Dense<int32_t>(chosen), E, {from, to}, in, y,
                [&](int64_t expert, int64_t rows, const float* mine, float* out) {
    const HalfProduct p{kind, rows, N, K, weights + expert * N * K};
    back ? half_product_vjp(p, mine, out) : half_product(p, mine, out);
  });
}

// The sum over an expert's rows of g x^T, for each expert.
void weight_vjp(const mx::array& x, const mx::array& g, const mx::array& chosen, int64_t experts, float* gw) {
  const int64_t N = columns(g), K = columns(x);
  const Dense in(x), slopes(g);
  std::fill_n(gw, experts * N * K, 0.f);
  by_matrix(chosen.size(), Dense<int32_t>(chosen), experts, [&](int64_t expert, const std::vector<int64_t>& rows) {
    const auto mine = gathered(rows, K, in), theirs = gathered(rows, N, slopes);
    sgemm(ROW_MAJOR, TRANSPOSED, PLAIN, int(N), int(K), int(rows.size()), 1.f, theirs.data(), int(N), mine.data(), int(K),
          0.f, gw + expert * N * K, int(K));
  });
}

Arrays gather_vjp(const Arrays& in, const Arrays& g, const Arrays&) {
  auto to_x = [](const Arrays& in, Arrays& out) { product(in[0], in[1], in[2], true, out[0].data<float>()); };
  auto to_w = [experts = in[1].shape(0)](const Arrays& in, Arrays& out) {
    weight_vjp(in[0], in[1], in[2], experts, out[0].data<float>());
  };
  auto gx = make_of("linear_gather_vjp", {g[0], in[1], in[2]}, {in[0].shape()}, to_x)[0];
  auto gw = make_of("linear_gather_vjp", {in[0], g[0], in[2]}, {in[1].shape()}, to_w)[0];
  return {gx, mx::astype(gw, in[1].dtype())};
}

mx::array native_linear_gather(const mx::array& x, const mx::array& w, const mx::array& chosen) {
  if (x.dtype() != mx::float32 || (w.dtype() != mx::bfloat16 && w.dtype() != mx::float16))
    throw std::invalid_argument("[macllm] linear_gather takes x of float32, and weights of bfloat16 or float16.");
  if (x.ndim() == 0 || w.ndim() != 3 || w.size() == 0 || x.shape(-1) != w.shape(2))
    throw std::invalid_argument("[macllm] linear_gather takes (..., D) and (E, F, D).");
  if (chosen.shape() != mx::Shape(x.shape().begin(), x.shape().end() - 1))
    throw std::invalid_argument("[macllm] linear_gather takes a choice for each row.");
  if (!serial_sgemm()) throw std::invalid_argument("[macllm] linear_gather needs OpenBLAS.");
  mx::Shape shape = x.shape();
  shape.back() = w.shape(1);
  auto forward = [](const Arrays& in, Arrays& out) { product(in[0], in[1], in[2], false, out[0].data<float>()); };
  return make_of("linear_gather", {x, w, mx::astype(chosen, mx::int32)}, {shape}, forward, gather_vjp)[0];
}

}  // namespace

void bind_experts(nb::module_& m) { m.def("linear_gather", &native_linear_gather, "x"_a, "weight"_a, "chosen"_a); }

}  // namespace macllm
