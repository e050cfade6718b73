// Attention's backward: a block of queries at a time against all positions it may see, its scores computed again from
// the saved log-sum-exp (Dao et al. 2022, "FlashAttention", section 3.1 and algorithm 4).
#include <cmath>

#include "attention.h"
#include "matmul.h"
#include "parallel.h"

namespace macllm {
namespace {

constexpr int64_t BLOCK_FLOATS = 32768;  // of scores per block, 128 KiB: half of a small L2

// One head's rows transposed: [D, padded(S)], zeros beyond S.
void pack_transposed(const Attention& a, const View& x, int64_t b, int64_t h, float* to) {
  const int64_t Sp = padded(a.S);
  for (int64_t d = 0; d < a.D; d++) std::fill(to + d * Sp + a.S, to + (d + 1) * Sp, 0.f);
  for (int64_t s0 = 0; s0 < a.S; s0 += 16) {
    const int64_t s1 = std::min(a.S, s0 + 16);
    for (int64_t d = 0; d < a.D; d++)
      for (int64_t s = s0; s < s1; s++) to[d * Sp + s] = row_of(x, b, h, s)[d * x.channel];
  }
}

void unpack(const Attention& a, const float* from, int64_t count, float* to, int64_t row_stride, float factor) {
  for (int64_t t = 0; t < count; t++, from += padded(a.D), to += row_stride)
    for (int64_t d = 0; d < a.D; d++) to[d] = from[d] * factor;
}

// A block of queries and the columns that it sees, counted from `first`, a multiple of W.
struct Block {
  int64_t t0, rows, first, columns, end;
};

int64_t block_rows(const Attention& a) { return std::clamp<int64_t>(BLOCK_FLOATS / padded(a.S), TILE, 64); }

Block block_at(const Attention& a, int64_t t0) {
  Block block{t0, std::min(block_rows(a), a.T - t0), 0, 0, 0};
  block.first = visible(a, t0).first / W * W;
  block.end = std::max(visible(a, t0 + block.rows - 1).last, block.first);
  block.columns = padded(block.end - block.first);
  return block;
}

struct Unrolled {
  const float *k, *kt, *vt;
  float *gk, *gv;
};

void backward_block(const Attention& a, Head at, const Block& block, const View& q, const View& out, const float* lse,
                    const View& gout, const Unrolled& p, float* space, float* gq) {
  const int64_t Dp = padded(a.D), Sp = padded(a.S), C = block.columns, seen_columns = block.end - block.first;
  float *queries = space, *g = queries + block.rows * Dp, *result = g + block.rows * Dp;
  float *scores = result + block.rows * Dp, *gscores = scores + block.rows * C;
  pack(q, a.D, at, block.t0, block.rows, queries, Dp);
  map(block.rows * Dp, queries, [&](vf x) { return x * a.scale; }, queries);
  pack(gout, a.D, at, block.t0, block.rows, g, Dp);
  matmul(block.rows, C, a.D, {queries, Dp, 1}, p.kt + block.first, Sp, scores, C, false);
  matmul(block.rows, C, a.D, {g, Dp, 1}, p.vt + block.first, Sp, gscores, C, false);
  for (int64_t i = 0; i < block.rows; i++) {
    const float *o = row_of(out, at.b, at.h, block.t0 + i), shift = lse[(at.b * a.H + at.h) * a.T + block.t0 + i];
    float inner = 0;
    for (int64_t d = 0; d < a.D; d++) inner += o[d * out.channel] * g[i * Dp + d];
    float *row = scores + i * C, *grow = gscores + i * C;
    cap(a.softcap, C, row);
    apply_mask(a, at, block.t0 + i, block.first, C, row);
    if (shift == -INFINITE) {
      std::fill(row, row + C, 0.f);
      std::fill(grow, grow + C, 0.f);
      continue;
    }
    for (int64_t j = 0; j < C; j += W) {
      const vf score = load(row + j), weight = exp(score - shift);
      vf slope = weight * (load(grow + j) - inner);
      if (a.softcap > 0) {
        const vf share = score / a.softcap;
        slope = weight > 0.f ? slope * (1.f - share * share) : vf{};
      }
      store(row + j, weight);
      store(grow + j, slope);
    }
  }
  matmul(seen_columns, Dp, block.rows, {scores, 1, C}, g, Dp, p.gv + block.first * Dp, Dp, true);
  matmul(seen_columns, Dp, block.rows, {gscores, 1, C}, queries, Dp, p.gk + block.first * Dp, Dp, true);
  matmul(block.rows, Dp, seen_columns, {gscores, C, 1}, p.k + block.first * Dp, Dp, result, Dp, false);
  unpack(a, result, block.rows, gq + ((at.b * a.T + block.t0) * a.H + at.h) * a.D, a.H * a.D, a.scale);
}

// The sink's weight is taken from all values, so its gradient is minus their weighted mean along g.
void sinks_vjp(const Attention& a, const View& out, const float* lse, const View& gout, float* to) {
  for (int64_t h = 0; h < a.H; h++) {
    double total = 0;
    for (int64_t b = 0; b < a.B; b++) {
      for (int64_t t = 0; t < a.T; t++) {
        const float *o = row_of(out, b, h, t), *g = row_of(gout, b, h, t);
        double inner = 0;
        for (int64_t d = 0; d < a.D; d++) inner += double(o[d * out.channel]) * g[d * gout.channel];
        total -= inner * std::exp(a.sinks[h] - lse[(b * a.H + h) * a.T + t]);
      }
    }
    to[h] = float(total);
  }
}

}  // namespace

void attention_vjp(const Attention& a, const View& q, const View& k, const View& v, const View& out, const float* lse,
                   const View& gout, const Gradients& to) {
  if (a.sinks) sinks_vjp(a, out, lse, gout, to.sinks);
  const int64_t Dp = padded(a.D), Sp = padded(a.S), group = a.H / a.K, rows = block_rows(a);
  parallel(a.B * a.K, [&](int64_t task) {
    const int64_t b = task / a.K, kh = task % a.K;
    Scratch scratch(2 * a.D * Sp + 3 * a.S * Dp + 3 * rows * Dp + 2 * rows * Sp);
    float *kt = scratch.take(a.D * Sp), *vt = scratch.take(a.D * Sp), *kp = scratch.take(a.S * Dp);
    float *gkp = scratch.take(a.S * Dp), *gvp = scratch.take(a.S * Dp), *space = scratch.take(0);
    pack_transposed(a, k, b, kh, kt);
    pack_transposed(a, v, b, kh, vt);
    pack(k, a.D, {b, kh}, 0, a.S, kp, Dp);
    std::fill(gkp, gkp + a.S * Dp, 0.f);
    std::fill(gvp, gvp + a.S * Dp, 0.f);
    const Unrolled packed{kp, kt, vt, gkp, gvp};
    for (int64_t h = kh * group; h < (kh + 1) * group; h++)
      for (int64_t t0 = 0; t0 < a.T; t0 += rows)
        backward_block(a, {b, h}, block_at(a, t0), q, out, lse, gout, packed, space, to.q);
    const int64_t at = (b * a.S * a.K + kh) * a.D;
    unpack(a, gkp, a.S, to.k + at, a.K * a.D, 1.f);
    unpack(a, gvp, a.S, to.v + at, a.K * a.D, 1.f);
  });
}

}  // namespace macllm
