// Penalties on logits from the tokens so far.
#include <algorithm>
#include <cmath>

#include "sample.h"

namespace macllm {
namespace {

constexpr double LARGEST_PENALTY = 1e30;  // finite, so that penalties on all tokens still leave a distribution

struct Tokens {
  const uint32_t* data;
  int64_t count;

  Tokens newest(int64_t window) const {
    return window > 0 && window < count ? Tokens{data + count - window, window} : *this;
  }
};

// A zero for each token of a vocabulary; callers reset the entries that they write.
int32_t* tallies(int64_t n) {
  static thread_local std::vector<int32_t> kept;
  if (int64_t(kept.size()) < n) kept.resize(n);
  return kept.data();
}

// Rounded as by separate MLX operations, even if the compiler fuses.
float times(float a, float b) { return float(double(a) * double(b)); }

void penalize_counts(const Penalties& p, Tokens seen, int64_t n, float* logits) {
  int32_t* tally = tallies(n);
  for (int64_t i = 0; i < seen.count; i++)
    if (seen.data[i] < n) tally[seen.data[i]]++;
  for (int64_t i = 0; i < seen.count; i++) {
    const uint32_t token = seen.data[i];
    if (token >= n || tally[token] == 0) continue;
    float& x = logits[token];
    if (p.repetition != 1) x = x > 0 ? x / p.repetition : times(x, p.repetition);
    if (p.frequency != 0) x -= times(p.frequency, float(tally[token]));
    if (p.presence != 0) x -= p.presence;
    tally[token] = 0;
  }
}

// For each position, the number of tokens that end there and also end `seen`, up to a breaker (the last: 0): the Z-function
// of the reverse.
std::vector<int64_t> repeats(const Penalties& p, Tokens seen) {
  const int64_t n = seen.count;
  auto back = [&](int64_t i) { return seen.data[n - 1 - i]; };
  auto breaks = [&](uint32_t token) {
    return std::find(p.dry_breakers.begin(), p.dry_breakers.end(), token) != p.dry_breakers.end();
  };
  int64_t longest = 0;
  while (longest < n && !breaks(back(longest))) longest++;
  std::vector<int64_t> matches(n);
  for (int64_t i = 1, left = 0, right = 0; i < n; i++) {
    int64_t length = i < right ? std::min(right - i, matches[i - left]) : 0;
    while (i + length < n && back(length) == back(i + length)) length++;
    matches[i] = length;
    if (i + length > right) left = i, right = i + length;
  }
  std::reverse(matches.begin(), matches.end());
  for (int64_t& length : matches) length = std::min(length, longest);
  return matches;
}

float dry_penalty(const Penalties& p, int64_t length) {
  float exponent = float(length - p.dry_allowed);
  // The base to this power must stay below the largest penalty, or it is infinite in float32.
  if (p.dry_base > 1) exponent = std::min(exponent, float(std::log(LARGEST_PENALTY) / std::log(double(p.dry_base))));
  return std::min(times(p.dry_multiplier, std::pow(p.dry_base, exponent)), float(LARGEST_PENALTY));
}

void penalize_repeats(const Penalties& p, Tokens seen, int64_t n, float* logits) {
  if (seen.count < 2) return;
  const auto lengths = repeats(p, seen);
  int32_t* longest = tallies(n);  // of the repeats that a token would extend
  for (int64_t i = 0; i + 1 < seen.count; i++) {
    const uint32_t token = seen.data[i + 1];
    if (token < n) longest[token] = std::max(longest[token], int32_t(lengths[i]));
  }
  for (uint32_t token : p.dry_breakers)
    if (token < n) longest[token] = 0;
  for (int64_t i = 1; i < seen.count; i++) {
    const uint32_t token = seen.data[i];
    if (token >= n || longest[token] == 0) continue;
    if (longest[token] >= p.dry_allowed) logits[token] -= dry_penalty(p, longest[token]);
    longest[token] = 0;
  }
}

}  // namespace

void penalize(const Penalties& p, const uint32_t* history, int64_t length, int64_t n, float* logits) {
  for (size_t i = 0; i < p.biased.size(); i++)
    if (p.biased[i] < n) logits[p.biased[i]] += p.biases[i];
  const Tokens all{history, length};
  if (p.counts()) penalize_counts(p, all.newest(p.window), n, logits);
  if (p.dry_multiplier != 0) penalize_repeats(p, all.newest(p.dry_window), n, logits);
}

}  // namespace macllm
