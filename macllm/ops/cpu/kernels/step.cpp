#include "step.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "parallel.h"

namespace macllm {
namespace {

constexpr int64_t SPAN = 1024;  // elements, few enough that `unary` and `gate` run on one thread

using Floats = std::unique_ptr<float[]>;
Floats floats(int64_t n) { return Floats(new float[n + W]); }

void normalize(const Norm& norm, int64_t n, const float* x, float* y) {
  const float mean = norm.kind == Norm::layer ? accumulate(n, 0.f, [](vf a) { return a; }, x) / n : 0.f;
  auto square = [&](vf a) { return (a - mean) * (a - mean); };
  const float squares = accumulate(n, mean, square, x);
  const float scale = 1.f / std::sqrt(squares / n + norm.eps), offset = norm.unit_offset ? 1.f : 0.f;
  if (norm.weight) {
    map(n, y, [&](vf a, vf w) { return (a - mean) * scale * (w + offset); }, x, norm.weight);
  } else {
    map(n, y, [&](vf a) { return (a - mean) * scale; }, x);
  }
  if (norm.bias) map(n, y, [](vf a, vf b) { return a + b; }, y, norm.bias);
}

void normalize(const Norm& norm, int64_t rows, int64_t n, float* x) {
  if (norm.kind == Norm::none) return;
  for (int64_t r = 0; r < rows; r++) normalize(norm, n, x + r * n, x + r * n);
}

// The input of a branch: x, or its norm in `space`.
const float* read(const Norm& norm, int64_t rows, int64_t n, const float* x, float* space) {
  if (norm.kind == Norm::none) return x;
  for (int64_t r = 0; r < rows; r++) normalize(norm, n, x + r * n, space + r * n);
  return space;
}

// x plus the branch's last layer of `in`, with the norms around the sum.
void join(const Residual& norms, const Linear& last, Rows in, const float* x, float* out) {
  const int64_t D = last.outputs, rows = in.count;
  const bool plain = norms.branch.kind == Norm::none;
  auto add = [](vf a, vf b) { return a + b; };
  in.prepare(last);
  parallel_range(D, linear_cost(last, rows), [&](int64_t from, int64_t to) {
    linear(last, in, from, to, out, D);
    for (int64_t r = 0; plain && r < rows; r++)
      map(to - from, out + r * D + from, add, out + r * D + from, x + r * D + from);
  });
  normalize(norms.branch, rows, D, out);
  if (!plain) map(rows * D, out, add, out, x);
  normalize(norms.sum, rows, D, out);
}

// Rotates the heads of row b.
void rotate(const Rotation& t, int64_t b, int64_t heads, int64_t Dh, float* x) {
  const int64_t n = t.pairs, gap = t.interleaved ? 1 : n, next = t.interleaved ? 2 : 1;
  const float *cosine = t.cosine + b * n, *sine = t.sine + b * n;
  for (int64_t h = 0; h < heads; h++, x += Dh) {
    for (int64_t i = 0; i < n; i++) {
      const float a = x[i * next], b = x[i * next + gap];
      x[i * next] = a * cosine[i] - b * sine[i];
      x[i * next + gap] = a * sine[i] + b * cosine[i];
    }
  }
}

// Norms, rotates and scales the queries and keys of one row.
void place(const AttentionStep& s, int64_t b, float* q, float* k) {
  normalize(s.q_norm, 1, s.H * s.Dh, q);
  normalize(s.k_norm, 1, s.K * s.Dh, k);
  normalize(s.q_head_norm, s.H, s.Dh, q);
  normalize(s.k_head_norm, s.K, s.Dh, k);
  rotate(s.rotation, b, s.H, s.Dh, q);
  rotate(s.rotation, b, s.K, s.Dh, k);
  float factor = s.scale;
  if (s.temperature_floor > 0) {
    const float position = std::max(float(s.position[b]), 0.f);
    factor *= 1.f + s.temperature_scale * std::log1p(std::floor((position + 1.f) / s.temperature_floor));
  }
  map(s.H * s.Dh, q, [&](vf a) { return a * factor; }, q);
}

}  // namespace

void attention_step(const AttentionStep& s, const Residual& norms, bool int8, const float* x, float* out) {
  const int64_t heads = s.H * s.Dh, kv_heads = s.K * s.Dh;
  Floats space = floats(s.B * s.D), q = floats(s.B * heads), k = floats(s.B * kv_heads), v = floats(s.B * kv_heads);
  Rows in(s.B, s.D, read(norms.pre, s.B, s.D, x, space.get()), int8);
  for (const Linear* map : {&s.q, &s.k, &s.v}) in.prepare(*map);
  parallel_range(heads + 2 * kv_heads, linear_cost(s.q, s.B), [&](int64_t from, int64_t to) {
    auto part = [&](const Linear& map, int64_t begin, float* y) {
      const int64_t first = std::max(from - begin, int64_t(0)), last = std::min(to - begin, map.outputs);
      if (first < last) linear(map, in, first, last, y, map.outputs);
    };
    part(s.q, 0, q.get());
    part(s.k, heads, k.get());
    part(s.v, heads + kv_heads, v.get());
  });
  Floats mixed = floats(s.B * heads);
  for (int64_t b = 0; b < s.B; b++) {
    place(s, b, q.get() + b * heads, k.get() + b * kv_heads);
    const NewRows rows{q.get() + b * heads, k.get() + b * kv_heads, v.get() + b * kv_heads};
    const NewToken token{b, s.H, s.K, s.Dh, s.capacity, s.at, s.first[b], s.softcap};
    append_and_attend(token, rows, s.keys, s.values, mixed.get() + b * heads);
  }
  join(norms, s.o, {s.B, heads, mixed.get(), int8}, x, out);
}

void mlp_step(const MlpStep& s, const Residual& norms, bool int8, const float* x, float* out) {
  const int64_t F = s.up.outputs;
  Floats space = floats(s.B * s.D), gates = floats(s.gated ? s.B * F : 0), hidden = floats(s.B * F);
  Rows in(s.B, s.D, read(norms.pre, s.B, s.D, x, space.get()), int8);
  for (const Linear* map : {&s.up, &s.gate}) in.prepare(*map);
  parallel_range(F, linear_cost(s.up, s.B) * (s.gated ? 2 : 1), [&](int64_t from, int64_t to) {
    linear(s.up, in, from, to, hidden.get(), F);
    if (s.gated) linear(s.gate, in, from, to, gates.get(), F);
    for (int64_t r = 0; r < s.B; r++) {
      for (int64_t i = r * F + from; i < r * F + to; i += SPAN) {
        const int64_t count = std::min(SPAN, r * F + to - i);
        float* y = hidden.get() + i;
        s.gated ? gate(s.activation, count, gates.get() + i, y, y) : unary(s.activation, count, y, y);
      }
    }
  });
  join(norms, s.down, {s.B, F, hidden.get(), int8}, x, out);
}

}  // namespace macllm
