// Attention forward and backward, in layouts, masks and sizes of every kind, over floats and packed rows.
#include "attention.h"

#include <algorithm>

#include "driver.h"

using namespace macllm;

namespace {

// Heads of D channels in memory, for each row, head and position.
struct Heads {
  Floats data;
  View view;
  Heads(int64_t B, int64_t H, int64_t L, int64_t D, bool heads_first)
      : data(random_floats(B * H * L * D)),
        view(heads_first ? View{data, H * L * D, L * D, D, 1} : View{data, L * H * D, D, H * D, 1}) {}
  double at(int64_t b, int64_t h, int64_t l, int64_t d) const {
    return view.data[b * view.batch + h * view.head + l * view.position + d * view.channel];
  }
};

bool sees(const Attention& a, int64_t b, int64_t h, int64_t t, int64_t s) {
  const int64_t at = a.S - a.T + t;
  if (a.causal && s > at) return false;
  if (a.window > 0 && std::abs(s - at) >= a.window) return false;
  if (a.chunk > 0 && (s - a.begin) / a.chunk != (at - a.begin) / a.chunk) return false;
  const int64_t* m = a.mask_strides;
  return !a.mask || a.mask[b * m[0] + h * m[1] + t * m[2] + s * m[3]];
}

// The same in a quantized cache: positions of a head are contiguous, rows are whole groups.
struct PackedHeads {
  Exact<uint32_t> words;
  Floats scales, biases;
  Heads heads;
  PackedRows rows;

  PackedHeads(int64_t B, int64_t K, int64_t S, int64_t D, int bits, int group)
      : words(B * K * S * ((D + group - 1) / group) * group * bits / 32),
        scales(random_floats(B * K * S * ((D + group - 1) / group), 1.f / float(1 << bits))),
        biases(random_floats(scales.size())),
        heads(B, K, S, D, true) {
    for (auto& each : words) each = uint32_t(generator()());
    const int64_t groups = (D + group - 1) / group, per_word = 32 / bits;
    rows = {words, scales, biases, K * S, S, groups, bits, group};
    for (int64_t row = 0; row < B * K * S; row++)
      for (int64_t d = 0; d < D; d++) {
        const int64_t at = row * groups * group + d;
        const uint32_t q = words[at / per_word] >> (at % per_word * bits) & ((1u << bits) - 1);
        heads.data[row * D + d] = scales[at / group] * float(q) + biases[at / group];
      }
  }
};

struct Reference {
  Doubles out, lse, gq, gk, gv, gsinks;
};

Reference reference(const Attention& a, const Heads& q, const Heads& k, const Heads& v, const Heads& g) {
  Reference r{Doubles(a.B * a.T * a.H * a.D), Doubles(a.B * a.H * a.T), {}, {}, {}};
  r.gq.resize(a.B * a.T * a.H * a.D), r.gk.resize(a.B * a.S * a.K * a.D), r.gv = r.gk, r.gsinks.resize(a.H);
  for (int64_t b = 0; b < a.B; b++)
    for (int64_t h = 0; h < a.H; h++)
      for (int64_t t = 0; t < a.T; t++) {
        const int64_t kh = h / (a.H / a.K), to = ((b * a.T + t) * a.H + h) * a.D;
        Doubles p(a.S), slope(a.S, 1);
        double total = a.sinks ? std::exp(double(a.sinks[h])) : 0, inner = 0;
        const double sink = total;
        for (int64_t s = 0; s < a.S; s++) {
          double score = 0;
          for (int64_t d = 0; d < a.D; d++) score += q.at(b, h, t, d) * k.at(b, kh, s, d);
          score *= a.scale;
          if (a.softcap > 0) {
            const double share = std::tanh(score / a.softcap);
            score = a.softcap * share, slope[s] = 1 - share * share;
          }
          total += p[s] = sees(a, b, h, t, s) ? std::exp(score) : 0;
        }
        r.lse[(b * a.H + h) * a.T + t] = std::log(total);
        if (total == 0) continue;
        for (int64_t s = 0; s < a.S; s++) {
          p[s] /= total;
          for (int64_t d = 0; d < a.D; d++) r.out[to + d] += p[s] * v.at(b, kh, s, d);
        }
        for (int64_t d = 0; d < a.D; d++) inner += r.out[to + d] * g.at(b, h, t, d);
        r.gsinks[h] -= sink / total * inner;
        for (int64_t s = 0; s < a.S; s++) {
          const int64_t from = ((b * a.S + s) * a.K + kh) * a.D;
          double dot = 0;
          for (int64_t d = 0; d < a.D; d++) dot += v.at(b, kh, s, d) * g.at(b, h, t, d);
          const double gscore = p[s] * (dot - inner) * slope[s] * a.scale;
          for (int64_t d = 0; d < a.D; d++) {
            r.gv[from + d] += p[s] * g.at(b, h, t, d);
            r.gk[from + d] += gscore * q.at(b, h, t, d);
            r.gq[to + d] += gscore * k.at(b, kh, s, d);
          }
        }
      }
  return r;
}

void check_packed(Attention a, int bits, int group) {
  const Heads q(a.B, a.H, a.T, a.D, true), g(a.B, a.H, a.T, a.D, true);
  const PackedHeads k(a.B, a.K, a.S, a.D, bits, group), v(a.B, a.K, a.S, a.D, bits, group);
  Floats out = unwritten(a.B * a.T * a.H * a.D), lse = unwritten(a.B * a.H * a.T);
  attention(a, q.view, {{}, k.rows}, {{}, v.rows}, out, lse);
  expect("attention over rows of " + std::to_string(bits) + " bits, T " + std::to_string(a.T) + " D " + std::to_string(a.D),
         out, reference(a, q, k.heads, v.heads, g).out, 5e-6);
}

void check(Attention a, bool heads_first, bool masked) {
  const std::string name = "attention T " + std::to_string(a.T) + " S " + std::to_string(a.S) + " D " +
                           std::to_string(a.D) + (a.causal ? " causal" : "") + (masked ? " masked" : "");
  const Heads q(a.B, a.H, a.T, a.D, heads_first), k(a.B, a.K, a.S, a.D, !heads_first), v(a.B, a.K, a.S, a.D, heads_first);
  const Heads g(a.B, a.H, a.T, a.D, !heads_first);
  Exact<bool> mask(a.B * a.T * a.S);
  for (bool& each : mask) each = below(3) > 0;
  if (masked) {
    a.mask = mask;
    const int64_t strides[] = {a.T * a.S, 0, a.S, 1};
    std::copy_n(strides, 4, a.mask_strides);
  }
  const int64_t of_q = a.B * a.T * a.H * a.D, of_k = a.B * a.S * a.K * a.D;
  Floats out = unwritten(of_q), lse = unwritten(a.B * a.H * a.T);
  Floats gq = unwritten(of_q), gk = unwritten(of_k), gv = unwritten(of_k), gsinks = unwritten(a.H);
  attention(a, q.view, {k.view, {}}, {v.view, {}}, out, lse);
  attention_vjp(a, q.view, k.view, v.view, {out, a.T * a.H * a.D, a.D, a.H * a.D, 1}, lse, g.view,
                {gq, gk, gv, a.sinks ? gsinks.get() : nullptr});
  const Reference want = reference(a, q, k, v, g);
  expect(name, out, want.out, 5e-6);
  expect(name + ", gradient of queries", gq, want.gq, 2e-5, 0.1);
  expect(name + ", gradient of keys", gk, want.gk, 2e-5, 0.1);
  expect(name + ", gradient of values", gv, want.gv, 2e-5);
  if (a.sinks) expect(name + ", gradient of sinks", gsinks, want.gsinks, 2e-5, 0.1);
  if (!masked) expect(name + ", log-sum-exp", lse, want.lse, 5e-6);
}

}  // namespace

void check_attention() {
  for (bool causal : {false, true})
    for (bool masked : {false, true})
      for (int64_t D : {1, 5, 16, 40, 64})
        for (int64_t T : {1, 2, 7, 33}) {
          const float scale = 1 / std::sqrt(float(D));
          check({2, 4, 2, T, T, D, scale, causal, 0, 0, 0, nullptr, {}}, causal, masked);
          check({1, 6, 1, T, T + 18, D, scale, causal, causal ? 9 : 0, 0, 0, nullptr, {}}, !causal, masked);
          check({1, 2, 2, T, T + 3, D, scale, causal, 0, 0, 0, nullptr, {}, 3.f}, causal, masked);
          check({1, 2, 1, T, T + 18, D, scale, causal, 6, 0, 0, nullptr, {}}, causal, masked);
          check({1, 2, 1, T, T + 25, D, scale, causal, 0, 16, -5, nullptr, {}}, !causal, masked);
        }
  Floats sinks = random_floats(4);
  for (int64_t T : {1, 3, 20}) {
    check({2, 4, 2, T, T + 5, 24, 0.3f, true, 0, 0, 0, nullptr, {}, 0, sinks}, true, false);
    check({1, 4, 1, T, T + 40, 16, 0.3f, true, 7, 0, 0, nullptr, {}, 2.f, sinks}, false, true);
    for (int bits : {4, 8})
      for (int64_t D : {16, 40, 64, 128}) {
        check_packed({2, 4, 2, T, T + 37, D, 0.02f, true, 0, 0, 0, nullptr, {}}, bits, 32);
        check_packed({1, 4, 1, T, T + 600, D, 0.02f, true, 300, 0, 0, nullptr, {}, 0, sinks}, bits, 64);
      }
  }
  check({1, 2, 1, 130, 400, 24, 0.2f, false, 60, 100, -30, nullptr, {}}, true, false);
  check_packed({1, 4, 1, 20, 500, 64, 0.02f, true, 150, 128, -7, nullptr, {}}, 4, 32);
  check({1, 3, 1, 150, 517, 24, 0.2f, true, 100, 0, 0, nullptr, {}}, true, false);
  check({1, 8, 1, 1, 1100, 64, 0.1f, true, 0, 0, 0, nullptr, {}}, true, false);
}
