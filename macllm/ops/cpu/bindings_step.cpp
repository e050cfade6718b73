// The branches of a decoding step as MLX operations. Keys and values are written where they lie: the caller owns them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>

#include "bindings.h"
#include "primitive.h"
#include "step.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

using Numbers = std::vector<double>;
using Flags = std::vector<bool>;
using Indices = std::vector<int64_t>;

// Reads numbers one after another, in the order in which ops/step.py lists them.
class Reader {
 public:
  explicit Reader(const Numbers& numbers) : at_(numbers.data()), end_(at_ + numbers.size()) {}
  double next() {
    if (at_ == end_) throw std::invalid_argument("[macllm] too few numbers for a step.");
    return *at_++;
  }
  Norm norm() {
    Norm n;
    n.kind = Norm::Kind(int(next()));
    n.eps = float(next());
    n.unit_offset = next() != 0;
    return n;
  }
  Residual residual() {
    Residual r;
    r.pre = norm();
    r.branch = norm();
    r.sum = norm();
    return r;
  }

 private:
  const double *at_, *end_;
};

// Hands weights out one after another, in the order in which ops/step.py lists them; null for one that is not present.
class Weights {
 public:
  Weights(const Arrays& inputs, size_t first, const Flags& present) : inputs_(inputs), next_(first), present_(present) {
    dense_.reserve(inputs.size());
  }
  const float* next() {
    if (!present_[flag_++]) return nullptr;
    dense_.emplace_back(inputs_[next_++]);
    return dense_.back();
  }
  Linear linear() {
    const auto& weight = inputs_[next_];
    Linear map;
    map.outputs = weight.shape(0);
    map.inputs = weight.shape(1);
    if (weight.dtype() == mx::float32) {
      map.weight = next();
    } else {
      map.half = weight.dtype() == mx::bfloat16 ? Half::bfloat16 : Half::float16;
      halves_.emplace_back(weight);
      map.weight = halves_.back();
      flag_++, next_++;
    }
    map.bias = next();
    return map;
  }
  void norm(Norm& norm) {
    norm.weight = next();
    norm.bias = next();
  }
  void residual(Residual& norms) {
    norm(norms.pre);
    norm(norms.branch);
    norm(norms.sum);
  }

 private:
  const Arrays& inputs_;
  size_t next_, flag_ = 0;
  const Flags& present_;
  std::vector<Dense<float>> dense_;
  std::vector<Dense<uint16_t>> halves_;
};

void check(bool fits) {
  if (!fits) throw std::invalid_argument("[macllm] a step takes (B, 1, D) and the weights it was planned with.");
}

// A branch but for its arrays.
template <class Kind>
struct Planned {
  Kind step{};
  Residual norms;
  Flags present;
  size_t weights = 0;

  Planned(const Numbers& numbers, const Flags& flags) : present(flags) {
    Reader reader(numbers);
    norms = reader.residual();
    read(reader, step);
    for (bool flag : present) weights += flag;
  }

 private:
  void read(Reader& reader, AttentionStep& s) {
    s.H = int64_t(reader.next());
    s.scale = float(reader.next()), s.softcap = float(reader.next());
    s.heat_floor = float(reader.next()), s.heat_scale = float(reader.next());
    s.turn.interleaved = reader.next() != 0;
    for (Norm* norm : {&s.q_norm, &s.k_norm, &s.q_head_norm, &s.k_head_norm}) *norm = reader.norm();
    check(present.size() == 22);
  }
  void read(Reader& reader, MlpStep& s) {
    s.activation = Unary(int(reader.next()));
    s.gated = present.size() > 10;
    check(present.size() == (s.gated ? 12 : 10));
  }
};

// Python's hold on a plan; the primitives have their own.
template <class Kind>
struct Plan {
  std::shared_ptr<const Planned<Kind>> planned;
  Plan(const Numbers& numbers, const Flags& present) : planned(std::make_shared<Planned<Kind>>(numbers, present)) {}
};

// Only plain float32, and matrices of 16 bits from `weights` on, that nobody differentiates, vectorises or compiles.
bool served(const Arrays& inputs, size_t weights) {
  for (size_t i = 0; i < inputs.size(); i++) {
    const auto& in = inputs[i];
    const bool half = (in.dtype() == mx::float16 || in.dtype() == mx::bfloat16) && in.ndim() == 2 && i >= weights;
    if (!(in.dtype() == mx::float32 || half) || in.is_tracer()) return false;
  }
  return true;
}

std::shared_ptr<Native> primitive(const char* name, Eval eval, Reuse reuse = nullptr) {
  return std::make_shared<Native>(mx::to_stream({}), name, std::move(eval), nullptr, std::move(reuse));
}

// What changes from step to step.
struct Place {
  int64_t at;
  Indices first, position;
  float magnitude;
};

void run_attention(const Planned<AttentionStep>& plan, const Place& place, bool turns, const Arrays& in, Arrays& out) {
  AttentionStep s = plan.step;
  Residual norms = plan.norms;
  s.B = in[0].shape(0), s.D = in[0].shape(2), s.K = in[1].shape(1), s.Dh = in[1].shape(3), s.capacity = in[1].shape(2);
  Weights weights(in, turns ? 4 : 3, plan.present);
  weights.residual(norms);
  for (Linear* map : {&s.q, &s.k, &s.v, &s.o}) *map = weights.linear();
  for (Norm* norm : {&s.q_norm, &s.k_norm, &s.q_head_norm, &s.k_head_norm}) weights.norm(*norm);
  s.at = place.at, s.first = place.first.data(), s.position = place.position.data();
  if (turns) {
    s.turn.wavelengths = in[3].data<float>();
    s.turn.pairs = int64_t(in[3].size());
    s.turn.magnitude = place.magnitude;
  }
  for (int i : {1, 2}) {
    if (in[i].data<float>() == out[i].data<float>()) continue;
    Dense rows(in[i]);
    std::copy_n(static_cast<const float*>(rows), in[i].size(), out[i].data<float>());
  }
  attention_step(s, norms, Dense(in[0]), out[1].data<float>(), out[2].data<float>(), out[0].data<float>());
}

// (y, keys, values), or nothing where this does not serve.
std::optional<std::tuple<mx::array, mx::array, mx::array>> native_attention_step(
    const Plan<AttentionStep>& plan, const mx::array& x, const mx::array& keys, const mx::array& values, int64_t at,
    Indices first, Indices position, bool borrowed, const std::optional<mx::array>& wavelengths, float magnitude,
    const Arrays& weights) {
  const bool turns = wavelengths.has_value();
  Arrays inputs;
  inputs.reserve(4 + weights.size());
  inputs.insert(inputs.end(), {x, keys, values});
  if (turns) inputs.push_back(*wavelengths);
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  if (!served(inputs, inputs.size() - weights.size())) return {};
  const size_t rows = x.shape(0);
  check(x.ndim() == 3 && x.shape(1) == 1 && keys.ndim() == 4 && keys.shape() == values.shape());
  check(weights.size() == plan.planned->weights && first.size() == rows && position.size() == rows && at < keys.shape(2));
  Place place{at, std::move(first), std::move(position), magnitude};
  Eval eval = [planned = plan.planned, place = std::move(place), turns](const Arrays& in, Arrays& out) {
    run_attention(*planned, place, turns, in, out);
  };
  Reuse reuse = [borrowed](const Arrays& in, Arrays& out) {
    for (int i : {1, 2})
      if (!borrowed && in[i].flags().row_contiguous) out[i].copy_shared_buffer(in[i]);
  };
  auto made = mx::array::make_arrays({x.shape(), keys.shape(), keys.shape()}, std::vector<mx::Dtype>(3, mx::float32),
                                     primitive("attention_step", std::move(eval), std::move(reuse)), inputs);
  return std::make_tuple(made[0], made[1], made[2]);
}

// y, or nothing where this does not serve.
std::optional<mx::array> native_mlp_step(const Plan<MlpStep>& plan, const mx::array& x, const Arrays& weights) {
  Arrays inputs;
  inputs.reserve(1 + weights.size());
  inputs.push_back(x);
  inputs.insert(inputs.end(), weights.begin(), weights.end());
  if (!served(inputs, 1)) return {};
  check(x.ndim() == 3 && x.shape(1) == 1 && weights.size() == plan.planned->weights);
  auto eval = [planned = plan.planned](const Arrays& in, Arrays& out) {
    MlpStep s = planned->step;
    Residual norms = planned->norms;
    s.B = in[0].shape(0), s.D = in[0].shape(2);
    Weights weights(in, 1, planned->present);
    weights.residual(norms);
    for (Linear* map : {&s.up, &s.down}) *map = weights.linear();
    if (s.gated) s.gate = weights.linear();
    mlp_step(s, norms, Dense(in[0]), out[0].data<float>());
  };
  return mx::array(x.shape(), mx::float32, primitive("mlp_step", std::move(eval)), inputs);
}

}  // namespace

void bind_steps(nb::module_& m) {
  nb::set_leak_warnings(false);  // a model may live until the interpreter ends, and its plans with it
  nb::class_<Plan<AttentionStep>>(m, "AttentionPlan").def(nb::init<const Numbers&, const Flags&>());
  nb::class_<Plan<MlpStep>>(m, "MlpPlan").def(nb::init<const Numbers&, const Flags&>());
  m.def("attention_step", &native_attention_step, "plan"_a, "x"_a, "keys"_a, "values"_a, "at"_a, "first"_a, "position"_a,
        "borrowed"_a, "wavelengths"_a.none(), "magnitude"_a, "weights"_a);
  m.def("mlp_step", &native_mlp_step, "plan"_a, "x"_a, "weights"_a);
}

}  // namespace macllm
