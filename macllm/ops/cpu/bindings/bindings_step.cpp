// Consecutive branches of a decode step as one MLX operation. Its only result is the hidden states; keys and values are
// written in place into inputs that the caller owns, since MLX's time is quadratic in the number of results.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <variant>

#include "bindings.h"
#include "packed.h"
#include "../kernels/step.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

using Numbers = std::vector<double>;
using Flags = std::vector<bool>;
using Indices = std::vector<int64_t>;

void check(bool fits) {
  if (!fits) throw std::invalid_argument("[macllm] a step takes (B, 1, D) and the weights it was planned with.");
}

// Reads numbers one after another, in the order in which ops/decode_step.py lists them.
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
  // Of each linear layer; 0 bits if it is not packed.
  std::vector<Packing> packings(int maps) {
    std::vector<Packing> all;
    for (int i = 0; i < maps; i++) {
      const int bits = int(next());
      all.push_back({int(next()), bits});
    }
    return all;
  }

 private:
  const double *at_, *end_;
};

// A branch without its arrays.
struct Plan {
  std::variant<AttentionStep, MlpStep> step;
  Residual norms;
  std::vector<Packing> packings;
  Flags present;  // for each weight that it could have
  size_t weights = 0;
};
using SharedPlan = std::shared_ptr<const Plan>;

Plan finished(Plan plan, Reader& reader, int maps, int norms, const Flags& present) {
  plan.packings = reader.packings(maps);
  plan.present = present;
  for (bool flag : present) plan.weights += flag;
  check(int(present.size()) == 4 * maps + 2 * norms);
  return plan;
}

Plan attention_plan(const Numbers& numbers, const Flags& present) {
  Reader reader(numbers);
  Plan plan;
  plan.norms = reader.residual();
  AttentionStep s{};
  s.H = int64_t(reader.next());
  s.scale = float(reader.next()), s.softcap = float(reader.next());
  s.temperature_floor = float(reader.next()), s.temperature_scale = float(reader.next());
  s.rotation.interleaved = reader.next() != 0;
  for (Norm* norm : {&s.q_norm, &s.k_norm, &s.q_head_norm, &s.k_head_norm}) *norm = reader.norm();
  plan.step = s;
  return finished(std::move(plan), reader, 4, 7, present);
}

Plan mlp_plan(const Numbers& numbers, const Flags& present) {
  Reader reader(numbers);
  Plan plan;
  plan.norms = reader.residual();
  MlpStep s{};
  s.activation = Unary(int(reader.next()));
  s.gated = reader.next() != 0;
  plan.step = s;
  return finished(std::move(plan), reader, s.gated ? 3 : 2, 3, present);
}

// Python's reference to a plan; primitives hold others.
struct PlanHandle {
  SharedPlan plan;
};

// Returns weights one after another, in the order in which ops/decode_step.py lists them; null for one that is not present.
class Weights {
 public:
  Weights(const Arrays& inputs, size_t first, const Plan& plan, DenseArrays& dense)
      : inputs_(inputs), dense_(dense), plan_(plan), next_(first) {}

  const float* next() { return plan_.present[flag_++] ? dense_.operator()<float>(inputs_[next_++]) : nullptr; }

  Linear linear() {
    const auto& weight = inputs_[next_];
    const Packing packing = plan_.packings[map_++];
    Linear map;
    if (packing.bits) {
      map.packed = packed(weight, inputs_[next_ + 1], inputs_[next_ + 2], packing, dense_);
      map.outputs = map.packed->N, map.inputs = map.packed->K;
      next_ += 3;
    } else {
      map.outputs = weight.shape(0), map.inputs = weight.shape(1);
      if (weight.dtype() == mx::float32) {
        map.weight = dense_.operator()<float>(weight);
      } else {
        map.half = weight.dtype() == mx::bfloat16 ? Half::bfloat16 : Half::float16;
        map.weight = dense_.operator()<uint16_t>(weight);
      }
      next_ += 1;
    }
    flag_ += 3;
    map.bias = next();
    return map;
  }

  void norm(Norm& norm) {
    norm.weight = next();
    norm.bias = next();
  }
  Residual residual() {
    Residual norms = plan_.norms;
    for (Norm* each : {&norms.pre, &norms.branch, &norms.sum}) norm(*each);
    return norms;
  }

 private:
  const Arrays& inputs_;
  DenseArrays& dense_;
  const Plan& plan_;
  size_t next_, flag_ = 0, map_ = 0;
};

// The parts of an attention step that change from token to token.
struct TokenSlot {
  int64_t at;
  Indices first, position;
  float magnitude;
  Packing packing;  // of keys and values; 0 bits if they are floats
};

struct Stage {
  SharedPlan plan;
  size_t weights;  // index of the first weight among the inputs
  std::optional<TokenSlot> token;
  size_t parts = 0, count = 0;  // index of the first input of keys and values, and their number
  size_t wavelengths = 0;       // index of the input; 0: none
};

// Cosines and sines, cached since most layers share them.
class Rotations {
 public:
  void set(Rotation& rotation, const mx::array& wavelengths, const TokenSlot& token) {
    const float* waves = wavelengths.data<float>();
    rotation.pairs = int64_t(wavelengths.size());
    if (waves != waves_ || token.magnitude != magnitude_ || token.position != position_) make(rotation.pairs, waves, token);
    rotation.cosine = cosine_.data(), rotation.sine = sine_.data();
  }

 private:
  void make(int64_t pairs, const float* waves, const TokenSlot& token) {
    waves_ = waves, magnitude_ = token.magnitude, position_ = token.position;
    cosine_.clear(), sine_.clear();
    for (int64_t position : position_) {
      for (int64_t i = 0; i < pairs; i++) {
        const float angle = float(position) / waves[i];
        cosine_.push_back(std::cos(angle) * magnitude_);
        sine_.push_back(std::sin(angle) * magnitude_);
      }
    }
  }

  const float* waves_ = nullptr;
  float magnitude_ = 0;
  Indices position_;
  std::vector<float> cosine_, sine_;
};

// A buffer in the arrays from `first` on, which are contiguous, as the cache made them.
Buffer buffer(const Stage& stage, const Arrays& in, size_t first) {
  auto numbers = [&](size_t i) { return const_cast<float*>(in[first + i].data<float>()); };
  const auto [group, bits] = stage.token->packing;
  if (!bits) return {numbers(0), {}};
  auto* words = const_cast<uint32_t*>(in[first].data<uint32_t>());
  return {nullptr, {words, numbers(1), numbers(2), in[first + 1].shape(3), bits, group}};
}

void run_attention(const Stage& stage, bool int8, Rotations& rotations, const Arrays& in, const float* x, float* y) {
  AttentionStep s = std::get<AttentionStep>(stage.plan->step);
  const auto& rows = in[stage.parts];
  s.B = in[0].shape(0), s.D = in[0].shape(2), s.K = rows.shape(1), s.capacity = rows.shape(2);
  DenseArrays dense;
  Weights weights(in, stage.weights, *stage.plan, dense);
  const Residual norms = weights.residual();
  for (Linear* map : {&s.q, &s.k, &s.v, &s.o}) *map = weights.linear();
  for (Norm* norm : {&s.q_norm, &s.k_norm, &s.q_head_norm, &s.k_head_norm}) weights.norm(*norm);
  s.Dh = s.k.outputs / s.K;
  s.at = stage.token->at, s.first = stage.token->first.data(), s.position = stage.token->position.data();
  if (stage.wavelengths) rotations.set(s.rotation, in[stage.wavelengths], *stage.token);
  s.keys = buffer(stage, in, stage.parts);
  s.values = buffer(stage, in, stage.parts + stage.count / 2);
  attention_step(s, norms, int8, x, y);
}

void run_mlp(const Stage& stage, bool int8, const Arrays& in, const float* x, float* y) {
  MlpStep s = std::get<MlpStep>(stage.plan->step);
  s.B = in[0].shape(0), s.D = in[0].shape(2);
  DenseArrays dense;
  Weights weights(in, stage.weights, *stage.plan, dense);
  const Residual norms = weights.residual();
  for (Linear* map : {&s.up, &s.down}) *map = weights.linear();
  if (s.gated) s.gate = weights.linear();
  mlp_step(s, norms, int8, x, y);
}

void run(const std::vector<Stage>& stages, bool int8, const Arrays& in, Arrays& out) {
  const Dense stream(in[0]);
  const float* x = stream;
  const std::unique_ptr<float[]> space[2] = {std::unique_ptr<float[]>(new float[in[0].size()]),
                                             std::unique_ptr<float[]>(new float[in[0].size()])};
  Rotations rotations;
  for (size_t i = 0; i < stages.size(); i++) {
    float* y = i + 1 == stages.size() ? out[0].data<float>() : space[i % 2].get();
    if (stages[i].token) {
      run_attention(stages[i], int8, rotations, in, x, y);
    } else {
      run_mlp(stages[i], int8, in, x, y);
    }
    x = y;
  }
}

// True for a supported type, if the array is not being differentiated, vectorised or compiled.
bool supported(const mx::array& a) {
  const bool half = a.dtype() == mx::float16 || a.dtype() == mx::bfloat16;
  const bool packed = a.dtype() == mx::uint32 && (a.ndim() == 2 || a.ndim() == 4);
  return (a.dtype() == mx::float32 || packed || (half && a.ndim() == 2)) && !a.is_tracer();
}

bool supports(const nb::sequence& arrays) {
  for (nb::handle array : arrays)
    if (!supported(nb::cast<const mx::array&>(array))) return false;
  return true;
}

// (parts, at, first, position, after, wavelengths, magnitude, (bits, group) or None)
using MaybeArray = std::optional<mx::array>;
using MaybePacking = std::optional<std::tuple<int, int>>;
using Slots = std::tuple<Arrays, int64_t, Indices, Indices, MaybeArray, MaybeArray, float, MaybePacking>;

// x, then the inputs of the branches.
struct Inputs {
  Arrays arrays;
  std::vector<Stage> stages;

  explicit Inputs(const mx::array& x) : arrays{x} {}

  void attend(const SharedPlan& plan, const Slots& slots) {
    Stage stage{plan, 0, {}};
    const auto& [parts, at, first, position, after, wavelengths, magnitude, packing] = slots;
    const size_t rows = arrays[0].shape(0);
    const auto [bits, group] = packing.value_or(std::make_tuple(0, 0));
    check(parts.size() == (bits ? 6 : 2) && first.size() == rows && position.size() == rows);
    stage.token = TokenSlot{at, first, position, magnitude, {group, bits}};
    stage.parts = arrays.size(), stage.count = parts.size();
    for (size_t i = 0; i < parts.size(); i++) {
      const mx::array& part = parts[i];
      check(part.ndim() == 4 && at < part.shape(2) && part.dtype() == (bits && i % 3 == 0 ? mx::uint32 : mx::float32));
      check(part.shape(1) == parts[0].shape(1) && part.shape(2) == parts[0].shape(2));
      put(part);
    }
    if (after && (before_ == 0 || arrays[before_].id() != after->id())) {
      before_ = arrays.size();
      put(*after);
    }
    if (wavelengths) {
      stage.wavelengths = arrays.size();
      put(*wavelengths);
    }
    stages.push_back(std::move(stage));
  }

  void feed(const SharedPlan& plan) { stages.push_back({plan, 0, {}}); }

  void put(const mx::array& a) {
    check(supported(a));
    arrays.push_back(a);
  }

 private:
  size_t before_ = 0;  // the last input that is only a dependency
};

mx::array native_steps(const mx::array& x, bool int8, const nb::list& plans, const nb::list& weights,
                       const nb::list& slots) {
  check(x.ndim() == 3 && x.shape(1) == 1 && plans.size() > 0 && x.dtype() == mx::float32 && supported(x));
  Inputs inputs(x);
  size_t weight = 0, slot = 0;
  for (nb::handle each : plans) {
    const SharedPlan& plan = nb::cast<const PlanHandle&>(each).plan;
    check(weight + plan->weights <= weights.size());
    if (plan->step.index() == 0) {
      check(slot < slots.size());
      inputs.attend(plan, nb::cast<Slots>(slots[slot++]));
    } else {
      inputs.feed(plan);
    }
    inputs.stages.back().weights = inputs.arrays.size();
    for (size_t i = 0; i < plan->weights; i++) inputs.put(nb::cast<const mx::array&>(weights[weight++]));
  }
  check(weight == weights.size() && slot == slots.size());
  auto stages = std::make_shared<const std::vector<Stage>>(std::move(inputs.stages));
  Eval eval = [stages, int8](const Arrays& in, Arrays& out) { run(*stages, int8, in, out); };
  auto primitive = std::make_shared<Native>(mx::to_stream({}), "steps", std::move(eval), nullptr);
  return mx::array(x.shape(), mx::float32, primitive, std::move(inputs.arrays));
}

}  // namespace

void bind_steps(nb::module_& m) {
  nb::set_leak_warnings(false);  // a model and its plans may live until the interpreter ends
  nb::class_<PlanHandle>(m, "StepPlan");
  auto handle = [](Plan (*make)(const Numbers&, const Flags&)) {
    return [make](const Numbers& numbers, const Flags& present) {
      return PlanHandle{std::make_shared<const Plan>(make(numbers, present))};
    };
  };
  m.def("attention_plan", handle(attention_plan), "numbers"_a, "present"_a);
  m.def("mlp_plan", handle(mlp_plan), "numbers"_a, "present"_a);
  m.def("step_supports", &supports, "arrays"_a);
  m.def("steps", &native_steps, "x"_a, "int8"_a, "plans"_a, "weights"_a, "slots"_a);
}

}  // namespace macllm
