#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "matmul.h"
#include "parallel.h"

namespace macllm {
namespace {

// Slots that one task attends over: few enough that there is work for all threads, not so few that sums are most of it.
constexpr int64_t LEAST_CHUNK = 64, MOST_CHUNK = 512;
constexpr int64_t SPAN = 1024;  // elements that `unary` and `gate` do not divide again

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

// What a branch reads: the stream, or its norm in `space`.
const float* read(const Norm& norm, int64_t rows, int64_t n, const float* x, float* space) {
  if (norm.kind == Norm::none) return x;
  for (int64_t r = 0; r < rows; r++) normalize(norm, n, x + r * n, space + r * n);
  return space;
}

// The stream with the branch's last map added.
void join(const Residual& norms, const Linear& last, Rows in, const float* x, float* out) {
  const int64_t D = last.outputs, rows = in.count;
  const bool plain = norms.branch.kind == Norm::none;
  auto add = [](vf a, vf b) { return a + b; };
  in.prepare(last);
  parallel_range(D, linear_cost(last, rows), [&](int64_t from, int64_t to) {
    linear(last, in, from, to, out, D);
    for (int64_t r = 0; plain && r < rows; r++) map(to - from, out + r * D + from, add, out + r * D + from, x + r * D + from);
  });
  normalize(norms.branch, rows, D, out);
  if (!plain) map(rows * D, out, add, out, x);
  normalize(norms.sum, rows, D, out);
}

// The heads of row b.
void turn(const Turn& t, int64_t b, int64_t heads, int64_t Dh, float* x) {
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

// One row's queries and keys, normed, turned and scaled.
void place(const AttentionStep& s, int64_t b, float* q, float* k) {
  normalize(s.q_norm, 1, s.H * s.Dh, q);
  normalize(s.k_norm, 1, s.K * s.Dh, k);
  normalize(s.q_head_norm, s.H, s.Dh, q);
  normalize(s.k_head_norm, s.K, s.Dh, k);
  turn(s.turn, b, s.H, s.Dh, q);
  turn(s.turn, b, s.K, s.Dh, k);
  float factor = s.scale;
  if (s.heat_floor > 0) {
    const float position = std::max(float(s.position[b]), 0.f);
    factor *= 1.f + s.heat_scale * std::log1p(std::floor((position + 1.f) / s.heat_floor));
  }
  map(s.H * s.Dh, q, [&](vf a) { return a * factor; }, q);
}

// Scores to e^(score - top), which it returns with their sum.
void exponentiate(int64_t n, float softcap, float* scores, float& top, float& total) {
  if (softcap > 0) {
    const float twice = 2.f / softcap;
    map(n, scores, [&](vf a) { return softcap * (2.f * sigmoid(a * twice) - 1.f); }, scores);
  }
  top = largest(n, scores);
  map(n, scores, [&](vf a) { return exp(a - top); }, scores);
  total = accumulate(n, 0.f, [](vf a) { return a; }, scores);
}

// Results of attending over some slots: they are summed when all are there, each by its own maximum.
struct Part {
  float top, total;
};

// The queries of one key head over `slots` rows of keys and values.
void attend(const AttentionStep& s, int64_t slots, const float* q, const float* keys, const float* values, Part* parts,
            float* sums) {
  const int64_t group = s.H / s.K;
  Floats scores = floats(group * slots);
  linear({keys, nullptr, slots, s.Dh}, {group, s.Dh, q}, 0, slots, scores.get(), slots);
  for (int64_t r = 0; r < group; r++)
    exponentiate(slots, s.softcap, scores.get() + r * slots, parts[r].top, parts[r].total);
  if (s.Dh % W == 0) return matmul(group, s.Dh, slots, {scores.get(), slots, 1}, values, s.Dh, sums, s.Dh, false);
  std::fill(sums, sums + group * s.Dh, 0.f);
  for (int64_t r = 0; r < group; r++) {
    for (int64_t t = 0; t < slots; t++) {
      const float weight = scores[r * slots + t];
      map(s.Dh, sums + r * s.Dh, [&](vf sum, vf a) { return sum + weight * a; }, sums + r * s.Dh, values + t * s.Dh);
    }
  }
}

void merge(int64_t chunks, int64_t heads, int64_t Dh, const Part* parts, const float* sums, int64_t h, float* out) {
  float top = -INFINITE, total = 0;
  for (int64_t c = 0; c < chunks; c++) top = std::max(top, parts[c * heads + h].top);
  std::fill(out, out + Dh, 0.f);
  for (int64_t c = 0; c < chunks; c++) {
    const float factor = std::exp(parts[c * heads + h].top - top);
    total += parts[c * heads + h].total * factor;
    map(Dh, out, [&](vf sum, vf a) { return sum + a * factor; }, out, sums + (c * heads + h) * Dh);
  }
  map(Dh, out, [&](vf a) { return a / total; }, out);
}

// One row's queries over all it may see: (H, Dh) -> (H, Dh).
void attend_row(const AttentionStep& s, int64_t b, const float* q, const float* keys, const float* values, float* out) {
  const int64_t group = s.H / s.K, first = s.first[b], count = s.at + 1 - first;
  const int64_t chunk = std::clamp(count * s.K / (threads() * 4), LEAST_CHUNK, MOST_CHUNK), chunks = (count + chunk - 1) / chunk;
  Floats sums = floats(chunks * s.H * s.Dh);
  std::vector<Part> parts(chunks * s.H);
  const int64_t cost = std::min(count, chunk) * group * (s.Dh / 8 + 8);
  parallel_range(chunks * s.K, cost, [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; task++) {
      const int64_t c = task % chunks, kh = task / chunks, h = kh * group, slot = first + c * chunk;
      const int64_t row = (b * s.K + kh) * s.capacity + slot, at = c * s.H + h;
      attend(s, std::min(chunk, s.at + 1 - slot), q + h * s.Dh, keys + row * s.Dh, values + row * s.Dh, &parts[at],
             sums.get() + at * s.Dh);
    }
  });
  for (int64_t h = 0; h < s.H; h++) merge(chunks, s.H, s.Dh, parts.data(), sums.get(), h, out + h * s.Dh);
}

}  // namespace

void attention_step(const AttentionStep& s, const Residual& norms, bool int8, const float* x, float* keys, float* values,
                    float* out) {
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
    for (int64_t kh = 0; kh < s.K; kh++) {
      const int64_t to = ((b * s.K + kh) * s.capacity + s.at) * s.Dh, from = b * kv_heads + kh * s.Dh;
      std::memcpy(keys + to, k.get() + from, s.Dh * sizeof(float));
      std::memcpy(values + to, v.get() + from, s.Dh * sizeof(float));
    }
    attend_row(s, b, q.get() + b * heads, keys, values, mixed.get() + b * heads);
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
