// A token from logits.
#pragma once

#include <cstdint>
#include <vector>

#include "random.h"

namespace macllm {

// What is done to logits before anything is drawn, in this order: biases, repetition, frequency and presence penalties
// of the newest `window` tokens, and DRY over the newest `dry_window`. A window of 0 is everything.
struct Penalties {
  std::vector<uint32_t> biased;
  std::vector<float> biases;
  float repetition = 1, presence = 0, frequency = 0;
  int64_t window = 0;
  float dry_multiplier = 0, dry_base = 1;
  int64_t dry_allowed = 1, dry_window = 0;
  std::vector<uint32_t> dry_breakers;

  bool any() const { return !biased.empty() || counts() || dry_multiplier != 0; }
  bool counts() const { return repetition != 1 || presence != 0 || frequency != 0; }
};
void penalize(const Penalties& p, const uint32_t* history, int64_t length, int64_t n, float* logits);

// Which logits to draw from: the `top_k` largest, divided by the temperature, of these the fewest likeliest that hold
// the mass `top_p`, of these those at least `min_p` times as likely as the likeliest, of these the fewest most typical
// that hold `typical_p`; 0, 1, 0 and 1 are all. With the probability `xtc_probability` those go that are above the least
// likely one that reaches `xtc_threshold`. Temperature 0 takes the largest logit.
struct Filters {
  float temperature = 1;
  int64_t top_k = 0;
  float top_p = 1, min_p = 0, typical_p = 1, xtc_probability = 0, xtc_threshold = 0;
};

// The draw is the largest sum with Gumbel noise, which MLX's generator gives for `key` and the place of a candidate: its
// index, or its rank where candidates have been ranked.
int64_t sample(int64_t n, const float* logits, const Filters& f, Key key);

// The k <= n largest logits, in order, equals by index.
void largest_logits(int64_t n, const float* logits, int64_t k, uint32_t* tokens, float* values);

}  // namespace macllm
