// Linear layers with every kind of weights, and sampling of a token.
#include <algorithm>
#include <cstring>

#include "driver.h"
#include "linear.h"
#include "sample.h"

using namespace macllm;

namespace {

// The 16-bit float nearest to x, or a neighbour of it.
uint16_t narrow(Half kind, float x) {
  uint32_t bits;
  if (kind == Half::bfloat16) {
    std::memcpy(&bits, &x, 4);
    return uint16_t(bits >> 16);
  }
  x *= 0x1p-112f;  // the exponent's bias
  std::memcpy(&bits, &x, 4);
  return uint16_t((bits >> 13 & 0x7fff) | (bits >> 16 & 0x8000));
}

double wide(Half kind, uint16_t h) {
  if (kind == Half::bfloat16) {
    const uint32_t bits = uint32_t(h) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  const int exponent = h >> 10 & 31, rest = h & 1023;
  const double size = exponent ? std::ldexp(1024 + rest, exponent - 25) : std::ldexp(rest, -24);
  return h & 0x8000 ? -size : size;
}

// y [M, N] = x [M, K] w [N, K]^T + bias.
Doubles product(int64_t M, int64_t N, int64_t K, const float* x, const Doubles& w, const float* bias) {
  Doubles y;
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) {
      double dot = bias ? bias[n] : 0;
      for (int64_t k = 0; k < K; k++) dot += double(x[m * K + k]) * w[n * K + k];
      y.push_back(dot);
    }
  return y;
}

std::string shape(int64_t M, int64_t N, int64_t K) {
  return std::to_string(M) + " x " + std::to_string(N) + " x " + std::to_string(K);
}

void check_single(int64_t M, int64_t N, int64_t K) {
  Floats x = random_floats(M * K), w = random_floats(N * K), bias = random_floats(N), y = unwritten(M * N);
  const Doubles weights(w.begin(), w.end());
  linear({w, bias, N, K}, M, x, y);
  expect("linear " + shape(M, N, K), y, product(M, N, K, x, weights, bias), 3e-6);
  Floats z = unwritten(M * N);
  sgemm(101, 111, 112, int(M), int(N), int(K), 1.f, x, int(K), w, int(K), 0.f, z, int(N));
  expect("sgemm " + shape(M, N, K), z, product(M, N, K, x, weights, nullptr), 3e-6);
}

void check_half(Half kind, int64_t M, int64_t N, int64_t K) {
  Floats x = random_floats(M * K), gy = random_floats(M * N), y = unwritten(M * N), gx = unwritten(M * K);
  Exact<uint16_t> w(N * K);
  Doubles weights, across(K * N);
  std::normal_distribution<float> normal;
  for (auto& each : w) each = narrow(kind, below(8) ? normal(generator()) : 3e-6f);  // some are subnormal in float16
  for (uint16_t each : w) weights.push_back(wide(kind, each));
  for (int64_t n = 0; n < N; n++)
    for (int64_t k = 0; k < K; k++) across[k * N + n] = weights[n * K + k];
  half_product({kind, M, N, K, w}, x, y);
  half_product_vjp({kind, M, N, K, w}, gy, gx);
  expect("16-bit weights " + shape(M, N, K), y, product(M, N, K, x, weights, nullptr), 3e-6);
  expect("16-bit weights, gradient " + shape(M, N, K), gx, product(M, K, N, gy, across, nullptr), 3e-6);
}

void check_draws(int64_t n) {
  Floats logits = random_floats(n, 3);
  const int64_t best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  std::vector<float> sorted(logits.begin(), logits.end());
  std::sort(sorted.rbegin(), sorted.rend());
  for (uint32_t seed = 0; seed < 20; seed++) {
    auto draw = [&](int64_t k, float p, float least) { return sample(n, logits, {0.8f, k, p, least}, {seed, 1}); };
    auto known = [&](int64_t drawn) { return 0 <= drawn && drawn < n; };
    const std::string name = "a draw of " + std::to_string(n);
    expect(name + ", the likeliest by top-k", draw(1, 1, 0) == (n > 1 ? best : 0));
    expect(name + ", the likeliest by top-p", draw(0, 1e-6f, 0) == best);
    expect(name + ", the likeliest by min-p", draw(0, 1, 1) == best);
    const int64_t all = draw(0, 1, 0), some = draw(7, 1, 0), mass = draw(0, 0.9f, 0), every = draw(9, 0.5f, 0.01f);
    expect(name, known(all) && known(some) && known(mass) && known(every));
    const int64_t typical = sample(n, logits, {0.8f, 0, 1, 0, 0.7f}, {seed, 1});
    const int64_t rest = sample(n, logits, {0.8f, 20, 0.95f, 0.01f, 0.9f, 0.5f, 0.05f}, {seed, 1});
    expect(name + ", typical or without the likeliest", known(typical) && known(rest));
    expect(name + ", at temperature 0", sample(n, logits, {0.f}, {seed, 1}) == best);
    if (known(some)) expect(name + ", of seven", logits[some] >= sorted[std::min<int64_t>(n, 7) - 1]);
  }
}

void check_largest(int64_t n, int64_t k) {
  Floats logits = random_floats(n), values = unwritten(k);
  Exact<uint32_t> tokens(k);
  largest_logits(n, logits, k, tokens, values);
  std::vector<float> sorted(logits.begin(), logits.end());
  std::sort(sorted.rbegin(), sorted.rend());
  for (int64_t i = 0; i < k; i++)
    expect("the largest of " + std::to_string(n), tokens[i] < n && values[i] == sorted[i] && logits[tokens[i]] == sorted[i]);
}

// A token is divided (or multiplied) and lowered once for all its occurrences in the window.
void check_penalties(int64_t n, int64_t length, int64_t window) {
  Floats logits = random_floats(n);
  Exact<uint32_t> history(length);
  for (auto& each : history) each = uint32_t(below(n + 2));  // some are beyond the vocabulary
  Penalties p;
  p.repetition = 1.3f, p.presence = 0.2f, p.frequency = 0.1f, p.window = window;
  p.biased = {0, uint32_t(n)}, p.biases = {0.5f, 1.f};
  Doubles want(logits.begin(), logits.end());
  want[0] += 0.5;
  for (int64_t token = 0; token < n; token++) {
    const int64_t first = window ? std::max<int64_t>(0, length - window) : 0;
    const auto count = std::count(history.begin() + first, history.end(), uint32_t(token));
    if (count) want[token] = (want[token] > 0 ? want[token] / 1.3 : want[token] * 1.3) - 0.1 * count - 0.2;
  }
  Floats again(n);
  std::copy(logits.begin(), logits.end(), again.begin());
  penalize(p, history, length, n, logits);
  expect("penalties", logits, want, 1e-6, 1);
  p.dry_multiplier = 0.8f, p.dry_base = 1.75f, p.dry_allowed = 1, p.dry_breakers = {1, uint32_t(n + 1)};
  penalize(p, history, length, n, again);
  for (int64_t i = 0; i < n; i++) expect("dry only lowers", again[i] <= logits[i]);
}

}  // namespace

void check_linear() {
  for (int64_t M : {1, 2, 3, 4, 7, 24, 25, 65})
    for (int64_t K : {1, 3, 8, 17, 100, 515}) check_single(M, M == 1 ? 260 : 37, K);
  for (Half kind : {Half::bfloat16, Half::float16})
    for (int64_t M : {1, 3, 4, 6, 24, 25, 70})
      for (int64_t K : {1, 5, 16, 31, 96, 600}) check_half(kind, M, 69, K);
  check_half(Half::float16, 130, 530, 70);
}

void check_sampling() {
  for (int64_t n : {1, 2, 15, 16, 17, 300, 5000, 20003}) check_draws(n);
  for (int64_t n : {1, 2, 17, 300, 5000})
    for (int64_t k : {1, 5, 300}) check_largest(n, std::min(n, k));
  for (int64_t n : {2, 40, 500})
    for (int64_t length : {0, 1, 2, 60, 700})
      for (int64_t window : {0, 20}) check_penalties(n, length, window);
}
