// The branches of a decoding step as MLX operations. Keys and values are written where they lie: the caller owns them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>

#include "primitive.h"
#include "step.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

using Optional = std::vector<std::optional<mx::array>>;
using Numbers = std::vector<double>;

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

// What a primitive is made of: its inputs, and where among them each weight is; -1 for one that a model has not.
struct Gathered {
  Arrays inputs;
  std::vector<int> places;

  explicit Gathered(Arrays first, const Optional& weights) : inputs(std::move(first)) {
    for (auto& weight : weights) {
      places.push_back(weight ? int(inputs.size()) : -1);
      if (weight) inputs.push_back(*weight);
    }
  }

  // Only plain float32 that nobody differentiates, vectorises or compiles.
  bool served() const {
    for (auto& in : inputs)
      if (in.dtype() != mx::float32 || in.is_tracer()) return false;
    return true;
  }
};

// Hands weights out one after another, in the order in which ops/step.py lists them.
class Weights {
 public:
  Weights(const Arrays& inputs, const std::vector<int>& places) : inputs_(inputs), next_(places.data()) {
    dense_.reserve(places.size());
  }
  const float* next() {
    const int place = *next_++;
    if (place < 0) return nullptr;
    last_ = &inputs_[place];
    dense_.emplace_back(*last_);
    return dense_.back();
  }
  bool has() const { return *next_ >= 0; }
  Linear linear() {
    Linear map;
    map.weight = next();
    map.outputs = last_->shape(0);
    map.inputs = last_->shape(1);
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
  const int* next_;
  const mx::array* last_ = nullptr;
  std::vector<Dense<float>> dense_;
};

constexpr size_t RESIDUAL_WEIGHTS = 6, ATTENTION_WEIGHTS = RESIDUAL_WEIGHTS + 4 * 2 + 4 * 2, MLP_WEIGHTS = RESIDUAL_WEIGHTS + 3 * 2;

void check(bool fits) {
  if (!fits) throw std::invalid_argument("[macllm] a step takes (B, 1, D), its numbers and its weights.");
}

std::shared_ptr<Native> primitive(const char* name, Eval eval, Reuse reuse = nullptr) {
  return std::make_shared<Native>(mx::to_stream({}), name, std::move(eval), nullptr, std::move(reuse));
}

struct Slots {
  std::vector<int64_t> first, position;
  int64_t at;
  float magnitude;
  bool borrowed;
};

// (y, keys, values), or nothing where this does not serve.
std::optional<std::tuple<mx::array, mx::array, mx::array>> native_attention_step(
    const mx::array& x, const mx::array& keys, const mx::array& values, const std::optional<mx::array>& wavelengths,
    const Optional& weights, const Numbers& numbers, std::tuple<std::vector<int64_t>, std::vector<int64_t>, int64_t> place,
    float magnitude, bool borrowed) {
  Optional all{wavelengths};
  all.insert(all.end(), weights.begin(), weights.end());
  Gathered g({x, keys, values}, all);
  if (!g.served()) return {};
  check(x.ndim() == 3 && x.shape(1) == 1 && keys.ndim() == 4 && keys.shape() == values.shape() &&
        weights.size() == ATTENTION_WEIGHTS);
  Slots slots{std::get<0>(place), std::get<1>(place), std::get<2>(place), magnitude, borrowed};
  const auto rows = size_t(x.shape(0));
  check(slots.first.size() == rows && slots.position.size() == rows && slots.at < keys.shape(2));
  auto eval = [places = g.places, numbers, slots](const Arrays& in, Arrays& out) {
    Reader reader(numbers);
    Weights weights(in, places);
    AttentionStep s{};
    Residual norms = reader.residual();
    s.B = in[0].shape(0), s.D = in[0].shape(2), s.K = in[1].shape(1), s.Dh = in[1].shape(3), s.capacity = in[1].shape(2);
    s.H = int64_t(reader.next());
    s.scale = float(reader.next()), s.softcap = float(reader.next());
    s.heat_floor = float(reader.next()), s.heat_scale = float(reader.next());
    s.turn.interleaved = reader.next() != 0, s.turn.magnitude = slots.magnitude;
    for (Norm* norm : {&s.q_norm, &s.k_norm, &s.q_head_norm, &s.k_head_norm}) *norm = reader.norm();
    s.turn.wavelengths = weights.next();
    s.turn.pairs = s.turn.wavelengths ? int64_t(in[places[0]].size()) : 0;
    weights.residual(norms);
    for (Linear* map : {&s.q, &s.k, &s.v, &s.o}) *map = weights.linear();
    for (Norm* norm : {&s.q_norm, &s.k_norm, &s.q_head_norm, &s.k_head_norm}) weights.norm(*norm);
    s.at = slots.at, s.first = slots.first.data(), s.position = slots.position.data();
    for (int i : {1, 2}) {
      if (in[i].data<float>() == out[i].data<float>()) continue;
      Dense rows(in[i]);
      std::copy_n(static_cast<const float*>(rows), in[i].size(), out[i].data<float>());
    }
    attention_step(s, norms, Dense(in[0]), out[1].data<float>(), out[2].data<float>(), out[0].data<float>());
  };
  Reuse reuse = [borrowed](const Arrays& in, Arrays& out) {
    for (int i : {1, 2})
      if (!borrowed && in[i].flags().row_contiguous) out[i].copy_shared_buffer(in[i]);
  };
  auto made = mx::array::make_arrays({x.shape(), keys.shape(), keys.shape()}, std::vector<mx::Dtype>(3, mx::float32),
                                     primitive("attention_step", std::move(eval), std::move(reuse)), g.inputs);
  return std::make_tuple(made[0], made[1], made[2]);
}

// y, or nothing where this does not serve.
std::optional<mx::array> native_mlp_step(const mx::array& x, const Optional& weights, const Numbers& numbers) {
  Gathered g({x}, weights);
  if (!g.served()) return {};
  check(x.ndim() == 3 && x.shape(1) == 1 && weights.size() == MLP_WEIGHTS);
  auto eval = [places = g.places, numbers](const Arrays& in, Arrays& out) {
    Reader reader(numbers);
    Weights weights(in, places);
    MlpStep s{};
    Residual norms = reader.residual();
    s.B = in[0].shape(0), s.D = in[0].shape(2);
    s.activation = Unary(int(reader.next()));
    weights.residual(norms);
    for (Linear* map : {&s.up, &s.down}) *map = weights.linear();
    s.gated = weights.has();
    if (s.gated) s.gate = weights.linear();
    mlp_step(s, norms, Dense(in[0]), out[0].data<float>());
  };
  return mx::array(x.shape(), mx::float32, primitive("mlp_step", std::move(eval)), g.inputs);
}

}  // namespace

void bind_steps(nb::module_& m) {
  m.def("attention_step", &native_attention_step, "x"_a, "keys"_a, "values"_a, "wavelengths"_a.none(), "weights"_a,
        "numbers"_a, "place"_a, "magnitude"_a, "borrowed"_a);
  m.def("mlp_step", &native_mlp_step, "x"_a, "weights"_a, "numbers"_a);
}

}  // namespace macllm
