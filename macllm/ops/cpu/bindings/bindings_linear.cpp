// Linear layers as one MLX operation, for weights of any type.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <functional>
#include <numeric>
#include <optional>

#include "bindings.h"
#include "../kernels/kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

constexpr int ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112;

bool is_half(const mx::array& w) { return w.dtype() == mx::bfloat16 || w.dtype() == mx::float16; }

// The product of all dimensions but the last, which may be 0.
int64_t vectors(const mx::array& x) {
  return std::accumulate(x.shape().begin(), x.shape().end() - 1, int64_t(1), std::multiplies<int64_t>());
}

HalfProduct half(const mx::array& x, const mx::array& w, const uint16_t* data) {
  return {w.dtype() == mx::bfloat16 ? Half::bfloat16 : Half::float16, vectors(x), w.shape(0), w.shape(1), data};
}

mx::Shape with_last(const mx::array& x, int last) {
  mx::Shape shape = x.shape();
  shape.back() = last;
  return shape;
}

mx::array flat(const mx::array& x) { return mx::reshape(x, {int(vectors(x)), x.shape(-1)}); }

void forward(const Arrays& in, Arrays& out) {
  auto &x = in[0], &w = in[1];
  const int64_t N = w.shape(0), K = w.shape(1), M = vectors(x);
  float* y = out[0].data<float>();
  if (M == 0 || N == 0) return;
  if (is_half(w)) {
    Dense<uint16_t> data(w);
    half_product(half(x, w, data), Dense(x), y);
  } else {
    sgemm(ROW_MAJOR, PLAIN, TRANSPOSED, int(M), int(N), int(K), 1.f, Dense(x), int(K), Dense(w), int(K), 0.f, y,
          int(N));
  }
  if (in.size() > 2) add_to_rows(M, N, Dense(in[2]), y);
}

// The gradient of the weight has the weight's layout; for `x @ w.T` MLX computes the transpose's gradient, which every
// later reader would have to gather.
Arrays linear_vjp(const Arrays& in, const Arrays& g, const Arrays&) {
  auto &x = in[0], &w = in[1];
  auto backward = [](const Arrays& in, Arrays& out) {
    if (out[0].size() == 0) return;
    Dense<uint16_t> data(in[1]);
    half_product_vjp(half(in[0], in[1], data), Dense(in[0]), out[0].data<float>());
  };
  auto gx = is_half(w) ? make_of("linear_vjp", {g[0], w}, {x.shape()}, backward)[0]
                       : mx::reshape(mx::matmul(flat(g[0]), w), x.shape());
  auto gw = mx::astype(mx::matmul(mx::transpose(flat(g[0])), flat(x)), w.dtype());
  Arrays all{gx, gw};
  if (in.size() > 2) all.push_back(mx::sum(flat(g[0]), 0));
  return all;
}

mx::array native_linear(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias) {
  if (x.dtype() != mx::float32 || (w.dtype() != mx::float32 && !is_half(w)))
    throw std::invalid_argument("[macllm] linear takes x of float32, and weights of float32, bfloat16 or float16.");
  if (x.ndim() == 0 || w.ndim() != 2 || x.shape(-1) != w.shape(1))
    throw std::invalid_argument("[macllm] linear takes (..., D) and (F, D).");
  if (bias && (bias->dtype() != mx::float32 || bias->shape() != mx::Shape{w.shape(0)}))
    throw std::invalid_argument("[macllm] linear takes a bias of float32, one for each output.");
  if (!serial_sgemm()) throw std::invalid_argument("[macllm] linear needs OpenBLAS.");
  Arrays inputs{x, w};
  if (bias) inputs.push_back(*bias);
  return make_of("linear", inputs, {with_last(x, w.shape(0))}, forward, linear_vjp)[0];
}

}  // namespace

void bind_linear(nb::module_& m) { m.def("linear", &native_linear, "x"_a, "weight"_a, "bias"_a = nb::none()); }

}  // namespace macllm
