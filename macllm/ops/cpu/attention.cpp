// Attention of a block of queries at a time: the block's scores against all positions it may see fit the cache, so that
// the softmax is exact in one go and the T x S matrix never exists. Backward recomputes the scores from the saved
// log-sum-exp (Dao et al. 2022, "FlashAttention", section 3.1 and algorithm 4).
#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels.h"
#include "matmul.h"
#include "parallel.h"

namespace macllm {
namespace {

constexpr int64_t FEW_QUERIES = 8;
constexpr int64_t BLOCK_FLOATS = 32768;  // of scores per block, 128 KiB: half of a small L2

int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

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

const float* row_of(const View& x, int64_t b, int64_t h, int64_t t) {
  return x.data + b * x.batch + h * x.head + t * x.position;
}

// Rows [first, first + count) of one head as [count, padded(D)], zeros beyond D.
void pack(const Attention& a, const View& x, int64_t b, int64_t h, int64_t first, int64_t count, float* to) {
  const int64_t Dp = padded(a.D);
  for (int64_t t = 0; t < count; t++, to += Dp) {
    const float* from = row_of(x, b, h, first + t);
    for (int64_t d = 0; d < a.D; d++) to[d] = from[d * x.channel];
    std::fill(to + a.D, to + Dp, 0.f);
  }
}

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

// Query t sees positions [first, last).
struct Span {
  int64_t first, last;
};

Span seen(const Attention& a, int64_t t) {
  const int64_t at = a.S - a.T + t;
  Span span{0, a.causal ? std::clamp<int64_t>(at + 1, 0, a.S) : a.S};
  if (a.window > 0) span.first = std::clamp<int64_t>(at + 1 - a.window, 0, span.last);
  return span;
}

// What one block of queries works on; columns are counted from `first`, a multiple of W.
struct Block {
  int64_t t0, rows, first, columns, end;
};

int64_t block_rows(const Attention& a) { return std::clamp<int64_t>(BLOCK_FLOATS / padded(a.S), TILE, 64); }

Block block_at(const Attention& a, int64_t t0) {
  Block block{t0, std::min(block_rows(a), a.T - t0), 0, 0, 0};
  block.first = seen(a, t0).first / W * W;
  block.end = std::max(seen(a, t0 + block.rows - 1).last, block.first);
  block.columns = padded(block.end - block.first);
  return block;
}

// Scores of row i of a block, scaled, with -inf wherever it may not look; columns up to block.columns.
void hide(const Attention& a, const Block& block, int64_t b, int64_t h, int64_t i, float* scores) {
  const int64_t t = block.t0 + i;
  const Span span = seen(a, t);
  const int64_t from = span.first - block.first, to = span.last - block.first;
  for (int64_t j = 0; j < std::min(from, block.columns); j++) scores[j] = -INFINITE;
  for (int64_t j = std::max<int64_t>(to, 0); j < block.columns; j++) scores[j] = -INFINITE;
  if (!a.mask) return;
  const bool* mask = a.mask + b * a.mask_strides[0] + h * a.mask_strides[1] + t * a.mask_strides[2];
  for (int64_t j = from; j < to; j++)
    if (!mask[(block.first + j) * a.mask_strides[3]]) scores[j] = -INFINITE;
}

// Cephes' tanh: a polynomial near 0, where the other form would lose digits.
vf tanh(vf x) {
  const vf size = x < 0.f ? -x : x, z = x * x;
  vf p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const vf large = 1.f - 2.f / (exp(2.f * size) + 1.f);
  return size < 0.625f ? p * z * x + x : (x < 0.f ? -large : large);
}

// The products of queries and keys to softcap * tanh(scale * product / softcap), where scores are capped.
void cap(const Attention& a, int64_t columns, float* scores) {
  if (a.softcap <= 0) return;
  const float share = a.scale / a.softcap;
  for (int64_t j = 0; j < columns; j += W) store(scores + j, a.softcap * tanh(load(scores + j) * share));
}

// What is left to multiply with after `cap`.
float scale_of(const Attention& a) { return a.softcap > 0 ? 1.f : a.scale; }

// Scores to e^(score - max); the log-sum-exp and the factor that normalises.
void exponentiate(int64_t columns, float scale, float* scores, float& lse, float& factor) {
  const float top = largest(columns, scores);
  if (top == -INFINITE) {
    std::fill(scores, scores + columns, 0.f);
    lse = -INFINITE;
    factor = 0;
    return;
  }
  vf total{};
  for (int64_t j = 0; j < columns; j += W) {
    vf e = exp((load(scores + j) - top) * scale);
    store(scores + j, e);
    total += e;
  }
  const float all = sum(total);
  lse = top * scale + std::log(all);
  factor = 1.f / all;
}

struct Head {
  int64_t b, h;
};

void forward_block(const Attention& a, Head at, const Block& block, const View& q, const float* kt, const float* vp,
                   float* space, float* out, float* lse) {
  const int64_t Dp = padded(a.D), Sp = padded(a.S);
  float *queries = space, *result = queries + block.rows * Dp, *scores = result + block.rows * Dp;
  pack(a, q, at.b, at.h, block.t0, block.rows, queries);
  matmul(block.rows, block.columns, a.D, {queries, Dp, 1}, kt + block.first, Sp, scores, block.columns, false);
  float factors[64];
  for (int64_t i = 0; i < block.rows; i++) {
    float* row = scores + i * block.columns;
    cap(a, block.columns, row);
    hide(a, block, at.b, at.h, i, row);
    exponentiate(block.columns, scale_of(a), row, lse[(at.b * a.H + at.h) * a.T + block.t0 + i], factors[i]);
  }
  matmul(block.rows, Dp, block.end - block.first, {scores, block.columns, 1}, vp + block.first * Dp, Dp, result, Dp, false);
  for (int64_t i = 0; i < block.rows; i++) {
    unpack(a, result + i * Dp, 1, out + ((at.b * a.T + block.t0 + i) * a.H + at.h) * a.D, 0, factors[i]);
  }
}

// The few queries of a decoding step on one key head: keys and values are read once, where they lie.
void decode_head(const Attention& a, int64_t b, int64_t kh, const View& q, const View& k, const View& v, float* out,
                 float* lse) {
  const int64_t group = a.H / a.K, rows = group * a.T, Sp = padded(a.S), Dp = padded(a.D);
  Scratch scratch(rows * (Sp + Dp));
  float *scores = scratch.take(rows * Sp), *queries = scratch.take(rows * Dp);
  for (int64_t r = 0; r < rows; r++) {
    pack(a, q, b, kh * group + r / a.T, r % a.T, 1, queries + r * Dp);
    std::fill(scores + r * Sp + a.S, scores + (r + 1) * Sp, -INFINITE);
  }
  auto product = [](vf x, vf y) { return x * y; };
  const int64_t first = seen(a, 0).first, last = seen(a, a.T - 1).last;
  for (int64_t s = first; s < last; s++) {
    const float* key = row_of(k, b, kh, s);
    for (int64_t r = 0; r < rows; r++) scores[r * Sp + s] = accumulate(a.D, 0.f, product, key, queries + r * Dp);
  }
  float factors[FEW_QUERIES];
  for (int64_t r = 0; r < rows; r++) {
    const int64_t h = kh * group + r / a.T, t = r % a.T;
    cap(a, Sp, scores + r * Sp);
    hide(a, {0, rows, 0, Sp, a.S}, b, h, t, scores + r * Sp);
    exponentiate(Sp, scale_of(a), scores + r * Sp, lse[(b * a.H + h) * a.T + t], factors[r]);
  }
  // The queries are used up: their memory takes the result.
  if (a.D % W == 0) {
    matmul(rows, a.D, last - first, {scores + first, Sp, 1}, row_of(v, b, kh, first), v.position, queries, Dp, false);
  } else {
    std::fill(queries, queries + rows * Dp, 0.f);
    for (int64_t s = first; s < last; s++) {
      const float* value = row_of(v, b, kh, s);
      for (int64_t r = 0; r < rows; r++) {
        const float weight = scores[r * Sp + s];
        map(a.D, queries + r * Dp, [&](vf sum, vf x) { return sum + weight * x; }, queries + r * Dp, value);
      }
    }
  }
  for (int64_t r = 0; r < rows; r++) {
    unpack(a, queries + r * Dp, 1, out + ((b * a.T + r % a.T) * a.H + kh * group + r / a.T) * a.D, 0, factors[r]);
  }
}

struct Packed {
  const float *k, *kt, *vt;
  float *gk, *gv;
};

void backward_block(const Attention& a, Head at, const Block& block, const View& q, const View& out, const float* lse,
                    const View& gout, const Packed& p, float* space, float* gq) {
  const int64_t Dp = padded(a.D), Sp = padded(a.S), C = block.columns, seen_columns = block.end - block.first;
  float *queries = space, *g = queries + block.rows * Dp, *result = g + block.rows * Dp;
  float *scores = result + block.rows * Dp, *gscores = scores + block.rows * C;
  pack(a, q, at.b, at.h, block.t0, block.rows, queries);
  pack(a, gout, at.b, at.h, block.t0, block.rows, g);
  matmul(block.rows, C, a.D, {queries, Dp, 1}, p.kt + block.first, Sp, scores, C, false);
  matmul(block.rows, C, a.D, {g, Dp, 1}, p.vt + block.first, Sp, gscores, C, false);
  for (int64_t i = 0; i < block.rows; i++) {
    const float *o = row_of(out, at.b, at.h, block.t0 + i), shift = lse[(at.b * a.H + at.h) * a.T + block.t0 + i];
    float inner = 0;
    for (int64_t d = 0; d < a.D; d++) inner += o[d * out.channel] * g[i * Dp + d];
    float *row = scores + i * C, *grow = gscores + i * C;
    cap(a, C, row);
    hide(a, block, at.b, at.h, i, row);
    if (shift == -INFINITE) {
      std::fill(row, row + C, 0.f);
      std::fill(grow, grow + C, 0.f);
      continue;
    }
    for (int64_t j = 0; j < C; j += W) {
      const vf score = load(row + j), weight = exp(score * scale_of(a) - shift);
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

}  // namespace

void attention(const Attention& a, const View& q, const View& k, const View& v, float* out, float* lse) {
  const int64_t Dp = padded(a.D), Sp = padded(a.S), group = a.H / a.K, rows = block_rows(a);
  const int64_t blocks = (a.T + rows - 1) / rows;
  if (a.T * group <= FEW_QUERIES && k.channel == 1 && v.channel == 1) {
    auto body = [&](int64_t task) { decode_head(a, task / a.K, task % a.K, q, k, v, out, lse); };
    const int64_t cost = 4 * a.T * group * a.S * (a.D / W + 4);
    return parallel_range(a.B * a.K, cost, [&](int64_t from, int64_t to) {
      for (int64_t task = from; task < to; task++) body(task);
    });
  }
  // Every task packs the keys and values it reads, so a head is cut only as far as all threads need.
  const int64_t heads = a.B * a.K, parts = std::clamp<int64_t>(2 * threads() / std::max<int64_t>(heads, 1), 1, blocks);
  parallel(heads * parts, [&](int64_t task) {
    const int64_t b = task / parts / a.K, kh = task / parts % a.K, part = task % parts;
    Scratch scratch(a.D * Sp + a.S * Dp + 2 * rows * Dp + rows * Sp);
    float *kt = scratch.take(a.D * Sp), *vp = scratch.take(a.S * Dp), *space = scratch.take(0);
    pack_transposed(a, k, b, kh, kt);
    pack(a, v, b, kh, 0, a.S, vp);
    for (int64_t h = kh * group; h < (kh + 1) * group; h++)
      for (int64_t i = part; i < blocks; i += parts)
        forward_block(a, {b, h}, block_at(a, i * rows), q, kt, vp, space, out, lse);
  });
}

void attention_vjp(const Attention& a, const View& q, const View& k, const View& v, const View& out, const float* lse,
                   const View& gout, float* gq, float* gk, float* gv) {
  const int64_t Dp = padded(a.D), Sp = padded(a.S), group = a.H / a.K, rows = block_rows(a);
  parallel(a.B * a.K, [&](int64_t task) {
    const int64_t b = task / a.K, kh = task % a.K;
    Scratch scratch(2 * a.D * Sp + 3 * a.S * Dp + 3 * rows * Dp + 2 * rows * Sp);
    float *kt = scratch.take(a.D * Sp), *vt = scratch.take(a.D * Sp), *kp = scratch.take(a.S * Dp);
    float *gkp = scratch.take(a.S * Dp), *gvp = scratch.take(a.S * Dp), *space = scratch.take(0);
    pack_transposed(a, k, b, kh, kt);
    pack_transposed(a, v, b, kh, vt);
    pack(a, k, b, kh, 0, a.S, kp);
    std::fill(gkp, gkp + a.S * Dp, 0.f);
    std::fill(gvp, gvp + a.S * Dp, 0.f);
    const Packed packed{kp, kt, vt, gkp, gvp};
    for (int64_t h = kh * group; h < (kh + 1) * group; h++)
      for (int64_t t0 = 0; t0 < a.T; t0 += rows)
        backward_block(a, {b, h}, block_at(a, t0), q, out, lse, gout, packed, space, gq);
    const int64_t at = (b * a.S * a.K + kh) * a.D;
    unpack(a, gkp, a.S, gk + at, a.K * a.D, a.scale);
    unpack(a, gvp, a.S, gv + at, a.K * a.D, 1.f);
  });
}

}  // namespace macllm
