// The branches of a decode step, each against its parts composed in float64.
#include <algorithm>

#include "driver.h"
#include "step.h"

using namespace macllm;

namespace {

Doubles wide(const Floats& x) { return Doubles(x.begin(), x.end()); }

struct Map {
  Floats weight, bias;
  Linear linear;
  Map(int64_t outputs, int64_t inputs)
      : weight(random_floats(outputs * inputs, 1 / std::sqrt(float(inputs)))),
        bias(random_floats(outputs)),
        linear{weight, bias, outputs, inputs} {}
  Doubles operator()(const Doubles& x) const {
    Doubles y;
    for (size_t row = 0; row < x.size(); row += linear.inputs)
      for (int64_t n = 0; n < linear.outputs; n++) {
        double dot = bias[n];
        for (int64_t k = 0; k < linear.inputs; k++) dot += x[row + k] * weight[n * linear.inputs + k];
        y.push_back(dot);
      }
    return y;
  }
};

Doubles rms(const Doubles& x, const Floats& weight, double eps) {
  const int64_t n = weight.size();
  Doubles y;
  for (size_t at = 0; at < x.size(); at += n) {
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += x[at + i] * x[at + i] / n;
    for (int64_t i = 0; i < n; i++) y.push_back(x[at + i] / std::sqrt(square + eps) * weight[i]);
  }
  return y;
}

void check_mlp(int64_t B, int64_t D, int64_t F) {
  const Map gate(F, D), up(F, D), down(D, F);
  Floats x = random_floats(B * D), weight = random_floats(D), out = unwritten(B * D);
  Residual norms;
  norms.pre = {Norm::rms, 1e-3f, false, weight, nullptr};
  mlp_step({B, D, Unary::silu, true, gate.linear, up.linear, down.linear}, norms, false, x, out);
  const Doubles in = rms(wide(x), weight, 1e-3f), gates = gate(in);
  Doubles hidden = up(in);
  for (size_t i = 0; i < hidden.size(); i++) hidden[i] *= gates[i] / (1 + std::exp(-gates[i]));
  Doubles want = down(hidden);
  for (size_t i = 0; i < want.size(); i++) want[i] += x[i];
  expect("mlp step " + std::to_string(B) + " x " + std::to_string(D), out, want, 1e-5);
}

// Rotates pairs of channels that are half a head apart, and scales.
void turn(Doubles& x, int64_t at, int64_t Dh, const Floats& waves, int64_t position, double factor) {
  for (int64_t i = 0; i < waves.size(); i++) {
    const double angle = position / double(waves[i]), a = x[at + i], b = x[at + i + waves.size()];
    x[at + i] = a * std::cos(angle) - b * std::sin(angle);
    x[at + i + waves.size()] = a * std::sin(angle) + b * std::cos(angle);
  }
  for (int64_t d = 0; d < Dh; d++) x[at + d] *= factor;
}

void check_attention(int64_t B, int64_t H, int64_t K, int64_t Dh, int64_t at) {
  const int64_t D = 24, capacity = at + 3;
  const Map q(H * Dh, D), k(K * Dh, D), v(K * Dh, D), o(D, H * Dh);
  Floats x = random_floats(B * D), weight = random_floats(D), out = unwritten(B * D), waves(Dh / 2);
  Floats keys = random_floats(B * K * capacity * Dh), values = random_floats(B * K * capacity * Dh);
  Doubles all_keys = wide(keys), all_values = wide(values);
  for (int64_t i = 0; i < waves.size(); i++) waves[i] = 1 + float(i * i);
  Exact<int64_t> first(B), position(B);
  for (int64_t b = 0; b < B; b++) first[b] = std::min(at, b * 2), position[b] = at - first[b];
  AttentionStep s{};
  s.B = B, s.D = D, s.H = H, s.K = K, s.Dh = Dh, s.scale = 0.3f;
  Floats cosine(B * waves.size()), sine(B * waves.size());
  for (int64_t i = 0; i < B * waves.size(); i++) {
    const double angle = position[i / waves.size()] / double(waves[i % waves.size()]);
    cosine[i] = float(std::cos(angle)), sine[i] = float(std::sin(angle));
  }
  s.rotation.cosine = cosine, s.rotation.sine = sine, s.rotation.pairs = waves.size();
  s.q = q.linear, s.k = k.linear, s.v = v.linear, s.o = o.linear;
  s.keys = {keys, {}}, s.values = {values, {}}, s.capacity = capacity, s.at = at, s.first = first, s.position = position;
  Residual norms;
  norms.pre = {Norm::rms, 1e-3f, false, weight, nullptr};
  attention_step(s, norms, false, x, out);

  const Doubles in = rms(wide(x), weight, 1e-3f), v_now = v(in);
  Doubles q_now = q(in), k_now = k(in), mixed(B * H * Dh);
  for (int64_t b = 0; b < B; b++) {
    for (int64_t h = 0; h < H; h++) turn(q_now, (b * H + h) * Dh, Dh, waves, position[b], s.scale);
    for (int64_t h = 0; h < K; h++) {
      turn(k_now, (b * K + h) * Dh, Dh, waves, position[b], 1);
      const int64_t slot = ((b * K + h) * capacity + at) * Dh;
      std::copy_n(&k_now[(b * K + h) * Dh], Dh, &all_keys[slot]);
      std::copy_n(&v_now[(b * K + h) * Dh], Dh, &all_values[slot]);
    }
    for (int64_t h = 0; h < H; h++) {
      const int64_t row = (b * K + h / (H / K)) * capacity;
      Doubles p;
      double total = 0;
      for (int64_t t = first[b]; t <= at; t++) {
        double score = 0;
        for (int64_t d = 0; d < Dh; d++) score += q_now[(b * H + h) * Dh + d] * all_keys[(row + t) * Dh + d];
        p.push_back(std::exp(score));
        total += p.back();
      }
      for (int64_t t = first[b]; t <= at; t++)
        for (int64_t d = 0; d < Dh; d++)
          mixed[(b * H + h) * Dh + d] += p[t - first[b]] / total * all_values[(row + t) * Dh + d];
    }
  }
  Doubles want = o(mixed);
  for (size_t i = 0; i < want.size(); i++) want[i] += x[i];
  const std::string name = "attention step of head " + std::to_string(Dh) + " at " + std::to_string(at);
  expect(name, out, want, 1e-5);
  expect(name + ", keys", keys, all_keys, 1e-5);
  expect(name + ", values", values, all_values, 1e-5);
}

}  // namespace

void check_steps() {
  for (int64_t B : {1, 3, 5})
    for (int64_t D : {1, 7, 32, 65}) check_mlp(B, D, 3 * D + 1);
  for (int64_t Dh : {2, 6, 16, 20, 64})
    for (int64_t at : {0, 1, 17, 600}) {
      check_attention(1, 4, 2, Dh, at);
      check_attention(3, 3, 3, Dh, at);
    }
}
