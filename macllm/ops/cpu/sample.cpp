// A token from logits without sorting the vocabulary: only what can be drawn is ranked.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace macllm {
namespace {

typedef uint32_t vu __attribute__((vector_size(W * 4)));

constexpr int64_t BLOCK = 16;          // logits that share a maximum
constexpr int64_t FIRST_GUESS = 256;   // likeliest tokens that mostly hold the mass of top-p
constexpr int64_t WORTH_RADIX = 4096;  // from here on counting beats comparing
constexpr float SMALLEST = 0x1p-126f;  // of the mass: the likeliest token is always kept

// Order of falling logits, equals by index. NaN comes before or after all numbers, by its sign.
uint64_t ranked(float logit, int64_t index) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.f);  // of -0 the same as of 0
  const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(~rising) << 32 | uint64_t(index);
}

int64_t index_of(uint64_t rank) { return int64_t(rank & 0xffffffffu); }

void sort(std::vector<uint64_t>& ranks) {
  if (int64_t(ranks.size()) < WORTH_RADIX) return std::sort(ranks.begin(), ranks.end());
  // The indices are in order already: only the upper halves have to be sorted, and each pass keeps the order so far.
  std::vector<uint64_t> other(ranks.size());
  for (int shift = 32; shift < 64; shift += 11) {
    std::vector<int64_t> place(2049);
    for (uint64_t rank : ranks) place[(rank >> shift & 2047) + 1]++;
    for (int i = 0; i < 2048; i++) place[i + 1] += place[i];
    for (uint64_t rank : ranks) other[place[rank >> shift & 2047]++] = rank;
    ranks.swap(other);
  }
}

// The maxima of blocks of logits, from which the largest logits are found without looking at all of them again.
class Blocks {
 public:
  Blocks(int64_t n, const float* x) : n_(n), x_(x), tops_((n + BLOCK - 1) / BLOCK) {
    for (int64_t b = 0; b < int64_t(tops_.size()); b++) tops_[b] = largest(std::min(BLOCK, n - b * BLOCK), x + b * BLOCK);
  }

  float top() const { return *std::max_element(tops_.begin(), tops_.end()); }

  // The k largest in order.
  std::vector<uint64_t> largest_of(int64_t k) const {
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

// Two words of Threefry-2x32 with 20 rounds (Salmon et al. 2011), as MLX's generator has them.
void threefry(const uint32_t key[2], vu& a, vu& b) {
  static constexpr int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA};
  a += keys[0];
  b += keys[1];
  for (uint32_t i = 0; i < 5; i++) {
    for (int r : rotations[i % 2]) {
      a += b;
      b = (b << r | b >> (32 - r)) ^ a;
    }
    a += keys[(i + 1) % 3];
    b += keys[(i + 2) % 3] + i + 1;
  }
}

// Gumbel noise at places [first, first + W) of an array of `count` that MLX would draw with this key.
vf gumbel(const uint32_t key[2], uint32_t count, uint32_t first) {
  const uint32_t half = count / 2, odd = count % 2;
  vu place;
  for (int i = 0; i < W; i++) place[i] = first + i;
  // A hash makes the words of one place in either half; the middle of an odd count has a hash of its own.
  const vu low = (vu)(place < half), middle = (vu)(place == half) & -odd;
  vu a = (low & place) | (middle & half) | (~low & ~middle & (place - half - odd));
  vu b = ~middle & (a + half + odd);
  threefry(key, a, b);
  const vu word = ((low | middle) & a) | (~low & ~middle & b);
  vf uniform = __builtin_convertvector(word, vf) * 0x1p-32f;
  uniform = uniform < 1.f ? uniform : splat(0x1.fffffep-1f);
  const vf noise = -log(-log(uniform > 0.f ? uniform : splat(1.f - 0x1p-24f)));
  return uniform > 0.f ? noise : splat(-INFINITE);
}

struct Best {
  float value = -INFINITE;
  int64_t place = 0;
};

Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.place < a.place) ? b : a; }

Best best_of(int64_t n, const float* logits, const Sampling& s, int64_t count, int64_t first, int64_t last) {
  Best best{-INFINITE, n};
  for (int64_t i = first; i < last; i += W) {
    const int64_t left = last - i;
    const vf x = left >= W ? load(logits + i) : load(logits + i, left, -INFINITE);
    const vf sum = x + gumbel(s.key, uint32_t(count), uint32_t(i));
    const float top = max(sum);
    if (!(top > best.value)) continue;
    for (int lane = W - 1; lane >= 0; lane--)
      if (sum[lane] == top) best = {top, i + lane};
  }
  return best;
}

// The place of the largest of n logits with noise, the first ones of `count` places.
int64_t draw(int64_t n, const float* logits, const Sampling& s, int64_t count) {
  constexpr int64_t SPAN = 4096;
  std::vector<Best> found((n + SPAN - 1) / SPAN);
  parallel_range(found.size(), SPAN / W * 120, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
      found[i] = best_of(n, logits, s, count, i * SPAN, std::min(n, (i + 1) * SPAN));
  });
  Best best{-INFINITE, n};
  for (auto& one : found) best = better(best, one);
  return best.place < n ? best.place : 0;
}

// How many of the first candidates hold the mass p of `total`; all of them where they do not.
int64_t nucleus(const std::vector<float>& candidates, float top, double total, float p) {
  double mass = 0;
  for (size_t i = 0; i < candidates.size(); i++) {
    if (mass >= std::max(p, SMALLEST) * total) return i;
    mass += std::exp(candidates[i] - top);
  }
  return mass >= p * total ? candidates.size() : -1;
}

std::vector<float> values_of(const std::vector<uint64_t>& ranks, const float* x) {
  std::vector<float> values;
  for (uint64_t rank : ranks) values.push_back(x[index_of(rank)]);
  return values;
}

void keep_min_p(std::vector<float>& values, float p) {
  if (p <= 0 || values.empty()) return;
  const float least = largest(values.size(), values.data()) + float(std::log(double(p)));
  for (float& value : values) value = value < least ? -INFINITE : value;
}

int64_t draw_ranked(const std::vector<uint64_t>& ranks, std::vector<float> values, const Sampling& s, int64_t count) {
  keep_min_p(values, s.min_p);
  return index_of(ranks[draw(values.size(), values.data(), s, count)]);
}

int64_t sample_top_k(int64_t n, const float* logits, const Sampling& s) {
  const auto ranks = Blocks(n, logits).largest_of(s.top_k);
  auto values = values_of(ranks, logits);
  for (float& value : values) value /= s.temperature;
  if (s.top_p < 1) {
    double total = 0;
    for (float value : values) total += std::exp(value - values[0]);
    const int64_t kept = nucleus(values, values[0], total, s.top_p);
    if (kept >= 0) values.resize(kept);
  }
  return draw_ranked(ranks, values, s, s.top_k);
}

int64_t sample_top_p(int64_t n, const float* scaled, const Sampling& s) {
  const Blocks blocks(n, scaled);
  const float top = blocks.top();
  const double total = accumulate(n, -INFINITE, [&](vf x) { return exp(x - top); }, scaled);
  for (int64_t guess = FIRST_GUESS;; guess *= 16) {
    const auto ranks = blocks.largest_of(std::min(guess, n));
    auto values = values_of(ranks, scaled);
    const int64_t kept = nucleus(values, top, total, s.top_p);
    if (kept < 0 && guess < n) continue;
    if (kept >= 0) values.resize(kept);
    return draw_ranked(ranks, values, s, n);
  }
}

}  // namespace

int64_t sample(int64_t n, const float* logits, const Sampling& s) {
  if (s.top_k > 0 && s.top_k < n) return sample_top_k(n, logits, s);
  static thread_local std::vector<float> scaled;
  scaled.resize(n);
  map(n, scaled.data(), [&](vf x) { return x / s.temperature; }, logits);
  if (s.top_p < 1) return sample_top_p(n, scaled.data(), s);
  keep_min_p(scaled, s.min_p);
  return draw(n, scaled.data(), s, n);
}

}  // namespace macllm
