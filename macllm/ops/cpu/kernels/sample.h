// A token from logits.
#pragma once

#include <cstdint>
#include <vector>

#include "random.h"

namespace macllm {

// Changes to logits before a draw, in this order: biases, repetition, frequency and presence penalties of the newest
// `window` tokens, and DRY over the newest `dry_window`. A window of 0 means all tokens.
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

// Filters of a draw, in this order: the `top_k` largest logits, divided by the temperature; the fewest likeliest with the
// mass `top_p`; those at least `min_p` times as likely as the likeliest; the fewest most typical with the mass `typical_p`;
// 0, 1, 0 and 1 keep all. With the probability `xtc_probability`, all but the least likely of the tokens that reach
// `xtc_threshold` are removed. Temperature 0 takes the largest logit.
struct Filters {
  float temperature = 1;
  int64_t top_k = 0;
  float top_p = 1, min_p = 0, typical_p = 1, xtc_probability = 0, xtc_threshold = 0;
};

// Draws the largest sum of a logit and Gumbel noise, which MLX's generator makes for `key` and the candidate's index, or its
// rank after a filter that ranks candidates.
int64_t sample(int64_t n, const float* logits, const Filters& f, Key key);

// The k <= n largest logits, in order, ties by index.
void largest_logits(int64_t n, const float* logits, int64_t k, uint32_t* tokens, float* values);

}  // namespace macllm
