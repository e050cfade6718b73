// Pointwise functions, norms, softmax, cross-entropy, rotations and the optimizer.
#include <algorithm>

#include "driver.h"

using namespace macllm;

namespace {

const int64_t SIZES[] = {1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 1025};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double value_of(Unary kind, double x) {
  switch (kind) {
    case Unary::exp: return std::exp(x);
    case Unary::sigmoid: return sigmoid(x);
    case Unary::silu: return x * sigmoid(x);
    case Unary::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Unary::gelu: return 0.5 * x * std::erfc(-x / std::sqrt(2.));
    default: return x * sigmoid(1.702 * x);
  }
}

// By central differences: exact to some 1e-10 in float64.
double slope_of(Unary kind, double x) { return (value_of(kind, x + 1e-5) - value_of(kind, x - 1e-5)) / 2e-5; }

// The derivatives of loss(x) = sum g f(x) by x, by central differences.
Doubles slopes(const Floats& x, const std::function<double(const Doubles&)>& loss) {
  Doubles at(x.begin(), x.end()), result;
  for (double& each : at) {
    const double kept = each;
    each = kept + 1e-5;
    const double above = loss(at);
    each = kept - 1e-5;
    result.push_back((above - loss(at)) / 2e-5);
    each = kept;
  }
  return result;
}

double inner(const Floats& g, const Doubles& y) {
  double total = 0;
  for (size_t i = 0; i < y.size(); i++) total += g[i] * y[i];
  return total;
}

void check_unary(Unary kind, int64_t n) {
  const std::string name = "unary " + std::to_string(int(kind)) + " of " + std::to_string(n);
  Floats x = random_floats(n, 4), up = random_floats(n), gy = random_floats(n);
  Floats y = unwritten(n), gx = unwritten(n), gup = unwritten(n), both = unwritten(n), ggate = unwritten(n);
  unary(kind, n, x, y);
  unary_vjp(kind, n, x, gy, gx);
  gate(kind, n, x, up, both);
  gate_vjp(kind, n, x, up, gy, ggate, gup);
  Doubles values, slope, product, of_gate, of_up;
  for (int64_t i = 0; i < n; i++) {
    const double f = value_of(kind, x[i]), d = slope_of(kind, x[i]);
    values.push_back(f);
    slope.push_back(d * gy[i]);
    product.push_back(f * up[i]);
    of_gate.push_back(d * gy[i] * up[i]);
    of_up.push_back(f * gy[i]);
  }
  expect(name, y, values, 2e-6);
  expect(name + ", gradient", gx, slope, 4e-6);
  expect(name + ", gate", both, product, 2e-6);
  expect(name + ", gradient of the gate", ggate, of_gate, 4e-6);
  expect(name + ", gradient of what is gated", gup, of_up, 2e-6);
}

void check_adamw(int64_t n) {
  const AdamW a{0.5f, 1e-2f, 1.1f, 0.99f, 0.9, 0.999, 1e-8f};
  Floats p = random_floats(n), g = random_floats(n), m = random_floats(n), v = random_floats(n);
  for (float& each : v) each *= each;
  Doubles p_want, m_want, v_want;
  for (int64_t i = 0; i < n; i++) {
    const double grad = double(a.scale) * g[i], mean = a.beta1 * double(m[i]) + (1 - a.beta1) * grad;
    const double square = a.beta2 * double(v[i]) + (1 - a.beta2) * grad * grad;
    m_want.push_back(mean), v_want.push_back(square);
    p_want.push_back(a.decay * double(p[i]) - a.step * mean / (a.root * std::sqrt(square) + a.eps));
  }
  adamw(n, a, p, g, m, v, p, m, v);
  expect("adamw, weights", p, p_want, 2e-6);
  expect("adamw, mean", m, m_want, 1e-6);
  expect("adamw, mean of squares", v, v_want, 2e-6);
}

Doubles softmax_of(const Doubles& x) {
  const double top = *std::max_element(x.begin(), x.end());
  Doubles y;
  double total = 0;
  for (double each : x) total += std::exp(each - top);
  for (double each : x) y.push_back(std::exp(each - top) / total);
  return y;
}

double lse_of(const Doubles& x) {
  double total = 0;
  for (double each : x) total += std::exp(each);
  return std::log(total);
}

void check_softmax(int64_t rows, int64_t n) {
  const std::string name = "softmax of " + std::to_string(n);
  Floats x = random_floats(rows * n), gy = random_floats(rows * n), gl = random_floats(rows), gloss = random_floats(rows);
  Floats y = unwritten(rows * n), gx = unwritten(rows * n), lse = unwritten(rows), glse = unwritten(rows * n);
  Exact<int32_t> targets(rows);
  for (int64_t r = 0; r < rows; r++) targets[r] = r % 4 == 3 ? -100 : int32_t(below(n));
  Floats loss = unwritten(rows), lse2 = unwritten(rows), glogits = unwritten(rows * n);
  softmax(rows, n, x, y);
  softmax_vjp(rows, n, y, gy, gx);
  logsumexp(rows, n, x, lse);
  logsumexp_vjp(rows, n, x, lse, gl, glse);
  cross_entropy(rows, n, x, targets, loss, lse2);
  cross_entropy_vjp(rows, n, x, targets, lse2, gloss, gl, glogits);
  Doubles want, lses, losses, gx_want, glse_want, glogits_want;
  for (int64_t r = 0; r < rows; r++) {
    const Doubles row(x + r * n, x + (r + 1) * n), p = softmax_of(row);
    double mean = 0;
    for (int64_t i = 0; i < n; i++) mean += p[i] * gy[r * n + i];
    lses.push_back(lse_of(row));
    losses.push_back(targets[r] < 0 ? 0 : lses.back() - row[targets[r]]);
    for (int64_t i = 0; i < n; i++) {
      const double g = targets[r] < 0 ? 0 : gloss[r];
      want.push_back(p[i]);
      gx_want.push_back(p[i] * (gy[r * n + i] - mean));
      glse_want.push_back(p[i] * gl[r]);
      glogits_want.push_back(p[i] * (g + gl[r]) - (i == targets[r] ? g : 0));
    }
  }
  expect(name, y, want, 1e-6);
  expect(name + ", gradient", gx, gx_want, 4e-6);
  expect(name + ", logsumexp", lse, lses, 1e-6);
  expect(name + ", gradient of logsumexp", glse, glse_want, 2e-6);
  expect(name + ", cross-entropy", loss, losses, 2e-6, 1);
  expect(name + ", gradient of cross-entropy", glogits, glogits_want, 4e-6);
}

// (x - mean) / sqrt(variance + eps) weight + bias, the mean being 0 in an rms norm.
Doubles norm_of(const Doubles& x, int64_t n, double eps, bool centred, const Doubles& weight, const Doubles& bias) {
  Doubles y;
  for (size_t at = 0; at < x.size(); at += n) {
    double mean = 0, square = 0;
    for (int64_t i = 0; centred && i < n; i++) mean += x[at + i] / n;
    for (int64_t i = 0; i < n; i++) square += (x[at + i] - mean) * (x[at + i] - mean) / n;
    for (int64_t i = 0; i < n; i++) y.push_back((x[at + i] - mean) / std::sqrt(square + eps) * weight[i] + bias[i]);
  }
  return y;
}

void check_norm(int64_t rows, int64_t n, bool centred) {
  const std::string name = (centred ? "layer_norm of " : "rms_norm of ") + std::to_string(n);
  const double eps = 1e-3;
  Floats x = random_floats(rows * n), weight = random_floats(n), bias = random_floats(n), gy = random_floats(rows * n);
  Floats y = unwritten(rows * n), gx = unwritten(rows * n), gweight = unwritten(n), gbias = unwritten(n);
  if (centred) {
    layer_norm(rows, n, eps, x, weight, bias, y);
    layer_norm_vjp(rows, n, eps, x, weight, gy, gx, gweight, gbias);
  } else {
    std::fill(bias.begin(), bias.end(), 0.f);
    rms_norm(rows, n, eps, x, weight, y);
    rms_norm_vjp(rows, n, eps, x, weight, gy, gx, gweight);
  }
  const Doubles xd(x.begin(), x.end()), w(weight.begin(), weight.end()), b(bias.begin(), bias.end());
  expect(name, y, norm_of(xd, n, eps, centred, w, b), 3e-6);
  if (n > 64) return;
  auto by_x = [&](auto& at) { return inner(gy, norm_of(at, n, eps, centred, w, b)); };
  expect(name + ", gradient", gx, slopes(x, by_x), 2e-5, 1);
  auto by_weight = [&](auto& at) { return inner(gy, norm_of(xd, n, eps, centred, at, b)); };
  expect(name + ", gradient of weights", gweight, slopes(weight, by_weight), 1e-5);
  auto by_bias = [&](auto& at) { return inner(gy, norm_of(xd, n, eps, centred, w, at)); };
  if (centred) expect(name + ", gradient of biases", gbias, slopes(bias, by_bias), 1e-5);
}

void check_sums(int64_t rows, int64_t n) {
  Floats x = random_floats(rows * n), bias = random_floats(n);
  double squares = 0;
  for (float each : x) squares += double(each) * each;
  expect("sum of squares", std::abs(sum_of_squares(rows * n, x) / squares - 1) < 1e-5);
  Doubles want;
  for (int64_t i = 0; i < rows * n; i++) want.push_back(double(x[i]) + bias[i % n]);
  add_to_rows(rows, n, bias, x);
  expect("bias", x, want, 1e-6);
}

void check_rope(int64_t D, int64_t turned, bool interleaved, bool back, bool own_offsets) {
  constexpr int64_t B = 2, H = 3, L = 5;
  Floats x = random_floats(B * H * L * D), waves(turned / 2), out = unwritten(B * H * L * D);
  for (int64_t i = 0; i < waves.size(); i++) waves[i] = std::pow(1e4f, 2.f * i / turned);
  Exact<int32_t> offsets(own_offsets ? B : 1);
  for (int64_t i = 0; i < offsets.size(); i++) offsets[i] = int32_t(3 + 40 * i);
  rope({B, H, L, D, turned, interleaved, back, waves, offsets, own_offsets ? 1 : 0}, {x, H * L * D, L * D, D, 1}, out);
  Doubles want(B * H * L * D);
  for (int64_t b = 0; b < B; b++)
    for (int64_t h = 0; h < H; h++)
      for (int64_t l = 0; l < L; l++) {
        const float* from = x + ((b * H + h) * L + l) * D;
        double* to = want.data() + ((b * L + l) * H + h) * D;
        std::copy_n(from, D, to);
        for (int64_t i = 0; i < turned / 2; i++) {
          const double angle = (back ? -1 : 1) * double(offsets[own_offsets ? b : 0] + l) / waves[i];
          const int64_t one = interleaved ? 2 * i : i, two = interleaved ? one + 1 : i + turned / 2;
          to[one] = from[one] * std::cos(angle) - from[two] * std::sin(angle);
          to[two] = from[one] * std::sin(angle) + from[two] * std::cos(angle);
        }
      }
  expect("rope of " + std::to_string(D), out, want, 1e-5);
}

}  // namespace

void check_pointwise() {
  for (int kind = 0; kind < 6; kind++)
    for (int64_t n : SIZES) check_unary(Unary(kind), n);
  check_unary(Unary::silu, 70001);
  for (int64_t n : SIZES) check_adamw(n);
  for (bool flag : {false, true})
    for (int64_t D : {2, 6, 16, 34, 64}) {
      check_rope(D, D, flag, false, true);
      check_rope(D + 3, D, flag, true, false);
    }
}

void check_rows() {
  for (int64_t n : SIZES) {
    check_softmax(5, n);
    check_norm(3, n, true);
    check_norm(3, n, false);
    check_sums(7, n);
  }
  check_softmax(130, 333);
  check_norm(150, 500, true);
  check_norm(150, 500, false);
  check_sums(130, 333);
}
