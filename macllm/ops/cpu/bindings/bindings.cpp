// The kernels as MLX operations, and their Python module.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "bindings.h"
#include "../kernels/kernels.h"
#include "../kernels/parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

Unary kind_of(const std::string& name) {
  static const char* names[] = {"exp", "sigmoid", "silu", "gelu_tanh", "gelu", "gelu_quick"};
  for (int i = 0; i < 6; i++)
    if (name == names[i]) return Unary(i);
  throw std::invalid_argument("[macllm] no such function: " + name);
}

mx::Shape without_last(const mx::array& x) { return mx::Shape(x.shape().begin(), x.shape().end() - 1); }

mx::array native_unary(const mx::array& x, const std::string& name) {
  const Unary kind = kind_of(name);
  auto forward = [kind](const Arrays& in, Arrays& out) { unary(kind, in[0].size(), Dense(in[0]), out[0].data<float>()); };
  auto vjp = [kind](const Arrays& in, const Arrays& g, const Arrays&) {
    auto backward = [kind](const Arrays& in, Arrays& out) {
      unary_vjp(kind, in[0].size(), Dense(in[0]), Dense(in[1]), out[0].data<float>());
    };
    return make("unary_vjp", {in[0], g[0]}, {in[0].shape()}, backward);
  };
  return make("unary", {x}, {x.shape()}, forward, vjp)[0];
}

mx::array native_gate(const mx::array& x, const mx::array& up, const std::string& name) {
  const Unary kind = kind_of(name);
  if (x.shape() != up.shape()) throw std::invalid_argument("[macllm] gate and up differ in shape.");
  auto forward = [kind](const Arrays& in, Arrays& out) {
    gate(kind, in[0].size(), Dense(in[0]), Dense(in[1]), out[0].data<float>());
  };
  auto vjp = [kind](const Arrays& in, const Arrays& g, const Arrays&) {
    auto backward = [kind](const Arrays& in, Arrays& out) {
      gate_vjp(kind, in[0].size(), Dense(in[0]), Dense(in[1]), Dense(in[2]), out[0].data<float>(), out[1].data<float>());
    };
    return make("gate_vjp", {in[0], in[1], g[0]}, {in[0].shape(), in[0].shape()}, backward);
  };
  return make("gate", {x, up}, {x.shape()}, forward, vjp)[0];
}

mx::array native_softmax(const mx::array& x) {
  auto forward = [](const Arrays& in, Arrays& out) {
    softmax(rows(in[0]), columns(in[0]), Dense(in[0]), out[0].data<float>());
  };
  auto vjp = [](const Arrays&, const Arrays& g, const Arrays& out) {
    auto backward = [](const Arrays& in, Arrays& out) {
      softmax_vjp(rows(in[0]), columns(in[0]), Dense(in[0]), Dense(in[1]), out[0].data<float>());
    };
    return make("softmax_vjp", {out[0], g[0]}, {out[0].shape()}, backward);
  };
  return make("softmax", {x}, {x.shape()}, forward, vjp)[0];
}

mx::array native_logsumexp(const mx::array& x) {
  auto forward = [](const Arrays& in, Arrays& out) {
    logsumexp(rows(in[0]), columns(in[0]), Dense(in[0]), out[0].data<float>());
  };
  auto vjp = [](const Arrays& in, const Arrays& g, const Arrays& out) {
    auto backward = [](const Arrays& in, Arrays& out) {
      logsumexp_vjp(rows(in[0]), columns(in[0]), Dense(in[0]), Dense(in[1]), Dense(in[2]), out[0].data<float>());
    };
    return make("logsumexp_vjp", {in[0], out[0], g[0]}, {in[0].shape()}, backward);
  };
  return make("logsumexp", {x}, {without_last(x)}, forward, vjp)[0];
}

std::tuple<mx::array, mx::array> native_cross_entropy(const mx::array& logits, const mx::array& targets) {
  if (without_last(logits) != targets.shape()) throw std::invalid_argument("[macllm] one target for each row of logits.");
  auto forward = [](const Arrays& in, Arrays& out) {
    cross_entropy(rows(in[0]), columns(in[0]), Dense(in[0]), Dense<int32_t>(in[1]), out[0].data<float>(), out[1].data<float>());
  };
  auto vjp = [](const Arrays& in, const Arrays& g, const Arrays& out) {
    auto backward = [](const Arrays& in, Arrays& out) {
      cross_entropy_vjp(rows(in[0]), columns(in[0]), Dense(in[0]), Dense<int32_t>(in[1]), Dense(in[2]), Dense(in[3]),
                        Dense(in[4]), out[0].data<float>());
    };
    return make("cross_entropy_vjp", {in[0], in[1], out[1], g[0], g[1]}, {in[0].shape()}, backward);
  };
  auto both = make("cross_entropy", {logits, mx::astype(targets, mx::int32)}, {targets.shape(), targets.shape()}, forward, vjp);
  return {both[0], both[1]};
}

mx::array native_rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  if (weight.ndim() != 1 || weight.shape(0) != columns(x)) throw std::invalid_argument("[macllm] one weight for each channel.");
  auto forward = [eps](const Arrays& in, Arrays& out) {
    rms_norm(rows(in[0]), columns(in[0]), eps, Dense(in[0]), Dense(in[1]), out[0].data<float>());
  };
  auto vjp = [eps](const Arrays& in, const Arrays& g, const Arrays&) {
    auto backward = [eps](const Arrays& in, Arrays& out) {
      rms_norm_vjp(rows(in[0]), columns(in[0]), eps, Dense(in[0]), Dense(in[1]), Dense(in[2]), out[0].data<float>(),
                   out[1].data<float>());
    };
    return make("rms_norm_vjp", {in[0], in[1], g[0]}, {in[0].shape(), in[1].shape()}, backward);
  };
  return make("rms_norm", {x, weight}, {x.shape()}, forward, vjp)[0];
}

mx::array native_layer_norm(const mx::array& x, const mx::array& weight, const std::optional<mx::array>& bias, float eps) {
  const mx::Shape channels{int(columns(x))};
  if (weight.shape() != channels || (bias && bias->shape() != channels))
    throw std::invalid_argument("[macllm] one weight and one bias for each channel.");
  auto forward = [eps](const Arrays& in, Arrays& out) {
    std::optional<Dense<>> bias;
    if (in.size() > 2) bias.emplace(in[2]);
    const float* shift = bias ? static_cast<const float*>(*bias) : nullptr;
    layer_norm(rows(in[0]), columns(in[0]), eps, Dense(in[0]), Dense(in[1]), shift, out[0].data<float>());
  };
  auto vjp = [eps](const Arrays& in, const Arrays& g, const Arrays&) {
    auto backward = [eps](const Arrays& in, Arrays& out) {
      layer_norm_vjp(rows(in[0]), columns(in[0]), eps, Dense(in[0]), Dense(in[1]), Dense(in[2]), out[0].data<float>(),
                     out[1].data<float>(), out[2].data<float>());
    };
    return make("layer_norm_vjp", {in[0], in[1], g[0]}, {in[0].shape(), in[1].shape(), in[1].shape()}, backward);
  };
  Arrays inputs{x, weight};
  if (bias) inputs.push_back(*bias);
  return make("layer_norm", inputs, {x.shape()}, forward, vjp)[0];
}

// The Euclidean norm of all arrays together.
mx::array native_norm(const std::vector<mx::array>& arrays) {
  auto forward = [](const Arrays& in, Arrays& out) {
    double total = 0;
    for (auto& a : in) {
      // The order of the elements does not matter, so a transposed array is read in memory order.
      const bool dense = a.flags().contiguous && a.data_size() == a.size();
      total += dense ? sum_of_squares(a.size(), a.data<float>()) : sum_of_squares(a.size(), Dense(a));
    }
    out[0].data<float>()[0] = float(std::sqrt(total));
  };
  return make("norm", arrays, {mx::Shape{}}, forward)[0];
}

std::tuple<mx::array, mx::array, mx::array> native_adamw(const mx::array& p, const mx::array& g, const mx::array& m,
                                                         const mx::array& v, const std::vector<mx::array>& scalars,
                                                         double beta1, double beta2, float eps) {
  if (scalars.size() != 4) throw std::invalid_argument("[macllm] scalars are scale, step, root and decay.");
  Arrays inputs{p, g, m, v};
  inputs.insert(inputs.end(), scalars.begin(), scalars.end());
  auto forward = [beta1, beta2, eps](const Arrays& in, Arrays& out) {
    auto scalar = [&](int i) { return in[i].data<float>()[0]; };
    adamw(in[0].size(), {scalar(4), scalar(5), scalar(6), scalar(7), beta1, beta2, eps}, Dense(in[0]), Dense(in[1]),
          Dense(in[2]), Dense(in[3]), out[0].data<float>(), out[1].data<float>(), out[2].data<float>());
  };
  auto all = make("adamw", inputs, {p.shape(), p.shape(), p.shape()}, forward);
  return {all[0], all[1], all[2]};
}

mx::array native_rope(const mx::array& x, const mx::array& wavelengths, const mx::array& offset, bool interleaved, bool back) {
  if (x.ndim() != 4) throw std::invalid_argument("[macllm] rope takes (B, H, L, Dh).");
  auto forward = [interleaved, back](const Arrays& in, Arrays& out) {
    auto& x = in[0];
    Dense waves(in[1]);
    Dense<int32_t> offsets(in[2]);
    Rope r{x.shape(0), x.shape(1), x.shape(2), x.shape(3), 2 * int64_t(in[1].size()), interleaved, back,
           waves, offsets, in[2].size() > 1 ? 1 : 0};
    rope(r, view(x), out[0].data<float>());
  };
  auto vjp = [interleaved, back](const Arrays& in, const Arrays& g, const Arrays&) {
    return Arrays{native_rope(heads_first(g[0]), in[1], in[2], interleaved, !back)};
  };
  mx::Shape shape{x.shape(0), x.shape(2), x.shape(1), x.shape(3)};
  return heads_first(make("rope", {x, wavelengths, mx::astype(offset, mx::int32)}, {shape}, forward, vjp)[0]);
}

}  // namespace
}  // namespace macllm

NB_MODULE(macllm_native, m) {
  using namespace macllm;
  m.def("set_threads", &set_threads, "count"_a);
  m.def("threads", &threads);
  m.def("divide_sgemm", [](uintptr_t single_threaded) {
    set_sgemm(reinterpret_cast<Sgemm>(single_threaded));
    return reinterpret_cast<uintptr_t>(&sgemm);
  }, "single_threaded"_a);
  m.def("unary", &native_unary, "x"_a, "kind"_a);
  m.def("gate", &native_gate, "gate"_a, "up"_a, "kind"_a);
  m.def("softmax", &native_softmax, "x"_a);
  m.def("logsumexp", &native_logsumexp, "x"_a);
  m.def("cross_entropy", &native_cross_entropy, "logits"_a, "targets"_a);
  m.def("rms_norm", &native_rms_norm, "x"_a, "weight"_a, "eps"_a);
  m.def("layer_norm", &native_layer_norm, "x"_a, "weight"_a, "bias"_a.none(), "eps"_a);
  m.def("norm", &native_norm, "arrays"_a);
  m.def("adamw", &native_adamw, "p"_a, "g"_a, "m"_a, "v"_a, "scalars"_a, "beta1"_a, "beta2"_a, "eps"_a);
  m.def("rope", &native_rope, "x"_a, "wavelengths"_a, "offset"_a, "interleaved"_a = false, "back"_a = false);
  bind_attention(m);
  bind_experts(m);
  bind_linear(m);
  bind_sampling(m);
  bind_steps(m);
  bind_quantized(m);
}
