// A token from logits without sorting the vocabulary: only tokens that can be drawn are ranked.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "sample.h"

namespace macllm {
namespace {

constexpr int64_t BLOCK = 16;          // logits that share a maximum
constexpr int64_t FIRST_GUESS = 256;   // likeliest tokens that usually hold the mass of top-p
constexpr int64_t WORTH_RADIX = 4096;  // from this size on, radix sort is faster
constexpr float SMALLEST = 0x1p-126f;  // of the mass: the likeliest token is always kept

// Descending order of logits, ties by index. NaN is before or after all numbers, by its sign.
uint64_t ranked(float logit, int64_t index) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.f);  // of -0 the same as of 0
  const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(~rising) << 32 | uint64_t(index);
}

int64_t index_of(uint64_t rank) { return int64_t(rank & 0xffffffffu); }

void sort(std::vector<uint64_t>& ranks) {
  if (int64_t(ranks.size()) < WORTH_RADIX) return std::sort(ranks.begin(), ranks.end());
  // The indices are in order already: only the upper halves must be sorted, by stable passes.
  std::vector<uint64_t> other(ranks.size());
  for (int shift = 32; shift < 64; shift += 11) {
    std::vector<int64_t> place(2049);
    for (uint64_t rank : ranks) place[(rank >> shift & 2047) + 1]++;
    for (int i = 0; i < 2048; i++) place[i + 1] += place[i];
    for (uint64_t rank : ranks) other[place[rank >> shift & 2047]++] = rank;
    ranks.swap(other);
  }
}

// The maxima of blocks of logits, by which the largest logits are found without reading all of them again.
class Blocks {
 public:
  Blocks(int64_t n, const float* x) : n_(n), x_(x), tops_((n + BLOCK - 1) / BLOCK) {
    for (int64_t b = 0; b < int64_t(tops_.size()); b++) tops_[b] = largest(std::min(BLOCK, n - b * BLOCK), x + b * BLOCK);
  }

  // The k largest in order.
  std::vector<uint64_t> largest_of(int64_t k) const {
    if (k == 0) return {};
    float least = -INFINITE;  // there are k logits of at least this size: each of k blocks has one
    if (k <= int64_t(tops_.size())) {
      auto tops = tops_;
      std::nth_element(tops.begin(), tops.begin() + (k - 1), tops.end(), std::greater<float>());
      least = tops[k - 1];
    }
    std::vector<uint64_t> ranks;
    for (int64_t b = 0; b < int64_t(tops_.size()); b++) {
      if (tops_[b] < least) continue;
      for (int64_t i = b * BLOCK; i < std::min(n_, (b + 1) * BLOCK); i++)
        if (!(x_[i] < least)) ranks.push_back(ranked(x_[i], i));
    }
    sort(ranks);
    if (int64_t(ranks.size()) > k) ranks.resize(k);
    return ranks;
  }

 private:
  int64_t n_;
  const float* x_;
  std::vector<float> tops_;
};

struct Best {
  float value = -INFINITE;
  int64_t place = 0;
};

// The index of the first largest number; 0 if all are NaN.
int64_t likeliest(int64_t n, const float* x) {
  constexpr int64_t SPAN = 1024;
  Best best;
  for (int64_t i = 0; i < n; i += SPAN) {
    const float top = largest(std::min(SPAN, n - i), x + i);
    if (top > best.value) best = {top, i};
  }
  for (int64_t i = best.place; i < std::min(n, best.place + SPAN); i++)
    if (x[i] == best.value) return i;
  return 0;
}

// The candidates of a draw, in the order of their places; later places cannot be drawn.
struct Candidates {
  std::vector<float> logits;
  std::vector<uint32_t> tokens;  // empty: places are tokens
  int64_t places = 0;

  const float* data() const { return logits.data(); }
  int64_t size() const { return int64_t(logits.size()); }

  // Keeps only these places, in this order.
  void keep(const std::vector<uint64_t>& ranks, int64_t count) {
    std::vector<float> values;
    std::vector<uint32_t> names;
    for (int64_t i = 0; i < count; i++) {
      const int64_t place = index_of(ranks[i]);
      values.push_back(logits[place]);
      names.push_back(tokens.empty() ? uint32_t(place) : tokens[place]);
    }
    logits.assign(values.begin(), values.end());
    tokens.swap(names);
  }
};

void take(int64_t n, const float* logits, const Filters& f, Candidates& c) {
  c.tokens.clear();
  if (f.top_k > 0 && f.top_k < n) {
    c.logits.clear();
    for (uint64_t rank : Blocks(n, logits).largest_of(f.top_k)) {
      c.tokens.push_back(uint32_t(index_of(rank)));
      c.logits.push_back(logits[c.tokens.back()] / f.temperature);
    }
  } else {
    c.logits.resize(n);
    map(n, c.logits.data(), [&](vf x) { return x / f.temperature; }, logits);
  }
  c.places = c.size();
}

struct Mass {
  float top;
  double total;  // of e^(logit - top)

  explicit Mass(const Candidates& c) : top(largest(c.size(), c.data())) {
    total = accumulate(c.size(), -INFINITE, [&](vf x) { return exp(x - top); }, c.data());
  }
  float share(float logit) const { return std::exp(logit - top); }
};

// Keeps the fewest candidates, those of the largest keys first, that hold the share p of the mass, or all.
void keep_nucleus(Candidates& c, const float* keys, const Mass& mass, float p) {
  const Blocks blocks(c.size(), keys);
  for (int64_t guess = FIRST_GUESS;; guess *= 16) {
    const auto ranks = blocks.largest_of(std::min(guess, c.size()));
    double held = 0;
    size_t kept = 0;
    while (kept < ranks.size() && !(held >= std::max(p, SMALLEST) * mass.total))
      held += mass.share(c.logits[index_of(ranks[kept++])]);
    if (held >= p * mass.total || guess >= c.size()) return c.keep(ranks, kept);
  }
}

void keep_min_p(Candidates& c, float p) {
  const float least = largest(c.size(), c.data()) + float(std::log(double(p)));
  map(c.size(), c.logits.data(), [&](vf x) { return x < least ? splat(-INFINITE) : x; }, c.data());
}

// Ranks candidates by the distance of their surprise from the entropy.
void keep_typical(Candidates& c, float p) {
  const Mass mass(c);
  const float all = mass.top + float(std::log(mass.total));
  auto surprise = [&](vf x) { return x > -INFINITE ? exp(x - all) * (all - x) : vf{}; };
  const float entropy = accumulate(c.size(), -INFINITE, surprise, c.data());
  std::vector<float> keys(c.size());
  map(c.size(), keys.data(), [&](vf x) {
    const vf apart = all - x - entropy;
    return apart < 0.f ? apart : -apart;
  }, c.data());
  keep_nucleus(c, keys.data(), mass, p);
}

// Removes candidates likelier than the least likely one that reaches the threshold.
void drop_top_choices(Candidates& c, float threshold) {
  const Mass mass(c);
  const float near = mass.top + float(std::log(threshold * mass.total)) - 0.01f;
  float least = INFINITE;
  for (float x : c.logits)
    if (x >= near && x > -INFINITE && x < least && mass.share(x) / float(mass.total) >= threshold) least = x;
  map(c.size(), c.logits.data(), [&](vf x) { return x > least ? splat(-INFINITE) : x; }, c.data());
}

// The best of places [first, last); logits below `least` cannot win.
Best best_of(const Candidates& c, Key key, float least, int64_t first, int64_t last) {
  Best best{-INFINITE, c.size()};
  for (int64_t i = first; i < last; i += W) {
    const int64_t left = last - i;
    const vf x = left >= W ? load(c.data() + i) : load(c.data() + i, left, -INFINITE);
    if (!(max(x) >= least)) continue;
    const vf sum = x + gumbel(key, uint32_t(c.places), uint32_t(i));
    const float top = max(sum);
    if (!(top > best.value)) continue;
    for (int lane = W - 1; lane >= 0; lane--)
      if (sum[lane] == top) best = {top, i + lane};
  }
  return best;
}

// The place of the largest logit with noise.
int64_t draw(const Candidates& c, Key key) {
  constexpr int64_t SPAN = 4096;
  const int64_t n = c.size(), start = likeliest(n, c.data());
  const float least = c.logits[start] + gumbel(key, uint32_t(c.places), uint32_t(start))[0] - MOST_GUMBEL;
  std::vector<Best> found((n + SPAN - 1) / SPAN);
  parallel_range(found.size(), SPAN / W * 20, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) found[i] = best_of(c, key, least, i * SPAN, std::min(n, (i + 1) * SPAN));
  });
  Best best{-INFINITE, 0};
  for (auto& one : found)
    if (one.value > best.value) best = one;
  return best.place;
}

}  // namespace

int64_t sample(int64_t n, const float* logits, const Filters& f, Key key) {
  if (f.temperature == 0) return likeliest(n, logits);
  static thread_local Candidates c;  // so that its memory is reused
  take(n, logits, f, c);
  if (f.top_p < 1) keep_nucleus(c, c.data(), Mass(c), f.top_p);
  if (f.min_p > 0) keep_min_p(c, f.min_p);
  if (f.typical_p < 1) keep_typical(c, f.typical_p);
  if (f.xtc_probability > 0) {
    Key coin;
    split(key, key, coin);
    if (uniform(coin, 1, 0)[0] < f.xtc_probability) drop_top_choices(c, f.xtc_threshold);
  }
  const int64_t place = draw(c, key);
  return c.tokens.empty() ? place : c.tokens[place];
}

void largest_logits(int64_t n, const float* logits, int64_t k, uint32_t* tokens, float* values) {
  for (uint64_t rank : Blocks(n, logits).largest_of(k)) {
    *tokens = uint32_t(index_of(rank));
    *values++ = logits[*tokens++];
  }
}

}  // namespace macllm
