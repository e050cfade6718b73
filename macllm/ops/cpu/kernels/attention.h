// softmax(softcap(scale q k^T) + mask) v over keys and values, floats or packed, and helpers of its files.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "kernels.h"
#include "kv.h"
#include "simd.h"

namespace macllm {

struct Attention {
  int64_t B, H, K, T, S, D;  // H query heads share K key heads; the T queries are the last of S positions
  float scale;
  bool causal;
  int64_t window;  // keys this many positions away or more are hidden; 0: no limit
  int64_t chunk, begin;  // a query sees its own chunk of positions; chunks begin at `begin` <= 0; 0: no chunks
  const bool* mask;  // true for visible keys, or null
  int64_t mask_strides[4];
  float softcap = 0;             // scores are bounded to +-softcap; 0: no limit
  const float* sinks = nullptr;  // a score for each of H heads that is in the softmax and has no value, or null
};

// Keys or values: `floats` if they have data, else `packed`.
struct Stored {
  View floats{};
  PackedRows packed{};
};

// out is [B, T, H, D] in memory, lse [B, H, T] or null.
void attention(const Attention& a, const View& q, const Stored& k, const Stored& v, float* out, float* lse);
// The same for few queries, where reading keys and values takes most of the time.
void attention_few(const Attention& a, const View& q, const Stored& k, const Stored& v, float* out, float* lse);

// A layer's buffer of keys or of values, [B, K, capacity, D]: packed if `floats` is null.
struct Buffer {
  float* floats = nullptr;
  PackedRow packed{};  // the first row
};

// One new token of row b of a batch: its rows go to slot `at`, and it sees slots [first, at].
struct NewToken {
  int64_t b, H, K, D, capacity, at, first;
  float softcap = 0;
  const float* sinks = nullptr;
};

// Writes k and v [K, D] into their slot and attends: q [H, D], already scaled, -> out [H, D].
struct NewRows {
  const float *q, *k, *v;
};
void append_and_attend(const NewToken& n, const NewRows& rows, const Buffer& keys, const Buffer& values, float* out);

// gq [B, T, H, D], gk and gv [B, S, K, D] in memory; gsinks [H] if there are sinks.
struct Gradients {
  float *q, *k, *v, *sinks;
};
void attention_vjp(const Attention& a, const View& q, const View& k, const View& v, const View& out, const float* lse,
                   const View& gout, const Gradients& to);

inline int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

// Uninitialised floats for one task.
class Scratch {
 public:
  explicit Scratch(int64_t n) : data_(new float[n + W]), next_(data_.get()) {}
  float* take(int64_t n) {
    float* at = next_;
    next_ += n;
    return at;
  }

 private:
  std::unique_ptr<float[]> data_;
  float* next_;
};

struct Head {
  int64_t b, h;
};

inline const float* row_of(const View& x, int64_t b, int64_t h, int64_t t) {
  return x.data + b * x.batch + h * x.head + t * x.position;
}

// Rows [first, first + count) of one head as [count, stride], zeros beyond D.
inline void pack(const View& x, int64_t D, Head at, int64_t first, int64_t count, float* to, int64_t stride) {
  for (int64_t t = 0; t < count; t++, to += stride) {
    const float* from = row_of(x, at.b, at.h, first + t);
    if (x.channel == 1) {
      std::copy(from, from + D, to);
    } else {
      for (int64_t d = 0; d < D; d++) to[d] = from[d * x.channel];
    }
    std::fill(to + D, to + stride, 0.f);
  }
}

// Query t sees positions [first, last).
struct Span {
  int64_t first, last;
};

inline Span visible(const Attention& a, int64_t t) {
  const int64_t at = a.S - a.T + t;
  Span span{0, a.causal ? at + 1 : a.S};
  if (a.window > 0) span = {at + 1 - a.window, std::min(span.last, at + a.window)};
  if (a.chunk > 0) {
    const int64_t from = std::max<int64_t>(at - a.begin, 0) / a.chunk * a.chunk + a.begin;
    span = {std::max(span.first, from), std::min(span.last, from + a.chunk)};
  }
  span.last = std::clamp<int64_t>(span.last, 0, a.S);
  span.first = std::clamp<int64_t>(span.first, 0, span.last);
  return span;
}

// Sets the scores of query t of a head at positions first, first + 1, ... to -inf where they are masked.
inline void apply_mask(const Attention& a, Head of, int64_t t, int64_t first, int64_t columns, float* scores) {
  const Span span = visible(a, t);
  const int64_t from = std::clamp<int64_t>(span.first - first, 0, columns);
  const int64_t to = std::clamp<int64_t>(span.last - first, from, columns);
  std::fill(scores, scores + from, -INFINITE);
  std::fill(scores + to, scores + columns, -INFINITE);
  if (!a.mask) return;
  const bool* mask = a.mask + of.b * a.mask_strides[0] + of.h * a.mask_strides[1] + t * a.mask_strides[2];
  for (int64_t j = from; j < to; j++)
    if (!mask[(first + j) * a.mask_strides[3]]) scores[j] = -INFINITE;
}

// Cephes' tanh: a polynomial near 0, where the formula by exp loses digits.
inline vf tanh(vf x) {
  const vf size = x < 0.f ? -x : x, z = x * x;
  vf p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const vf large = 1.f - 2.f / (exp(2.f * size) + 1.f);
  return size < 0.625f ? p * z * x + x : (x < 0.f ? -large : large);
}

// Scores to softcap * tanh(score / softcap), unless softcap is 0; columns are a multiple of W.
inline void cap(float softcap, int64_t columns, float* scores) {
  if (softcap <= 0) return;
  for (int64_t j = 0; j < columns; j += W) store(scores + j, softcap * tanh(load(scores + j) / softcap));
}

}  // namespace macllm
