// Drawing a token as one MLX operation.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>

#include "bindings.h"
#include "../kernels/kernels.h"
#include "../kernels/sample.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

// The sampling parameters of one completion.
struct Draw {
  Filters filters;
  Penalties penalties;
  int64_t kept = 0;  // newest tokens of the history that penalties read; 0: all

  // Numbers in the order of ops/draw_params.py, then `kept`.
  Draw(const std::vector<double>& numbers, std::vector<uint32_t> biased, std::vector<float> biases,
       std::vector<uint32_t> breakers) {
    if (numbers.size() != 16 || biased.size() != biases.size())
      throw std::invalid_argument("[macllm] a draw takes 16 numbers, and a bias for each biased token.");
    const double* next = numbers.data();
    auto real = [&] { return float(*next++); };
    auto whole = [&] { return int64_t(*next++); };
    filters.temperature = real(), filters.top_k = whole(), filters.top_p = real(), filters.min_p = real();
    filters.typical_p = real(), filters.xtc_probability = real(), filters.xtc_threshold = real();
    penalties.repetition = real(), penalties.presence = real(), penalties.frequency = real();
    penalties.window = whole();
    penalties.dry_multiplier = real(), penalties.dry_base = real();
    penalties.dry_allowed = whole(), penalties.dry_window = whole();
    kept = whole();
    penalties.biased = std::move(biased), penalties.biases = std::move(biases);
    penalties.dry_breakers = std::move(breakers);
  }
};

using Plan = std::shared_ptr<const Draw>;
struct DrawPlan {
  Plan draw;
};

void check(const mx::array& logits) {
  if (logits.dtype() != mx::float32 || logits.ndim() != 1 || logits.size() == 0)
    throw std::invalid_argument("[macllm] logits are (V,) of float32.");
}

int64_t draw(const Draw& d, const mx::array& logits, const uint32_t* history, int64_t length, Key key) {
  const int64_t n = logits.size();
  const Dense given(logits);
  if (!d.penalties.any()) return sample(n, given, d.filters, key);
  static thread_local std::vector<float> changed;
  changed.assign(static_cast<const float*>(given), given + n);
  penalize(d.penalties, history, length, n, changed.data());
  return sample(n, changed.data(), d.filters, key);
}

// The token, and the history with it.
std::tuple<mx::array, std::optional<mx::array>> native_draw(const DrawPlan& plan, const mx::array& logits,
                                                            const std::optional<mx::array>& history, uint32_t seed,
                                                            uint32_t step) {
  check(logits);
  const Key key{{seed, step}};
  if (!history) {
    auto forward = [plan = plan.draw, key](const Arrays& in, Arrays& out) {
      out[0].data<uint32_t>()[0] = uint32_t(draw(*plan, in[0], nullptr, 0, key));
    };
    return {make_of("draw", {logits}, {mx::Shape{}}, forward, nullptr, mx::uint32)[0], std::nullopt};
  }
  if (history->dtype() != mx::uint32 || history->ndim() != 1)
    throw std::invalid_argument("[macllm] a history is (N,) of uint32.");
  const int64_t longer = history->size() + 1, kept = plan.draw->kept ? std::min(plan.draw->kept, longer) : longer;
  auto forward = [plan = plan.draw, key, kept](const Arrays& in, Arrays& out) {
    const Dense<uint32_t> history(in[1]);
    const int64_t length = in[1].size();
    const uint32_t token = uint32_t(draw(*plan, in[0], history, length, key));
    out[0].data<uint32_t>()[0] = token;
    uint32_t* to = out[1].data<uint32_t>();
    std::copy_n(history + (length + 1 - kept), kept - 1, to);
    to[kept - 1] = token;
  };
  auto both = make_of("draw", {logits, *history}, {mx::Shape{}, {int(kept)}}, forward, nullptr, mx::uint32);
  return {both[0], both[1]};
}

// The log-probability of a token; the likeliest tokens, and their log-probabilities.
std::tuple<mx::array, mx::array, mx::array> native_logprobs(const mx::array& logits, const mx::array& token, int count) {
  check(logits);
  if (token.size() != 1 || count < 0 || count > int64_t(logits.size()))
    throw std::invalid_argument("[macllm] logprobs takes one token, and a count of at most V.");
  auto forward = [count](const Arrays& in, Arrays& out) {
    const int64_t n = in[0].size();
    const Dense x(in[0]);
    float all, *values = out[2].data<float>();
    logsumexp(1, n, x, &all);
    const uint32_t chosen = in[1].data<uint32_t>()[0];
    out[0].data<float>()[0] = chosen < n ? x[chosen] - all : std::numeric_limits<float>::quiet_NaN();
    largest_logits(n, x, count, out[1].data<uint32_t>(), values);
    for (int i = 0; i < count; i++) values[i] -= all;
  };
  auto primitive = std::make_shared<Native>(mx::to_stream({}), "logprobs", std::move(forward), nullptr);
  auto all = mx::array::make_arrays({mx::Shape{}, {count}, {count}}, {mx::float32, mx::uint32, mx::float32}, primitive,
                                    {logits, mx::astype(token, mx::uint32)});
  return {all[0], all[1], all[2]};
}

}  // namespace

void bind_sampling(nb::module_& m) {
  using Tokens = std::vector<uint32_t>;
  nb::class_<DrawPlan>(m, "DrawPlan")
      .def("__init__", [](DrawPlan* self, const std::vector<double>& numbers, const Tokens& biased,
                          const std::vector<float>& biases, const Tokens& breakers) {
        new (self) DrawPlan{std::make_shared<const Draw>(numbers, biased, biases, breakers)};
      }, "numbers"_a, "biased"_a, "biases"_a, "breakers"_a);
  m.def("draw", &native_draw, "plan"_a, "logits"_a, "history"_a.none(), "seed"_a, "step"_a);
  m.def("logprobs", &native_logprobs, "logits"_a, "token"_a, "count"_a);
}

}  // namespace macllm
